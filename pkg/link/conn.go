package link

import (
	"bufio"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"
)

// A conn is a connection after the greeting.
type conn struct {
	l    *Link
	p    *peer
	nc   net.Conn
	peer Peer
	out  *sealer // of write
	in   *opener // of read

	wake  chan struct{} // of write: something is waiting
	ended chan struct{} // nothing is read any more

	mu      sync.Mutex
	waiting []byte // to be said; nil: nothing
	pong    []byte // to be answered
	bye     bool
	cause   error // why it has ended, the first
}

// connected takes a connection into use. It closes nc on an error.
func (l *Link) connected(nc net.Conn, s *session) error {
	c := &conn{
		l: l, nc: nc, peer: s.peer.peer(), out: s.out, in: s.in,
		wake: make(chan struct{}, 1), ended: make(chan struct{}),
	}
	nc.SetDeadline(time.Time{})
	l.mu.Lock()
	if l.leaving {
		l.mu.Unlock()
		nc.SetDeadline(time.Now().Add(farewell))
		nc.Write(s.out.seal(kindBye, nil)) // or our end would look like a death
		nc.Close()
		return errLeaving
	}
	p := l.peer(c.peer.Name)
	if old := p.conn; old != nil {
		if old.peer.Instance != c.peer.Instance {
			l.mu.Unlock()
			nc.Close()
			return errTaken
		}
		old.end(errReplaced)
	}
	var lost Peer
	if p.lost.Name != "" && p.lost.Instance != c.peer.Instance && p.lost.Address == c.peer.Address {
		lost = p.lost
	} else {
		p.lost = Peer{}
	}
	c.p, p.conn, p.since, p.err = p, c, time.Now(), ""
	if l.o.Name < p.name { // we have connected
		p.proof = proof{c.peer, remote(nc)}
	}
	l.conns[c] = struct{}{}
	if l.said != nil && time.Since(l.saidAt) < l.o.Heartbeat {
		c.say(l.said)
	}
	l.wg.Go(c.write)
	l.wg.Go(c.read)
	p.urge() // whatever it was about to do is done
	l.mu.Unlock()
	l.log.Info("link: connected", "peer", c.peer.Name, "address", nc.RemoteAddr().String())
	if lost.Name != "" {
		l.dead(p, lost, "another process has its address")
	}
	return nil
}

// say has body sent, instead of what is waiting.
func (c *conn) say(body []byte) {
	c.mu.Lock()
	c.waiting = body
	c.mu.Unlock()
	c.urge()
}

// sayBye has goodbye said.
func (c *conn) sayBye() {
	c.mu.Lock()
	c.bye = true
	c.mu.Unlock()
	c.urge()
}

func (c *conn) urge() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// end closes the connection, because of err.
func (c *conn) end(err error) {
	c.mu.Lock()
	if c.cause == nil {
		c.cause = err
	}
	c.mu.Unlock()
	c.nc.Close()
	c.urge()
}

// why returns the cause of the end, or nil.
func (c *conn) why() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.cause
}

// silence is how long a connection may be silent, in either direction.
func (l *Link) silence() time.Duration { return max(2*l.o.Expiry, patience) }

// steady is a connection on which something must move, in either direction, within
// the time for silence: a long frame may take longer than that.
type steady struct {
	net.Conn
	silence time.Duration
}

func (s steady) Read(b []byte) (int, error) {
	s.SetReadDeadline(time.Now().Add(s.silence))
	return s.Conn.Read(b)
}

func (s steady) Write(b []byte) (int, error) {
	const step = 64 << 10
	for sent := 0; ; {
		s.SetWriteDeadline(time.Now().Add(s.silence))
		n, err := s.Conn.Write(b[sent:min(sent+step, len(b))])
		if sent += n; err != nil || sent == len(b) {
			return sent, err
		}
	}
}

// write sends what is waiting.
func (c *conn) write() {
	ping := time.NewTicker(max(c.l.o.Heartbeat, 10*time.Millisecond))
	defer ping.Stop()
	w := steady{c.nc, c.l.silence()}
	send := func(kind byte, body []byte) bool {
		_, err := w.Write(c.out.seal(kind, body))
		if err != nil {
			c.end(err)
		}
		return err == nil
	}
	var now [8]byte
	for {
		c.mu.Lock()
		waiting, pong, bye, cause := c.waiting, c.pong, c.bye, c.cause
		c.waiting, c.pong = nil, nil
		c.mu.Unlock()
		switch {
		case cause != nil:
			return
		case bye:
			if send(kindBye, nil) {
				// The other end closes next. Were it closed here now, what it has just
				// sent might have our kernel take the goodbye back.
				c.nc.(interface{ CloseWrite() error }).CloseWrite()
			}
			return
		}
		if pong != nil && !send(kindPong, pong) || waiting != nil && !send(kindSay, waiting) {
			return
		}
		select {
		case <-c.wake:
		case <-ping.C:
			binary.BigEndian.PutUint64(now[:], uint64(time.Since(c.l.start)))
			if !send(kindPing, now[:]) {
				return
			}
		}
	}
}

// read takes in what the peer says, until the end.
func (c *conn) read() {
	c.end(c.frames())
	c.l.over(c, c.why())
	close(c.ended)
}

func (c *conn) frames() error {
	r := bufio.NewReaderSize(steady{c.nc, c.l.silence()}, 16<<10)
	for {
		kind, body, err := c.in.next(r)
		if err != nil {
			var timeout net.Error
			if errors.As(err, &timeout) && timeout.Timeout() {
				return errSilent
			}
			return err
		}
		now := time.Since(c.l.start)
		c.p.heard.Store(int64(now))
		switch kind {
		case kindSay:
			if c.l.o.Heard != nil {
				c.l.o.Heard(c.peer, body)
			}
		case kindPing:
			c.mu.Lock()
			c.pong = append([]byte(nil), body[:min(len(body), 8)]...)
			c.mu.Unlock()
			c.urge()
		case kindPong:
			if len(body) == 8 {
				if trip := now - time.Duration(binary.BigEndian.Uint64(body)); trip >= 0 && trip < time.Hour {
					c.p.trip.Store(int64(trip))
				}
			}
		case kindBye:
			return errBye
		}
	}
}

// over is the end of c. If the peer's kernel has ended it, attend finds out why.
func (l *Link) over(c *conn, cause error) {
	ended := errors.Is(cause, io.EOF) || errors.Is(cause, io.ErrUnexpectedEOF) ||
		errors.Is(cause, syscall.ECONNRESET) || errors.Is(cause, syscall.EPIPE)
	l.mu.Lock()
	delete(l.conns, c)
	p := c.p
	if p.conn == c {
		p.conn, p.since, p.err = nil, time.Now(), plain(cause).Error()
		switch {
		case ended:
			p.lost = c.peer
		case errors.Is(cause, errBye):
			p.left = c.peer.Instance
		}
		p.urge()
	}
	leaving := l.leaving
	l.mu.Unlock()
	if !leaving && !errors.Is(cause, errReplaced) {
		l.log.Info("link: disconnected", "peer", c.peer.Name, "error", plain(cause))
	}
}

// remote returns the other end of a TCP connection.
func remote(nc net.Conn) netip.AddrPort {
	at, _ := netip.ParseAddrPort(nc.RemoteAddr().String())
	return at
}
