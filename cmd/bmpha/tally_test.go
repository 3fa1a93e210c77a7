package main

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/bmpha/bmpha/pkg/record"
	"github.com/bmpha/bmpha/pkg/replay"
	"github.com/bmpha/bmpha/pkg/rig"
)

// A tally is what a consumer of the topic makes of it: the routers' tables, how
// often each numbered route came, who sent, and whether the order was kept.
type tally struct {
	mu    sync.Mutex
	table replay.Consumer
	// fenced is the table of a consumer that ignores records with a smaller token
	// than one before, unless it was said that several may send. Only with byToken.
	fenced  replay.Consumer
	byToken bool
	// Tables are made of the records when they are asked for: what is done for each
	// record while there is traffic decides whether the test keeps up with it.
	untold  []untold
	token   map[int32]uint64  // the largest of each partition
	numbers map[uint64]seen   // by number of the route
	events  map[[2]string]int // by router and event_type, bmp_msg_type or log_type
	senders []stint           // in the order of the records
	last    map[place]record.Header
	faults  []string // what should never be seen
	count   int
	// unflagged counts the records of numbered routes that had come before and do not
	// say that they may have; some of them are in faces.
	unflagged int
	faces     []string
	late      int      // records of a smaller token behind those of a larger one
	samples   []sample // of all records, in the order of arrival
}

// A seen is how often a numbered route has come, and where from the first time.
type seen struct {
	times    int
	instance uint64
	offset   int64
	at       time.Time
}

// A stint is a run of records of one sender.
type stint struct {
	instance    uint64
	token       uint64
	first, last time.Time // by the producer's clock, to the millisecond
	records     int
}

// A place is where records of one session are in order.
type place struct {
	partition int32
	instance  uint64
	session   uint32
	token     uint64
}

// An untold record is not yet in the tables.
type untold struct {
	partition int32
	offset    int64
	value     []byte
	late      bool // not for the table by tokens
}

// maxUntold bounds what is kept of records for the tables.
const maxUntold = 100_000

// A sample is who sent when, by the producer's clock.
type sample struct {
	at       time.Time
	instance uint64
}

func newTally() *tally {
	return &tally{numbers: make(map[uint64]seen), token: make(map[int32]uint64), events: make(map[[2]string]int), last: make(map[place]record.Header)}
}

func (t *tally) fault(format string, args ...any) {
	if len(t.faults) < 20 {
		t.faults = append(t.faults, fmt.Sprintf(format, args...))
	}
}

// record takes one record.
func (t *tally) record(r rig.Record) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.count++
	router := text(r.Value, `"bmp_router": "`)
	for _, key := range []string{`"event_type": "`, `"bmp_msg_type": "`, `"log_type": "`} {
		if name := text(r.Value, key); name != "" {
			t.events[[2]string{router, name}]++
		}
	}
	u := untold{r.Partition, r.Offset, r.Value, false}
	defer func() {
		if t.untold = append(t.untold, u); len(t.untold) >= maxUntold {
			t.tell()
		}
	}()
	number, numbered := replay.Number(text(r.Value, `"ip_prefix": "`))
	before := t.numbers[number]
	raw := r.Header(record.HeaderName)
	if raw == nil {
		if numbered {
			before.times++
			t.numbers[number] = before
		}
		return
	}
	h, err := record.ParseHeader(raw)
	if err != nil {
		t.fault("partition %d offset %d: %v", r.Partition, r.Offset, err)
		return
	}
	if numbered {
		now := before
		if now.times == 0 {
			now = seen{0, h.Instance, r.Offset, r.Timestamp}
		}
		now.times++
		t.numbers[number] = now
	}
	if numbered && before.times > 0 && h.Flags&(record.FlagReplayed|record.FlagShared) == 0 {
		if t.unflagged++; len(t.faces) < 10 {
			t.faces = append(t.faces, fmt.Sprintf("%d at %s, offset %d, sender %016x, token %d, session %d, message %d; at first at %s, offset %d, sender %016x",
				number, r.Timestamp.Format("15:04:05.000"), r.Offset, h.Instance, h.Token, h.Session, h.Message,
				before.at.Format("15:04:05.000"), before.offset, before.instance))
		}
	}
	t.samples = append(t.samples, sample{r.Timestamp, h.Instance})
	if h.Token < t.token[r.Partition] && h.Flags&record.FlagShared == 0 {
		t.late++
		u.late = true
	}
	t.token[r.Partition] = max(t.token[r.Partition], h.Token)
	t.sender(h, r.Timestamp)
	// P4. After a failure the cursor goes back, and what is then sent again is
	// marked; it never skips ahead and comes back for what it left out.
	p := place{r.Partition, h.Instance, h.Session, h.Token}
	last, was := t.last[p]
	if was && h.Flags&record.FlagReplayed == 0 && (h.Message < last.Message || h.Message == last.Message && h.Index <= last.Index) {
		t.fault("partition %d offset %d: message %d.%d of session %d came after %d.%d",
			r.Partition, r.Offset, h.Message, h.Index, h.Session, last.Message, last.Index)
	}
	t.last[p] = h
}

// tell puts into the tables what they lack.
func (t *tally) tell() {
	for _, u := range t.untold {
		if err := t.table.Record(u.value); err != nil {
			t.fault("partition %d offset %d: %v", u.partition, u.offset, err)
		} else if t.byToken && !u.late {
			_ = t.fenced.Record(u.value)
		}
	}
	t.untold = nil
}

// text returns what stands behind a key in a record, up to the next quotation mark.
func text(value []byte, key string) string {
	_, rest, ok := bytes.Cut(value, []byte(key))
	if !ok {
		return ""
	}
	s, _, _ := bytes.Cut(rest, []byte(`"`))
	return string(s)
}

func (t *tally) sender(h record.Header, at time.Time) {
	n := len(t.senders)
	if n == 0 || t.senders[n-1].instance != h.Instance || t.senders[n-1].token != h.Token {
		t.senders = append(t.senders, stint{instance: h.Instance, token: h.Token, first: at})
		n++
	}
	s := &t.senders[n-1]
	s.last = at
	s.records++
}

func (t *tally) Count() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.count
}

// ends returns what should never have been seen.
func (t *tally) ends() []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.tell()
	return t.faults
}

// since counts the records that were given to the Kafka library at a time or later,
// from the i-th record on, and returns how many there are.
func (t *tally) since(at time.Time, i int) (n, next int) {
	at = at.Truncate(time.Millisecond) // as times of records are
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, s := range t.samples[i:] {
		if !s.at.Before(at) {
			n++
		}
	}
	return n, len(t.samples)
}

// eventsOf counts the records of a router with that event_type, bmp_msg_type or
// log_type.
func (t *tally) eventsOf(router, name string) int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.events[[2]string{router, name}]
}

// stints returns who sent, one after the other.
func (t *tally) stints() []stint {
	t.mu.Lock()
	defer t.mu.Unlock()
	return append([]stint(nil), t.senders...)
}

// numbered returns how many numbered routes have come, and how many records of
// them came again.
func (t *tally) numbered() (routes, repeats int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, n := range t.numbers {
		repeats += n.times - 1
	}
	return len(t.numbers), repeats
}

// again returns how many records of numbered routes had come before without saying
// that they may have, and some of them.
func (t *tally) again() (unflagged int, faces []string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.unflagged, t.faces
}

// lates counts the records of a smaller token that came behind those of a larger one.
func (t *tally) lates() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.late
}

// silence returns the longest time without a record between from and to, and the
// longest when what the machine kept everybody waiting is left out.
func (t *tally) silence(from, to time.Time) (longest, judged time.Duration) {
	t.mu.Lock()
	var at []time.Time
	for _, s := range t.samples {
		if !s.at.Before(from) && !s.at.After(to) {
			at = append(at, s.at)
		}
	}
	t.mu.Unlock()
	slices.SortFunc(at, time.Time.Compare)
	for i := 1; i < len(at); i++ {
		gap := at[i].Sub(at[i-1])
		longest = max(longest, gap)
		if gap > judged {
			judged = max(judged, gap-machine.Lost(at[i-1], at[i]))
		}
	}
	return longest, judged
}

// routes returns the table.
func (t *tally) routes() map[replay.Key]string {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.tell()
	return t.table.Routes()
}

// fencedRoutes is routes by the rule of tokens.
func (t *tally) fencedRoutes() map[replay.Key]string {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.tell()
	return t.fenced.Routes()
}

// routesOf returns the table of one router.
func (t *tally) routesOf(address string) map[replay.Key]string {
	all := t.routes()
	maps.DeleteFunc(all, func(k replay.Key, _ string) bool { return k.Router != address })
	return all
}

// firstAfter returns when the first record of a sender other than instance was
// produced after at.
func (t *tally) firstAfter(at time.Time, instance uint64) (time.Time, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	var first time.Time
	for _, s := range t.senders {
		if s.instance != instance && s.last.After(at) && (first.IsZero() || s.first.Before(first)) {
			first = s.first
		}
	}
	return first, !first.IsZero()
}
