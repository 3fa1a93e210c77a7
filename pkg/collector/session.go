package collector

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/bmpha/bmpha/pkg/bmp"
	"github.com/bmpha/bmpha/pkg/hold"
)

const (
	// firstWait is how long a router may take to say its name. RFC 7854 wants
	// the Initiation first, and routers send it at once.
	firstWait = 2 * time.Second

	minRead = 32 << 10  // bytes of a session's first buffer
	maxRead = 256 << 10 // and of its largest, unless a message needs more

	// A router that connects again and again while its session is up is slowed
	// down: each new session waits a little longer, up to displaceMost.
	displaceLeast = 100 * time.Millisecond
	displaceMost  = 5 * time.Second
)

// A session is one TCP connection from a router.
type session struct {
	id       uint32
	conn     net.Conn
	addr     netip.AddrPort
	accepted int64
	aborted  bool   // guarded by the router's lock
	buf      []byte // what was read and not yet appended
	emptied  bool   // the last read left nothing in the socket
}

func (c *Collector) accept(l net.Listener) {
	for {
		conn, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // out of files, mostly
			c.co.warn("accept a router", "error", err)
			time.Sleep(100 * time.Millisecond)
			continue
		}
		c.counts.accepted.Add(1)
		addr := conn.RemoteAddr().(*net.TCPAddr).AddrPort()
		addr = netip.AddrPortFrom(addr.Addr().Unmap().WithZone(""), addr.Port())
		switch {
		case !c.allowed(addr.Addr()):
			c.counts.notAllowed.Add(1)
			c.co.warn("router refused: not in listen.allow", "address", addr.Addr())
			conn.Close()
		case c.open.Load() >= int64(c.o.MaxSessions):
			c.counts.tooMany.Add(1)
			c.co.warn("router refused: too many sessions", "address", addr.Addr(), "limit", c.o.MaxSessions)
			conn.Close()
		default:
			c.open.Add(1)
			s := &session{
				id: c.nextID.Add(1), conn: conn, addr: addr, accepted: c.clock.now(),
				buf: make([]byte, 0, minRead),
			}
			c.conns.Store(s, nil)
			c.sessions.Go(func() {
				defer c.open.Add(-1)
				defer c.conns.Delete(s)
				defer conn.Close()
				if !c.closing.Load() { // else closeSessions may have missed it
					c.serve(s)
				}
			})
		}
	}
}

func (c *Collector) allowed(addr netip.Addr) bool {
	for _, p := range c.o.Allow {
		if p.Contains(addr) {
			return true
		}
	}
	return len(c.o.Allow) == 0
}

// serve follows a session from its first byte to its end.
func (c *Collector) serve(s *session) {
	sysName, err := s.introduce(c.o.MaxMessage)
	if err != nil {
		c.counts.notBMP.Add(1)
		c.co.warn("session ended before its first message", "address", s.addr.Addr(), "error", err)
		return
	}
	if _, err := c.o.Sink.Topic(c.o.Topic(s.addr.Addr(), s.addr.Port())); err != nil {
		c.log.Error("session refused: topic", "address", s.addr.Addr(), "error", err)
		return
	}
	r := c.claim(s, sysName)
	if r == nil {
		return
	}
	if r.noise.Allow() {
		r.log.Info("session opened", "session", s.id, "address", s.addr.Addr(), "port", s.addr.Port(), "sysname", sysName)
	}
	c.co.kick()
	err = c.read(r, s)
	c.countEnd(err)
	c.end(r, s)
	if r.noise.Allow() {
		r.log.Info("session closed", "session", s.id, "reason", err)
	}
	c.co.kick()
}

// introduce reads the first message and returns the router's sysName if it says
// one. Silence is no error: BMP has no greeting that must be answered.
func (s *session) introduce(maxMessage int) (string, error) {
	if err := s.conn.SetReadDeadline(time.Now().Add(firstWait)); err != nil {
		return "", err
	}
	for {
		n, err := bmp.Next(s.buf, maxMessage)
		if err != nil {
			return "", err
		}
		if n > 0 {
			if bmp.Type(s.buf) != bmp.TypeInitiation {
				return "", nil
			}
			name, _ := initiation(s.buf[:n])
			return name, nil
		}
		if err := s.fill(maxMessage); err != nil {
			if errors.Is(err, os.ErrDeadlineExceeded) {
				return "", nil
			}
			return "", err
		}
	}
}

// fill reads once into the free part of the buffer, growing it when it is full.
func (s *session) fill(maxMessage int) error {
	if len(s.buf) == cap(s.buf) {
		grown := make([]byte, len(s.buf), min(2*cap(s.buf), max(maxRead, maxMessage)))
		copy(grown, s.buf)
		s.buf = grown
	}
	room := cap(s.buf) - len(s.buf)
	n, err := s.conn.Read(s.buf[len(s.buf):cap(s.buf)])
	s.buf = s.buf[:len(s.buf)+n]
	s.emptied = n < room
	if n > 0 {
		return nil
	}
	return err
}

// claim finds the router of a session and makes s its session. It returns nil
// when the session must end.
func (c *Collector) claim(s *session, sysName string) *router {
	for {
		identity, key := c.identify(s.addr.Addr(), sysName)
		r := c.router(identity, s.addr.Addr())
		if r == nil {
			c.counts.outOfRouters.Add(1)
			c.co.warn("session refused: too many routers", "address", s.addr.Addr())
			return nil
		}
		switch began, again := c.begin(r, s, key); {
		case began:
			return r
		case !again:
			return nil
		}
	}
}

// begin makes s the session of r. An older session of the same router ends
// first, with all that it said in the log; a newer one takes precedence. again
// is set when the router was dropped from the table a moment ago.
func (c *Collector) begin(r *router, s *session, key string) (began, again bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.newest = max(r.newest, s.id)
	r.cond.Broadcast()
	if r.session != nil && !c.displace(r, s) {
		return false, false
	}
	if c.closing.Load() {
		return false, false
	}
	if r.forgotten {
		return false, true
	}
	r.session, r.key = s, key
	r.caughtUp, r.behind = s.accepted, false
	r.facts.sessions++
	r.facts.peers = make(map[peer]struct{})
	body := openedBody(s.addr)
	if !c.append(r, s, hold.Opened, s.accepted, body[:]) {
		r.session = nil
		r.cond.Broadcast()
		return false, false
	}
	c.fwd.wake(r)
	return true, false
}

// displace ends the session of r in favour of s, at once, or after a while if
// that has happened a lot. It reports false if a newer session than s has come
// meanwhile. The caller holds the router's lock, which is given up while waiting.
func (c *Collector) displace(r *router, s *session) bool {
	var wait time.Duration
	if r.displaced > 0 {
		wait = min(displaceLeast<<min(r.displaced, 10), displaceMost)
	}
	r.displaced++
	begin := time.Now()
	timer := time.AfterFunc(wait, func() {
		r.mu.Lock()
		r.cond.Broadcast()
		r.mu.Unlock()
	})
	defer timer.Stop()
	var told *session
	for r.session != nil {
		if c.closing.Load() || r.newest > s.id {
			return false
		}
		if old := r.session; old != told && time.Since(begin) >= wait {
			told = old
			old.aborted = true
			old.conn.Close()
			r.cond.Broadcast()
			c.counts.displaced.Add(1)
			if r.noise.Allow() {
				r.log.Warn("router connected again: the newer session counts", "old", old.id, "new", s.id)
			}
		}
		r.cond.Wait()
	}
	return true
}

// end writes that the session is over.
func (c *Collector) end(r *router, s *session) {
	r.mu.Lock()
	defer r.mu.Unlock()
	c.append(r, s, hold.Closed, c.clock.now(), nil)
	r.session, r.last = nil, s.id
	r.facts.closedAt = c.clock.now()
	r.facts.peers = make(map[peer]struct{})
	if c.clock.now()-s.accepted > micros(displaceMost) {
		r.displaced = 0
	}
	r.cond.Broadcast()
	c.fwd.wake(r)
}

// append puts an entry into the router's log and waits for room if it must; the
// end of a session always has room. The caller holds the router's lock. It
// reports false when the session was ended meanwhile.
func (c *Collector) append(r *router, s *session, kind hold.Kind, at int64, body []byte) bool {
	waited := false
	for !r.stream.Append(kind, s.id, at, body) {
		if s.aborted || c.closing.Load() {
			return false
		}
		if !waited {
			waited = true
			r.facts.waited++
			r.behind = true
		}
		c.fwd.wake(r)
		r.waits++
		r.cond.Wait()
		r.waits--
		at = max(at, c.clock.now())
	}
	return true
}

// read moves messages from the connection into the log until the session ends.
func (c *Collector) read(r *router, s *session) error {
	for {
		rest, err := c.take(r, s)
		s.buf = s.buf[:copy(s.buf, rest)]
		if err != nil {
			return err
		}
		// A silent router is healthy; one that stops inside a message is not.
		var deadline time.Time
		if len(s.buf) > 0 {
			deadline = time.Now().Add(c.o.ReadTimeout)
		}
		if err := s.conn.SetReadDeadline(deadline); err != nil {
			return err
		}
		if err := s.fill(c.o.MaxMessage); err != nil {
			switch {
			case errors.Is(err, io.EOF) && len(s.buf) > 0:
				return errCutShort
			case errors.Is(err, io.EOF):
				return errClosed
			case errors.Is(err, os.ErrDeadlineExceeded):
				return errStalled
			case errors.Is(err, net.ErrClosed):
				return errAborted
			}
			return fmt.Errorf("read from the router: %w", err)
		}
	}
}

// Why a session ended.
var (
	errAborted  = errors.New("ended by the collector")
	errClosed   = errors.New("the router closed the connection")
	errCutShort = errors.New("the router closed the connection inside a message")
	errStalled  = errors.New("the router stopped inside a message")
)

// countEnd counts why a session ended.
func (c *Collector) countEnd(err error) {
	var frame *bmp.FrameError
	switch {
	case errors.As(err, &frame):
		c.counts.closedBadInput.Add(1)
	case errors.Is(err, errStalled):
		c.counts.closedStalled.Add(1)
	case !errors.Is(err, errAborted):
		c.counts.closedRouter.Add(1)
	}
}

// take appends the whole messages in the buffer and returns what is left.
func (c *Collector) take(r *router, s *session) (rest []byte, err error) {
	b := s.buf
	r.mu.Lock()
	defer r.mu.Unlock()
	now := c.clock.now()
	waited := false // for room: meanwhile more has come
	dropped := r.stream.Counters().Dropped
	defer func() {
		if r.stream.Counters().Dropped != dropped {
			c.counts.droppedAt.Store(now)
			if r.noise.Allow() {
				r.log.Error("memory full: the oldest messages are dropped, which nobody may have sent",
					"dropped", r.stream.Counters().Dropped)
			}
		}
	}()
	for {
		n, err := bmp.Next(b, c.o.MaxMessage)
		if err != nil || n == 0 {
			if s.emptied && !waited {
				r.caughtUp, r.behind = now, false
			} else {
				r.behind = true
			}
			c.fwd.wake(r)
			return b, err
		}
		msg := b[:n]
		before := r.facts.waited
		if !c.append(r, s, hold.Message, now, msg) {
			return nil, errAborted
		}
		waited = waited || r.facts.waited != before
		t := bmp.Type(msg)
		c.counts.byType[min(t, byte(len(c.counts.byType)-1))].Add(1)
		if t != bmp.TypeRouteMonitoring {
			r.facts.note(msg)
		}
		r.facts.messages++
		r.facts.bytes += uint64(n)
		r.facts.lastHeard = now
		b = b[n:]
	}
}
