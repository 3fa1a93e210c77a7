package demo

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/bmpha/bmpha/pkg/pmacct"
	"github.com/bmpha/bmpha/pkg/record"
	"github.com/bmpha/bmpha/pkg/replay"
)

// The parts of a BMP message (RFC 7854, sections 4.1 and 4.2) that are looked at
// here.
const (
	typeAt        = 5
	secondsAt     = 6 + 34 // of the per-peer header
	microsAt      = secondsAt + 4
	peerHeaderEnd = microsAt + 4

	routeMonitoring = 0
	initiation      = 4
	termination     = 5
)

// A stamped stream plays another with timestamps of now, each later than the one
// before, so that each message can be told from all others, and enters the
// records that it makes in a ledger.
//
// Routes of peers that never came up are left out: nobody can say how they are
// encoded, so no record is made of them. GoBGP sends its Loc-RIB so.
type stamped struct {
	source  replay.Stream
	session *pmacct.Session
	batch   record.Batch
	last    int64
	sent    func(id []identity) // called before the message is played
	ids     []identity
}

func newStamped(source replay.Stream, router netip.Addr, sent func([]identity)) (*stamped, error) {
	enc, err := pmacct.NewEncoder(pmacct.Options{Timestamps: pmacct.Epoch})
	if err != nil {
		return nil, err
	}
	return &stamped{source: source, sent: sent, session: enc.Session(pmacct.Identity{Router: router.String(), Addr: router})}, nil
}

// mostLeftOut is how many messages in a row are left out before the stream counts
// as one that has nothing to play.
const mostLeftOut = 100_000

// Next implements replay.Stream.
func (s *stamped) Next(dst []byte) ([]byte, error) {
	start := len(dst)
	for range mostLeftOut {
		dst, err := s.source.Next(dst[:start])
		if err != nil {
			return dst, err
		}
		msg := dst[start:]
		at := time.Now().UnixMicro()
		if kind := msg[typeAt]; kind != initiation && kind != termination && len(msg) >= peerHeaderEnd {
			s.last = max(at, s.last+1)
			binary.BigEndian.PutUint32(msg[secondsAt:], uint32(s.last/1e6))
			binary.BigEndian.PutUint32(msg[microsAt:], uint32(s.last%1e6))
		}
		s.batch.Reset()
		// What else cannot be decoded is played all the same, with the records
		// that it does make.
		if err := s.session.Message(&s.batch, nil, at, msg); errors.Is(err, pmacct.ErrNoPeerUp) {
			continue
		}
		if msg[typeAt] == routeMonitoring {
			if err := s.enter(); err != nil {
				return dst[:start], err
			}
		}
		return dst, nil
	}
	return dst[:start], errors.New("no message of the stream makes a record")
}

func (s *stamped) enter() error {
	s.ids = s.ids[:0]
	for i := range s.batch.Len() {
		r, ok, err := parseRoute(s.batch.Value(i))
		if err != nil {
			return err
		}
		if !ok {
			continue
		}
		id, err := r.identity()
		if err != nil {
			return err
		}
		s.ids = append(s.ids, id)
	}
	s.sent(s.ids)
	return nil
}

// openings knows when the sessions of the routers began: records with an older
// timestamp are from the table that the router sent first.
type openings struct {
	mu sync.Mutex
	at map[netip.AddrPort]int64 // by the router's end of the connection; µs since the Unix epoch
}

// dial returns a dialler for a router at addr.
func (o *openings) dial(addr netip.Addr) func(context.Context, string) (net.Conn, error) {
	d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(addr, 0))}
	return func(ctx context.Context, to string) (net.Conn, error) {
		conn, err := d.DialContext(ctx, "tcp", to)
		if err != nil {
			return nil, err
		}
		tcp, ok := conn.(*net.TCPConn)
		if !ok {
			conn.Close()
			return nil, fmt.Errorf("connection to %s is no TCP", to)
		}
		return &opening{TCPConn: tcp, note: func(at int64) {
			o.mu.Lock()
			defer o.mu.Unlock()
			if o.at == nil {
				o.at = make(map[netip.AddrPort]int64)
			}
			o.at[tcp.LocalAddr().(*net.TCPAddr).AddrPort()] = at
		}}, nil
	}
}

// dumped says whether a message with timestamp at came in the opening of the
// session from a port of a router.
func (o *openings) dumped(router netip.Addr, port uint16, at int64) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return at <= o.at[netip.AddrPortFrom(router, port)]
}

// An opening is a connection that notes when its first bytes, which are those of
// the opening, were ready to be sent.
type opening struct {
	*net.TCPConn
	once sync.Once
	note func(at int64)
}

func (c *opening) Write(b []byte) (int, error) {
	c.once.Do(func() { c.note(time.Now().UnixMicro()) })
	return c.TCPConn.Write(b)
}
