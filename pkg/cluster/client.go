package cluster

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/logging"

	"github.com/bmpha/bmpha/pkg/election"
)

// Options say where Redis is and who we are.
type Options struct {
	Address  string   // host:port; or
	Sentinel Sentinel // who know the address; or
	Cluster  []string // host:port of some nodes of a Redis Cluster
	Username string
	Password string
	Database int
	TLS      *tls.Config // nil: no TLS

	Keys     Keys
	Process  string
	Expiry   time.Duration // of the timestamp key
	Deadline time.Duration // of one Round
	Keep     time.Duration // how long the entry of a dead member counts
	Scan     bool          // look for native members
}

// scanInterval is the least time between two looks for native members, and
// scanPatience the longest that the first round waits for the first look.
const (
	scanInterval = time.Second
	scanPatience = 3 * time.Second
	forgetAfter  = int64(time.Hour / time.Microsecond)
	maxNativeTTL = time.Minute // native members write 3 s
)

// A Client talks to one Redis for one process. Its methods are safe for
// concurrent use. Close it.
type Client struct {
	opts Options
	rdb  redis.UniversalClient

	skipped atomic.Uint64 // values and entries that were not ours or not sound

	mu      sync.Mutex
	native  []string // processes with a timestamp key, by the last scan
	scanErr string   // why that scan failed
	waited  bool     // for the first scan, as long as we do
	wrote   []uint64 // the last values under our own name, whether they arrived or not
	token   uint64   // the largest that any member or the counter has shown
	counted uint64   // what the counter was at the last look
	said    int64    // Redis' clock when we last wrote our entry
	scanned chan struct{}
	scans   sync.Mutex // one scan at a time, so that an older one does not come last
	stop    context.CancelFunc
	done    sync.WaitGroup
}

func init() {
	// What matters reaches the caller as an error, and is logged once there.
	logging.Disable()
}

// New returns a client. It does no I/O before the first call.
func New(o Options) *Client {
	c := &Client{opts: o, scanned: make(chan struct{})}
	c.rdb = connect(&c.opts)
	ctx, cancel := context.WithCancel(context.Background())
	c.stop = cancel
	if o.Scan {
		c.done.Go(func() { c.scanLoop(ctx) })
	} else {
		close(c.scanned)
	}
	return c
}

// Close ends what runs in the background and the connections.
func (c *Client) Close() error {
	c.stop()
	err := c.rdb.Close()
	c.done.Wait()
	return err
}

// Skipped returns how many values under our pattern were not ours or not sound.
func (c *Client) Skipped() uint64 { return c.skipped.Load() }

// A Member is a member of the cluster with what is of use to a person.
type Member struct {
	election.Member
	Own     uint64 // own timestamp, also when forced
	Beat    int64  // Redis' clock when it last spoke, µs; 0 for native members
	Version string
	Host    string
	PID     int
	Role    string
	Mode    string
	Reason  string
	Since   int64
	Left    bool   // gone by its own will
	Link    string // host:port where it is reached directly, "" if it is not
	Why     string // it is unfit
}

// A View is what one look at Redis shows.
type View struct {
	RedisTime int64 // µs
	Members   []Member
	Shadowed  bool
	Unknown   bool // Redis does not hold what we have said
	Token     uint64
}

// Round writes what self says, with value as its timestamp (0: only look), and
// reads all members. now tells the time on the caller's clock. The whole takes
// no longer than the deadline, except for the first round, which waits a little
// longer for the first look for native members.
func (c *Client) Round(ctx context.Context, self *Self, timestamp, value uint64, now func() int64) (election.Round, *View, error) {
	c.awaitScan(ctx)
	r := election.Round{Sent: now()}
	ctx, cancel := context.WithTimeout(ctx, c.opts.Deadline)
	defer cancel()

	view, err := c.read(ctx, self, timestamp)
	if err != nil {
		return r, nil, err
	}
	r.Shadowed, r.Unknown, r.Token = view.Shadowed, view.Unknown, view.Token
	if view.Shadowed {
		value = 0
	}
	if err := c.write(ctx, view, self, timestamp, value); err != nil {
		return r, nil, err
	}
	r.RedisTime, r.Wrote = view.RedisTime, value
	c.remember(view, value != 0)
	for i := range view.Members {
		r.Members = append(r.Members, view.Members[i].Member)
	}
	return r, view, nil
}

// Look reads the members without being one.
func (c *Client) Look(ctx context.Context) (*View, error) {
	c.awaitScan(ctx)
	ctx, cancel := context.WithTimeout(ctx, c.opts.Deadline)
	defer cancel()
	view, err := c.read(ctx, nil, 0)
	if err != nil {
		return nil, err
	}
	return view, c.write(ctx, view, nil, 0, 0)
}

// read gets the clock and the entries of all members.
func (c *Client) read(ctx context.Context, self *Self, timestamp uint64) (*View, error) {
	var clock *redis.TimeCmd
	var entries *redis.MapStringStringCmd
	var own, token *redis.StringCmd
	var at time.Time
	var err error
	isCluster := len(c.opts.Cluster) > 0
	if isCluster { // whose pipelines have no node of ours
		at, err = c.time(ctx)
	}
	if err == nil {
		c.pipelined(ctx, func(p redis.Pipeliner) {
			if !isCluster {
				clock = p.Time(ctx)
			}
			own = p.Get(ctx, c.opts.Keys.Timestamp(c.opts.Process))
			token = p.Get(ctx, c.opts.Keys.Token())
			entries = p.HGetAll(ctx, c.opts.Keys.Members())
		})
		if !isCluster {
			at, err = clock.Result()
		}
	}
	if err != nil {
		c.relearn(err)
		return nil, fmt.Errorf("ask Redis at %s: %w", c.opts.Where(), plain(err))
	}
	ownHeld, err := held(own)
	counter, err2 := held(token)
	if err := cmp.Or(entries.Err(), err, err2); err != nil {
		c.relearn(err)
		return nil, fmt.Errorf("read members of the cluster from Redis at %s: %w", c.opts.Where(), plain(err))
	}
	view := &View{RedisTime: at.UnixMicro()}
	fields := entries.Val()
	_, known := fields[c.opts.Process]
	view.Token, _ = parseTimestamp(counter)
	if view.Token >= nonsense {
		c.skipped.Add(1)
		view.Token = 0
	}
	listed := make(map[string]bool, len(fields))
	var ours uint64 // timestamp in the entry under our name
	var said int64  // its beat
	var stale []string
	for name, value := range fields {
		if len(view.Members) >= maxMembers {
			c.skipped.Add(1)
			continue
		}
		e, instance, err := parseEntry(name, value)
		if err != nil {
			// Not ours, or of a member that we do not understand. If it has a
			// timestamp that lives, that counts as a native one's does.
			c.skipped.Add(1)
			if self == nil || name != c.opts.Process {
				view.Members = append(view.Members, Member{Member: election.Member{Name: name, Native: true}})
			}
			continue
		}
		age := view.RedisTime - e.Beat
		if age < -c.opts.Expiry.Microseconds() {
			c.skipped.Add(1) // written before Redis' clock was set back
			continue
		}
		mine := self != nil && name == c.opts.Process
		if mine {
			ours = e.Time
			said = e.Beat
		}
		if mine && instance != self.Instance && !e.Left && age < c.opts.Expiry.Microseconds() && older(e.Time, instance, timestamp, self.Instance) {
			view.Shadowed = true
		}
		if mine && !view.Shadowed {
			continue // what we said last; what we say now is added on writing
		}
		if age > c.opts.Keep.Microseconds() {
			if age > forgetAfter {
				stale = append(stale, name)
			}
			continue
		}
		m := e.member(name, instance)
		if !e.Left {
			m.Member.Beat = max(1, age)
		}
		view.Members = append(view.Members, m)
	}
	view.Unknown = !known || self != nil && c.wentBack(view, said)
	if len(stale) > 0 {
		c.rdb.HDel(ctx, c.opts.Keys.Members(), stale...)
	}
	for i := range view.Members {
		listed[view.Members[i].Name] = true
	}
	for _, name := range c.natives() {
		if !listed[name] && (self == nil || name != c.opts.Process) {
			view.Members = append(view.Members, Member{Member: election.Member{Name: name, Native: true}})
		}
	}
	slices.SortFunc(view.Members, func(a, b Member) int { return strings.Compare(a.Name, b.Name) })
	if self != nil && !view.Shadowed {
		view.Shadowed = c.foreign(ownHeld, ours)
	}
	return view, nil
}

// foreign reports whether the timestamp that is held under our own name is a native
// member's: neither we wrote it nor the process whose entry has our name.
func (c *Client) foreign(held string, entry uint64) bool {
	v, ok := parseTimestamp(held)
	if !ok || v == entry || v == election.ForcedActive || v == election.ForcedStandby {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return !slices.Contains(c.wrote, v)
}

// remember keeps what the next round is compared with.
func (c *Client) remember(view *View, wrote bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.token = max(c.token, view.Token)
	for i := range view.Members {
		c.token = max(c.token, view.Members[i].Token)
	}
	c.counted = view.Token
	if wrote {
		c.said = view.RedisTime
	}
}

// wentBack reports whether Redis knows less than in the round before: a replica has
// taken over that had not heard it. said is the beat of the entry under our name.
func (c *Client) wentBack(view *View, said int64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	back := view.Token < c.counted || said < c.said-2*c.opts.Deadline.Microseconds()
	c.counted = view.Token
	return back
}

// writes remembers what is about to be written under our own name.
func (c *Client) writes(value uint64) {
	const enough = 8 // what is under way, with room to spare
	c.mu.Lock()
	defer c.mu.Unlock()
	if slices.Contains(c.wrote, value) {
		return
	}
	if len(c.wrote) == enough {
		c.wrote = slices.Delete(c.wrote, 0, 1)
	}
	c.wrote = append(c.wrote, value)
}

// older says which of two processes of one name keeps it.
func older(t uint64, instance uint64, ourTime, ourInstance uint64) bool {
	if t == ourTime {
		return instance < ourInstance
	}
	return t != 0 && (ourTime == 0 || t < ourTime)
}

// write says what we say and asks which of the members are alive.
func (c *Client) write(ctx context.Context, view *View, self *Self, timestamp, value uint64) error {
	k := c.opts.Keys
	values := make([]*redis.StringCmd, len(view.Members))
	ttls := make([]*redis.DurationCmd, len(view.Members))
	var set *redis.StatusCmd
	var put *redis.IntCmd
	if value != 0 {
		c.writes(value)
	}
	c.pipelined(ctx, func(p redis.Pipeliner) {
		if value != 0 {
			set = p.Set(ctx, k.Timestamp(c.opts.Process), value, c.opts.Expiry)
			put = p.HSet(ctx, k.Members(), c.opts.Process, self.encode(timestamp, view.RedisTime))
		}
		for i := range view.Members {
			key := k.Timestamp(view.Members[i].Name)
			values[i] = p.Get(ctx, key)
			ttls[i] = p.PTTL(ctx, key)
		}
	})
	if value != 0 && (set.Err() != nil || put.Err() != nil) {
		c.relearn(errors.Join(set.Err(), put.Err()))
		return fmt.Errorf("write to Redis at %s: %w", c.opts.Where(), plain(errors.Join(set.Err(), put.Err())))
	}
	live := make([]Member, 0, len(view.Members)+1)
	for i := range view.Members {
		m := view.Members[i]
		s, getErr := values[i].Result()
		ttl := ttls[i].Val()
		t, ok := parseTimestamp(s)
		switch {
		case errors.Is(getErr, redis.Nil):
			m.Gone = true
		case getErr != nil && redis.HasErrorPrefix(getErr, "WRONGTYPE"), getErr == nil && !ok: // not a number
			c.skipped.Add(1)
			m.Gone = true
		case getErr != nil: // not taken for "nobody there"
			return fmt.Errorf("read from Redis at %s: %w", c.opts.Where(), plain(getErr))
		case m.Native && t != election.ForcedStandby && (ttl <= 0 || ttl > maxNativeTTL):
			// Native members write expiring keys. This one would never go away
			// and keep everyone waiting.
			c.skipped.Add(1)
			m.Gone = true
		default:
			m.Value = t
			m.TTL = max(0, ttl.Microseconds())
			if ttl == 0 { // in its last millisecond, and not without expiry
				m.TTL = 1
			}
		}
		// What the member said last stays, as of one that is gone.
		if !m.Gone && m.succeeded(view.RedisTime, c.opts.Expiry) && ttl > 0 && ttl <= maxNativeTTL {
			live = append(live, Member{Member: election.Member{Name: m.Name, Native: true, Value: t, TTL: m.TTL}})
			m.Gone, m.TTL = true, 0
		}
		if m.Left {
			m.Gone, m.TTL = true, 0
		}
		if m.Native && (m.Gone || m.Value == election.ForcedStandby) {
			continue // expired meanwhile, or left behind by one that has left
		}
		live = append(live, m)
	}
	view.Members = live
	if value != 0 {
		view.Members = append(view.Members, Member{
			Member: election.Member{
				Name: c.opts.Process, Instance: self.Instance, Value: value, Token: self.Token, Routers: self.Routers,
				TTL: c.opts.Expiry.Microseconds(), Unfit: self.Unfit != "",
				Active: self.Role == election.Active.String(), Ready: self.Ready, Strayed: self.Strayed,
			},
			Own: timestamp, Beat: view.RedisTime, Version: self.Version, Host: self.Host, PID: self.PID,
			Role: self.Role, Mode: self.Mode, Reason: self.Reason, Since: self.Since,
		})
	}
	return nil
}

// succeeded reports whether the timestamp under the member's name is a native
// member's, which took the name over: the member itself has left, or was silent for
// longer than what it writes lasts, and wrote another one.
func (m *Member) succeeded(now int64, expiry time.Duration) bool {
	return !m.Native && m.Value != m.Own && m.Value != election.ForcedActive && m.Value != election.ForcedStandby &&
		(m.Left || now-m.Beat > expiry.Microseconds())
}

// isReply reports whether Redis itself answered with an error.
func isReply(err error) bool {
	var reply redis.Error
	return errors.As(err, &reply)
}

// plain makes what go-redis says readable, and never shows credentials (go-redis
// does not put them into errors).
func plain(err error) error {
	var network net.Error
	switch {
	case errors.Is(err, io.EOF):
		return errors.New("connection closed")
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &network) && network.Timeout():
		return errors.New("no answer in time")
	}
	return err
}

// Publish renews what we say between two rounds, so that the low-water marks are
// never old. beat is Redis' clock as estimated by the caller.
func (c *Client) Publish(ctx context.Context, self *Self, timestamp uint64, beat int64) error {
	ctx, cancel := context.WithTimeout(ctx, c.opts.Deadline)
	defer cancel()
	if err := c.rdb.HSet(ctx, c.opts.Keys.Members(), c.opts.Process, self.encode(timestamp, beat)).Err(); err != nil {
		return fmt.Errorf("publish to Redis at %s: %w", c.opts.Where(), plain(err))
	}
	return nil
}

// Claim takes the next takeover token, larger than seen and than all that any round
// has shown, and one that all members understand. A Redis that has lost its counter, or
// holds nonsense there, goes on from its clock, so that tokens rise even if no
// collector remembers the last one.
func (c *Client) Claim(ctx context.Context, seen uint64) (uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, c.opts.Deadline)
	defer cancel()
	key := c.opts.Keys.Token()
	c.mu.Lock()
	seen = max(seen, c.token)
	c.mu.Unlock()
	n, err := c.rdb.Incr(ctx, key).Uint64()
	// Who has seen the last token that makes sense has to do with what follows.
	stray := n >= maxToken || n >= nonsense && seen < nonsense-1
	if err == nil && (n == 1 || n <= seen || stray) || err != nil && isReply(err) && !isElsewhere(err) { // lost, or something else is there
		var now time.Time
		if now, err = c.time(ctx); err == nil {
			n = max(seen+1, uint64(now.UnixMicro()))
			if err = c.rdb.Set(ctx, key, n, 0).Err(); err != nil && isReply(err) && !isElsewhere(err) {
				err = nil // it answers, and the token is larger than any that was given
			}
		}
	}
	if err == nil && n >= maxToken {
		err = fmt.Errorf("token %d", n)
	}
	if err != nil {
		return 0, fmt.Errorf("claim a takeover token from Redis at %s: %w", c.opts.Where(), plain(err))
	}
	return n, nil
}

// Announce asks all members to look at once.
func (c *Client) Announce(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, c.opts.Deadline)
	defer cancel()
	if err := c.rdb.Publish(ctx, c.opts.Keys.Changed(), c.opts.Process).Err(); err != nil {
		return fmt.Errorf("announce on Redis at %s: %w", c.opts.Where(), plain(err))
	}
	return nil
}

// Watch calls changed for each announcement of another member until ctx ends.
// Announcements may be lost; rounds find out anyway.
func (c *Client) Watch(ctx context.Context, changed func()) {
	sub := c.rdb.Subscribe(ctx, c.opts.Keys.Changed())
	defer sub.Close()
	ch := sub.Channel(redis.WithChannelSize(16), redis.WithChannelHealthCheckInterval(3*time.Second))
	for {
		select {
		case <-ctx.Done():
			return
		case m, ok := <-ch:
			if !ok {
				return
			}
			if m.Payload != c.opts.Process {
				changed()
			}
		}
	}
}

// Leave takes us off the list, with our last words: the low-water marks that a
// successor begins with stay, as those of a member that has died. The timestamp
// key stays with the value that makes everyone else come first, without expiry: a
// native member that lists keys and then reads them does not survive one that
// vanishes in between.
func (c *Client) Leave(ctx context.Context, self *Self, timestamp uint64, beat int64) error {
	ctx, cancel := context.WithTimeout(ctx, c.opts.Deadline)
	defer cancel()
	self.Left = true
	_, err := c.rdb.Pipelined(ctx, func(p redis.Pipeliner) error {
		p.Set(ctx, c.opts.Keys.Timestamp(c.opts.Process), election.ForcedStandby, 0)
		p.HSet(ctx, c.opts.Keys.Members(), c.opts.Process, self.encode(timestamp, beat))
		if len(c.opts.Cluster) == 0 {
			p.Publish(ctx, c.opts.Keys.Changed(), c.opts.Process)
		}
		return nil
	})
	if err == nil && len(c.opts.Cluster) > 0 { // whose nodes do not wait for each other
		err = c.rdb.Publish(ctx, c.opts.Keys.Changed(), c.opts.Process).Err()
	}
	if err != nil {
		return fmt.Errorf("leave the cluster on Redis at %s: %w", c.opts.Where(), plain(err))
	}
	return nil
}

// awaitScan waits for the first look for native members, once.
func (c *Client) awaitScan(ctx context.Context) {
	c.mu.Lock()
	waited := c.waited
	c.waited = true
	c.mu.Unlock()
	if waited {
		return
	}
	t := time.NewTimer(scanPatience)
	defer t.Stop()
	select {
	case <-c.scanned:
	case <-ctx.Done():
	case <-t.C:
	}
}

// ScanError says why the last look for native members failed, "" if it did not.
func (c *Client) ScanError() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.scanErr
}

func (c *Client) natives() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.native
}

func (c *Client) scanLoop(ctx context.Context) {
	first := true
	for ctx.Err() == nil {
		c.scan(ctx)
		if first { // also after an error: rounds will tell
			first = false
			close(c.scanned)
		}
		select {
		case <-ctx.Done():
		case <-time.After(scanInterval):
		}
	}
	if first {
		close(c.scanned)
	}
}

// Scan looks for native members now, for who cannot wait for the next look, which
// comes within a second by itself. The next [Client.Round] knows them. It is nothing
// without [Options.Scan]; an error is told by [Client.ScanError].
func (c *Client) Scan(ctx context.Context) {
	if c.opts.Scan {
		c.scan(ctx)
	}
}

func (c *Client) scan(ctx context.Context) {
	c.scans.Lock()
	defer c.scans.Unlock()
	names, err := c.list(ctx)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.scanErr = ""
	if err == nil {
		c.native = names
	} else if ctx.Err() == nil {
		c.scanErr = plain(err).Error()
	}
}

// list lists the processes that have a timestamp key.
func (c *Client) list(ctx context.Context) ([]string, error) {
	names, err := c.everyNode(ctx, func(node redis.Cmdable) ([]string, error) { return c.scanNode(ctx, node) })
	if err != nil {
		return nil, err
	}
	slices.Sort(names)
	names = slices.Compact(names)
	return names[:min(len(names), maxMembers)], nil
}

func (c *Client) scanNode(ctx context.Context, node redis.Cmdable) ([]string, error) {
	var names []string
	var cursor uint64
	for {
		keys, next, err := node.Scan(ctx, cursor, c.opts.Keys.pattern(), 1000).Result()
		if err != nil {
			return nil, err
		}
		for _, key := range keys {
			if p, ok := c.opts.Keys.process(key); ok && len(names) < maxMembers {
				names = append(names, p)
			}
		}
		if next == 0 {
			break
		}
		cursor = next
	}
	return names, nil
}
