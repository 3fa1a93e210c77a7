package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"testing"
	"time"

	"github.com/bmpha/bmpha/pkg/bgp"
	"github.com/bmpha/bmpha/pkg/bmp"
	"github.com/bmpha/bmpha/pkg/control"
	"github.com/bmpha/bmpha/pkg/replay"
	"github.com/bmpha/bmpha/pkg/rig"
)

// A wire is a TCP connection to a collector from an address of our choice.
type wire struct {
	l    *lab
	conn *net.TCPConn
}

// dial connects to a collector.
func (l *lab) dial(m *member, from string) *wire {
	l.t.Helper()
	w, err := dialFrom(m.listen, from)
	l.must(err)
	l.t.Cleanup(func() { w.Close() })
	return &wire{l, w}
}

func dialFrom(to, from string) (*net.TCPConn, error) {
	addr, err := net.ResolveTCPAddr("tcp", to)
	if err != nil {
		return nil, err
	}
	return net.DialTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(from), 0)), addr)
}

// send writes. The collector may have had enough and closed.
func (w *wire) send(parts ...[]byte) {
	for _, p := range parts {
		if _, err := w.conn.Write(p); err != nil {
			return
		}
	}
}

func (w *wire) close() { w.conn.Close() }

// closed waits until the collector has closed the connection.
func (w *wire) closed() error {
	if err := w.conn.SetReadDeadline(time.Now().Add(patience * 10 * time.Second)); err != nil {
		return err
	}
	var timeout net.Error
	if _, err := w.conn.Read(make([]byte, 1)); err == nil {
		return errors.New("the collector said something")
	} else if errors.As(err, &timeout) && timeout.Timeout() {
		return errors.New("the collector keeps the connection")
	}
	return nil // end, or reset because it had not read everything
}

func header(version byte, length uint32, kind byte) []byte {
	return append(binary.BigEndian.AppendUint32([]byte{version}, length), kind)
}

// badUpdate is a Route Monitoring message whose UPDATE has a body of our choice.
func badUpdate(body ...byte) []byte {
	u := bgp.AppendLength(append(bgp.AppendHeader(nil, 2), body...), 0)
	return bmp.AppendRouteMonitoring(nil, smallPeer, u)
}

// TestBadInput: whatever a router sends ends its own session at most. What it said
// before is in Kafka, it is counted, and another router's stream goes on whole.
func TestBadInput(t *testing.T) {
	t.Parallel()
	// A machine that stands still for a second or two may do so inside a message.
	l := newLab(t, with("BMPHA_LISTEN_READ_TIMEOUT=3s", "BMPHA_LISTEN_MAX_MESSAGE=1MiB")).consume(4)
	a := l.start("a")
	a.role(control.RoleActive)
	good := l.router(replay.Config{Source: netip.MustParseAddr("127.0.2.1"), Rate: 1000,
		Stream: l.stream(replay.Synthetic{Numbered: true})}, a)
	start := append(append(smallOpening(), smallRoute(1, true)...), smallRoute(2, true)...)
	with := func(parts ...[]byte) (b []byte) {
		for _, p := range parts {
			b = append(b, p...)
		}
		return b
	}

	// What a case adds to the counts.
	closed := func(reason string) func(*control.Status) uint64 {
		return func(s *control.Status) uint64 { return s.Sessions.Closed[reason] }
	}
	refused := func(reason string) func(*control.Status) uint64 {
		return func(s *control.Status) uint64 { return s.Sessions.Refused[reason] }
	}
	leftOut := func(reason string) func(*control.Status) uint64 {
		return func(s *control.Status) uint64 { return s.LeftOut[reason] }
	}
	for i, c := range []struct {
		name  string
		bytes []byte
		// who ends the session: the router at once or when all was seen, or the
		// collector
		end    string
		count  func(*control.Status) uint64
		routes []byte // in Kafka afterwards
	}{
		{"a message cut short", with(start, smallRoute(3, true)[:60]), "router", closed("router"), []byte{1, 2}},
		{"length 5", with(start, header(3, 5, 0)), "collector", closed("bad_input"), []byte{1, 2}},
		{"length 0", with(start, header(3, 0, 0)), "collector", closed("bad_input"), []byte{1, 2}},
		{"length 4 GiB", with(start, header(3, 1<<32-1, 0)), "collector", closed("bad_input"), []byte{1, 2}},
		{"longer than allowed", with(start, header(3, 1<<20+1, 0)), "collector", closed("bad_input"), []byte{1, 2}},
		{"version 2", with(start, header(2, 48, 0)), "collector", closed("bad_input"), []byte{1, 2}},
		{"version 4", with(start, header(4, 48, 0)), "collector", closed("bad_input"), []byte{1, 2}},
		{"garbage after a valid start", with(start, []byte("\x00\xffgarbage, and more of it")), "collector", closed("bad_input"), []byte{1, 2}},
		{"version 2 from the start", header(2, 48, 0), "collector", refused("not_bmp"), nil},
		{"version 4 from the start", header(4, 48, 0), "collector", refused("not_bmp"), nil},
		{"HTTP", []byte("GET /metrics HTTP/1.1\r\nHost: collector\r\n\r\n"), "collector", refused("not_bmp"), nil},
		{"TLS", []byte("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"), "collector", refused("not_bmp"), nil},
		{"nothing", nil, "router", refused("not_bmp"), nil},
		{"routes before Peer Up", with(bmp.AppendInitiation(nil, "", "early"), smallRoute(3, true), smallOpening(), smallRoute(1, true)),
			"late", leftOut("missing_peer_up"), []byte{1}},
		{"attributes that overrun", with(start, badUpdate(0, 0, 0, 40, 0x40, 1, 1, 0, 32, 203, 0, 113, 3), smallRoute(4, true)),
			"late", leftOut("malformed"), []byte{1, 2, 4}},
		{"an attribute that overruns", with(start, badUpdate(0, 0, 0, 4, 0x40, 1, 200, 0, 32, 203, 0, 113, 3), smallRoute(4, true)),
			"late", leftOut("malformed"), []byte{1, 2, 4}},
		{"a prefix longer than its address", with(start, badUpdate(0, 6, 33, 203, 0, 113, 1, 0, 0, 0), smallRoute(4, true)),
			"late", leftOut("malformed"), []byte{1, 2, 4}},
		{"an UPDATE that is none", with(start, bmp.AppendRouteMonitoring(nil, smallPeer, []byte{1, 2, 3}), smallRoute(4, true)),
			"late", leftOut("malformed"), []byte{1, 2, 4}},
		{"an unknown message type", with(start, header(3, 9, 200), []byte{1, 2, 3}, smallRoute(4, true)),
			"late", leftOut("unknown_messages"), []byte{1, 2, 4}},
		{"a router that stops inside a message", with(start, smallRoute(3, true)[:60]), "collector", closed("stalled"), []byte{1, 2}},
	} {
		from := fmt.Sprintf("127.0.3.%d", i+1)
		before := c.count(a.status())
		w := l.dial(a, from)
		w.send(c.bytes)
		switch c.end {
		case "router":
			w.close()
		case "collector":
			if err := w.closed(); err != nil {
				t.Errorf("%s: %v", c.name, err)
			}
		}
		a.seen(c.name+" is counted", func(s *control.Status) error {
			if n := c.count(s) - before; n == 0 {
				return fmt.Errorf("not counted: closed %v, refused %v, left out %v", s.Sessions.Closed, s.Sessions.Refused, s.LeftOut)
			}
			return nil
		})
		l.until(c.name+": routes", func() error { return l.has(from, c.routes...) })
		w.close()
	}

	// A router that connects again and again.
	const loops = 40
	for range loops {
		w := l.dial(a, "127.0.3.200")
		w.send(start)
		w.close()
	}
	l.until("sessions of the router that connects again and again", func() error {
		if n := l.tally.eventsOf("127.0.3.200", "log_close"); n < 1 {
			return fmt.Errorf("%d sessions ended", n)
		}
		return l.has("127.0.3.200", 1, 2)
	})

	// A router that connects twice: the newer session counts.
	first := l.dial(a, "127.0.3.201")
	first.send(start)
	l.until("the first session", func() error { return l.has("127.0.3.201", 1, 2) })
	second := l.dial(a, "127.0.3.201")
	second.send(smallOpening(), smallRoute(3, true))
	if err := first.closed(); err != nil {
		t.Errorf("connects twice: the first session: %v", err)
	}
	l.until("the second session", func() error { return l.has("127.0.3.201", 3) })
	a.seen("displaced", func(s *control.Status) error {
		if s.Sessions.Closed["displaced"] == 0 {
			return fmt.Errorf("%v", s.Sessions.Closed)
		}
		return nil
	})
	second.close()

	if n := good.Counters().Collectors[0].Sessions; n != 1 {
		l.errorf("the other router needed %d sessions, want one", n)
	}
	l.sameRouter(good, "127.0.2.1")
	if _, n := l.tally.numbered(); n != 0 {
		l.errorf("%d records of the other router repeated", n)
	}
}

// TestWhoMayConnect: the allow list, the limit of sessions, IPv4 and IPv6.
func TestWhoMayConnect(t *testing.T) {
	t.Parallel()
	l := newLab(t).consume(1)
	port, err := rig.FreePort("::1")
	l.must(err)
	six := net.JoinHostPort("::1", strconv.Itoa(port))
	four, err := rig.FreePort("")
	l.must(err)
	a := l.start("a", "BMPHA_LISTEN_ALLOW=127.0.5.0/24,::1/128", "BMPHA_LISTEN_MAX_SESSIONS=2",
		"BMPHA_LISTEN_ADDRESS=127.0.0.1:"+strconv.Itoa(four)+","+six)
	a.listen = "127.0.0.1:" + strconv.Itoa(four)
	a.role(control.RoleActive)

	stranger := l.dial(a, "127.0.6.1")
	if err := stranger.closed(); err != nil {
		t.Errorf("not in the list: %v", err)
	}
	one := l.dial(a, "127.0.5.1")
	one.send(smallOpening(), smallRoute(1, true))
	l.until("IPv4", func() error { return l.has("127.0.5.1", 1) })
	conn, err := dialFrom(six, "::1")
	l.must(err)
	defer conn.Close()
	(&wire{l, conn}).send(smallOpening(), smallRoute(2, true))
	l.until("IPv6", func() error { return l.has("::1", 2) })

	third := l.dial(a, "127.0.5.3")
	if err := third.closed(); err != nil {
		t.Errorf("beyond the limit: %v", err)
	}
	a.problem("sessions_full")
	a.seen("who was refused", func(s *control.Status) error {
		if s.Sessions.Refused["not_allowed"] != 1 || s.Sessions.Refused["limit"] != 1 || s.Sessions.Now != 2 {
			return fmt.Errorf("sessions %+v", s.Sessions)
		}
		return nil
	})
	one.close()
	l.until("room again", func() error {
		w, err := dialFrom(a.listen, "127.0.5.4")
		if err != nil {
			return err
		}
		defer w.Close()
		if _, err := w.Write(append(smallOpening(), smallRoute(4, true)...)); err != nil {
			return err
		}
		return l.has("127.0.5.4", 4)
	})
}

// TestHoldLimits: Kafka is away until memory is full. The active one slows its
// router down and loses nothing; the standby goes on reading and drops the oldest,
// counted and said.
func TestHoldLimits(t *testing.T) {
	t.Parallel()
	fake, err := rig.StartEmbeddedKafka(t.Context(), rig.KafkaOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { fake.Close() })
	l := newLab(t, func(l *lab) { l.kafka = fake },
		with("BMPHA_HOLD_MEMORY=2MiB", "BMPHA_LISTEN_MAX_MESSAGE=64KiB")).consume(4)
	ms := l.cluster("a", "b")
	a, b := ms[0], ms[1]
	r := l.numbered(5*trafficRate, a, b)
	l.more(trafficRate)
	l.must(fake.Away(t.Context(), true))
	a.problem("routers_paused")
	b.problem("hold_dropped")
	if s := a.status(); s.Hold.Dropped["full"] != 0 || s.Hold.Bytes > s.Hold.Limit {
		l.errorf("the active one: %d dropped, %d bytes held of %d", s.Hold.Dropped["full"], s.Hold.Bytes, s.Hold.Limit)
	}
	if s := b.status(); s.Hold.Paused != 0 || s.Hold.Bytes > s.Hold.Limit {
		l.errorf("the standby: %d routers paused, %d bytes held of %d", s.Hold.Paused, s.Hold.Bytes, s.Hold.Limit)
	}
	l.must(fake.Away(t.Context(), false))
	l.more(trafficRate)
	if n := l.complete(r); n != 0 {
		l.errorf("%d records repeated", n)
	}
	if n := r.Counters().Collectors[0].Sessions; n != 1 {
		l.errorf("%d sessions to the active one, want one", n)
	}
}
