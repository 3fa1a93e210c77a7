// Package relay passes what routers say on to other BMP stations, byte for byte.
//
// A Stream is one router's session; what is written to it goes to every target
// over a TCP connection of its own, behind a PROXY header that carries the
// router's address, so that the target takes it for the router.
//
// What it promises:
//
//   - A target gets the bytes of a session from the first one on, in order and
//     unchanged, whatever they are, or its connection ends.
//   - No target makes Write wait, except while the relay is paused, or the first
//     one as Options.Wait says: what a target has not taken yet lies in its buffer. When that is full, the session is cut
//     for this target: it must start over there. The memory of a target stays
//     below its buffer's size plus 4 KiB for each session, each session can always
//     grow to its share, and targets share nothing.
//   - A target that was lost needs its sessions from their beginning. They are
//     reset, a few at a time, when it accepts connections again, not before, and
//     one that is lost again and again is reset less and less often.
//   - With Options.Replay a session is not reset, which its router would notice,
//     but replayed from the table of its routes: the target gets a valid BMP stream
//     that has the table at its end, and then what the router says, without a gap
//     or a repeat. Memory is a step's, about 64 KiB, for each session that is being
//     replayed, and messages of the session wait for no more than a step to be made.
//   - In steady state Write allocates nothing and copies each byte once for each
//     target.
package relay

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pires/go-proxyproto"
)

const (
	// unpauseGrace is how long after a pause a full buffer is given to begin to
	// empty before sessions are cut for it: it filled through no fault of the
	// target.
	unpauseGrace = time.Second
	// finishWithin is how long a target may take to end a connection that has
	// told it everything. After that it is closed from our side; what the kernel
	// has of it is still delivered.
	finishWithin = 30 * time.Second
	// cutWithin is how long a target may take to end a connection that was cut,
	// until the session is replayed all the same. One that does not read would not
	// read the replay, either.
	cutWithin = 5 * time.Minute
	// dialWithin bounds a try to connect.
	dialWithin = 10 * time.Second
	// sendBuffer is what the kernel is asked to hold of a session: small, because
	// it is lost with the target and Pause cannot hold it back.
	sendBuffer = 512 << 10
)

// Options say where to and how a Relay sends.
type Options struct {
	Targets []string // host:port; the first is the one that Drained and Gone speak of
	// Proxy is the PROXY protocol that a connection begins with: "v1", "v2", or
	// "none". For IPv6 routers pmacct 1.7.7 reads either and uses neither: it
	// shows the address of the connection.
	Proxy string
	// Buffer is how many bytes of all sessions together may wait for a target.
	// Half of it is divided evenly among the sessions and theirs for sure, the
	// other half goes to whoever asks first.
	Buffer int64
	// Wait is how long a Write with a full buffer waits for the first target
	// while that takes nothing at all; as long as it takes something, Write waits.
	// 0: never. It is for a router that is to go no faster than this target.
	Wait time.Duration
	// Parallel is how many sessions start over at a time for a target, at least 1.
	Parallel int
	// Resync says whether sessions that a target has lost are reset. Without it
	// they stay lost for this target until they start over by themselves.
	Resync bool
	// Replay says that such a session is replayed, not reset, if its Stream has a
	// table. It is nothing without Resync.
	Replay bool
	Log    *slog.Logger // nil: slog.Default
	// Dial connects to a target; nil is a net.Dialer's.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
}

// A Relay sends to all targets. Its methods are safe for concurrent use.
type Relay struct {
	o        Options
	header   byte // version of the PROXY header, 0 for none
	targets  []*target
	step     int             // routes of a replay at a time
	ctx      context.Context // ends when everything must stop at once
	stop     context.CancelFunc
	work     sync.WaitGroup // the targets' goroutines
	links    sync.WaitGroup
	paused   atomic.Bool
	unpaused atomic.Int64 // when the last pause ended, in ns of time.Since(born)
	born     time.Time

	mu     sync.Mutex // Open, Pause and Close take turns
	closed bool
}

// New returns a relay to the targets. It connects to none before the first Open.
// It panics if the options are invalid: the configuration is checked before.
func New(o Options) *Relay {
	r := &Relay{o: o, step: stepRoutes, born: time.Now()}
	switch o.Proxy {
	case "v1":
		r.header = 1
	case "v2":
		r.header = 2
	case "none":
	default:
		panic(fmt.Sprintf("relay: PROXY protocol %q", o.Proxy))
	}
	if o.Buffer <= 0 || o.Parallel <= 0 {
		panic(fmt.Sprintf("relay: buffer of %d bytes, %d sessions in parallel", o.Buffer, o.Parallel))
	}
	if r.o.Log == nil {
		r.o.Log = slog.Default()
	}
	if r.o.Dial == nil {
		r.o.Dial = new(net.Dialer).DialContext
	}
	r.unpaused.Store(int64(-unpauseGrace))
	r.ctx, r.stop = context.WithCancel(context.Background())
	for _, address := range o.Targets {
		t := newTarget(r, address)
		r.targets = append(r.targets, t)
		r.work.Go(t.run)
	}
	return r
}

// Open begins a session of a router, the other end of a connection to local, and
// never blocks. id names the session in the log. reset is called, on a goroutine
// of the relay, when the session is to start over, by each target that lost it and
// again if nothing comes of it; it must return soon. nil does nothing. With
// Options.Replay it is not called for a session with a table, see Stream.Table.
func (r *Relay) Open(id uint64, router, local netip.AddrPort, reset func()) *Stream {
	if reset == nil {
		reset = func() {}
	}
	s := &Stream{relay: r, id: id, router: plain(router), reset: reset, opened: time.Now()}
	s.links = make([]atomic.Pointer[link], len(r.targets))
	s.tell = s.change
	header := r.proxyHeader(s.router, plain(local))
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		s.aborted.Store(true)
		return s
	}
	for i, t := range r.targets {
		l := t.open(s, header, nil)
		s.links[i].Store(l)
		r.links.Go(l.run)
	}
	return s
}

// plain returns a without what a PROXY header has no room for.
func plain(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr().Unmap().WithZone(""), a.Port())
}

// proxyHeader returns what a connection begins with, nil for nothing.
func (r *Relay) proxyHeader(router, local netip.AddrPort) []byte {
	if r.header == 0 {
		return nil
	}
	if local.Addr().Is4() != router.Addr().Is4() {
		// A header has one family for both ends, and the router's counts.
		unspecified := netip.IPv6Unspecified()
		if router.Addr().Is4() {
			unspecified = netip.IPv4Unspecified()
		}
		local = netip.AddrPortFrom(unspecified, local.Port())
	}
	h := proxyproto.HeaderProxyFromAddrs(r.header, net.TCPAddrFromAddrPort(router), net.TCPAddrFromAddrPort(local))
	b, err := h.Format()
	if err != nil { // cannot fail for two addresses of one family
		r.o.Log.Error("PROXY header", "router", router, "error", err)
	}
	return b
}

// Pause stops, or lets go on, what targets are given, new connections included.
// Sessions go on to be buffered; while the pause lasts a Write waits when the
// buffer is full. Up to what the kernels hold of a connection (a few 100 KiB) can
// still reach a target after Pause has returned.
func (r *Relay) Pause(on bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.paused.Load() == on {
		return
	}
	if !on {
		r.unpaused.Store(int64(time.Since(r.born)))
		time.AfterFunc(unpauseGrace, r.bump)
	}
	r.paused.Store(on)
	for _, t := range r.targets {
		t.pause(on)
	}
	r.bump()
}

// bump lets whoever waits for room look again.
func (r *Relay) bump() {
	for _, t := range r.targets {
		t.budget.bump()
	}
}

// patient says whether a full buffer makes Write wait.
func (r *Relay) patient() bool {
	return r.paused.Load() || time.Since(r.born)-time.Duration(r.unpaused.Load()) < unpauseGrace
}

// A State is what is known of a target.
type State string

// The states of a target.
const (
	Idle       State = "idle"       // no session has asked for it yet
	Connecting State = "connecting" // tried for the first time
	Up         State = "up"
	Resyncing  State = "resyncing" // accepts, but sessions must start over
	Down       State = "down"      // has refused, or ended all its connections
)

// A Target is the state of one target.
type Target struct {
	Address   string
	State     State
	Since     time.Time // of State
	Sessions  int       // that it gets now
	Waiting   int       // that it has lost and that have not started over
	Buffered  int64     // bytes that wait for it
	Bytes     uint64    // that the kernel has taken for it, PROXY headers not counted
	Cuts      uint64    // sessions cut because the buffer was full
	Lost      uint64    // connections that it has ended or that broke
	Resets    uint64    // sessions that were asked to start over
	Replays   uint64    // times that a session was replayed, or began to be
	Replaying int       // sessions that are being replayed now
	LastError string    // "" if there was none
}

// Status returns the state of each target, in the order of Options.
func (r *Relay) Status() []Target {
	all := make([]Target, len(r.targets))
	for i, t := range r.targets {
		all[i] = t.status()
	}
	return all
}

// Gone says whether the first target is without any session at time now although
// there are some, or refuses connections, and since when.
func (r *Relay) Gone(now time.Time) (since time.Time, gone bool) {
	if len(r.targets) == 0 {
		return time.Time{}, false
	}
	t := r.targets[0]
	t.mu.Lock()
	defer t.mu.Unlock()
	since = t.pacer.goneSince
	return since, !since.IsZero() && !since.After(now)
}

// Close ends all sessions. What is buffered is delivered, unless the relay is
// paused, until ctx ends; an error says that something was not.
func (r *Relay) Close(ctx context.Context) error {
	r.mu.Lock()
	first := !r.closed
	r.closed = true
	r.mu.Unlock()
	defer r.work.Wait()
	defer r.stop()
	if first {
		for _, t := range r.targets {
			for _, l := range t.all() {
				l.stream.Close()
			}
		}
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		r.links.Wait()
	}()
	var left int64
	if !r.paused.Load() {
		select {
		case <-done:
			return nil
		case <-ctx.Done():
		}
	}
	for _, t := range r.targets {
		for _, l := range t.all() {
			left += l.abandon()
		}
	}
	r.stop()
	<-done
	if left > 0 {
		return fmt.Errorf("relay: %d bytes were not delivered: %w", left, errors.Join(context.Cause(ctx), errStopped))
	}
	return nil
}

var errStopped = errors.New("the relay was closed")
