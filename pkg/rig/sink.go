package rig

import (
	"bufio"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
)

// A Sink is a collector that only listens: it keeps the BMP streams that routers
// send to it. It is safe for concurrent use.
type Sink struct {
	ln net.Listener
	wg sync.WaitGroup

	mu       sync.Mutex
	changed  chan struct{} // closed and replaced whenever something arrives
	sessions []*SinkSession
}

// A SinkSession is what one BMP session has brought.
type SinkSession struct {
	Remote   netip.AddrPort
	Messages [][]byte // whole messages, in the order of arrival
	Ended    bool
	Err      error // why it ended, nil for a clean end

	conn net.Conn
}

// Count returns how many messages of a BMP type (RFC 7854, section 4.1) have
// come.
func (s SinkSession) Count(kind byte) int {
	n := 0
	for _, m := range s.Messages {
		if m[5] == kind {
			n++
		}
	}
	return n
}

// OpenSink listens on addr, or on a free port of 127.0.0.1 when addr is "".
func OpenSink(addr string) (*Sink, error) {
	if addr == "" {
		var err error
		if addr, err = freeAddr(); err != nil {
			return nil, fmt.Errorf("open sink: %w", err)
		}
	}
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("open sink: %w", err)
	}
	s := &Sink{ln: ln, changed: make(chan struct{})}
	s.wg.Go(s.accept)
	return s, nil
}

// Addr is where it listens, host:port.
func (s *Sink) Addr() string { return s.ln.Addr().String() }

func (s *Sink) accept() {
	for {
		c, err := s.ln.Accept()
		if err != nil {
			return
		}
		ss := &SinkSession{Remote: c.RemoteAddr().(*net.TCPAddr).AddrPort(), conn: c}
		s.change(func() { s.sessions = append(s.sessions, ss) })
		s.wg.Go(func() { s.read(c, ss) })
	}
}

// change applies f under the lock and wakes those who wait.
func (s *Sink) change(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
	close(s.changed)
	s.changed = make(chan struct{})
}

// maxMessage is the longest BMP message that a Sink takes.
const maxMessage = 1 << 20

func (s *Sink) read(c net.Conn, ss *SinkSession) {
	defer c.Close()
	r := bufio.NewReaderSize(c, 64<<10)
	for {
		m, err := readBMP(r)
		if err == nil {
			s.change(func() { ss.Messages = append(ss.Messages, m) })
			continue
		}
		if err == io.EOF {
			err = nil
		}
		s.change(func() { ss.Ended, ss.Err = true, err })
		return
	}
}

// readBMP reads one message with its header.
func readBMP(r io.Reader) ([]byte, error) {
	var h [6]byte
	if _, err := io.ReadFull(r, h[:]); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(h[1:])
	if h[0] != 3 || n < uint32(len(h)) || n > maxMessage {
		return nil, fmt.Errorf("not a BMP message: version %d, length %d", h[0], n)
	}
	m := make([]byte, n)
	copy(m, h[:])
	if _, err := io.ReadFull(r, m[len(h):]); err != nil {
		return nil, fmt.Errorf("inside a message of %d bytes: %w", n, err)
	}
	return m, nil
}

// Sessions returns all sessions so far, in the order of their start.
func (s *Sink) Sessions() []SinkSession {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.snapshot()
}

func (s *Sink) snapshot() []SinkSession {
	out := make([]SinkSession, len(s.sessions))
	for i, ss := range s.sessions {
		out[i] = *ss
	}
	return out
}

// Wait returns nil as soon as cond holds for the sessions so far; it asks again
// whenever something has come.
func (s *Sink) Wait(ctx context.Context, cond func([]SinkSession) bool) error {
	for {
		s.mu.Lock()
		now, changed := s.snapshot(), s.changed
		s.mu.Unlock()
		if cond(now) {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("sink %s with %d sessions: %w", s.Addr(), len(now), context.Cause(ctx))
		case <-changed:
		}
	}
}

// Close ends all sessions and stops listening.
func (s *Sink) Close() error {
	s.ln.Close()
	s.mu.Lock()
	sessions := s.sessions
	s.mu.Unlock()
	for _, ss := range sessions {
		ss.conn.Close()
	}
	s.wg.Wait()
	return nil
}
