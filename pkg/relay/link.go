package relay

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Why a connection ended.
var (
	errFull   = errors.New("its buffer is full")
	errClosed = errors.New("it closed the connection")
)

// A link is one session on its way to one target.
type link struct {
	target *target
	stream *Stream
	key    uint64 // names it to the pacer
	header []byte
	before []*link       // older ones of the same router that are ending
	wake   chan struct{} // of capacity 1: something below has changed
	done   chan struct{} // closed when it is over

	mu     sync.Mutex
	queue  queue
	wire   *wire // nil until connected
	closed bool  // the session has ended
	told   bool  // and the target has been told all of it
	dead   bool
}

func (l *link) notify() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// write appends b to the queue, or cuts the session.
func (l *link) write(b []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for !l.dead && !l.closed {
		if l.wire != nil && l.queue.head == nil && !l.target.relay.paused.Load() {
			// Nothing waits: what the kernel takes at once need not be copied.
			n := l.wire.try(b)
			l.target.took(n)
			if b = b[n:]; len(b) == 0 {
				return
			}
		}
		n, turn := l.queue.add(b)
		if n > 0 {
			l.notify()
		}
		if b = b[n:]; len(b) == 0 {
			return
		}
		wait := l.target.wait()
		if wait <= 0 && !l.target.relay.patient() {
			l.fail(errFull)
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
	if l.wire != nil {
		l.wire.conn.Close()
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
	left := l.queue.size
	l.queue.clear()
	l.told = true
	l.fail(errStopped)
	return left
}

func (l *link) drained() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.wire != nil && !l.dead && l.queue.size == 0 && l.wire.unsent() == 0
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
}

// mayConnect waits until the relay is not paused and older sessions of the same
// router have reached their end, so that the target hears them in order. It
// reports false if the link was cut meanwhile, or has ended with nothing to say.
func (l *link) mayConnect() bool {
	patience := time.NewTimer(finishWithin)
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

// send hands the queue to the target.
func (l *link) send(w *wire) {
	t := l.target
	for {
		l.mu.Lock()
		switch {
		case l.dead:
			l.mu.Unlock()
			return
		case l.queue.head != nil && !t.relay.paused.Load():
			b := l.queue.lend()
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
			if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) { // a pause sets the deadline
				l.fail(err)
			}
			l.mu.Unlock()
		case l.queue.head == nil && l.closed:
			l.told = true
			l.mu.Unlock()
			l.finish(w)
			return
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
	if half, ok := w.conn.(interface{ CloseWrite() error }); ok && half.CloseWrite() == nil {
		patience := time.NewTimer(finishWithin)
		defer patience.Stop()
		select {
		case <-w.over:
		case <-patience.C:
		case <-l.target.relay.ctx.Done():
		}
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
