package relay

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bmpha/bmpha/pkg/table"
)

// Why a connection ended.
var (
	errFull   = errors.New("its buffer is full")
	errClosed = errors.New("it closed the connection")
	// errNoTable: what has been replayed is not the beginning of anything.
	errNoTable = errors.New("the session has no table any more")
)

// A link is one session on its way to one target.
//
// One that is replayed is made of steps, which the link's own goroutine asks for
// when it has sent the one before, and of messages that come in between and are
// queued: a step waits for what was queued before it. So a replay goes as fast as
// the target, and the queue is free for what the router says.
type link struct {
	target   *target
	stream   *Stream
	key      uint64 // names it to the pacer
	header   []byte
	before   []*link       // older ones of the same router that are ending
	patience time.Duration // with before
	wake     chan struct{} // of capacity 1: something below has changed
	done     chan struct{} // closed when it is over
	replaced atomic.Bool   // another has taken its place

	// Guarded by the stream's lock.
	replay *table.Replay // nil when it gets bytes as they come
	buf    []byte        // the memory of step

	mu      sync.Mutex
	framed  bool   // it gets messages, not bytes as they come
	walking bool   // there are more steps to come
	step    []byte // comes behind the first ahead bytes of the queue
	ahead   int64
	queue   queue
	wire    *wire // nil until connected
	closed  bool  // the session has ended
	told    bool  // and the target has been told all of it
	dead    bool
	cut     bool // by us: the target may have more of it to read
}

func (l *link) notify() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// put sends or queues as much of b as there is room for and returns the rest. The
// caller holds the lock.
func (l *link) put(b []byte) (rest []byte, turn uint64) {
	if l.wire != nil && l.queue.head == nil && l.step == nil && !l.target.relay.paused.Load() {
		// Nothing waits: what the kernel takes at once need not be copied.
		n := l.wire.try(b)
		l.target.took(n)
		if b = b[n:]; len(b) == 0 {
			return nil, 0
		}
	}
	n, turn := l.queue.add(b)
	if n > 0 {
		l.notify()
	}
	return b[n:], turn
}

// pass appends whole messages to the queue, or cuts the session. It does not wait.
func (l *link) pass(b []byte) {
	if len(b) == 0 {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.dead || l.closed {
		return
	}
	if rest, _ := l.put(b); len(rest) > 0 {
		l.fail(errFull)
	}
}

// write appends b to the queue, or cuts the session. A link that gets messages
// takes nothing, and only waits until there is room for what b will be.
func (l *link) write(b []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for !l.dead && !l.closed {
		var turn uint64
		if l.framed {
			var ample bool
			if ample, turn = l.queue.budget.ample(&l.queue.account); ample {
				return
			}
		} else if b, turn = l.put(b); len(b) == 0 {
			return
		}
		wait := l.target.wait()
		if wait <= 0 && !l.target.relay.patient() {
			if !l.framed {
				l.fail(errFull)
			}
			return
		}
		var look *time.Timer
		if wait > 0 {
			look = time.AfterFunc(wait, l.queue.budget.bump)
		}
		l.mu.Unlock()
		// Abort comes with a bump: looked at after turn was taken, it is not missed.
		if !l.stream.aborted.Load() {
			l.queue.budget.wait(turn)
		}
		if look != nil {
			look.Stop()
		}
		l.mu.Lock()
		if l.stream.aborted.Load() {
			return
		}
	}
}

// walk makes the next step of the replay.
func (l *link) walk() {
	s := l.stream
	s.mu.Lock()
	defer s.mu.Unlock()
	if l.replay == nil || s.closed.Load() { // joined after a Termination, or over
		l.mu.Lock()
		l.walking = false
		l.mu.Unlock()
		return
	}
	var more bool
	l.buf, more = l.replay.Step(l.buf[:0], l.target.relay.step)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.dead {
		return
	}
	if len(l.buf) > 0 {
		l.step, l.ahead = l.buf, l.queue.size
	}
	l.walking = more
	if !more {
		l.buf = nil
	}
}

// release lets go of a link whose session has ended or goes another way.
func (l *link) release() {
	select {
	case <-l.done:
		l.target.forget(l)
	default: // run does
	}
}

// end says that nothing more comes.
func (l *link) end() {
	l.target.ended(l)
	l.mu.Lock()
	l.closed = true
	l.mu.Unlock()
	l.notify()
}

// fail ends the connection and frees the queue. The caller holds the lock.
func (l *link) fail(err error) {
	if l.dead {
		return
	}
	l.dead = true
	lost := !l.told || l.queue.size > 0
	l.queue.clear()
	l.step = nil
	if l.wire != nil {
		l.cut = lost && (err == errFull || err == errNoTable) && l.wire.closeWrite()
		if !l.cut {
			l.wire.conn.Close()
		}
	}
	l.notify()
	if lost {
		l.target.lost(l, err)
	}
}

func (l *link) failed(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.fail(err)
}

// abandon ends the link without blaming the target and returns how many bytes it
// had not taken.
func (l *link) abandon() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	left := l.queue.size + int64(len(l.step))
	l.queue.clear()
	l.told = true
	l.fail(errStopped)
	return left
}

func (l *link) drained() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.wire != nil && !l.dead && !l.walking && l.step == nil && l.queue.size == 0 && l.wire.unsent() == 0
}

// run connects and sends until the session is over.
func (l *link) run() {
	defer l.target.forget(l)
	defer close(l.done)
	if !l.mayConnect() {
		return
	}
	w, err := l.target.connect()
	if err == nil {
		// The header goes out whatever has happened meanwhile, see spare.
		_, err = w.conn.Write(l.header)
		if err != nil {
			w.conn.Close()
		}
	}
	l.mu.Lock()
	switch {
	case err != nil:
		l.fail(err)
		l.mu.Unlock()
		return
	case l.dead:
		l.mu.Unlock()
		w.conn.Close()
		return
	}
	l.wire = w
	l.mu.Unlock()
	l.target.connected(l)
	w.onEnd(l.failed)
	l.send(w)
	l.mu.Lock()
	cut := l.cut
	l.mu.Unlock()
	if cut {
		// Until the target ends the connection it may not have read all of it, and
		// of two connections of a router it would read now one, now the other.
		l.await(w, cutWithin)
	}
}

// mayConnect waits until the relay is not paused and older sessions of the same
// router have reached their end, so that the target hears them in order. It
// reports false if the link was cut meanwhile, or has ended with nothing to say.
func (l *link) mayConnect() bool {
	patience := time.NewTimer(l.patience)
	defer patience.Stop()
	for {
		l.mu.Lock()
		dead := l.dead
		l.mu.Unlock()
		if dead {
			return false
		}
		for len(l.before) > 0 {
			select {
			case <-l.before[0].done:
				l.before = l.before[1:]
				continue
			default:
			}
			break
		}
		var older chan struct{}
		if len(l.before) > 0 {
			older = l.before[0].done
		} else if !l.target.relay.paused.Load() {
			return true
		}
		select {
		case <-l.wake:
		case <-older:
		case <-patience.C:
			l.before = nil
		}
	}
}

// send hands the queue and the steps of a replay to the target.
func (l *link) send(w *wire) {
	t := l.target
	for {
		l.mu.Lock()
		paused := t.relay.paused.Load()
		switch {
		case l.dead:
			l.mu.Unlock()
			return
		case !paused && l.step != nil && l.ahead == 0:
			b := l.step
			l.mu.Unlock()
			n, err := w.conn.Write(b)
			t.took(n)
			l.mu.Lock()
			if l.step = b[n:]; l.dead || n == len(b) {
				l.step = nil
			}
			if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
				l.fail(err)
			}
			l.mu.Unlock()
		case !paused && l.queue.head != nil:
			b := l.queue.lend()
			if l.step != nil {
				b = b[:min(int64(len(b)), l.ahead)]
			}
			l.mu.Unlock()
			n, err := w.conn.Write(b)
			t.took(n)
			l.mu.Lock()
			if l.dead {
				l.queue.lent = false
				l.queue.clear()
				l.mu.Unlock()
				return
			}
			l.queue.taken(n)
			l.ahead = max(0, l.ahead-int64(n))
			if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) { // a pause sets the deadline
				l.fail(err)
			}
			l.mu.Unlock()
		case l.queue.head == nil && l.step == nil && l.closed:
			l.told = true
			l.mu.Unlock()
			l.finish(w)
			return
		case !paused && l.walking && !l.closed:
			l.mu.Unlock()
			l.walk()
		default:
			l.mu.Unlock()
			<-l.wake
		}
	}
}

// finish closes a connection whose target knows everything.
func (l *link) finish(w *wire) {
	// Half first: closing while the target says something would reset the
	// connection, and take with it what the target has not read.
	if w.closeWrite() {
		l.await(w, finishWithin)
		return
	}
	w.conn.Close()
	<-w.over
}

// await waits until the target has ended a connection, and closes it.
func (l *link) await(w *wire, within time.Duration) {
	patience := time.NewTimer(within)
	defer patience.Stop()
	select {
	case <-w.over:
	case <-patience.C:
	case <-l.target.relay.ctx.Done():
	}
	w.conn.Close()
	<-w.over
}

// A wire is a connection to a target. What the target says is read and discarded:
// BMP goes one way. So its end is noticed at once.
type wire struct {
	conn net.Conn
	over chan struct{} // closed when it has ended

	mu    sync.Mutex
	err   error // how it ended
	ended func(error)

	// Guarded by the link's lock, so that neither call allocates.
	offer func(fd uintptr) bool
	bytes []byte
	took  int

	raw    syscall.RawConn // nil if it is no socket
	asked  int             // by ask, guarded by the link's lock
	ask    func(fd uintptr)
	askErr error
}

func newWire(conn net.Conn) *wire {
	w := &wire{conn: conn, over: make(chan struct{})}
	if c, ok := conn.(*net.TCPConn); ok {
		// Errors mean defaults, which do, too.
		_ = c.SetWriteBuffer(sendBuffer)
		_ = c.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: 15 * time.Second, Interval: 5 * time.Second, Count: 3})
	}
	if c, ok := conn.(syscall.Conn); ok {
		w.raw, _ = c.SyscallConn()
		w.offer = func(fd uintptr) bool {
			n, err := unix.Write(int(fd), w.bytes)
			if err != nil {
				n = 0 // it is full, or has failed, which the next write finds out
			}
			w.took = n
			return true
		}
		w.ask = func(fd uintptr) { w.asked, w.askErr = unix.IoctlGetInt(int(fd), unix.SIOCOUTQ) }
	}
	go w.watch()
	return w
}

// closeWrite tells the target that nothing more comes, behind what the kernel has,
// and ends a write that waits. It reports false if that cannot be.
func (w *wire) closeWrite() bool {
	half, ok := w.conn.(interface{ CloseWrite() error })
	return ok && half.CloseWrite() == nil && w.conn.SetWriteDeadline(time.Unix(1, 0)) == nil
}

func (w *wire) watch() {
	defer close(w.over)
	b := make([]byte, 512)
	var err error
	for err == nil {
		_, err = w.conn.Read(b)
	}
	if errors.Is(err, io.EOF) {
		err = errClosed
	}
	w.mu.Lock()
	w.err = err
	ended := w.ended
	w.mu.Unlock()
	if ended != nil {
		ended(err)
	}
}

// onEnd has f called, instead of what was said before, when the wire has ended,
// also if it has already.
func (w *wire) onEnd(f func(error)) {
	w.mu.Lock()
	w.ended = f
	err := w.err
	w.mu.Unlock()
	if err != nil && f != nil {
		f(err)
	}
}

// try writes what the kernel takes without waiting and returns how much that was.
// The link's lock is held and nothing else is being written.
func (w *wire) try(b []byte) int {
	if w.raw == nil {
		return 0
	}
	w.bytes, w.took = b, 0
	err := w.raw.Write(w.offer)
	w.bytes = nil
	if err != nil {
		return 0
	}
	return w.took
}

// unsent returns the bytes that the kernel holds and the target's has not
// acknowledged, or -1 when it cannot tell.
func (w *wire) unsent() int {
	if w.raw == nil {
		return 0
	}
	if err := w.raw.Control(w.ask); err != nil || w.askErr != nil {
		return -1
	}
	return w.asked
}
