package collector

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"sync/atomic"
	"time"

	"github.com/pires/go-proxyproto"

	"github.com/bmpha/bmpha/pkg/bmp"
	"github.com/bmpha/bmpha/pkg/hold"
	"github.com/bmpha/bmpha/pkg/relay"
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
	addr     netip.AddrPort // of the router, as a load balancer in front may say
	local    netip.AddrPort // where the router connected
	accepted int64
	silent   int64         // after so many µs without a sign of life the way may be broken; 0: none is asked for
	aborted  bool          // guarded by the router's lock
	buf      []byte        // what was read and not yet appended
	emptied  bool          // the last read left nothing in the socket
	got      uint64        // bytes read from the socket
	taken    uint64        // and of these those whose messages are in the log; guarded by the router's lock
	relay    *relay.Stream // nil when sessions are not passed on
	restart  atomic.Bool   // closed so that it starts over for a relay target
	opaque   bool          // not BMP any more: passed on, not decoded
	again    bool          // ended because the router has to say everything again
	redump   int64         // until when, at most, what comes was said before; 0: it was not
	lastTake int64         // during that, when something came last
}

// ended reports whether the session must end, see append. The caller holds the
// router's lock.
func (s *session) ended() bool { return s.aborted }

// abort ends the session, also one that waits for room in the log or in the relay.
// The caller holds the router's lock and wakes those that wait for it.
func (s *session) abort() {
	s.aborted = true
	s.conn.Close()
	if s.relay != nil {
		s.relay.Abort()
	}
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
		if c.open.Load() >= int64(c.o.MaxSessions) {
			c.counts.tooMany.Add(1)
			c.co.warn("router refused: too many sessions", "address", conn.RemoteAddr(), "limit", c.o.MaxSessions)
			conn.Close()
			continue
		}
		c.open.Add(1)
		s := &session{id: c.nextID.Add(1), conn: conn, accepted: c.clock.now()}
		if c.o.KeepAlive > 0 {
			s.silent = micros(2*c.o.probe() + time.Second)
		}
		c.conns.Store(s, nil)
		c.sessions.Go(func() {
			defer c.open.Add(-1)
			defer c.conns.Delete(s)
			defer conn.Close()
			if !c.closing.Load() && c.greet(s) { // else closeSessions may have missed it
				c.serve(s)
			}
		})
	}
}

// greet finds out whose session it is and reports whether that router may
// connect.
func (c *Collector) greet(s *session) bool {
	s.addr, s.local = addrPort(s.conn.RemoteAddr()), addrPort(s.conn.LocalAddr())
	s.buf = make([]byte, 0, minRead)
	if c.o.Proxy {
		if err := s.readProxyHeader(); err != nil {
			c.counts.notBMP.Add(1)
			c.co.warn("session refused: expected a PROXY header (listen.proxy)", "address", s.addr.Addr(), "error", err)
			return false
		}
	}
	if !c.allowed(s.addr.Addr()) {
		c.counts.notAllowed.Add(1)
		c.co.warn("router refused: not in listen.allow", "address", s.addr.Addr())
		return false
	}
	return true
}

// addrPort turns the address of a TCP socket into what routers are known by.
func addrPort(a net.Addr) netip.AddrPort {
	t, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.AddrPort{}
	}
	p := t.AddrPort()
	return netip.AddrPortFrom(p.Addr().Unmap().WithZone(""), p.Port())
}

// readProxyHeader reads what a load balancer says of the connection. A health
// check of its own (LOCAL, UNKNOWN) leaves the socket's addresses.
func (s *session) readProxyHeader() error {
	const longest = 16 + 1<<16 // version 2 with its TLVs
	if err := s.conn.SetReadDeadline(time.Now().Add(firstWait)); err != nil {
		return err
	}
	r := bufio.NewReaderSize(countingReader{s}, longest)
	h, err := proxyproto.Read(r)
	if err != nil {
		return err
	}
	if from, to, ok := h.TCPAddrs(); ok && !h.Command.IsLocal() {
		s.addr, s.local = addrPort(from), addrPort(to)
	}
	rest, err := r.Peek(r.Buffered()) // of the session itself
	s.buf = append(s.buf, rest...)
	return err
}

// A countingReader reads from the socket of a session.
type countingReader struct{ s *session }

func (r countingReader) Read(p []byte) (int, error) {
	n, err := r.s.conn.Read(p)
	r.s.got += uint64(n)
	return n, err
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
	if c.relay != nil {
		s.relay = c.relay.Open(uint64(s.id), s.addr, s.local, func() {
			s.restart.Store(true)
			s.conn.Close()
		})
		defer s.relay.Close()
		defer context.AfterFunc(c.ending, s.relay.Abort)()
		if len(s.buf) > 0 && !s.relay.Write(s.buf) {
			return
		}
	}
	sysName, err := s.introduce(c.o.MaxMessage)
	if err != nil && s.opaqueFrom(err) {
		c.co.warn("session is not BMP: passed on, not decoded", "address", s.addr.Addr(), "error", err)
		err = nil
	}
	if err != nil {
		c.counts.notBMP.Add(1)
		c.co.warn("session ended before its first message", "address", s.addr.Addr(), "error", err)
		return
	}
	if !c.o.NoDecode {
		if _, err := c.join.topicOf(c.o.Topic(s.addr.Addr(), s.addr.Port())); err != nil {
			c.log.Error("session refused: topic", "address", s.addr.Addr(), "error", err)
			return
		}
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
	c.end(r, s, err)
	if r.noise.Allow() {
		r.log.Info("session closed", "session", s.id, "reason", err)
	}
	c.co.kick()
}

// opaqueFrom makes the session opaque if err says that its bytes are not BMP and
// there is someone who may understand them.
func (s *session) opaqueFrom(err error) bool {
	var frame *bmp.FrameError
	if s.relay != nil && errors.As(err, &frame) {
		s.opaque = true
	}
	return s.opaque
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
	n, err := countingReader{s}.Read(s.buf[len(s.buf):cap(s.buf)])
	s.buf = s.buf[:len(s.buf)+n]
	s.emptied = n < room
	if n > 0 {
		if s.relay != nil {
			s.relay.Join(s.buf[:len(s.buf)-n])
			if !s.relay.Write(s.buf[len(s.buf)-n:]) {
				return net.ErrClosed
			}
		}
		return nil
	}
	return err
}

// claim finds the router of a session and makes s its session. It returns nil
// when the session must end.
func (c *Collector) claim(s *session, sysName string) *router {
	for {
		identity, key := c.identify(s.addr.Addr(), sysName)
		r := c.router(identity, s.addr.Addr(), c.o.NoDecode)
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
	r.session = s
	r.course.Begin(c.clock.now())
	r.facts.sessions++
	r.facts.peers = make(map[peer]struct{})
	r.facts.opaque = s.opaque
	if r.restart {
		r.restart, s.redump = false, c.clock.now()+redumpMost
	}
	if r.pmacct {
		c.openTable(r, s)
		r.cond.Broadcast()
		return true, false
	}
	r.key = key
	r.Vouch.Opened(s.accepted)
	r.spool.opened()
	r.opened = openedBody(s.addr)
	r.from = s.addr.Addr()
	c.openTable(r, s)
	if !c.append(r, s, s.id, hold.Opened, s.accepted, r.opened[:]) || !c.tidy(r, s, s.id, s.accepted, false) {
		if s.relay != nil {
			s.relay.Close() // no replay is to see the table of the next session
		}
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
			old.abort()
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

// end writes that the session is over, for the reason why.
func (c *Collector) end(r *router, s *session, why error) {
	if s.relay != nil {
		s.relay.Close() // no replay is to see the table of the next session
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.pmacct {
		c.append(r, s, s.id, hold.Closed, c.clock.now(), nil)
	}
	// Where the way to here had broken, another that sent until lately may have heard
	// more. A router that closes does so behind all that it has said. A way that had
	// broken then and has healed since brings the rest after as long again at most.
	c.closeTable(r, errors.Is(why, errClosed) || s.accepted >= r.turned || r.Heard >= r.turned+micros(c.o.Margin+2*c.o.KeepAlive))
	r.course.End()
	r.session, r.last = nil, s.id
	r.restart = s.restart.Load()
	r.facts.closedAt = c.clock.now()
	r.facts.peers = make(map[peer]struct{})
	if c.clock.now()-s.accepted > micros(displaceMost) {
		r.displaced = 0
	}
	r.cond.Broadcast()
	c.fwd.wake(r)
}

// A source is where entries come from: a session or a producer's request.
type source interface {
	// ended reports whether it is over, so that nothing is to wait for it.
	ended() bool
}

// append puts an entry into the router's log and waits for room if it must; the
// end of a session always has room. The caller holds the router's lock. It
// reports false when the source was ended meanwhile.
func (c *Collector) append(r *router, s source, id uint32, kind hold.Kind, at int64, body []byte) bool {
	waited := false
	for !c.put(r, kind, id, at, body) {
		if s.ended() || c.closing.Load() {
			return false
		}
		if !waited {
			waited = true
			r.facts.waited++
			r.Behind = true
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
		if s.opaque {
			s.buf = s.buf[:0]
		}
		rest, err := c.take(r, s)
		s.buf = s.buf[:copy(s.buf, rest)]
		if err != nil && s.opaqueFrom(err) {
			r.log.Warn("session is not BMP any more: passed on, not decoded", "session", s.id, "error", err)
			r.mu.Lock()
			r.facts.opaque = true
			s.relay.Join(s.buf)
			c.giveUp(r, s, "its session is not BMP")
			r.mu.Unlock()
			continue
		}
		if err != nil {
			return err
		}
		unsettled, ok := c.settle(r, s)
		if !ok {
			return errAborted
		}
		// A silent router is healthy; one that stops inside a message is not.
		var deadline time.Time
		switch {
		case len(s.buf) > 0:
			deadline = time.Now().Add(c.o.ReadTimeout)
		case unsettled:
			deadline = time.Now().Add(settleEvery)
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
			case errors.Is(err, os.ErrDeadlineExceeded) && len(s.buf) == 0:
				continue
			case errors.Is(err, os.ErrDeadlineExceeded):
				return errStalled
			case errors.Is(err, net.ErrClosed) && s.restart.Load():
				return errRestarted
			case errors.Is(err, net.ErrClosed):
				return errAborted
			}
			return fmt.Errorf("read from the router: %w", err)
		}
	}
}

// Why a session ended.
var (
	errAborted   = errors.New("ended by the collector")
	errRestarted = errors.New("ended so that it starts over for a relay target")
	errClosed    = errors.New("the router closed the connection")
	errCutShort  = errors.New("the router closed the connection inside a message")
	errStalled   = errors.New("the router stopped inside a message")
)

// countEnd counts why a session ended.
func (c *Collector) countEnd(err error) {
	var frame *bmp.FrameError
	switch {
	case errors.As(err, &frame):
		c.counts.closedBadInput.Add(1)
	case errors.Is(err, errStalled):
		c.counts.closedStalled.Add(1)
	case errors.Is(err, errRestarted):
		c.counts.closedRestarted.Add(1)
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
		if s.opaque {
			n, err = 0, nil
		}
		if err != nil || n == 0 {
			if !r.pmacct {
				s.taken = s.got
				from, end := r.stream.Positions()
				r.Took(now, from, end, s.emptied && !waited)
				c.repeated(r, s, now)
			}
			c.fwd.wake(r)
			return b, err
		}
		msg := b[:n]
		body, news := msg, true
		if r.routes.Table != nil {
			if body, news = c.learn(r, s, msg, now); s.again {
				s.abort()
				return nil, errAborted
			}
		}
		t := bmp.Type(msg)
		before := r.facts.waited
		if !r.pmacct && news {
			r.spool.note(msg)
			if !c.append(r, s, s.id, hold.Message, now, body) {
				r.stream.Lost() // the table has it, but the log has not
				return nil, errAborted
			}
		}
		if !c.tidy(r, s, s.id, now, t == bmp.TypePeerDown) {
			return nil, errAborted
		}
		waited = waited || r.facts.waited != before
		c.counts.byType[min(t, byte(len(c.counts.byType)-1))].Add(1)
		if t != bmp.TypeRouteMonitoring {
			r.facts.note(msg)
		}
		r.course.Take(now, isEndOfRIB(msg))
		if !r.pmacct { // else its records are counted
			r.facts.messages++
			r.facts.bytes += uint64(n)
			r.facts.lastHeard = now
		}
		b = b[n:]
	}
}

const (
	// A table dump that a router makes because we ended its session is no news.
	// It is over when the router has been quiet for a while, and we do not take
	// for it what comes much later.
	redumpQuiet = int64(time.Second / time.Microsecond)
	redumpMost  = int64(2 * time.Minute / time.Microsecond)
)

// repeated flags what came, if it is from the table dump of a session that had to
// start over. The caller holds the router's lock.
func (c *Collector) repeated(r *router, s *session, now int64) {
	if s.redump == 0 {
		return
	}
	if now > s.redump || s.lastTake > 0 && now-s.lastTake > redumpQuiet {
		s.redump = 0
		return
	}
	s.lastTake = now
	r.stream.Repeated()
}
