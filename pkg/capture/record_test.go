package capture

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"testing"
	"time"

	"github.com/bmpha/bmpha/pkg/rig"
)

var record = flag.Bool("record", false, "record frr.bmp and gobgp.bmp anew")

// The BMP message types.
const (
	routeMonitoring = 0
	statistics      = 1
	peerDown        = 2
	peerUp          = 3
	initiation      = 4
)

// The scene: documentation addresses and AS numbers (RFC 5737, 3849, 5398).
const routerAS = 64500

var (
	routerAddrs = []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")}
	neighbors   = []rig.Neighbor{
		{Addr: netip.MustParseAddr("192.0.2.11"), AS: 64501},
		{Addr: netip.MustParseAddr("192.0.2.12"), AS: 65537}, // four octets
		{Addr: netip.MustParseAddr("192.0.2.13"), AS: 64503},
		{Addr: netip.MustParseAddr("2001:db8::14"), AS: 64504},
	}
)

// TestRecord makes the captures. The addresses are nobody's, so it runs itself
// again in a network namespace of its own, where they can be had.
func TestRecord(t *testing.T) {
	if !*record {
		t.Skip("records only with -record")
	}
	rig.Require(t, rig.FRRPart, rig.GoBGPPart)
	const inside = "BMPHA_CAPTURE_NAMESPACE"
	if os.Getenv(inside) == "" {
		cmd := exec.Command("unshare", "-rn", os.Args[0], "-test.run=^TestRecord$", "-record", "-test.v")
		cmd.Env = append(os.Environ(), inside+"=1")
		out, err := cmd.CombinedOutput()
		t.Logf("%s", out)
		if err != nil {
			t.Fatal(err)
		}
		return
	}
	ip(t, "link", "set", "lo", "up")
	for _, a := range routerAddrs {
		ip(t, "addr", "add", a.String(), "dev", "lo")
	}
	for _, n := range neighbors {
		ip(t, "addr", "add", n.Addr.String(), "dev", "lo")
	}
	t.Run("frr", func(t *testing.T) {
		recordRouter(t, "frr.bmp", func(ctx context.Context, o rig.RouterOptions) (rig.Router, error) {
			return rig.StartFRR(ctx, o)
		})
	})
	t.Run("gobgp", func(t *testing.T) {
		recordRouter(t, "gobgp.bmp", func(ctx context.Context, o rig.RouterOptions) (rig.Router, error) {
			return rig.StartGoBGP(ctx, o)
		})
	})
}

func ip(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
		t.Fatalf("ip %v: %v: %s", args, err, out)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// A scene is a router with its neighbours during a recording.
type scene struct {
	t        *testing.T
	ctx      context.Context
	router   rig.Router
	sink     *rig.Sink
	rand     *rand.Rand
	speakers []*rig.Speaker
}

func recordRouter(t *testing.T, file string, start func(context.Context, rig.RouterOptions) (rig.Router, error)) {
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	sink, err := rig.OpenSink("")
	must(t, err)
	defer sink.Close()
	r, err := start(ctx, rig.RouterOptions{
		AS: routerAS, ID: routerAddrs[0], Addrs: routerAddrs,
		Neighbors: neighbors, Collectors: []string{sink.Addr()}, StatsEvery: 2 * time.Second,
	})
	must(t, err)
	defer r.Close()
	s := &scene{
		t: t, ctx: ctx, router: r, sink: sink, rand: rand.New(rand.NewPCG(1, 2)),
		speakers: make([]*rig.Speaker, len(neighbors)),
	}
	// Two neighbours are there before the session that is kept, so that it
	// starts with a table and its End-of-RIB; two come later.
	r.Link(0).Cut()
	s.up(0)
	s.up(1)
	s.table(0, 150, 50)
	s.table(1, 150, 50)
	must(t, rig.WaitFor(ctx, func() error {
		table, err := r.Table(ctx)
		if err == nil && len(table) != 400 {
			err = fmt.Errorf("%d routes", len(table))
		}
		return err
	}))
	must(t, r.Link(0).Restore())
	s.wait("the table", func(last rig.SinkSession) bool { return last.Count(routeMonitoring) >= 800 })
	s.up(2)
	s.up(3)
	s.table(2, 100, 30)
	s.table(3, 60, 60)
	s.churn(200)
	s.settle()

	// One neighbour flaps, another goes without a word and stays away.
	must(t, s.speakers[2].Close())
	s.wait("the Peer Down", func(last rig.SinkSession) bool { return last.Count(peerDown) >= 1 })
	s.up(2)
	s.table(2, 100, 30)
	s.churn(100)
	s.settle()
	must(t, s.speakers[1].Drop())
	s.wait("the second Peer Down", func(last rig.SinkSession) bool { return last.Count(peerDown) >= 2 })
	s.speakers[1] = nil
	s.churn(60)
	s.settle()
	stats := s.last().Count(statistics)
	s.wait("statistics", func(last rig.SinkSession) bool { return last.Count(statistics) >= max(stats+1, 6) })

	last := s.last()
	must(t, os.WriteFile(file, bytes.Join(last.Messages, nil), 0o644))
	t.Logf("%s: %d messages: %d Route Monitoring, %d statistics, %d Peer Down, %d Peer Up", file, len(last.Messages),
		last.Count(routeMonitoring), last.Count(statistics), last.Count(peerDown), last.Count(peerUp))
	for _, sp := range s.speakers {
		if sp != nil {
			sp.Drop()
		}
	}
}

func (s *scene) last() rig.SinkSession {
	ss := s.sink.Sessions()
	return ss[len(ss)-1]
}

func (s *scene) wait(what string, cond func(rig.SinkSession) bool) {
	s.t.Helper()
	err := s.sink.Wait(s.ctx, func(ss []rig.SinkSession) bool {
		return len(ss) > 0 && !ss[len(ss)-1].Ended && cond(ss[len(ss)-1])
	})
	if err != nil {
		s.t.Fatalf("waiting for %s: %v", what, err)
	}
}

// up brings neighbour i up.
func (s *scene) up(i int) {
	s.t.Helper()
	_, port, err := net.SplitHostPort(s.router.BGP())
	must(s.t, err)
	addr := routerAddrs[0]
	if neighbors[i].Addr.Is6() {
		addr = routerAddrs[1]
	}
	s.speakers[i], err = rig.Speak(s.ctx, rig.SpeakerOptions{
		Router: net.JoinHostPort(addr.String(), port), Local: neighbors[i].Addr, AS: neighbors[i].AS,
		ID: netip.AddrFrom4([4]byte{192, 0, 2, byte(11 + i)}),
	})
	must(s.t, err)
}

// settle lets the router catch up: a route that neighbour 0 announces last, with
// a MED of its own, has come twice, and nothing has while the router was asked
// for its table.
func (s *scene) settle() {
	s.t.Helper()
	for range 2 {
		before := s.last().Count(routeMonitoring)
		a := s.attributes(0, false)
		a.MED = s.rand.Uint32N(1 << 30)
		must(s.t, s.speakers[0].Announce(a, netip.MustParsePrefix("203.0.113.0/24")))
		s.wait("the last route", func(last rig.SinkSession) bool { return last.Count(routeMonitoring) >= before+2 })
	}
	must(s.t, rig.WaitFor(s.ctx, func() error {
		before := s.last().Count(routeMonitoring)
		if _, err := s.router.Table(s.ctx); err != nil {
			return err
		}
		if n := s.last().Count(routeMonitoring); n != before {
			return fmt.Errorf("%d more messages", n-before)
		}
		return nil
	}))
}

// attributes makes up path attributes as a neighbour's.
func (s *scene) attributes(i int, v6 bool) rig.Attributes {
	a := rig.Attributes{NextHop: netip.AddrFrom4([4]byte{192, 0, 2, byte(11 + i)}), ASPath: []uint32{neighbors[i].AS}}
	if v6 {
		b := netip.MustParseAddr("2001:db8::").As16()
		b[15] = byte(0x11 + i)
		a.NextHop = netip.AddrFrom16(b)
	}
	for range s.rand.IntN(4) {
		a.ASPath = append(a.ASPath, []uint32{64505, 64506, 64507, 64511, 65540, 65551}[s.rand.IntN(6)])
	}
	if s.rand.IntN(2) == 0 {
		a.MED = 1 + s.rand.Uint32N(500)
	}
	for range s.rand.IntN(4) {
		a.Communities = append(a.Communities, 64500<<16|1+s.rand.Uint32N(900))
	}
	slices.Sort(a.Communities)
	a.Communities = slices.Compact(a.Communities)
	if s.rand.IntN(8) == 0 {
		a.Large = [][3]uint32{{65537, 1, s.rand.Uint32N(100)}}
	}
	a.Origin = byte([]int{0, 0, 0, 2}[s.rand.IntN(4)])
	return a
}

// prefix is the n-th prefix of a family; neighbours announce the same ones.
func prefix(v6 bool, n int) netip.Prefix {
	if v6 {
		a := netip.MustParseAddr("2001:db8::").As16()
		a[4], a[5] = byte((n+256)>>8), byte(n)
		return netip.PrefixFrom(netip.AddrFrom16(a), 48)
	}
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(n >> 8), byte(n), 0}), 24)
}

// table announces n4 and n6 prefixes in groups with the same attributes.
func (s *scene) table(i, n4, n6 int) {
	s.t.Helper()
	for _, f := range []struct {
		v6 bool
		n  int
	}{{false, n4}, {true, n6}} {
		for from := 0; from < f.n; {
			to := min(f.n, from+1+s.rand.IntN(12))
			var ps []netip.Prefix
			for ; from < to; from++ {
				ps = append(ps, prefix(f.v6, from))
			}
			must(s.t, s.speakers[i].Announce(s.attributes(i, f.v6), ps...))
		}
	}
}

// churn makes n changes: new attributes, withdrawals, the same again.
func (s *scene) churn(n int) {
	s.t.Helper()
	for range n {
		i := s.rand.IntN(len(s.speakers))
		if s.speakers[i] == nil {
			continue
		}
		v6 := s.rand.IntN(4) == 0
		p := prefix(v6, s.rand.IntN(60))
		a := s.attributes(i, v6)
		switch s.rand.IntN(4) {
		case 0:
			must(s.t, s.speakers[i].Withdraw(p))
		case 1:
			must(s.t, s.speakers[i].Announce(a, p))
			must(s.t, s.speakers[i].Withdraw(p))
			must(s.t, s.speakers[i].Announce(a, p))
		default:
			must(s.t, s.speakers[i].Announce(a, p))
		}
	}
}
