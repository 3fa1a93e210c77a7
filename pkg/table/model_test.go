package table

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"testing"

	"github.com/bmpha/bmpha/pkg/bgp"
	"github.com/bmpha/bmpha/pkg/bmp"
)

// A model is a table made of plain maps.
type model struct {
	withdrawn bool
	ribs      map[modelRIB]*modelTable
	up        map[modelPeer]bool
	ports     map[modelRIB]uint16 // of the Peer Ups that count
	seq, life int
	gone      map[string]int // reports that Tidy owes, and how often
	med       func(*Value) uint32
}

type modelPeer struct {
	peer int
	loc  bool
}

type modelRIB struct {
	peer int
	kind bmp.RIB
}

type modelTable struct {
	seq, gen int
	life     map[nlri]int // when a route came to be there without a break
	routes   map[nlri]modelRoute
	state    [len(bgp.Families)]State
}

type modelRoute struct {
	med       uint32
	gen       int
	withdrawn bool
	at        int64 // if it is withdrawn
}

func of(r modelRIB) modelPeer { return modelPeer{r.peer, r.kind == bmp.LocRIB} }

func (m *model) table(id modelRIB) *modelTable {
	t := m.ribs[id]
	if t == nil {
		m.seq++
		t = &modelTable{seq: m.seq, routes: map[nlri]modelRoute{}, life: map[nlri]int{}}
		m.ribs[id] = t
	}
	return t
}

func (m *model) stale(t *modelTable, family int) (n int) {
	for k, r := range t.routes {
		if k.family == family && r.gen != t.gen {
			n++
		}
	}
	return n
}

func report(kind Kind, id modelRIB, n nlri, med uint32) string {
	return fmt.Sprintf("%v %d %v %v med %d", kind, id.peer, id.kind, n, med)
}

func (m *model) detach(p modelPeer, kind Kind) {
	for id, t := range m.ribs {
		if of(id) != p {
			continue
		}
		for k, r := range t.routes {
			if !r.withdrawn {
				m.gone[report(kind, id, k, r.med)]++
			}
		}
		delete(m.ribs, id)
	}
}

func (m *model) ended(t *modelTable, family int) {
	if t.state[family] == Live || t.state[family] == EndOfRIB {
		return
	}
	t.state[family] = Live
	if m.stale(t, family) > 0 {
		t.state[family] = EndOfRIB
	}
}

// peerUp: a session that is new to its RIB begins a generation.
func (m *model) peerUp(id modelRIB, port uint16) {
	if !m.up[of(id)] {
		m.up[of(id)] = true
		for other := range m.ports {
			if of(other) == of(id) {
				delete(m.ports, other)
			}
		}
		m.ports[id] = port
		return
	}
	same := m.ports[id] == port
	if _, known := m.ports[id]; !known {
		for other, p := range m.ports {
			same = same || of(other) == of(id) && p == port
		}
	}
	if !same {
		for other, t := range m.ribs {
			if of(other) == of(id) && (id.kind == bmp.AdjRIBInPre || other.kind == id.kind) {
				m.renew(t)
			}
		}
		if id.kind == bmp.AdjRIBInPre {
			for other := range m.ports {
				if of(other) == of(id) {
					delete(m.ports, other)
				}
			}
		}
	}
	m.ports[id] = port
}

func (m *model) renew(t *modelTable) {
	t.gen++
	t.state = [len(bgp.Families)]State{}
}

// medOf reads the MED, which the tests tell attribute sets apart by.
func medOf(attrs []byte) uint32 {
	for len(attrs) > 0 {
		n := int(attrs[2])<<8 | int(attrs[3])
		if attrs[1] == bgp.AttrMED {
			return uint32(attrs[4])<<24 | uint32(attrs[5])<<16 | uint32(attrs[6])<<8 | uint32(attrs[7])
		}
		attrs = attrs[4+n:]
	}
	return 0
}

func ribOf(r *RIB) modelRIB {
	if r.Kind == bmp.LocRIB {
		return modelRIB{int(r.Peer.Distinguisher[7]), r.Kind}
	}
	return modelRIB{int(r.Peer.Addr[15]) - 1, r.Kind}
}

func routeOf(r *Route) nlri {
	var rd uint64
	for _, b := range r.RD {
		rd = rd<<8 | uint64(b)
	}
	return nlri{r.Family.Index(), r.Prefix.Masked(), rd, r.PathID}
}

// TestModel does at random what routers do, and compares all that can be seen.
func TestModel(t *testing.T) {
	seeds := 12
	if os.Getenv("BMPHA_LONG") != "" {
		seeds = 300
	}
	for seed := range seeds {
		testModel(t, uint64(seed), 2000, seed/2%2 == 1)
		if t.Failed() {
			return
		}
	}
}

func testModel(t *testing.T, seed uint64, steps int, bare bool) {
	rng := rand.New(rand.NewPCG(seed, 1))
	s := speaker{addPath: seed%3 == 1}
	tab := NewTable(NewStore(), Options{Withdrawn: seed%2 == 1, Hashes: bare})
	// Without attributes the hash of an announcement has to do to tell its MED.
	meds := map[uint64]uint32{}
	said := uint32(0)
	medOf := func(v *Value) uint32 {
		if bare {
			return meds[v.Hash()]
		}
		return medOf(v.Attrs)
	}
	m := &model{med: medOf, withdrawn: seed%2 == 1, ribs: map[modelRIB]*modelTable{}, up: map[modelPeer]bool{}, ports: map[modelRIB]uint16{}, gone: map[string]int{}}
	space := 1 + rng.IntN(2000)
	pick := func(family int) nlri {
		n := nlri{family: family}
		i := rng.IntN(space)
		if bgp.Families[family].AFI == bgp.AFIIPv4 {
			// Nested prefixes, among them the default route, and host bits.
			n.prefix = netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 4), byte(i << 4), byte(rng.IntN(256))}), []int{0, 8, 12, 16, 20, 21, 24, 32}[rng.IntN(8)])
		} else {
			n.prefix = netip.PrefixFrom(netip.AddrFrom16([16]byte{0x20, 1, byte(i >> 8), byte(i), 9: byte(i)}), []int{0, 16, 29, 32, 64, 65, 80, 128}[rng.IntN(8)])
		}
		if bgp.Families[family].SAFI == bgp.SAFIVPN {
			n.rd = 1<<48 | uint64(rng.IntN(3))
		} else if s.addPath && bgp.Families[family].SAFI == bgp.SAFIUnicast {
			n.path = uint32(rng.IntN(3))
		}
		return n
	}
	masked := func(n nlri) nlri { n.prefix = n.prefix.Masked(); return n }
	port := uint16(1000)
	now := int64(1)

	var changes []string
	each := func(c *Change) {
		if c.Kind == Marker {
			return
		}
		if bare && (c.Attrs != nil || c.Before.Attrs != nil || c.Before.Labels != nil) {
			t.Errorf("seed %d: attributes were kept", seed)
		}
		if c.Kind == Announced {
			meds[c.Value.Hash()] = said
		}
		if c.Kind != Announced && c.Kind != Withdrawn {
			r := report(c.Kind, ribOf(c.Route.RIB), routeOf(&c.Route), medOf(&c.Before))
			if m.gone[r]--; m.gone[r] < 0 && c.Kind != Swept { // the model follows in sweep
				t.Errorf("seed %d: unexpected %s", seed, r)
			} else if m.gone[r] == 0 {
				delete(m.gone, r)
			}
			return
		}
		changes = append(changes, fmt.Sprintf("%v %v found %v before %d stale %v now %d same %v", c.Kind, routeOf(&c.Route), c.Found,
			medOf(&c.Before), c.Before.Stale, medOf(&c.Value), c.Same))
	}
	// A walk in steps, and what was there all along.
	var walk Walk
	walking := false
	began := map[string]int{}
	seen := map[string]int{}
	lives := func() map[string]int {
		all := map[string]int{}
		for id, mt := range m.ribs {
			for k, r := range mt.routes {
				if !r.withdrawn {
					all[fmt.Sprint(id, k)] = mt.life[k]
				}
			}
		}
		return all
	}
	sweep := func(n int) {
		tab.Tidy(n, each)
		// The model sweeps what the table did: it is free to choose which.
		for id, mt := range m.ribs {
			for f := range bgp.Families {
				if mt.state[f] != EndOfRIB {
					continue
				}
				left := map[nlri]bool{}
				var w Walk
				w.Withdrawn = true
				w.Family = bgp.Families[f]
				w.RIB = func(r *RIB) bool { return ribOf(r) == id }
				for tab.Walk(&w, 100, func(r *Route) {
					if r.Stale {
						left[routeOf(r)] = true
					}
				}) {
				}
				for k, r := range mt.routes {
					if k.family == f && r.gen != mt.gen && !left[k] {
						delete(mt.routes, k)
						if !r.withdrawn {
							// The report came before; m.gone owes it back.
							rep := report(Swept, id, k, r.med)
							if m.gone[rep]++; m.gone[rep] == 0 {
								delete(m.gone, rep)
							}
						}
					}
				}
				if m.stale(mt, f) == 0 {
					mt.state[f] = Live
				}
			}
		}
		for r, n := range m.gone {
			if n < 0 {
				t.Errorf("seed %d: unexpected %s", seed, r)
			}
		}
	}
	// What is forgotten in steps is all that was withdrawn before.
	forget := func(before int64) {
		for tab.ForgetWithdrawn(before, 1+rng.IntN(500)) {
		}
		for _, mt := range m.ribs {
			for k, r := range mt.routes {
				if r.withdrawn && r.at < before {
					delete(mt.routes, k)
				}
			}
		}
	}
	for step := range steps {
		now++
		id := modelRIB{rng.IntN(3), bmp.RIB(rng.IntN(5))}
		family := rng.IntN(len(bgp.Families))
		switch op := rng.IntN(1000); {
		case op < 800:
			var routes []nlri
			for range 1 + rng.IntN(20) {
				routes = append(routes, pick(family))
			}
			var msg []byte
			med, label := 1+rng.Uint32N(4), 16+rng.Uint32N(2)
			said = med
			announce := rng.IntN(3) > 0
			if announce {
				msg = s.announce(id.peer, id.kind, med, label, rng.IntN(2) == 0, routes...)
			} else {
				msg = s.withdraw(id.peer, id.kind, routes...)
			}
			changes = changes[:0]
			err := tab.Apply(msg, now, each)
			if !m.up[of(id)] {
				if err != ErrNoPeerUp {
					t.Fatalf("seed %d: %v", seed, err)
				}
				break
			}
			if err != nil {
				t.Fatalf("seed %d step %d: %v", seed, step, err)
			}
			mt := m.table(id)
			if mt.state[family] == Begin {
				mt.state[family] = Dump
			}
			if len(changes) != len(routes) {
				t.Fatalf("seed %d: %d changes of %d", seed, len(changes), len(routes))
			}
			for i, n := range routes {
				n = masked(n)
				old, had := mt.routes[n]
				found := had && !old.withdrawn
				want := fmt.Sprintf("withdrawn %v found %v before %d stale %v now 0 same false", n, found, old.med, had && old.gen != mt.gen)
				if announce {
					want = ""
					for _, same := range []bool{false, true} { // labels and the form differ at random
						if got := fmt.Sprintf("announced %v found %v before %d stale %v now %d same %v", n, found, old.med, had && old.gen != mt.gen, med, same && found && old.med == med); got == changes[i] || want == "" {
							want = got
						}
					}
					if !found {
						m.life++
						mt.life[n] = m.life
					}
					mt.routes[n] = modelRoute{med: med, gen: mt.gen}
				} else if m.withdrawn {
					mt.routes[n] = modelRoute{gen: mt.gen, withdrawn: true, at: now}
				} else {
					delete(mt.routes, n)
				}
				if changes[i] != want {
					t.Fatalf("seed %d step %d:\n%s\nwant\n%s", seed, step, changes[i], want)
				}
			}
		case op < 860:
			must(t, tab, now, each, s.peerUp(id.peer, id.kind, port))
			m.peerUp(id, port)
		case op < 870:
			port++
		case op < 885:
			must(t, tab, now, each, s.peerDown(id.peer, id.kind))
			m.detach(of(id), PeerGone)
			delete(m.up, of(id))
		case op < 930:
			err := tab.Apply(s.endOfRIB(id.peer, id.kind, bgp.Families[family]), now, each)
			if m.up[of(id)] != (err == nil) {
				t.Fatalf("seed %d: End-of-RIB: %v", seed, err)
			}
			if err == nil {
				m.ended(m.table(id), family)
			}
		case op < 935:
			tab.Open(now)
			port++
			clear(m.up)
			for _, mt := range m.ribs {
				m.renew(mt)
			}
		case op < 945:
			early := tab.Settle(now - 1 - rng.Int64N(3))
			if !tab.Settle(now) && !early {
				break // nothing to end
			}
			fallthrough
		case op < 946:
			tab.Settle(now)
			for id, mt := range m.ribs {
				if !m.up[of(id)] {
					m.detach(of(id), PeerGone)
					continue
				}
				for f := range bgp.Families {
					m.ended(mt, f)
				}
			}
		case op < 947:
			tab.Clear()
			for id := range m.ribs {
				m.detach(of(id), SessionGone)
			}
			clear(m.up)
		case op < 960:
			sweep(1 + rng.IntN(300))
		case op < 965:
			forget(now - rng.Int64N(200))
		default:
			if !walking {
				walk = Walk{ByPrefix: rng.IntN(2) == 0}
				walking, began = true, lives()
				clear(seen)
			}
			ended := !tab.Walk(&walk, 1+rng.IntN(200), func(r *Route) { seen[fmt.Sprint(ribOf(r.RIB), routeOf(r))]++ })
			if ended {
				walking = false
				for k, life := range lives() {
					if began[k] == life && seen[k] != 1 {
						t.Fatalf("seed %d step %d: the walk saw %s %d times", seed, step, k, seen[k])
					}
				}
			}
		}
		// Stale routes may be gone by message, too, which ends a sweep with its
		// next step; the model ends it in sweep.
		if step%100 == 0 {
			m.compare(t, seed, tab, rng)
		}
		if t.Failed() {
			return
		}
	}
	for tab.Tidy(1, each) {
		sweep(50)
	}
	sweep(1)
	if len(m.gone) != 0 {
		t.Errorf("seed %d: %d routes went without a report", seed, len(m.gone))
	}
	m.compare(t, seed, tab, rng)
	if seed%3 == 0 {
		for tab.Close(100) {
		}
	}
	tab.Clear()
	for tab.Tidy(100, nil) {
	}
	if n := tab.store.AttributeSets(); n != 0 || tab.store.mem.used.Load() != 0 || tab.Bytes() != 0 {
		t.Errorf("seed %d: left are %d attribute sets, %d bytes", seed, n, tab.store.mem.used.Load())
	}
}

func (m *model) compare(t *testing.T, seed uint64, tab *Table, rng *rand.Rand) {
	t.Helper()
	want := map[string]string{}
	count := 0
	var ids []modelRIB
	for id, mt := range m.ribs {
		ids = append(ids, id)
		for k, r := range mt.routes {
			want[fmt.Sprint(id, k)] = fmt.Sprint(r.med, r.withdrawn, r.gen != mt.gen)
			if !r.withdrawn {
				count++
			}
		}
	}
	got := map[string]string{}
	for _, by := range []bool{false, true} {
		clear(got)
		var last nlri
		w := Walk{ByPrefix: by, Withdrawn: true}
		for tab.Walk(&w, 50, func(r *Route) {
			n := routeOf(r)
			got[fmt.Sprint(ribOf(r.RIB), n)] = fmt.Sprint(m.med(&r.Value), r.Withdrawn, r.Stale)
			if by && (last.family > n.family || last.family == n.family && (last.rd > n.rd ||
				last.rd == n.rd && last.prefix.IsValid() && comparePrefix(last.prefix, n.prefix) > 0)) {
				t.Errorf("%v after %v", n, last)
			}
			last = n
		}) {
		}
		if !maps.Equal(got, want) {
			for k, v := range want {
				if got[k] != v {
					t.Errorf("seed %d: %s is %q, want %q", seed, k, got[k], v)
					break
				}
			}
			t.Fatalf("seed %d: by prefix %v: %d routes, want %d, Routes %d", seed, by, len(got), len(want), tab.Routes())
		}
	}
	if tab.Routes() != count {
		t.Errorf("seed %d: Routes %d, want %d", seed, tab.Routes(), count)
	}
	sum := Summary{Up: len(m.up), RIBs: tab.Summary().RIBs, Routes: count, Pending: tab.Pending(), Bytes: tab.Bytes(), Settled: true}
	for _, mt := range m.ribs {
		for f := range bgp.Families {
			sum.Stale += m.stale(mt, f)
		}
	}
	for _, p := range tab.Peers() {
		sum.Peers++
		for _, r := range p.RIBs {
			for _, f := range r.Families {
				sum.Withdrawn += f.Withdrawn
				sum.Settled = sum.Settled && f.State > Dump
			}
		}
	}
	if got := tab.Summary(); got != sum {
		t.Errorf("seed %d: %+v, want %+v", seed, got, sum)
	}
	if len(ids) == 0 {
		return
	}
	slices.SortFunc(ids, func(a, b modelRIB) int { return 8*a.peer + int(a.kind) - 8*b.peer - int(b.kind) })
	// Lookups.
	for range 20 {
		mt := m.ribs[ids[rng.IntN(len(ids))]]
		if len(mt.routes) == 0 {
			continue
		}
		p := some(mt.routes, rng).prefix
		p, _ = p.Addr().Prefix(rng.IntN(p.Addr().BitLen() + 1))
		if rng.IntN(2) == 0 {
			p = some(mt.routes, rng).prefix
		}
		for _, match := range []Match{Exact, Longest, Shorter, Longer} {
			coverStep = 1 + rng.IntN(4)
			want := map[string]bool{}
			for id, mt := range m.ribs {
				longest := map[string]int{}
				for k, r := range mt.routes {
					if r.withdrawn || k.prefix.Addr().BitLen() != p.Addr().BitLen() {
						continue
					}
					covers := k.prefix.Bits() <= p.Bits() && k.prefix.Contains(p.Addr())
					group := fmt.Sprint(k.family, k.rd)
					switch {
					case match == Exact && k.prefix == p, match == Shorter && covers,
						match == Longer && p.Bits() <= k.prefix.Bits() && p.Contains(k.prefix.Addr()):
						want[fmt.Sprint(id, k)] = true
					case match == Longest && covers:
						longest[group] = max(longest[group], k.prefix.Bits()+1)
					}
				}
				for k, r := range mt.routes {
					if !r.withdrawn && k.prefix.Addr().BitLen() == p.Addr().BitLen() && k.prefix.Contains(p.Addr()) &&
						longest[fmt.Sprint(k.family, k.rd)] == k.prefix.Bits()+1 {
						want[fmt.Sprint(id, k)] = true
					}
				}
			}
			got := map[string]bool{}
			tab.Lookup(p, match, Walk{}, func(r *Route) bool { got[fmt.Sprint(ribOf(r.RIB), routeOf(r))] = true; return true })
			if !maps.Equal(got, want) {
				t.Fatalf("seed %d: %v match %d: %d routes, want %d\n%v\n%v", seed, p, match, len(got), len(want), got, want)
			}
		}
	}
}

// some returns one of the routes, the same one with the same numbers.
func some(routes map[nlri]modelRoute, rng *rand.Rand) nlri {
	return slices.MinFunc(slices.Collect(maps.Keys(routes)), func() func(a, b nlri) int {
		salt := rng.Uint32()
		h := func(n nlri) uint32 {
			v := salt ^ uint32(n.family)*7919 ^ n.path*104729 ^ uint32(n.rd)*1299709
			for _, b := range n.prefix.Addr().As16() {
				v = (v ^ uint32(b)) * 16777619
			}
			return (v ^ uint32(n.prefix.Bits())) * 16777619
		}
		return func(a, b nlri) int { return int(int64(h(a)) - int64(h(b))) }
	}())
}

func comparePrefix(a, b netip.Prefix) int {
	if c := a.Addr().Compare(b.Addr()); c != 0 {
		return c
	}
	return a.Bits() - b.Bits()
}
