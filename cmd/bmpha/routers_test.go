package main

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"github.com/bmpha/bmpha/pkg/control"
	"github.com/bmpha/bmpha/pkg/rig"
)

// TestFRR and TestGoBGP: a real router, with neighbours that announce and withdraw
// all the time, feeds two collectors. The active one is killed in the middle, the
// router's session to the next is cut. In the end Kafka says what the router says.
func TestFRR(t *testing.T) {
	rig.Require(t, rig.FRRPart)
	realRouter(t, startFRR, plainPair)
}

func TestGoBGP(t *testing.T) {
	rig.Require(t, rig.GoBGPPart)
	realRouter(t, startGoBGP, plainPair)
}

// TestFRRBeside and TestGoBGPBeside: the same through two pmbmpd, each between the
// two sides of a collector.
func TestFRRBeside(t *testing.T) {
	rig.Require(t, rig.FRRPart, rig.PmbmpdPart)
	realRouter(t, startFRR, besidePair)
}

func TestGoBGPBeside(t *testing.T) {
	rig.Require(t, rig.GoBGPPart, rig.PmbmpdPart)
	realRouter(t, startGoBGP, besidePair)
}

func startFRR(ctx context.Context, o rig.RouterOptions) (rig.Router, error) {
	return rig.StartFRR(ctx, o)
}

func startGoBGP(ctx context.Context, o rig.RouterOptions) (rig.Router, error) {
	return rig.StartGoBGP(ctx, o)
}

func plainPair(l *lab) []*member { return l.cluster("a", "b") }

func besidePair(l *lab) []*member {
	a := l.station("a", "pmbmpd", nil)
	a.role(control.RoleActive)
	b := l.station("b", "pmbmpd", nil)
	b.role(control.RoleStandby)
	return []*member{a.member, b.member}
}

func realRouter(t *testing.T, start func(context.Context, rig.RouterOptions) (rig.Router, error), pair func(*lab) []*member) {
	t.Parallel()
	l := newLab(t).consume(1)
	ms := pair(l)
	a, b := ms[0], ms[1]

	local := netip.MustParseAddr("127.2.0.7")
	neighbor := rig.Neighbor{Addr: local, AS: 65001}
	router, err := start(l.within(time.Minute), rig.RouterOptions{
		Neighbors: []rig.Neighbor{neighbor}, Collectors: []string{a.listen, b.listen},
	})
	l.must(err)
	t.Cleanup(func() { l.must(router.Close()) })
	s, err := rig.Speak(l.within(time.Minute), rig.SpeakerOptions{
		Router: router.BGP(), Local: local, AS: neighbor.AS, ID: netip.MustParseAddr("192.0.2.11"),
	})
	l.must(err)
	t.Cleanup(func() { l.must(s.Close()) })

	talk := newTalker(l, s)
	talk.everything()
	for _, m := range ms {
		m.seen("the router and its peer", func(st *control.Status) error {
			if len(st.Routers) != 1 || st.Routers[0].Session == nil || !st.Routers[0].Heard || st.Routers[0].PeersUp == 0 {
				return fmt.Errorf("%s hears %+v", m.name, st.Routers)
			}
			return nil
		})
	}
	talk.until("records", func() error {
		if n := l.tally.Count(); n < 1000 {
			return fmt.Errorf("%d records", n)
		}
		return nil
	})
	l.must(a.Kill())
	talk.until("takeover", func() error { return roleOf(b, control.RoleActive) })
	l.must(a.Restart(t.Context()))
	talk.until("a is back and hears the router", func() error {
		if err := roleOf(a, control.RoleStandby); err != nil {
			return err
		}
		if st := a.status(); len(st.Routers) != 1 || st.Routers[0].Session == nil {
			return fmt.Errorf("no session")
		}
		return nil
	})
	router.Link(1).Cut()
	talk.until("a sends for the router that b has lost", func() error {
		if st := a.status(); !st.Routers[0].Sending {
			return fmt.Errorf("%s sends", st.Routers[0].Sender)
		}
		return nil
	})
	l.must(router.Link(1).Restore())
	talk.until("b sends again", func() error {
		if st := b.status(); len(st.Routers) != 1 || !st.Routers[0].Sending || st.Routers[0].Session == nil {
			return fmt.Errorf("%+v", st.Routers)
		}
		return nil
	})
	o := l.command("maintenance", "--socket", b.socket)
	if o.code != 0 {
		t.Errorf("maintenance: exit code %d, %s%s", o.code, o.out, o.errOut)
	}
	talk.until("a is active", func() error { return roleOf(a, control.RoleActive) })
	// A takeover between two samples of a churning router can leave an older word
	// about a route last (see the changelog's known issues); what the router says
	// now must hold.
	talk.everything()
	l.until("Kafka says what the router says", func() error {
		want, err := router.Table(l.within(10 * time.Second))
		if err != nil {
			return err
		}
		got, err := l.postPolicy()
		if err != nil {
			return err
		}
		if only, missing := want.Diff(got); len(only)+len(missing) > 0 || len(want) == 0 {
			return fmt.Errorf("of %d routes Kafka lacks %d %.2v and has %d more %.2v", len(want), len(only), only, len(missing), missing)
		}
		return nil
	})
}

func roleOf(m *member, want string) error {
	if st := m.status(); st.Role != want {
		return fmt.Errorf("%s is %s (%s)", m.name, st.Role, st.Reason)
	}
	return nil
}

// postPolicy builds the post-policy table from the topic: the last word about a
// route counts, and a neighbour that is down has none.
func (l *lab) postPolicy() (rig.Table, error) {
	records, err := rig.ReadTopic(l.within(20*time.Second), l.kafka.Brokers(), l.name, l.kafka.Client()...)
	if err != nil {
		return nil, err
	}
	routes := map[[2]string]rig.Route{}
	for _, r := range records {
		var v struct {
			Type    string `json:"bmp_msg_type"`
			Log     string `json:"log_type"`
			In      int    `json:"is_in"` // in every dialect, unlike bmp_rib_type
			Post    int    `json:"is_post"`
			Peer    string `json:"peer_ip"`
			Prefix  string `json:"ip_prefix"`
			NextHop string `json:"bgp_nexthop"`
			ASPath  string `json:"as_path"`
		}
		if err := json.Unmarshal(r.Value, &v); err != nil {
			return nil, err
		}
		key := [2]string{v.Peer, v.Prefix}
		switch {
		case v.Type == "peer_down":
			for k := range routes {
				if k[0] == v.Peer {
					delete(routes, k)
				}
			}
		case v.In != 1 || v.Post != 1:
		case v.Log == "withdraw" || v.Log == "delete":
			delete(routes, key)
		case v.Log == "update":
			routes[key] = rig.Route{
				Peer: netip.MustParseAddr(v.Peer), Prefix: netip.MustParsePrefix(v.Prefix),
				NextHop: netip.MustParseAddr(v.NextHop), ASPath: v.ASPath,
			}
		}
	}
	table := rig.Table{}
	for _, r := range routes {
		table[r] = true
	}
	return table, nil
}

// A talker is a neighbour's mouth.
type talker struct {
	l        *lab
	s        *rig.Speaker
	r        *rand.Rand
	prefixes []netip.Prefix
}

func newTalker(l *lab, s *rig.Speaker) *talker {
	k := &talker{l: l, s: s, r: rand.New(rand.NewPCG(1, 2))}
	for i := range 600 {
		k.prefixes = append(k.prefixes, netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 18, byte(i >> 8), byte(i)}), 32))
	}
	return k
}

func (k *talker) announce(p ...netip.Prefix) {
	k.l.t.Helper()
	k.l.must(k.s.Announce(rig.Attributes{
		NextHop: netip.MustParseAddr("192.0.2.11"), ASPath: []uint32{65001, 64500 + k.r.Uint32N(30)}, MED: k.r.Uint32N(1000),
	}, p...))
}

func (k *talker) everything() {
	k.l.t.Helper()
	k.announce(k.prefixes...)
}

// until goes on talking until a condition holds, and a little longer, so that the
// table is never the one of before.
func (k *talker) until(what string, cond func() error) {
	k.l.t.Helper()
	k.l.untilWithin(time.Minute, what, func() error {
		for range 10 {
			from := k.r.IntN(len(k.prefixes) - 5)
			if some := k.prefixes[from : from+5]; k.r.IntN(3) == 0 {
				k.l.must(k.s.Withdraw(some...))
			} else {
				k.announce(some...)
			}
		}
		return cond()
	})
}
