package table

import (
	"cmp"
	"encoding/binary"
	"math"
	"math/bits"
	"net/netip"
	"slices"

	"github.com/bmpha/bmpha/pkg/bgp"
)

// A Walk is a way through a table, and how far it has come. The zero value goes
// through everything, RIB by RIB, each in the order of families, route
// distinguishers, prefixes and path identifiers. Its settings must not change on
// the way.
type Walk struct {
	RIB       func(*RIB) bool // which RIBs; nil means all
	Family    bgp.Family      // which family; zero means all
	RD        *[8]byte        // of which route distinguisher; nil means all
	Within    netip.Prefix    // only that prefix and longer ones; zero means all
	Withdrawn bool            // also routes that are only kept
	// ByPrefix makes the order that of families, route distinguishers, prefixes
	// and path identifiers through all RIBs at once. It costs more, above all
	// with many RIBs.
	ByPrefix bool

	position
}

// A position is how far something has come in a table.
type position struct {
	seq    uint64 // of the RIB to go on with
	family int
	key    key
}

// enter goes to the beginning of r unless that is where p is.
func (p *position) enter(r *RIB) {
	if r.seq != p.seq {
		*p = position{seq: r.seq}
	}
}

func (p *position) nextFamily() { p.family, p.key = p.family+1, key{} }

// Walk calls each for about n routes further on and reports whether there may
// be more. A route that is there from the first to the last call, changed or
// not, is seen exactly once, whatever is applied between the calls; of others
// nothing is promised. The table cannot change during a call, so n is how
// long others wait.
func (t *Table) Walk(w *Walk, n int, each func(*Route)) (more bool) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	var rt Route
	var buf [4]byte
	visit := func(f *familyTable, l *leaf, i int) {
		v := &l.vals[i]
		if v.state&stateWithdrawn != 0 && !w.Withdrawn {
			return
		}
		k := f.key(l, i)
		rt = Route{RIB: f.rib}
		f.describe(&rt, &k, v.host)
		t.value(&rt.Value, f, v, &buf)
		each(&rt)
	}
	if w.ByPrefix {
		return t.walkByPrefix(w, n, visit)
	}
	at, _ := slices.BinarySearchFunc(t.order, w.seq, compareSeq)
	for ; at < len(t.order); at++ {
		r := t.order[at]
		w.enter(r)
		if w.RIB != nil && !w.RIB(r) {
			continue
		}
		for ; w.family < len(bgp.Families); w.nextFamily() {
			f := r.families[w.family]
			if f == nil || !w.takes(w.family) {
				continue
			}
			it := iterator{f: f}
			ok := it.seek(w, &w.key)
			for ; ok && n > 0; n-- {
				visit(f, it.l, it.i)
				ok = it.next(w)
			}
			if ok {
				w.key = f.key(it.l, it.i)
				return true
			}
			if n <= 0 {
				w.nextFamily()
				return true
			}
		}
	}
	w.position = position{seq: math.MaxUint64}
	return false
}

// takes reports whether w goes through a family.
func (w *Walk) takes(family int) bool {
	f := bgp.Families[family]
	if w.Family != (bgp.Family{}) && f != w.Family || w.RD != nil && f.SAFI != bgp.SAFIVPN {
		return false
	}
	return !w.Within.IsValid() || w.Within.Addr().BitLen() == f.Bits()
}

// walkByPrefix merges the RIBs. Its position is family, key and RIB.
func (t *Table) walkByPrefix(w *Walk, n int, visit func(*familyTable, *leaf, int)) (more bool) {
	for ; w.family < len(bgp.Families); w.family, w.key, w.seq = w.family+1, (key{}), 0 {
		if !w.takes(w.family) {
			continue
		}
		var h merge
		for _, r := range t.order {
			f := r.families[w.family]
			if f == nil || w.RIB != nil && !w.RIB(r) {
				continue
			}
			it := iterator{f: f}
			ok := it.seek(w, &w.key)
			if ok && r.seq < w.seq && it.key == w.key { // seen already
				ok = it.next(w)
			}
			if ok {
				h = append(h, it)
			}
		}
		for i := len(h)/2 - 1; i >= 0; i-- {
			h.down(i)
		}
		for ; n > 0 && len(h) > 0; n-- {
			visit(h[0].f, h[0].l, h[0].i)
			if !h[0].next(w) {
				h[0] = h[len(h)-1]
				h = h[:len(h)-1]
			}
			h.down(0)
		}
		if len(h) > 0 {
			w.key, w.seq = h[0].key, h[0].f.rib.seq
			return true
		}
	}
	return false
}

// A merge is a heap of iterators, the lowest first.
type merge []iterator

func (h merge) less(i, j int) bool {
	if c := slices.Compare(h[i].key[:], h[j].key[:]); c != 0 {
		return c < 0
	}
	return h[i].f.rib.seq < h[j].f.rib.seq
}

func (h merge) down(i int) {
	for {
		least := i
		for j := 2*i + 1; j <= 2*i+2 && j < len(h); j++ {
			if h.less(j, least) {
				least = j
			}
		}
		if least == i {
			return
		}
		h[i], h[least] = h[least], h[i]
		i = least
	}
}

// An iterator goes through the routes of one family of a RIB that a walk wants.
type iterator struct {
	f   *familyTable
	l   *leaf
	i   int
	key key // of the entry
}

// seek goes to the first entry wanted that is not below k.
func (it *iterator) seek(w *Walk, k *key) bool {
	it.l, it.i, _ = it.f.seek(k)
	return it.wanted(w)
}

func (it *iterator) next(w *Walk) bool {
	it.i++
	return it.wanted(w)
}

// wanted goes on from where it is to the first entry that w wants.
func (it *iterator) wanted(w *Walk) bool {
	for {
		if it.l != nil && it.i >= it.l.n {
			it.l, it.i = it.l.next, 0
		}
		if it.l == nil {
			return false
		}
		it.key = it.f.key(it.l, it.i)
		if w.RD == nil && !w.Within.IsValid() {
			return true
		}
		jump, in, end := it.f.region(w, &it.key)
		if in {
			return true
		}
		if end {
			return false
		}
		it.l, it.i, _ = it.f.seek(&jump)
	}
}

// region tells whether k is wanted, or else where the next region that is begins,
// or that there is none.
func (f *familyTable) region(w *Walk, k *key) (jump key, in, end bool) {
	var low key
	vpn := bgp.Families[f.index].SAFI == bgp.SAFIVPN
	i := 0
	if vpn {
		i = 1
		low[0] = k[0]
		if w.RD != nil {
			rd := binary.BigEndian.Uint64(w.RD[:])
			if k[0] > rd {
				return key{}, false, true
			}
			low[0] = rd
		}
	}
	length := 0
	if w.Within.IsValid() {
		length = w.Within.Bits()
		setPrefix(&low, i, w.Within.Masked(), 0)
	}
	if slices.Compare(k[:], low[:]) < 0 {
		return low, false, false
	}
	if common(k, &low, i, bgp.Families[f.index].AFI == bgp.AFIIPv4) >= length {
		return key{}, true, false
	}
	if !vpn || w.RD != nil || k[0] == math.MaxUint64 {
		return key{}, false, true
	}
	low[0] = k[0] + 1
	return low, false, false
}

// setPrefix writes p, which has no host bits, into word i of k and those after it.
func setPrefix(k *key, i int, p netip.Prefix, path uint32) {
	if p.Addr().Is4() {
		a := p.Addr().As4()
		k[i] = uint64(binary.BigEndian.Uint32(a[:]))<<32 | uint64(p.Bits())
		k[i+1] = uint64(path)
		return
	}
	a := p.Addr().As16()
	k[i] = binary.BigEndian.Uint64(a[:])
	k[i+1] = binary.BigEndian.Uint64(a[8:])
	k[i+2] = uint64(p.Bits())<<32 | uint64(path)
}

// common returns how many leading bits the addresses of two keys of one route
// distinguisher have in common.
func common(a, b *key, i int, ipv4 bool) int {
	if ipv4 {
		return min(32, bits.LeadingZeros64(a[i]^b[i]))
	}
	if n := bits.LeadingZeros64(a[i] ^ b[i]); n < 64 {
		return n
	}
	return 64 + bits.LeadingZeros64(a[i+1]^b[i+1])
}

// A Match is which routes a prefix finds.
type Match uint8

const (
	// Exact finds the prefix itself.
	Exact Match = iota
	// Longest finds the longest prefix that covers it, in each RIB, or is it.
	Longest
	// Shorter finds all prefixes that cover it, or are it, longest first.
	Shorter
	// Longer finds all that it covers, or are it, in order.
	Longer
)

// lookupStep is how many routes Lookup reports before it lets others go on.
const lookupStep = 1000

// Lookup calls each for routes that p finds, RIB by RIB, until it returns false.
// Host bits of p do not matter. The settings of w narrow what is searched, as in a walk;
// Within and ByPrefix are not used. Each RIB costs some microseconds and no index is built.
func (t *Table) Lookup(p netip.Prefix, m Match, w Walk, each func(*Route) bool) {
	if !p.IsValid() {
		return
	}
	p = p.Masked()
	w.Within = p
	w.ByPrefix = false
	w.position = position{}
	going := true
	if m == Longer {
		for going && t.Walk(&w, lookupStep, func(r *Route) { going = going && each(r) }) {
		}
		return
	}
	for going && t.covers(&w, p, m, func(r *Route) bool { going = going && each(r); return going }) {
	}
}

// coverStep is how many tries covers makes before it lets others go on.
var coverStep = 256

// covers reports what covers p in some of the families and route distinguishers
// further on in w, and whether there may be more.
func (t *Table) covers(w *Walk, p netip.Prefix, m Match, each func(*Route) bool) (more bool) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	n := coverStep
	at, _ := slices.BinarySearchFunc(t.order, w.seq, compareSeq)
	for ; at < len(t.order); at++ {
		r := t.order[at]
		w.enter(r)
		if w.RIB != nil && !w.RIB(r) {
			continue
		}
		for ; w.family < len(bgp.Families); w.family, w.key = w.family+1, (key{}) {
			f := r.families[w.family]
			if f == nil || !w.takes(w.family) {
				continue
			}
			rd, ok := w.key[0], true
			switch {
			case bgp.Families[w.family].SAFI != bgp.SAFIVPN:
				rd = 0
			case w.RD != nil:
				rd = binary.BigEndian.Uint64(w.RD[:])
			default:
				rd, ok = f.distinguisher(rd)
			}
			for ok {
				if n == 0 {
					w.key = key{rd}
					return true
				}
				n--
				if !t.cover(f, rd, p, m, w, each) {
					return false
				}
				if bgp.Families[w.family].SAFI != bgp.SAFIVPN || w.RD != nil || rd == math.MaxUint64 {
					break
				}
				rd, ok = f.distinguisher(rd + 1)
			}
		}
	}
	return false
}

// distinguisher returns the first route distinguisher from rd on that f has.
func (f *familyTable) distinguisher(rd uint64) (uint64, bool) {
	it := iterator{f: f}
	if !it.seek(&Walk{}, &key{rd}) {
		return 0, false
	}
	return it.key[0], true
}

// cover reports what covers p in f under one route distinguisher, longest first.
func (t *Table) cover(f *familyTable, rd uint64, p netip.Prefix, m Match, w *Walk, each func(*Route) bool) bool {
	word := 0
	var target key
	if bgp.Families[f.index].SAFI == bgp.SAFIVPN {
		word, target[0] = 1, rd
	}
	bound := target
	setPrefix(&target, word, p, 0)
	ipv4 := p.Addr().Is4()
	var rt Route
	var buf [4]byte
	for most := p.Bits(); most >= 0; {
		q := netip.PrefixFrom(p.Addr(), most).Masked()
		setPrefix(&bound, word, q, math.MaxUint32)
		l, i, found := f.seek(&bound)
		if l == nil {
			return true
		}
		if !found {
			if i--; i < 0 {
				if l = l.prev; l == nil {
					return true
				}
				i = l.n - 1
			}
		}
		k := f.key(l, i)
		if word == 1 && k[0] != rd {
			return true
		}
		length := int(uint32(k[word]))
		if !ipv4 {
			length = int(k[word+2] >> 32)
		}
		n := common(&k, &target, word, ipv4)
		if length > most || n < length { // does not cover p: what does is no longer than n
			if m == Exact {
				return true
			}
			most = min(n, most-1)
			continue
		}
		if m == Exact && length != most {
			return true
		}
		// It covers p: this and its other paths.
		setPrefix(&bound, word, netip.PrefixFrom(p.Addr(), length).Masked(), 0)
		reported := false
		it := iterator{f: f}
		for ok := it.seek(&Walk{}, &bound); ok && it.samePrefix(&bound, word, ipv4); ok = it.next(&Walk{}) {
			v := &it.l.vals[it.i]
			if v.state&stateWithdrawn != 0 && !w.Withdrawn {
				continue
			}
			reported = true
			rt = Route{RIB: f.rib}
			f.describe(&rt, &it.key, v.host)
			t.value(&rt.Value, f, v, &buf)
			if !each(&rt) {
				return false
			}
		}
		if m == Exact || m == Longest && reported {
			return true
		}
		most = length - 1
	}
	return true
}

func (it *iterator) samePrefix(k *key, word int, ipv4 bool) bool {
	if word == 1 && it.key[0] != k[0] || it.key[word] != k[word] {
		return false
	}
	return ipv4 || it.key[word+1] == k[word+1] && it.key[word+2]>>32 == k[word+2]>>32
}

// A FamilyStatus is how far a family of a RIB has come and what it has.
type FamilyStatus struct {
	Family    bgp.Family
	State     State
	AddPath   bool
	Routes    int // announced, stale ones included
	Stale     int // of the generation before, kept ones included
	Withdrawn int // kept although withdrawn
}

// A RIBStatus is one RIB and its families.
type RIBStatus struct {
	RIB      *RIB
	Families []FamilyStatus
}

// A PeerStatus is what a table knows of a peer. The messages are as received and
// belong to the caller.
type PeerStatus struct {
	ID        PeerID
	Up        bool
	Since     int64  // arrival of the Peer Up of this BGP session, or of Down; 0 without either
	AS        uint32 // by the OPEN that it sent
	FourOctet bool
	// PeerUps are those of this session. The first says how routes are decoded,
	// those that follow are about other RIBs or later BGP sessions.
	PeerUps [][]byte
	Stats   []byte // the last Statistics Report since it came up; nil without
	StatsAt int64  // its arrival; 0 without
	Down    []byte // the last Peer Down of this session, if it is down
	RIBs    []RIBStatus
}

// Initiation returns the last Initiation message of the session, nil without.
// It belongs to the caller.
func (t *Table) Initiation() []byte {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if len(t.initiation) == 0 {
		return nil
	}
	return slices.Clone(t.initiation)
}

// Peers returns all peers that are up, down in this session, or have routes of
// one before, in the order of their identities. The RIBs of a peer are in the order of appearance.
func (t *Table) Peers() []PeerStatus {
	t.mu.RLock()
	defer t.mu.RUnlock()
	all := make([]PeerStatus, 0, len(t.peers))
	for _, p := range t.peers {
		s := PeerStatus{
			ID: p.id, Up: p.up, Since: p.since, AS: p.asn, FourOctet: p.fourOctet,
			Stats: slices.Clone(p.stats), Down: slices.Clone(p.down),
		}
		if p.stats != nil {
			s.StatsAt = p.statsAt
		}
		if p.first != nil {
			s.PeerUps = append(s.PeerUps, slices.Clone(p.first))
		}
		for _, m := range p.ups {
			if &m[0] != &p.first[0] {
				s.PeerUps = append(s.PeerUps, slices.Clone(m))
			}
		}
		for _, r := range p.ribs {
			rs := RIBStatus{RIB: r}
			for i, f := range r.families {
				if f != nil {
					rs.Families = append(rs.Families, FamilyStatus{bgp.Families[i], f.state, f.addPath, f.n - f.withdrawn, f.stale, f.withdrawn})
				}
			}
			s.RIBs = append(s.RIBs, rs)
		}
		all = append(all, s)
	}
	slices.SortFunc(all, func(a, b PeerStatus) int {
		return cmp.Or(slices.Compare(a.ID.Distinguisher[:], b.ID.Distinguisher[:]), slices.Compare(a.ID.Addr[:], b.ID.Addr[:]))
	})
	return all
}

// A Summary is what there is in a table, in numbers.
type Summary struct {
	Peers     int // that are up, down in this session, or have routes of one before
	Up        int // peers that are
	RIBs      int
	Routes    int   // announced, stale ones included
	Stale     int   // of the generation before, kept ones included
	Withdrawn int   // kept although withdrawn
	Pending   int   // that Tidy would report or release, at least
	Bytes     int64 // as of Table.Bytes
	// Settled means that no dump is expected or under way: no family is in Begin
	// or Dump. So is a table of which nothing is known.
	Settled bool
}

// complete reports whether something came of each family that was negotiated, in
// each RIB of the peer.
func (p *peer) complete() bool {
	for _, r := range p.ribs {
		for i := range r.families {
			if p.families[i] && r.families[i] == nil {
				return false
			}
		}
	}
	return len(p.ribs) > 0
}

// Waiting returns how many peers that have come up after a time of arrival lack a
// family that both their OPENs have: no route of it has come and no End-of-RIB.
func (t *Table) Waiting(since int64) (n int) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	for _, p := range t.peers {
		if p.up && p.since > since && !p.complete() {
			n++
		}
	}
	return n
}

// Summary counts. It costs some nanoseconds for each RIB, whatever is in it.
func (t *Table) Summary() Summary {
	t.mu.RLock()
	defer t.mu.RUnlock()
	s := Summary{
		Peers: len(t.peers), Up: t.up, RIBs: len(t.order), Routes: t.routes, Withdrawn: t.entries - t.routes,
		Pending: t.owed(), Bytes: t.bytes(), Settled: true,
	}
	for _, r := range t.order {
		for _, f := range r.families {
			if f != nil {
				s.Stale += f.stale
				s.Settled = s.Settled && f.state != Begin && f.state != Dump
			}
		}
	}
	return s
}
