package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"regexp"
	"testing"
	"time"

	"github.com/bmpha/bmpha/pkg/control"
	"github.com/bmpha/bmpha/pkg/replay"
	"github.com/bmpha/bmpha/pkg/rig"
)

// TestFRR and TestGoBGP: a real router, with neighbours that announce and withdraw
// all the time, feeds two collectors. The active one is killed in the middle, the
// router's session to the next is cut. In the end Kafka says what the router says.
func TestFRR(t *testing.T) {
	rig.Require(t, rig.FRRPart)
	realRouter(t, func(ctx context.Context, o rig.RouterOptions) (rig.Router, error) { return rig.StartFRR(ctx, o) })
}

func TestGoBGP(t *testing.T) {
	rig.Require(t, rig.GoBGPPart)
	realRouter(t, func(ctx context.Context, o rig.RouterOptions) (rig.Router, error) { return rig.StartGoBGP(ctx, o) })
}

func realRouter(t *testing.T, start func(context.Context, rig.RouterOptions) (rig.Router, error)) {
	t.Parallel()
	l := newLab(t).consume(1)
	ms := l.cluster("a", "b")
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
			if len(st.Routers) != 1 || st.Routers[0].Session == nil || st.Routers[0].PeersUp == 0 {
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
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(l.story())
		}
	})
	l.until("Kafka says what the router says", func() error {
		want, err := router.Table(l.within(10 * time.Second))
		if err != nil {
			return err
		}
		got, err := l.heard(router)
		if err != nil {
			return err
		}
		if only, missing := want.Diff(got); len(only)+len(missing) > 0 || len(want) == 0 {
			return fmt.Errorf("of %d routes Kafka lacks %d, such as %s, and has %d more, such as %s",
				len(want), len(only), fmt.Sprint(only[:min(2, len(only))]), len(missing), fmt.Sprint(missing[:min(2, len(missing))]))
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

// heard is the router's pre-policy Adj-RIB-In as the topic has it, by the rules of
// replay.Consumer: the last word about a route counts, a peer that is down has
// none, and one that comes up begins anew.
func (l *lab) heard(router rig.Router) (rig.Table, error) {
	table := rig.Table{}
	for k, value := range l.tally.routesOf(router.Address().String()) {
		if k.RIB != replay.InPre {
			continue
		}
		m := routeValue.FindStringSubmatch(value)
		if m == nil {
			return nil, fmt.Errorf("route %s: value %q", k, value)
		}
		r := rig.Route{ASPath: m[2]}
		var errs [3]error
		r.Peer, errs[0] = netip.ParseAddr(k.Peer)
		r.Prefix, errs[1] = netip.ParsePrefix(k.Prefix)
		r.NextHop, errs[2] = netip.ParseAddr(m[1])
		if err := errors.Join(errs[:]...); err != nil {
			return nil, fmt.Errorf("route %s: %w", k, err)
		}
		table[r] = true
	}
	return table, nil
}

var routeValue = regexp.MustCompile(`^via (\S+) path \[([^\]]*)\]`)

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
