package table

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/bmpha/bmpha/pkg/bgp"
	"github.com/bmpha/bmpha/pkg/bmp"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// A speaker makes the messages of one router.
type speaker struct{ addPath bool }

func (s speaker) header(peer int, kind bmp.RIB) []byte {
	addr := netip.AddrFrom4([4]byte{10, 0, 0, byte(1 + peer)})
	flags := [...]byte{0, bmp.FlagL, bmp.FlagO, bmp.FlagO | bmp.FlagL, 0}[kind]
	if kind == bmp.LocRIB {
		return bmp.AppendPeerHeader(nil, bmp.PeerLocRIB, 0, 1<<48|uint64(peer), netip.Addr{}, 65000, addr, time.Unix(1e9, 0))
	}
	return bmp.AppendPeerHeader(nil, 0, flags, 0, addr, uint32(65001+peer), addr, time.Unix(1e9, 0))
}

func (s speaker) peerUp(peer int, kind bmp.RIB, port uint16) []byte {
	local := netip.MustParseAddr("10.0.0.254")
	addr := netip.AddrFrom4([4]byte{10, 0, 0, byte(1 + peer)})
	var caps []byte
	if s.addPath {
		caps = bgp.AppendCapAddPath(bgp.AppendCapAddPath(nil, 1, 1, 3), 2, 1, 3)
	}
	return bmp.AppendPeerUp(nil, s.header(peer, kind), local, 179, port,
		bgp.AppendOpen(nil, 65000, 90, local, bgp.AppendCapAS4(caps[:len(caps):len(caps)], 65000)),
		bgp.AppendOpen(nil, uint32(65001+peer), 90, addr, bgp.AppendCapAS4(caps[:len(caps):len(caps)], uint32(65001+peer))), nil)
}

func (s speaker) peerDown(peer int, kind bmp.RIB) []byte {
	return bmp.AppendPeerDown(nil, s.header(peer, kind), bmp.DownRemote, nil)
}

func (s speaker) endOfRIB(peer int, kind bmp.RIB, f bgp.Family) []byte {
	return bmp.AppendRouteMonitoring(nil, s.header(peer, kind), bgp.AppendEndOfRIB(nil, f.AFI, f.SAFI))
}

// A nlri is a route of the tests.
type nlri struct {
	family int
	prefix netip.Prefix // host bits do not count
	rd     uint64
	path   uint32
}

func (s speaker) encode(n nlri, label uint32) []byte {
	var b []byte
	f := bgp.Families[n.family]
	if s.addPath && f.SAFI == bgp.SAFIUnicast {
		b = bgp.AppendPathID(b, n.path)
	}
	switch f.SAFI {
	case bgp.SAFILabelled:
		return bgp.AppendLabelled(b, label, n.prefix)
	case bgp.SAFIVPN:
		return bgp.AppendVPN(b, label, n.rd, n.prefix)
	}
	return bgp.AppendPrefix(b, n.prefix)
}

func (s speaker) announce(peer int, kind bmp.RIB, med, label uint32, classic bool, routes ...nlri) []byte {
	f := bgp.Families[routes[0].family]
	var b []byte
	for _, n := range routes {
		b = append(b, s.encode(n, label)...)
	}
	attrs := bgp.AppendASPath(bgp.AppendOrigin(nil, 0), 65001, med)
	hop := netip.MustParseAddr("192.0.2.1")
	var update []byte
	if classic && f == bgp.IPv4Unicast {
		update = bgp.AppendUpdate(nil, nil, bgp.AppendMED(bgp.AppendNextHop(attrs, hop), med), b)
	} else {
		update = bgp.AppendUpdate(nil, nil, bgp.AppendMED(bgp.AppendMPReach(attrs, f.AFI, f.SAFI, hop, b), med), nil)
	}
	return bmp.AppendRouteMonitoring(nil, s.header(peer, kind), update)
}

func (s speaker) withdraw(peer int, kind bmp.RIB, routes ...nlri) []byte {
	f := bgp.Families[routes[0].family]
	var b []byte
	for _, n := range routes {
		b = append(b, s.encode(n, 0x80000)...)
	}
	update := bgp.AppendUpdate(nil, b, nil, nil)
	if f != bgp.IPv4Unicast {
		update = bgp.AppendUpdate(nil, nil, bgp.AppendMPUnreach(nil, f.AFI, f.SAFI, b), nil)
	}
	return bmp.AppendRouteMonitoring(nil, s.header(peer, kind), update)
}

// must applies messages.
func must(t testing.TB, tab *Table, at int64, each func(*Change), msgs ...[]byte) {
	t.Helper()
	for _, m := range msgs {
		if err := tab.Apply(m, at, each); err != nil {
			t.Fatal(err)
		}
	}
}

func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }

// TestDump: one life of a peer, and the next, whose dump lacks a route.
func TestDump(t *testing.T) {
	var s speaker
	tab := NewTable(NewStore(), Options{})
	a, b, c := nlri{prefix: prefix("10.1.0.0/16")}, nlri{prefix: prefix("10.2.0.0/16")}, nlri{prefix: prefix("10.3.0.1/17")}
	var got []string
	each := func(ch *Change) {
		got = append(got, fmt.Sprintf("%v %v found=%v same=%v stale=%v", ch.Kind, ch.Prefix, ch.Found, ch.Same, ch.Before.Stale))
	}
	step := func(what string, want ...string) {
		t.Helper()
		if !slices.Equal(got, want) {
			t.Errorf("%s:\n%s\nwant\n%s", what, strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
		got = nil
	}
	state := func(want State) {
		t.Helper()
		if got := tab.Peers()[0].RIBs[0].Families[0].State; got != want {
			t.Errorf("state %v, want %v", got, want)
		}
	}
	if err := tab.Apply(s.announce(0, 0, 1, 0, true, a), 1, each); err != ErrNoPeerUp {
		t.Errorf("%v before Peer Up", err)
	}
	must(t, tab, 1, each, s.peerUp(0, 0, 1000), s.announce(0, 0, 1, 0, true, a, b, c))
	step("dump", "announced 10.1.0.0/16 found=false same=false stale=false",
		"announced 10.2.0.0/16 found=false same=false stale=false",
		"announced 10.3.0.0/17 found=false same=false stale=false")
	state(Dump)
	must(t, tab, 2, each, s.endOfRIB(0, 0, bgp.IPv4Unicast))
	state(Live)
	step("marker", "end-of-rib invalid Prefix found=false same=false stale=false")
	must(t, tab, 3, each, s.announce(0, 0, 1, 0, true, a), s.announce(0, 0, 2, 0, true, a))
	step("live", "announced 10.1.0.0/16 found=true same=true stale=false", "announced 10.1.0.0/16 found=true same=false stale=false")

	tab.Open(10)
	state(Begin)
	if err := tab.Apply(s.announce(0, 0, 1, 0, true, a), 10, each); err != ErrNoPeerUp {
		t.Errorf("%v before Peer Up", err)
	}
	must(t, tab, 11, each, s.peerUp(0, 0, 1001), s.announce(0, 0, 2, 0, true, a), s.withdraw(0, 0, b))
	step("second dump", "announced 10.1.0.0/16 found=true same=true stale=true", "withdrawn 10.2.0.0/16 found=true same=false stale=true")
	must(t, tab, 12, each, s.endOfRIB(0, 0, bgp.IPv4Unicast))
	state(EndOfRIB)
	got = nil
	for tab.Tidy(100, each) {
	}
	step("sweep", "swept 10.3.0.0/17 found=true same=false stale=true")
	state(Live)
	must(t, tab, 13, each, s.peerDown(0, 0))
	if tab.Routes() != 0 || tab.Pending() != 1 {
		t.Errorf("%d routes, %d pending after Peer Down", tab.Routes(), tab.Pending())
	}
	for tab.Tidy(100, each) {
	}
	step("peer down", "peer gone 10.1.0.0/16 found=true same=false stale=false")
	if n := tab.store.AttributeSets(); n != 0 {
		t.Errorf("%d attribute sets are left", n)
	}
}

// TestTree: a tree against a sorted slice.
func TestTree(t *testing.T) {
	for words := 1; words <= maxWords; words++ {
		for seed := range uint64(4) {
			rng := rand.New(rand.NewPCG(seed, uint64(words)))
			tr := tree{mem: newMemory(), words: words}
			model := map[key]uint32{}
			space := uint64(20000)
			if seed%2 == 1 {
				space = 300
			}
			one := func() (k key) {
				for i := range words {
					k[i] = rng.Uint64N(3)
				}
				k[rng.IntN(words)] = rng.Uint64N(space)
				return k
			}
			next := uint64(0)
			for n := range 12000 {
				k := one()
				if seed%4 == 2 { // in order
					k = key{}
					k[words-1] = next
					next++
				}
				l, i, found := tr.seek(&k)
				if _, want := model[k]; found != want {
					t.Fatalf("seek %v: %v", k, found)
				}
				switch {
				case found && rng.IntN(3) > 0, n > 9000 && found:
					if l.vals[i].sec != model[k] {
						t.Fatal("value")
					}
					tr.remove(l, i)
					delete(model, k)
				case !found && n <= 9000:
					v := tr.insert(&k, l, i)
					*v = value{sec: uint32(n)}
					model[k] = uint32(n)
				}
			}
			check := func() {
				var keys []key
				for k := range model {
					keys = append(keys, k)
				}
				slices.SortFunc(keys, func(a, b key) int { return slices.Compare(a[:], b[:]) })
				at := 0
				var last *leaf
				for l := tr.first; l != nil; l = l.next {
					if l.prev != last || l.n == 0 {
						t.Fatal("links")
					}
					last = l
					for i := range l.n {
						if at == len(keys) || tr.key(l, i) != keys[at] || l.vals[i].sec != model[keys[at]] {
							t.Fatalf("words %d seed %d: entry %d", words, seed, at)
						}
						at++
					}
				}
				if at != len(keys) || tr.n != at {
					t.Fatalf("%d entries of %d", at, len(keys))
				}
			}
			check()
			for k := range model {
				l, i, found := tr.seek(&k)
				if !found {
					t.Fatal("lost")
				}
				tr.remove(l, i)
				delete(model, k)
				if rng.IntN(1000) == 0 {
					check()
				}
			}
			if tr.root != nil || tr.leaves != 0 || tr.inners != 0 || tr.mem.used.Load() != 0 {
				t.Errorf("left: %+v", tr)
			}
		}
	}
}
