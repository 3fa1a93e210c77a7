package table

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/bmpha/bmpha/pkg/bgp"
	"github.com/bmpha/bmpha/pkg/bmp"
)

// TestStoreFull: at the limit a table has exactly what was told to the callback
// and not refused since; nothing is taken beyond it; and what a table that is
// given up had is there for another.
func TestStoreFull(t *testing.T) {
	for _, bare := range []bool{false, true} {
		for seed := range uint64(2) {
			rng := rand.New(rand.NewPCG(seed, 3))
			limit := int64(2<<20 + rng.IntN(1<<20))
			if !bare {
				limit += shards * blockUnits * unit
			}
			store := NewStore()
			store.SetLimit(limit)
			var s speaker
			opts := Options{Withdrawn: seed%2 == 1, Hashes: bare}
			tab, other := NewTable(store, opts), NewTable(store, opts)
			must(t, tab, 1, nil, s.peerUp(0, 0, 1))
			must(t, other, 1, nil, s.peerUp(0, 0, 1))
			have := map[nlri]uint64{}
			refused := 0
			med := uint32(0)
			for range 8_000 {
				var routes []nlri
				family := []int{0, 3}[rng.IntN(2)]
				for range 1 + rng.IntN(12) {
					n := number(rng.IntN(200_000))
					if family == 3 {
						n = nlri{3, somePrefix(3), 0, 0}
						a := n.prefix.Addr().As16()
						a[4], a[5] = byte(rng.IntN(256)), byte(rng.IntN(256))
						n.prefix = prefix(fmt.Sprintf("2001:db8:%x:%x::/64", rng.IntN(100), rng.IntN(1000)))
					}
					routes = append(routes, n)
				}
				med++
				told := map[nlri]uint64{}
				msg := s.announce(0, 0, med, 0, false, routes...)
				withdraw := rng.IntN(10) == 0
				if withdraw {
					msg = s.withdraw(0, 0, routes...)
				}
				err := tab.Apply(msg, 1, func(c *Change) {
					want, found := have[routeOf(&c.Route)]
					if again, ok := told[routeOf(&c.Route)]; ok {
						want, found = again, again != 0
					}
					if c.Found != found || found && c.Before.Hash() != want {
						t.Errorf("%v was found: %v, want %v", c.Prefix, c.Found, found)
					}
					told[routeOf(&c.Route)] = c.Value.Hash()
					if withdraw {
						told[routeOf(&c.Route)] = 0
					}
				})
				if err != nil && err != ErrStoreFull {
					t.Fatal(err)
				}
				for _, n := range routes {
					if h := told[n]; h != 0 {
						have[n] = h
						continue
					}
					delete(have, n)
					if _, ok := told[n]; !ok {
						if err == nil {
							t.Fatal("a route was neither told nor refused")
						}
						refused++
					}
				}
				if store.Bytes() > limit || store.InUse() > store.Bytes() {
					t.Fatalf("%d bytes taken, %d in use, limit %d", store.Bytes(), store.InUse(), limit)
				}
			}
			got := map[nlri]uint64{}
			for w := (Walk{}); tab.Walk(&w, 1000, func(r *Route) { got[routeOf(r)] = r.Value.Hash() }); {
			}
			if !maps.Equal(got, have) || tab.Routes() != len(have) || refused == 0 {
				t.Fatalf("%d routes, want %d; %d refused", len(got), len(have), refused)
			}

			// Another table finds no room until this one is given up, and its rooms then.
			fill := func() (refused bool) {
				for i := range len(have) / 4 {
					if err := other.Apply(s.announce(0, 0, uint32(i), 0, false, number(i)), 1, nil); err == ErrStoreFull {
						refused = true
					} else if err != nil {
						t.Fatal(err)
					}
				}
				return refused
			}
			if !fill() {
				t.Error("there was room at the limit")
			}
			used := store.InUse()
			for tab.Close(1 + rng.IntN(1000)) {
			}
			if now := store.InUse(); now > used/2 {
				t.Errorf("%d bytes in use after Close, %d before", now, used)
			}
			if fill() {
				t.Errorf("no room after Close: hashes %v, seed %d, %d of %d bytes, %d were in use, %d routes", bare, seed, store.InUse(), store.Bytes(), used, len(have))
			}
			for other.Close(1000) {
			}
			if store.InUse() != 0 || store.AttributeSets() != 0 {
				t.Errorf("%d bytes, %d sets are left", store.InUse(), store.AttributeSets())
			}
		}
	}
}

// TestClose: what is given up in the middle of its work says nothing more.
func TestClose(t *testing.T) {
	var s speaker
	store := NewStore()
	tab := NewTable(store, Options{Withdrawn: true})
	for peer := range 3 {
		must(t, tab, 1, nil, s.peerUp(peer, 0, 1))
		for i := range 500 {
			must(t, tab, 1, nil, s.announce(peer, 0, 1, 0, true, number(i)))
		}
	}
	must(t, tab, 2, nil, s.peerDown(0, 0)) // reports that Tidy owes
	tab.Open(3)
	must(t, tab, 4, nil, s.peerUp(1, 0, 2), s.endOfRIB(1, 0, bgp.IPv4Unicast)) // a sweep
	tab.Tidy(100, nil)
	if !tab.Close(1) {
		t.Error("all was released in one step")
	}
	if err := tab.Apply(s.peerUp(0, 0, 1), 5, nil); err != ErrClosed {
		t.Errorf("%v after Close", err)
	}
	if sum := tab.Summary(); sum.Routes != 0 || sum.Peers != 0 || sum.Pending == 0 {
		t.Errorf("%+v", sum)
	}
	tab.Open(6)
	tab.Walk(&Walk{}, 10, func(*Route) { t.Error("a route after Close") })
	for tab.Tidy(10, func(*Change) { t.Error("a report after Close") }) {
	}
	if tab.Close(1) || store.InUse() != 0 || tab.Summary() != (Summary{Settled: true}) {
		t.Errorf("%d bytes left, %+v", store.InUse(), tab.Summary())
	}
}

// TestCloseBeside: tables come and go beside one that stays, at the limit.
func TestCloseBeside(t *testing.T) {
	store := NewStore()
	store.SetLimit(4 << 20)
	var s speaker
	tab := NewTable(store, Options{})
	must(t, tab, 1, nil, s.peerUp(0, 0, 1), s.announce(0, 0, 1, 0, true, number(1)))
	var all sync.WaitGroup
	for n := range 3 {
		all.Go(func() {
			rng := rand.New(rand.NewPCG(1, uint64(n)))
			for range 15 {
				tb := NewTable(store, Options{Hashes: n == 2})
				must(t, tb, 1, nil, s.peerUp(0, 0, 1))
				var looking sync.WaitGroup
				looking.Go(func() {
					for w := (Walk{}); tb.Walk(&w, 10, func(*Route) {}); {
						tb.Lookup(prefix("20.0.0.0/8"), Longer, Walk{}, func(*Route) bool { return true })
						tb.Peers()
						tb.Summary()
					}
				})
				for i := range 3000 {
					if err := tb.Apply(s.announce(0, 0, rng.Uint32N(2000), 0, true, number(i)), 1, func(*Change) {}); err != nil && err != ErrStoreFull {
						t.Error(err)
					}
				}
				for tb.Close(100) {
				}
				looking.Wait()
			}
		})
	}
	all.Wait()
	if tab.Routes() != 1 || store.AttributeSets() != 1 {
		t.Errorf("%d routes, %d sets", tab.Routes(), store.AttributeSets())
	}
}

// TestTimes: since when a peer is up or down, and of when its statistics are.
func TestTimes(t *testing.T) {
	var s speaker
	tab := NewTable(NewStore(), Options{})
	want := func(what string, up bool, since, stats int64) {
		t.Helper()
		if p := tab.Peers()[0]; p.Up != up || p.Since != since || p.StatsAt != stats {
			t.Errorf("%s: up %v since %d, statistics of %d", what, p.Up, p.Since, p.StatsAt)
		}
	}
	stats := bmp.AppendStats(nil, s.header(0, 0))
	must(t, tab, 10, nil, s.peerUp(0, 0, 1))
	want("up", true, 10, 0)
	must(t, tab, 11, nil, s.peerUp(0, 1, 1), stats)
	want("its other RIB", true, 10, 11)
	must(t, tab, 20, nil, s.peerUp(0, 0, 2))
	want("another session", true, 20, 11)
	must(t, tab, 30, nil, s.peerDown(0, 0))
	want("down", false, 30, 0)
	must(t, tab, 40, nil, s.peerUp(0, 0, 3), s.announce(0, 0, 1, 0, true, number(1)))
	want("up again", true, 40, 0)
	tab.Open(50)
	want("the router's session is new", false, 0, 0)
}
