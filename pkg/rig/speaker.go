package rig

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// SpeakerOptions say who a Speaker is and which router it talks to.
type SpeakerOptions struct {
	Router string     // the router's BGP address, host:port
	Local  netip.Addr // own loopback address, by which the router knows it
	AS     uint32     // own AS number, two or four octets
	ID     netip.Addr // own BGP identifier, an IPv4 address
}

// Attributes are the path attributes of an announcement. The zero value of an
// optional one leaves it out.
type Attributes struct {
	NextHop     netip.Addr // of the prefixes' family
	ASPath      []uint32   // as sent: the speaker's own AS first
	Origin      uint8      // 0 IGP, 1 EGP, 2 incomplete
	MED         uint32     // optional
	Communities []uint32   // optional; upper half AS, lower half value
	Large       [][3]uint32
}

// holdTime is what the speaker offers, in seconds.
const holdTime = 90

// perUpdate is the most prefixes that the speaker puts into one UPDATE.
const perUpdate = 20

// A Speaker is a BGP neighbour of a router: it connects, keeps the session up,
// announces and withdraws what it is told and ignores what it hears. Its methods
// are safe for concurrent use.
type Speaker struct {
	o    SpeakerOptions
	conn net.Conn
	done chan struct{} // closed when the session has ended
	wg   sync.WaitGroup

	mu  sync.Mutex // writing, and err
	err error
}

// Speak opens an external BGP session with IPv4 and IPv6 unicast and returns
// when it is established. It tries again until ctx ends, because a router may
// refuse a neighbour for some seconds after its last session, unless the router
// finds fault with the OPEN.
func Speak(ctx context.Context, o SpeakerOptions) (*Speaker, error) {
	var s *Speaker
	var fault Notification
	err := waitEvery(ctx, 50*time.Millisecond, func() (err error) {
		s, err = speak(ctx, o)
		if errors.As(err, &fault) && fault.Code == 2 {
			return nil
		}
		return err
	})
	if err == nil && s == nil {
		err = fault
	}
	if err != nil {
		return nil, fmt.Errorf("bgp session from %s to %s: %w", o.Local, o.Router, err)
	}
	return s, nil
}

// The BGP messages, RFC 4271 section 4.
const (
	bgpOpen         = 1
	bgpUpdate       = 2
	bgpNotification = 3
	bgpKeepalive    = 4

	bgpHeader = 19
	bgpMax    = 4096
)

func speak(ctx context.Context, o SpeakerOptions) (*Speaker, error) {
	d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(o.Local, 0)), Timeout: 2 * time.Second}
	conn, err := d.DialContext(ctx, "tcp", o.Router)
	if err != nil {
		return nil, err
	}
	s := &Speaker{o: o, conn: conn, done: make(chan struct{})}
	r := bufio.NewReader(conn)
	if err := s.establish(ctx, r); err != nil {
		conn.Close()
		return nil, err
	}
	s.wg.Go(func() { s.read(r) })
	s.wg.Go(s.keepalive)
	return s, nil
}

// establish exchanges OPENs and the first KEEPALIVEs.
func (s *Speaker) establish(ctx context.Context, r *bufio.Reader) error {
	deadline := time.Now().Add(10 * time.Second)
	if d, ok := ctx.Deadline(); ok && d.Before(deadline) {
		deadline = d
	}
	s.conn.SetDeadline(deadline)
	defer s.conn.SetDeadline(time.Time{})
	if err := s.send(s.open()); err != nil {
		return err
	}
	for _, want := range []byte{bgpOpen, bgpKeepalive} {
		kind, body, err := readBGP(r)
		if err != nil {
			return err
		}
		if kind == bgpNotification {
			return notification(body)
		}
		if kind != want {
			return fmt.Errorf("message type %d where %d was expected", kind, want)
		}
		if kind == bgpOpen {
			if err := s.send(message(bgpKeepalive)); err != nil {
				return err
			}
		}
	}
	return nil
}

// A Notification is the error with which a router ends a session, RFC 4271
// section 4.5.
type Notification struct{ Code, Subcode byte }

func (n Notification) Error() string {
	return fmt.Sprintf("NOTIFICATION code %d subcode %d", n.Code, n.Subcode)
}

func notification(body []byte) error {
	if len(body) < 2 {
		return errors.New("short NOTIFICATION")
	}
	return Notification{body[0], body[1]}
}

func readBGP(r *bufio.Reader) (kind byte, body []byte, err error) {
	var h [bgpHeader]byte
	if _, err := io.ReadFull(r, h[:]); err != nil {
		return 0, nil, err
	}
	n := int(binary.BigEndian.Uint16(h[16:]))
	if n < bgpHeader || n > bgpMax {
		return 0, nil, fmt.Errorf("message of %d bytes", n)
	}
	body = make([]byte, n-bgpHeader)
	_, err = io.ReadFull(r, body)
	return h[18], body, err
}

func (s *Speaker) read(r *bufio.Reader) {
	var err error
	for err == nil {
		var kind byte
		var body []byte
		if kind, body, err = readBGP(r); err == nil && kind == bgpNotification {
			err = notification(body)
		}
	}
	s.mu.Lock()
	if s.err == nil {
		s.err = err
	}
	s.mu.Unlock()
	s.conn.Close()
	close(s.done)
}

func (s *Speaker) keepalive() {
	tick := time.NewTicker(holdTime / 3 * time.Second)
	defer tick.Stop()
	for {
		select {
		case <-s.done:
			return
		case <-tick.C:
			s.send(message(bgpKeepalive)) // the reader notices the end
		}
	}
}

// Done returns a channel that is closed when the session has ended, by either
// side.
func (s *Speaker) Done() <-chan struct{} { return s.done }

// send writes one whole message.
func (s *Speaker) send(b []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return s.err
	}
	_, err := s.conn.Write(b)
	return err
}

// Close ends the session with a NOTIFICATION (Cease, administrative shutdown).
func (s *Speaker) Close() error {
	s.send(message(bgpNotification, 6, 2)) // an ended session needs none
	return s.Drop()
}

// Drop ends the session by closing the connection without a word.
func (s *Speaker) Drop() error {
	s.mu.Lock()
	if s.err == nil {
		s.err = net.ErrClosed
	}
	s.mu.Unlock()
	s.conn.Close()
	s.wg.Wait()
	return nil
}

// Announce announces prefixes, all of the next hop's family, in as many UPDATEs
// as it takes. It returns when the router's TCP has taken them.
func (s *Speaker) Announce(a Attributes, prefixes ...netip.Prefix) error {
	return s.update(prefixes, func(nlri []byte) []byte {
		if a.NextHop.Is4() {
			return updateMessage(nil, a.attributes(nil), nlri)
		}
		return updateMessage(nil, a.attributes(nlri), nil)
	})
}

// Withdraw withdraws prefixes, all of one family.
func (s *Speaker) Withdraw(prefixes ...netip.Prefix) error {
	return s.update(prefixes, func(nlri []byte) []byte {
		if prefixes[0].Addr().Is4() {
			return updateMessage(nlri, nil, nil)
		}
		// MP_UNREACH_NLRI, RFC 4760 section 4.
		return updateMessage(nil, attribute(nil, 0x80, 15, append([]byte{0, 2, 1}, nlri...)), nil)
	})
}

func (s *Speaker) update(prefixes []netip.Prefix, build func(nlri []byte) []byte) error {
	for part := range slices.Chunk(prefixes, perUpdate) {
		var nlri []byte
		for _, p := range part {
			nlri = append(nlri, byte(p.Bits()))
			nlri = append(nlri, p.Masked().Addr().AsSlice()[:(p.Bits()+7)/8]...)
		}
		if err := s.send(build(nlri)); err != nil {
			return fmt.Errorf("bgp session from %s to %s: %w", s.o.Local, s.o.Router, err)
		}
	}
	return nil
}

// open is the OPEN message: multiprotocol for both families (RFC 4760), route
// refresh (RFC 2918), four-octet AS (RFC 6793).
func (s *Speaker) open() []byte {
	caps := []byte{
		1, 4, 0, 1, 0, 1,
		1, 4, 0, 2, 0, 1,
		2, 0,
		65, 4,
	}
	caps = binary.BigEndian.AppendUint32(caps, s.o.AS)
	as2 := uint16(23456) // AS_TRANS
	if s.o.AS <= 0xffff {
		as2 = uint16(s.o.AS)
	}
	body := []byte{4}
	body = binary.BigEndian.AppendUint16(body, as2)
	body = binary.BigEndian.AppendUint16(body, holdTime)
	body = append(body, s.o.ID.AsSlice()...)
	body = append(body, byte(len(caps)+2), 2, byte(len(caps)))
	return message(bgpOpen, append(body, caps...)...)
}

// attributes encodes a; mp is the IPv6 NLRI, or nil for IPv4.
func (a Attributes) attributes(mp []byte) []byte {
	b := attribute(nil, 0x40, 1, []byte{a.Origin})
	var path []byte
	if len(a.ASPath) > 0 {
		path = append(path, 2, byte(len(a.ASPath))) // AS_SEQUENCE
		for _, as := range a.ASPath {
			path = binary.BigEndian.AppendUint32(path, as)
		}
	}
	b = attribute(b, 0x40, 2, path)
	if mp == nil {
		b = attribute(b, 0x40, 3, a.NextHop.AsSlice())
	}
	if a.MED != 0 {
		b = attribute(b, 0x80, 4, binary.BigEndian.AppendUint32(nil, a.MED))
	}
	if len(a.Communities) > 0 {
		var v []byte
		for _, c := range a.Communities {
			v = binary.BigEndian.AppendUint32(v, c)
		}
		b = attribute(b, 0xc0, 8, v)
	}
	if mp != nil {
		// MP_REACH_NLRI, RFC 4760 section 3.
		v := append([]byte{0, 2, 1, 16}, a.NextHop.AsSlice()...)
		v = append(v, 0) // reserved
		b = attribute(b, 0x80, 14, append(v, mp...))
	}
	if len(a.Large) > 0 {
		var v []byte
		for _, c := range a.Large {
			for _, n := range c {
				v = binary.BigEndian.AppendUint32(v, n)
			}
		}
		b = attribute(b, 0xc0, 32, v)
	}
	return b
}

// attribute appends one path attribute to b.
func attribute(b []byte, flags, kind byte, value []byte) []byte {
	if len(value) > 255 {
		b = append(b, flags|0x10, kind)
		b = binary.BigEndian.AppendUint16(b, uint16(len(value)))
	} else {
		b = append(b, flags, kind, byte(len(value)))
	}
	return append(b, value...)
}

func updateMessage(withdrawn, attrs, nlri []byte) []byte {
	body := binary.BigEndian.AppendUint16(nil, uint16(len(withdrawn)))
	body = append(body, withdrawn...)
	body = binary.BigEndian.AppendUint16(body, uint16(len(attrs)))
	body = append(body, attrs...)
	return message(bgpUpdate, append(body, nlri...)...)
}

// message puts the header before a body.
func message(kind byte, body ...byte) []byte {
	b := make([]byte, 16, bgpHeader+len(body))
	for i := range b {
		b[i] = 0xff
	}
	b = binary.BigEndian.AppendUint16(b, uint16(bgpHeader+len(body)))
	b = append(b, kind)
	return append(b, body...)
}
