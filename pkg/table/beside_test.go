package table

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"sync"
	"testing"

	"github.com/bmpha/bmpha/pkg/bgp"
)

func number(i int) nlri {
	return nlri{prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{20, byte(i >> 16), byte(i >> 8), byte(i)}), 32)}
}

// TestBeside: walks, lookups and another table's work beside updates, for the race
// detector, and what a walk promises about routes that stay.
func TestBeside(t *testing.T) {
	const stay = 2000 // even numbers
	store := NewStore()
	var s speaker
	tab, other := NewTable(store, Options{}), NewTable(store, Options{})
	for _, tb := range []*Table{tab, other} {
		must(t, tb, 1, nil, s.peerUp(0, 0, 1), s.peerUp(1, 0, 1))
	}
	for i := range stay {
		must(t, tab, 1, nil, s.announce(0, 0, 1, 0, true, number(2*i)))
	}
	stop := make(chan struct{})
	var writers sync.WaitGroup
	for _, tb := range []*Table{tab, other} {
		writers.Go(func() {
			rng := rand.New(rand.NewPCG(1, 2))
			for {
				select {
				case <-stop:
					return
				default:
				}
				i := rng.IntN(stay)
				must(t, tb, 1, func(*Change) {}, s.announce(0, 0, rng.Uint32N(50), 0, true, number(2*i), number(2*i+1)),
					s.withdraw(0, 0, number(2*rng.IntN(stay)+1)), s.announce(1, 0, 3, 0, true, number(i)))
				if rng.IntN(50) == 0 {
					must(t, tb, 1, nil, s.peerDown(1, 0), s.peerUp(1, 0, 2))
				}
				tb.Tidy(100, func(*Change) {})
			}
		})
	}
	for round := range 6 {
		w := Walk{ByPrefix: round%2 == 0}
		seen := map[netip.Prefix]int{}
		for tab.Walk(&w, 50, func(r *Route) {
			if r.RIB.Peer.Addr[15] == 1 {
				seen[r.Prefix]++
				if len(r.Attrs) == 0 {
					t.Error("no attributes")
				}
			}
		}) {
			tab.Lookup(prefix("20.0.1.0/24"), Longer, Walk{}, func(*Route) bool { return true })
			tab.Peers()
			store.AttributeSets()
		}
		for i := range stay {
			if n := seen[number(2*i).prefix]; n != 1 {
				t.Fatalf("route %d was seen %d times", i, n)
			}
		}
	}
	close(stop)
	writers.Wait()
}

// TestNoAllocation: a known prefix, announced with new attributes and with old ones.
func TestNoAllocation(t *testing.T) {
	var s speaker
	tab := NewTable(NewStore(), Options{Withdrawn: true})
	must(t, tab, 1, nil, s.peerUp(0, 0, 1))
	a := s.announce(0, 0, 1, 0, true, number(1))
	var msgs [][]byte
	for f := range bgp.Families {
		msgs = append(msgs, s.announce(0, 0, 1, 7, false, nlri{family: f, prefix: somePrefix(f)}),
			s.announce(0, 0, 2, 8, false, nlri{family: f, prefix: somePrefix(f)}),
			s.withdraw(0, 0, nlri{family: f, prefix: somePrefix(f)}))
	}
	n := 0
	each := func(c *Change) { n += len(c.Before.Attrs) }
	must(t, tab, 1, each, append(msgs, a)...)
	if got := testing.AllocsPerRun(100, func() { must(t, tab, 2, each, msgs...) }); got != 0 {
		t.Errorf("%v allocations for %d messages", got, len(msgs))
	}
}

func somePrefix(family int) netip.Prefix {
	if bgp.Families[family].AFI == bgp.AFIIPv4 {
		return prefix("10.0.0.0/8")
	}
	return prefix("2001:db8::/32")
}

// TestSettle: a router that sends no End-of-RIB, and a peer that does not come back.
func TestSettle(t *testing.T) {
	var s speaker
	tab := NewTable(NewStore(), Options{})
	for peer := range 2 {
		must(t, tab, 1, nil, s.peerUp(peer, 0, 1), s.announce(peer, 0, 1, 0, true, number(1), number(2), number(3)))
	}
	tab.Open(100)
	must(t, tab, 101, nil, s.peerUp(0, 0, 2), s.announce(0, 0, 1, 0, true, number(1)))
	// A new route is no progress of the dump, one that was known is.
	must(t, tab, 150, nil, s.announce(0, 0, 1, 0, true, number(2)))
	must(t, tab, 190, nil, s.announce(0, 0, 1, 0, true, number(9)))
	if tab.Settle(149) {
		t.Error("settled although routes were still coming")
	}
	if !tab.Settle(150) {
		t.Error("not settled")
	}
	got := map[string]int{}
	for tab.Tidy(1, func(c *Change) { got[fmt.Sprint(c.Kind, " ", c.RIB.Peer.Address(), " ", c.Prefix)]++ }) {
	}
	want := []string{
		"swept 10.0.0.1 20.0.0.3/32", "peer gone 10.0.0.2 20.0.0.1/32", "peer gone 10.0.0.2 20.0.0.2/32", "peer gone 10.0.0.2 20.0.0.3/32",
	}
	for _, w := range want {
		if got[w] != 1 {
			t.Errorf("%s: %d times", w, got[w])
		}
	}
	if len(got) != len(want) || tab.Routes() != 3 || tab.Settle(1000) {
		t.Errorf("%v, %d routes", got, tab.Routes())
	}
}

// TestLimit: what does not fit is refused, and what is known still changes.
func TestLimit(t *testing.T) {
	var s speaker
	tab := NewTable(NewStore(), Options{MaxRoutes: 2})
	must(t, tab, 1, nil, s.peerUp(0, 0, 1), s.announce(0, 0, 1, 0, true, number(1), number(2)))
	if err := tab.Apply(s.announce(0, 0, 2, 0, true, number(3), number(1)), 1, nil); err != ErrTooManyRoutes {
		t.Error(err)
	}
	tab.Lookup(number(1).prefix, Exact, Walk{}, func(r *Route) bool {
		if medOf(r.Attrs) != 2 {
			t.Errorf("med %d", medOf(r.Attrs))
		}
		return true
	})
	if tab.Routes() != 2 {
		t.Errorf("%d routes", tab.Routes())
	}
}

// TestHostBits: they are kept, and do not tell routes apart.
func TestHostBits(t *testing.T) {
	var s speaker
	tab := NewTable(NewStore(), Options{})
	must(t, tab, 1, nil, s.peerUp(0, 0, 1), s.announce(0, 0, 1, 0, true, nlri{prefix: prefix("192.0.0.0/19")}),
		s.announce(0, 0, 1, 0, true, nlri{prefix: prefix("192.0.31.0/19")}))
	var got []string
	tab.Walk(&Walk{}, 10, func(r *Route) { got = append(got, r.Prefix.String()) })
	if len(got) != 1 || got[0] != "192.0.31.0/19" {
		t.Error(got)
	}
}
