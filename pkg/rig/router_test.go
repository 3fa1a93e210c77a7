package rig

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/osrg/gobgp/v4/pkg/packet/bgp"
	"github.com/osrg/gobgp/v4/pkg/packet/bmp"
)

// The BMP message types that the tests count.
const (
	routeMonitoring = 0
	statistics      = 1
	peerDown        = 2
	peerUp          = 3
	initiation      = 4
)

// heard builds the post-policy table from what a session has brought.
func heard(t *testing.T, messages [][]byte) Table {
	t.Helper()
	table := make(Table)
	drop := func(peer netip.Addr, prefix netip.Prefix, any bool) {
		for r := range table {
			if r.Peer == peer && (any || r.Prefix == prefix) {
				delete(table, r)
			}
		}
	}
	for _, raw := range messages {
		m, err := bmp.ParseBMPMessage(raw)
		if err != nil {
			t.Fatalf("message %x: %v", raw, err)
		}
		peer := m.PeerHeader.PeerAddress
		switch body := m.Body.(type) {
		case *bmp.BMPPeerDownNotification:
			drop(peer, netip.Prefix{}, true)
		case *bmp.BMPRouteMonitoring:
			if !m.PeerHeader.IsPostPolicy() || m.PeerHeader.PeerType == bmp.BMP_PEER_TYPE_LOCAL_RIB {
				continue
			}
			u := body.BGPUpdate.Body.(*bgp.BGPUpdate)
			r := Route{Peer: peer}
			announced, withdrawn := u.NLRI, u.WithdrawnRoutes
			for _, a := range u.PathAttributes {
				switch a := a.(type) {
				case *bgp.PathAttributeAsPath:
					for _, seg := range a.Value {
						r.ASPath = strings.TrimSpace(r.ASPath + " " + asPath(seg.GetAS()...))
					}
				case *bgp.PathAttributeNextHop:
					r.NextHop = a.Value
				case *bgp.PathAttributeMpReachNLRI:
					r.NextHop = a.Nexthop
					announced = append(announced, a.Value...)
				case *bgp.PathAttributeMpUnreachNLRI:
					withdrawn = append(withdrawn, a.Value...)
				}
			}
			for _, n := range withdrawn {
				drop(peer, netip.MustParsePrefix(n.NLRI.String()), false)
			}
			for _, n := range announced {
				r.Prefix = netip.MustParsePrefix(n.NLRI.String())
				drop(peer, r.Prefix, false)
				table[r] = true
			}
		}
	}
	return table
}

// prefixes returns n documentation prefixes of a family.
func prefixes(v6 bool, n int) []netip.Prefix {
	out := make([]netip.Prefix, n)
	for i := range out {
		if v6 {
			a := netip.MustParseAddr("2001:db8::").As16()
			a[4], a[5] = byte(i>>8), byte(i)
			out[i] = netip.PrefixFrom(netip.AddrFrom16(a), 48)
		} else {
			out[i] = netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 51, 100, byte(i)}), 32)
		}
	}
	return out
}

// eachRouter runs a test against both routers, each with two collectors.
func eachRouter(t *testing.T, o RouterOptions, test func(t *testing.T, r Router, sinks []*Sink)) {
	for name, start := range map[string]func(context.Context, RouterOptions) (Router, error){
		FRRPart:   func(ctx context.Context, o RouterOptions) (Router, error) { return StartFRR(ctx, o) },
		GoBGPPart: func(ctx context.Context, o RouterOptions) (Router, error) { return StartGoBGP(ctx, o) },
	} {
		t.Run(name, func(t *testing.T) {
			Require(t, name)
			o := o
			var sinks []*Sink
			for range 2 {
				s, err := OpenSink("")
				must(t, err)
				t.Cleanup(func() { s.Close() })
				o.Collectors = append(o.Collectors, s.Addr())
				sinks = append(sinks, s)
			}
			r, err := start(within(t, 2*time.Minute), o)
			must(t, err)
			t.Cleanup(func() { must(t, r.Close()) })
			test(t, r, sinks)
		})
	}
}

func TestRouterFeedsTwoCollectors(t *testing.T) {
	a, b := netip.MustParseAddr("127.2.0.1"), netip.MustParseAddr("127.2.0.2")
	o := RouterOptions{Neighbors: []Neighbor{{a, 65001}, {b, 4200000002}}}
	eachRouter(t, o, func(t *testing.T, r Router, sinks []*Sink) {
		ctx := within(t, 3*time.Minute)
		var speakers []*Speaker
		for i, n := range o.Neighbors {
			s, err := Speak(ctx, SpeakerOptions{Router: r.BGP(), Local: n.Addr, AS: n.AS,
				ID: netip.AddrFrom4([4]byte{192, 0, 2, byte(11 + i)})})
			must(t, err)
			defer s.Close()
			speakers = append(speakers, s)
			path := []uint32{n.AS, 64500 + uint32(i)}
			must(t, s.Announce(Attributes{NextHop: netip.MustParseAddr("192.0.2.11"), ASPath: path, MED: 7,
				Communities: []uint32{64500<<16 | 1}}, prefixes(false, 100)...))
			must(t, s.Announce(Attributes{NextHop: netip.MustParseAddr("2001:db8::11"), ASPath: path,
				Large: [][3]uint32{{64500, 1, 2}}}, prefixes(true, 50)...))
		}
		must(t, speakers[0].Withdraw(prefixes(false, 30)...))
		must(t, speakers[0].Withdraw(prefixes(true, 10)...))

		agree := func(routes int) {
			t.Helper()
			for i, s := range sinks {
				err := s.Wait(ctx, func(ss []SinkSession) bool {
					if len(ss) == 0 {
						return false
					}
					last := ss[len(ss)-1]
					return !last.Ended && last.Count(initiation) == 1 && len(heard(t, last.Messages)) == routes
				})
				if err != nil {
					ss := s.Sessions()
					last := ss[len(ss)-1]
					t.Fatalf("collector %d: %v: %d initiations, %d routes of %d", i, err,
						last.Count(initiation), len(heard(t, last.Messages)), routes)
				}
				ss := s.Sessions()
				last := ss[len(ss)-1]
				if got := last.Remote.Addr(); got != r.Address() {
					t.Errorf("session from %s, want %s", got, r.Address())
				}
				if last.Count(peerUp) < 2 {
					t.Errorf("%d Peer Ups, want one for each neighbour", last.Count(peerUp))
				}
				// FRR says that a neighbour is down before it has cleared its table.
				must(t, WaitFor(ctx, func() error {
					table, err := r.Table(ctx)
					if err != nil {
						return err
					}
					if only, missing := table.Diff(heard(t, last.Messages)); len(only)+len(missing) > 0 {
						return fmt.Errorf("collector %d: router has %d routes, %d only there %.3v, %d only heard %.3v",
							i, len(table), len(only), only, len(missing), missing)
					}
					return nil
				}))
			}
		}
		agree(70 + 40 + 100 + 50)

		// A link that is cut and restored brings a new session with the whole table.
		r.Link(1).Cut()
		must(t, sinks[1].Wait(ctx, func(ss []SinkSession) bool { return ss[len(ss)-1].Ended }))
		must(t, r.Link(1).Restore())
		must(t, WaitFor(ctx, func() error {
			// GoBGP notices that a session has ended when it next has something
			// to say.
			if err := speakers[1].Announce(Attributes{NextHop: netip.MustParseAddr("192.0.2.12"),
				ASPath: []uint32{o.Neighbors[1].AS}}, prefixes(false, 1)...); err != nil {
				return err
			}
			if len(sinks[1].Sessions()) == 1 {
				return errors.New("no new session")
			}
			return nil
		}))
		agree(70 + 40 + 100 + 50)

		// A neighbour that goes takes its routes with it.
		must(t, speakers[1].Close())
		agree(70 + 40)
		for _, s := range sinks {
			must(t, s.Wait(ctx, func(ss []SinkSession) bool { return ss[len(ss)-1].Count(peerDown) > 0 }))
		}

		// So does a router that crashes; its neighbours and sessions come again.
		must(t, r.Kill())
		must(t, r.Restart(ctx))
		s, err := Speak(ctx, SpeakerOptions{Router: r.BGP(), Local: a, AS: 65001, ID: netip.MustParseAddr("192.0.2.11")})
		must(t, err)
		defer s.Close()
		must(t, s.Announce(Attributes{NextHop: netip.MustParseAddr("192.0.2.11"), ASPath: []uint32{65001}}, prefixes(false, 5)...))
		for _, sink := range sinks {
			must(t, sink.Wait(ctx, func(ss []SinkSession) bool {
				return len(heard(t, ss[len(ss)-1].Messages)) == 5
			}))
		}
	})
}

func TestSpeakerIsRefused(t *testing.T) {
	Require(t, FRRPart)
	r, err := StartFRR(within(t, 2*time.Minute), RouterOptions{Neighbors: []Neighbor{{netip.MustParseAddr("127.2.0.1"), 65001}}})
	must(t, err)
	defer r.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	_, err = Speak(ctx, SpeakerOptions{Router: r.BGP(), Local: netip.MustParseAddr("127.2.0.1"), AS: 65999, ID: netip.MustParseAddr("192.0.2.11")})
	if err == nil || !strings.Contains(err.Error(), "NOTIFICATION code 2 subcode 2") {
		t.Errorf("wrong AS: %v, want Bad Peer AS", err)
	}
}

func TestPmbmpd(t *testing.T) {
	Require(t, PmbmpdPart)
	dir := t.TempDir()
	file := filepath.Join(dir, "out.json")
	ctx := within(t, 2*time.Minute)
	d, err := StartPmbmpd(ctx, PmbmpdOptions{Config: []string{"bmp_daemon_msglog_file: " + file}})
	must(t, err)
	defer d.Close()
	c, err := NewProxy(d.Addr())
	must(t, err)
	defer c.Close()
	if err := listening(d.Addr()); err != nil {
		t.Error(err)
	}
	must(t, d.Stop())
	if err := listening(d.Addr()); err == nil {
		t.Error("still listening after Stop")
	}
	must(t, d.Restart(ctx))
	must(t, listening(d.Addr()))
}
