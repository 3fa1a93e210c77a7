package cluster

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"

	"github.com/bmpha/bmpha/pkg/election"
)

// entryVersion is written into each entry. Readers accept later versions and
// ignore what they do not know; oldest is the earliest that is understood.
//
// Members of version 1 say two flags and three numbers of a router, and ignore what
// is more. Beside them, one of version 2 takes what they hear for whole and current,
// never lingers for them and never gives a router up to them for a lag; see
// election.Member.Old. They take a router back as soon as they hear it, and the one
// that kept it stops at once. They do not know of direct connections, so that with
// one of them no roles are held without Redis.
const (
	entryVersion = 2
	oldest       = 1
)

const (
	flagHears = 1 << iota
	flagSends
	flagWhole
	flagKeeps
	flagLags
)

// Tokens count on from Redis' clock in µs, which takes 51 bits. From nonsense on, what
// is read as a token is none, and a counter that is there begins anew: one stray value
// must not leave nothing to count on to. A smaller one is believed, wherever it came
// from, and there is room behind it for all that follow, which earlier versions
// understand up to maxToken.
const (
	nonsense = 1 << 61
	maxToken = 1 << 62
)

// maxEntry bounds the bytes of another member's entry, and maxMembers how many
// members are looked at.
const (
	maxEntry   = 4 << 20
	maxMembers = 1024
)

// Self is what a collector says of itself.
type Self struct {
	Instance uint64
	Version  string // of the program
	Host     string
	PID      int
	Role     string
	Mode     string
	Reason   string
	Since    int64 // of the role, µs since the Unix epoch
	Token    uint64
	Routers  map[string]election.RouterState // by identity
	Unfit    string                          // why it cannot do the job now, "" if it can
	Ready    bool                            // see election.Member
	Strayed  bool                            // see election.Member
	Link     string                          // host:port where others reach us directly, "" if they do not
	Left     bool                            // these are our last words
}

// entry is Self as it lies in Redis.
type entry struct {
	V        int                 `json:"v"`
	Instance string              `json:"instance"`
	Time     uint64              `json:"timestamp"` // own timestamp, whatever mode
	Beat     int64               `json:"beat"`      // Redis' clock at writing, µs
	Version  string              `json:"version,omitempty"`
	Host     string              `json:"host,omitempty"`
	PID      int                 `json:"pid,omitempty"`
	Role     string              `json:"role"`
	Mode     string              `json:"mode"`
	Reason   string              `json:"reason"`
	Since    int64               `json:"since"`
	Token    uint64              `json:"token"`
	Routers  map[string][4]int64 `json:"routers"` // flags, low-water mark or -1, last dump or 0, µs behind
	Unfit    string              `json:"unfit,omitempty"`
	Ready    bool                `json:"ready,omitempty"`
	Strayed  bool                `json:"strayed,omitempty"`
	Value    uint64              `json:"value,omitempty"` // of the timestamp key, where there is none
	Link     string              `json:"link,omitempty"`
	Left     bool                `json:"left,omitempty"`
}

func (s *Self) encode(timestamp uint64, beat int64) []byte { return s.Words(timestamp, 0, beat) }

// Words returns what a member says of itself, as it lies in Redis, for those whom
// it tells directly: timestamp is its own, value what it writes under its timestamp
// key (0: nothing yet), beat Redis' clock as far as it is known. ParseWords reads
// them.
func (s *Self) Words(timestamp, value uint64, beat int64) []byte {
	e := entry{
		Value: value,
		V:     entryVersion, Instance: strconv.FormatUint(s.Instance, 16), Time: timestamp, Beat: beat,
		Version: s.Version, Host: s.Host, PID: s.PID,
		Role: s.Role, Mode: s.Mode, Reason: s.Reason, Since: s.Since, Token: s.Token,
		Unfit: s.Unfit, Ready: s.Ready, Strayed: s.Strayed, Link: s.Link, Left: s.Left,
		Routers: make(map[string][4]int64, len(s.Routers)),
	}
	for id, r := range s.Routers {
		var flags int64
		if r.Hears {
			flags |= flagHears
		}
		if r.Sends {
			flags |= flagSends
		}
		if r.Whole {
			flags |= flagWhole
		}
		if r.Keeps {
			flags |= flagKeeps
		}
		if r.Lags {
			flags |= flagLags
		}
		e.Routers[id] = [4]int64{flags, r.Mark, r.Dumped, r.Behind}
	}
	b, err := json.Marshal(e)
	if err != nil { // numbers and strings only: cannot be
		panic(err)
	}
	return b
}

// parseEntry decodes a field of the members hash.
func parseEntry(name, value string) (entry, uint64, error) {
	var e entry
	if len(value) > maxEntry {
		return e, 0, fmt.Errorf("entry of member %q: %d bytes", name, len(value))
	}
	if err := json.Unmarshal([]byte(value), &e); err != nil {
		return e, 0, fmt.Errorf("entry of member %q: %w", name, err)
	}
	if e.V < oldest {
		return e, 0, fmt.Errorf("entry of member %q: version %d", name, e.V)
	}
	instance, err := strconv.ParseUint(e.Instance, 16, 64)
	if err != nil {
		return e, 0, fmt.Errorf("entry of member %q: instance: %w", name, err)
	}
	if e.Token >= nonsense {
		e.Token = 0 // the member is one all the same
	}
	return e, instance, nil
}

// ParseWords reads what a member of that name has said of itself with Words. Its
// Value is 0 if it has none yet. The words may be anybody's: they are bounded and
// checked.
func ParseWords(name string, words []byte) (Member, error) {
	e, instance, err := parseEntry(name, string(words))
	if err != nil {
		return Member{}, err
	}
	m := e.member(name, instance)
	if e.Value <= uint64(election.ForcedStandby) {
		m.Value = e.Value
	}
	return m, nil
}

// member is the entry as its readers see it.
func (e *entry) member(name string, instance uint64) Member {
	return Member{
		Member: election.Member{
			Name: name, Instance: instance, Token: e.Token, Unfit: e.Unfit != "", Routers: e.routers(),
			Active: e.Role == election.Active.String(), Ready: e.Ready, Strayed: e.Strayed, Old: e.V < entryVersion,
		},
		Own: e.Time, Beat: e.Beat, Version: e.Version, Host: e.Host, PID: e.PID,
		Role: e.Role, Mode: e.Mode, Reason: e.Reason, Since: e.Since, Left: e.Left, Link: e.Link, Why: e.Unfit,
	}
}

func (e *entry) routers() map[string]election.RouterState {
	m := make(map[string]election.RouterState, len(e.Routers))
	for id, v := range e.Routers { // an older member says nothing of dumps, and ignores it
		m[id] = election.RouterState{
			Hears: v[0]&flagHears != 0, Sends: v[0]&flagSends != 0, Mark: v[1], Dumped: v[2],
			Whole: v[0]&flagWhole != 0, Keeps: v[0]&flagKeeps != 0, Lags: v[0]&flagLags != 0, Behind: max(0, v[3]),
		}
	}
	return m
}

// parseTimestamp reads the value of a timestamp key. Native members compare with
// strtoll of base 0; we accept what they write, decimal digits.
func parseTimestamp(s string) (uint64, bool) {
	v, err := strconv.ParseUint(strings.TrimSpace(s), 10, 63)
	return v, err == nil && v > 0
}

const suffix = "+ha_daemon_startup_time"

// Keys are the names in Redis of one cluster.
type Keys struct{ prefix, own string }

// NewKeys returns the names for a cluster. The name must not hold '+' or glob
// characters; the configuration refuses those.
func NewKeys(name string, id int) Keys {
	p := fmt.Sprintf("%s+%d", name, id)
	return Keys{prefix: p + "+", own: "bmpha:" + p + ":"}
}

// Timestamp returns the key of a process' timestamp.
func (k Keys) Timestamp(process string) string { return k.prefix + process + suffix }

// Members returns the key of the hash of bmpha members.
func (k Keys) Members() string { return k.own + "members" }

// Token returns the key of the takeover counter.
func (k Keys) Token() string { return k.own + "token" }

// Changed returns the channel on which members ask each other to look again.
func (k Keys) Changed() string { return k.own + "changed" }

func (k Keys) pattern() string { return k.prefix + "*" + suffix }

// process returns the name of the process that a timestamp key belongs to.
func (k Keys) process(key string) (string, bool) {
	p, ok := strings.CutPrefix(key, k.prefix)
	if !ok {
		return "", false
	}
	p, ok = strings.CutSuffix(p, suffix)
	return p, ok && p != ""
}
