package rig

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"
)

// NativeOptions say how a NativeMember takes part. Cluster and Process are
// required.
type NativeOptions struct {
	Cluster string // bmp_daemon_ha_cluster_name
	ID      int    // bmp_daemon_ha_cluster_id
	Process string // core_proc_name, different in each member
	Daemon  string // what it calls itself in the registry; "" is pmbmpd

	// Value is what it writes as its startup time, as a string of any kind; "" is
	// the time of its first loop.
	Value string

	// Listed, when set, is called between KEYS and the first GET, with the keys.
	Listed func(keys []string)
}

// Constants of the native daemons, compiled in there.
const (
	// NativePeriod is the time from the end of one loop to the next.
	NativePeriod = time.Second
	// NativeExpiry is that of all keys, in seconds.
	NativeExpiry = 3

	nativeKeys    = 160 // what it has room for
	nativeTimeout = 3 * time.Second
)

// A NativeState is what a NativeMember is.
type NativeState string

const (
	NativeStarting NativeState = "starting" // before the first loop; the real one forwards then
	NativeActive   NativeState = "active"
	NativeStandby  NativeState = "standby"
	NativeCrashed  NativeState = "crashed" // a segmentation fault
	NativeGone     NativeState = "gone"    // stopped or killed: it writes no more, its key expires
)

// A NativeChange is the begin of a state.
type NativeChange struct {
	State NativeState
	At    time.Time
	Why   string // in words
}

// A NativeMember takes part in an election as a pmacct with bmp_daemon_ha does. It
// issues the same commands in the same order, on a connection that does nothing
// else: SETEX of its startup time, KEYS of all, GET of one after the other until one
// is smaller, and the SETEX of its registry.
//
// It is as careless as the original: an error or no answer to KEYS counts as being
// alone, a value that is no number counts as 0, a member with an equal value does not
// matter, a key that vanishes between KEYS and GET ends it, and so do more keys than
// it has room for. It forwards nothing: its state is all there is.
//
// The methods are safe for concurrent use.
type NativeMember struct {
	addr string
	o    NativeOptions

	life sync.Mutex // serialises Stop, Kill, Restart, Close
	stop context.CancelFunc
	done chan struct{}

	mu      sync.Mutex
	history []NativeChange
	changed chan struct{} // closed at the next change
	value   string        // what it writes
	renew   bool          // take a new startup time in the next loop
	forced  NativeState   // "" when it follows the election
	paused  chan struct{} // closed when the pause ends; nil without one
}

var _ Server = (*NativeMember)(nil)

// StartNativeMember starts a member and waits until its first loop is through.
func StartNativeMember(ctx context.Context, r Redis, o NativeOptions) (*NativeMember, error) {
	if o.Daemon == "" {
		o.Daemon = "pmbmpd"
	}
	m := &NativeMember{addr: r.Addr(), o: o, changed: make(chan struct{})}
	return m, m.Restart(ctx)
}

// Key is its key in Redis.
func (m *NativeMember) Key() string {
	return fmt.Sprintf("%s+%d+%s+ha_daemon_startup_time", m.o.Cluster, m.o.ID, m.o.Process)
}

// State returns the latest state.
func (m *NativeMember) State() NativeState {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.latest().State
}

func (m *NativeMember) latest() NativeChange {
	if len(m.history) == 0 {
		return NativeChange{State: NativeGone}
	}
	return m.history[len(m.history)-1]
}

// History returns all changes so far and a channel that is closed at the next one.
func (m *NativeMember) History() ([]NativeChange, <-chan struct{}) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return append([]NativeChange(nil), m.history...), m.changed
}

// Await waits until the member is in a state. It fails when ctx ends, and when the
// member crashes meanwhile.
func (m *NativeMember) Await(ctx context.Context, want NativeState) error {
	for {
		m.mu.Lock()
		is, changed := m.latest(), m.changed
		m.mu.Unlock()
		switch is.State {
		case want:
			return nil
		case NativeCrashed:
			return fmt.Errorf("native member %s crashed: %s", m.o.Process, is.Why)
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("native member %s is %s (%s), want %s: %w", m.o.Process, is.State, is.Why, want, context.Cause(ctx))
		}
	}
}

func (m *NativeMember) become(s NativeState, why string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.latest().State == s {
		return
	}
	m.history = append(m.history, NativeChange{s, time.Now(), why})
	close(m.changed)
	m.changed = make(chan struct{})
}

// Value returns what it writes as its startup time, "" before the first loop.
func (m *NativeMember) Value() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.value
}

// SetValue makes it write v from the next loop on, whatever v is.
func (m *NativeMember) SetValue(v string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.value, m.renew = v, false
}

// Regenerate makes it the youngest, as signal 34 does.
func (m *NativeMember) Regenerate() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.renew = true
}

// Force makes it NativeActive or NativeStandby whatever the election says, as
// signals 35 and 36 do; "" ends that, as 37 does. The others do not learn of it: it
// goes on writing its startup time.
func (m *NativeMember) Force(s NativeState) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.forced = s
}

// Stop ends it. Like the original it leaves its key behind, which expires.
func (m *NativeMember) Stop() error {
	m.life.Lock()
	defer m.life.Unlock()
	m.end()
	return nil
}

// Kill is Stop: the original does the same in both cases.
func (m *NativeMember) Kill() error { return m.Stop() }

// Close is Stop.
func (m *NativeMember) Close() error { return m.Stop() }

func (m *NativeMember) end() {
	if m.stop == nil {
		return
	}
	m.stop()
	<-m.done
	m.stop = nil
	m.become(NativeGone, "ended")
}

// Pause makes it stand still. Its state stays what it was.
func (m *NativeMember) Pause() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.paused == nil {
		m.paused = make(chan struct{})
	}
	return nil
}

// Resume ends a Pause.
func (m *NativeMember) Resume() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.paused != nil {
		close(m.paused)
		m.paused = nil
	}
	return nil
}

// Restart starts it as a new process, with a new startup time unless the options
// name one, and waits until its first loop is through.
func (m *NativeMember) Restart(ctx context.Context) error {
	m.life.Lock()
	defer m.life.Unlock()
	m.end()
	if err := m.Resume(); err != nil {
		return err
	}
	m.mu.Lock()
	m.value, m.renew, m.forced = m.o.Value, m.o.Value == "", ""
	m.mu.Unlock()
	m.become(NativeStarting, "started")
	run, cancel := context.WithCancel(context.Background())
	m.stop, m.done = cancel, make(chan struct{})
	first := make(chan struct{})
	go m.run(run, first, m.done)
	select {
	case <-first:
		return nil
	case <-ctx.Done():
		m.end()
		return fmt.Errorf("start native member %s: %w", m.o.Process, context.Cause(ctx))
	}
}

// run is the life of one process. first is closed after its first loop.
func (m *NativeMember) run(ctx context.Context, first, done chan struct{}) {
	defer close(done)
	rdb := redis.NewClient(&redis.Options{
		Addr: m.addr, Protocol: 2, DisableIdentity: true,
		MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
		MaxRetries:               -1, DialerRetries: 1,
		PoolSize:    1000, // one is used; after as many errors the pool would dial by itself
		DialTimeout: nativeTimeout, ReadTimeout: nativeTimeout, WriteTimeout: nativeTimeout,
		ContextTimeoutEnabled: true,
	})
	defer rdb.Close()
	tick := time.NewTimer(NativePeriod)
	defer tick.Stop()
	for {
		state, why := m.loop(ctx, rdb)
		if ctx.Err() != nil {
			return
		}
		m.become(state, why)
		if first != nil {
			close(first)
			first = nil
		}
		if state == NativeCrashed {
			return
		}
		tick.Reset(NativePeriod)
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		m.mu.Lock()
		paused := m.paused
		m.mu.Unlock()
		if paused != nil {
			select {
			case <-ctx.Done():
				return
			case <-paused:
			}
		}
	}
}

// loop is what it does each second.
func (m *NativeMember) loop(ctx context.Context, rdb *redis.Client) (NativeState, string) {
	m.mu.Lock()
	if m.renew {
		m.value, m.renew = strconv.FormatInt(time.Now().UnixMicro(), 10), false
	}
	value, state := m.value, m.forced
	m.mu.Unlock()
	why := "forced"
	// What comes back is of no interest to the original, here and below.
	rdb.Do(ctx, "SETEX", m.Key(), NativeExpiry, value)
	if state == "" {
		state, why = m.elect(ctx, rdb, parseLongLong(value))
	}
	if state != NativeCrashed {
		rdb.Do(ctx, "SETEX", m.o.Process+"+0+daemon_type", NativeExpiry, m.o.Daemon)
		rdb.Do(ctx, "SETEX", m.o.Process+"+0+process+"+m.o.Process+"+core", NativeExpiry, "1")
	}
	return state, why
}

func (m *NativeMember) elect(ctx context.Context, rdb *redis.Client, own int64) (NativeState, string) {
	keys, err := rdb.Do(ctx, "KEYS", fmt.Sprintf("%s+%d+*ha_daemon_startup_time", m.o.Cluster, m.o.ID)).StringSlice()
	if err != nil {
		return NativeActive, "KEYS: " + err.Error()
	}
	if len(keys) > nativeKeys {
		return NativeCrashed, fmt.Sprintf("%d keys", len(keys))
	}
	if m.o.Listed != nil {
		m.o.Listed(keys)
	}
	last := "" // stays when there is no answer
	for _, key := range keys {
		v, err := rdb.Do(ctx, "GET", key).Text()
		var reply redis.Error
		switch {
		case errors.Is(err, redis.Nil):
			return NativeCrashed, key + " vanished between KEYS and GET"
		case errors.As(err, &reply): // its text is taken for the value
			last = err.Error()
		case err == nil:
			last = v
		}
		if parseLongLong(last) < own {
			return NativeStandby, fmt.Sprintf("%s has %q", key, last)
		}
	}
	return NativeActive, fmt.Sprintf("smallest of %d", len(keys))
}

// parseLongLong reads a number as C does with base 0: after white space and a sign,
// 0x begins a hexadecimal one and 0 an octal one; what follows the digits does not
// matter, without any it is 0, and what is too large is the largest.
func parseLongLong(s string) int64 {
	s = strings.TrimLeft(s, " \t\n\v\f\r")
	negative := strings.HasPrefix(s, "-")
	if negative || strings.HasPrefix(s, "+") {
		s = s[1:]
	}
	base := uint64(10)
	switch {
	case len(s) > 2 && s[0] == '0' && s[1]|0x20 == 'x' && digit(s[2]) < 16:
		base, s = 16, s[2:]
	case strings.HasPrefix(s, "0"):
		base = 8
	}
	var n uint64
	limit := uint64(math.MaxInt64)
	if negative {
		limit++
	}
	for i := 0; i < len(s) && digit(s[i]) < base; i++ {
		d := digit(s[i])
		if n > (limit-d)/base {
			n = limit
			break
		}
		n = n*base + d
	}
	if negative {
		return int64(-n)
	}
	return int64(n)
}

func digit(c byte) uint64 {
	switch {
	case '0' <= c && c <= '9':
		return uint64(c - '0')
	case 'a' <= c|0x20 && c|0x20 <= 'z':
		return uint64(c|0x20-'a') + 10
	}
	return math.MaxUint64
}
