package table

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/bmpha/bmpha/pkg/bgp"
	"github.com/bmpha/bmpha/pkg/bmp"
)

// text is what a note says about a route.
func (r *NoteReader) text() string {
	switch r.Next() {
	case NotePlain:
		return "plain"
	case NoteKnown:
		return "known"
	case NoteUnknown:
		return "unknown"
	default:
		v := r.Value()
		return fmt.Sprintf("%q %x %v", v.Attrs, v.Labels, v.TwoOctet)
	}
}

func was(attrs string, labels ...byte) Change {
	return Change{Kind: Withdrawn, Found: true, Before: Value{Attrs: []byte(attrs), Labels: labels}}
}

func TestNotes(t *testing.T) {
	announced, unknown, marker := Change{Kind: Announced}, Change{Kind: Withdrawn}, Change{Kind: Marker}
	two := was("a", 1, 2, 3)
	two.Before.TwoOctet = true
	type add struct {
		c     Change
		known bool
	}
	for _, test := range []struct {
		name   string
		values bool
		adds   []add
		want   []string // and plain from there on
		length int
		silent bool
	}{
		{name: "nothing"},
		{"plain", true, []add{{announced, false}, {announced, false}}, nil, 0, false},
		{"known", true, []add{{announced, true}, {announced, true}}, []string{"known", "known"}, 1, true},
		{"known behind plain", true, []add{{announced, false}, {announced, true}}, []string{"plain", "known"}, 2, false},
		{"plain at the end", true, []add{{announced, true}, {announced, false}}, []string{"known"}, 1, false},
		{"with a marker", true, []add{{announced, true}, {marker, false}}, []string{"known"}, 1, false},
		{"a marker alone", true, []add{{marker, false}}, nil, 0, false},
		{"withdrawals without values", false, []add{{unknown, false}, {was("a"), false}}, nil, 0, false},
		{"unknown", true, []add{{unknown, false}}, []string{"unknown"}, 1, true},
		{"a value", true, []add{{was("ab", 1, 2, 3), false}}, []string{`"ab" 010203 false`}, 2 + 3 + 4 + 1, false},
		{"a value for many", true, []add{{was("ab"), false}, {was("ab"), false}, {was("ab"), false}},
			[]string{`"ab"  false`, `"ab"  false`, `"ab"  false`}, 2 + 3 + 1 + 1, false},
		{"other labels", true, []add{{was("ab", 1, 2, 3), false}, {was("ab", 4, 5, 6), false}},
			[]string{`"ab" 010203 false`, `"ab" 040506 false`}, 10 + 2 + 4 + 1, false},
		{"other width", true, []add{{was("a", 1, 2, 3), false}, {two, false}, {announced, true}, {two, false}},
			[]string{`"a" 010203 false`, `"a" 010203 true`, "known", `"a" 010203 true`}, 9 + 3 + 1 + 1, false},
		{"no attributes", true, []add{{was(""), false}}, []string{`""  false`}, 5, false},
	} {
		n := Notes{Values: test.values}
		for range 2 { // the second time in memory that was used
			n.Reset()
			for _, a := range test.adds {
				n.Add(&a.c, a.known)
			}
			got := n.Append([]byte{9})
			if !bytes.Equal(got, n.Append([]byte{9})) {
				t.Errorf("%s: Append changes them", test.name)
			}
			r := ReadNotes(got[1:])
			for i := range len(test.want) + 2 {
				want := "plain"
				if i < len(test.want) {
					want = test.want[i]
				}
				if s := r.text(); s != want {
					t.Errorf("%s: route %d: %s, want %s", test.name, i, s, want)
				}
			}
			if r.Err() != nil || len(got)-1 != test.length || n.Silent() != test.silent {
				t.Errorf("%s: %v, % x, silent %v", test.name, r.Err(), got[1:], n.Silent())
			}
		}
	}
}

// TestNotesBound: a message cannot make notes that are too large. Withdrawals
// that do not fit are plain.
func TestNotesBound(t *testing.T) {
	n := Notes{Values: true}
	for i := range 1000 {
		c := was(fmt.Sprintf("%02000d", i))
		n.Add(&c, false)
	}
	b := n.Append(nil)
	if len(b) > maxNotes+2000 {
		t.Errorf("%d bytes", len(b))
	}
	r := ReadNotes(b)
	for i := range 1000 {
		if k := r.Next(); (k == NoteValue) != (i < maxNotes/2007) {
			t.Fatalf("route %d: note %d", i, k)
		}
	}
}

// TestNotesApplied: notes hold where the message is wrong, and do not where
// routes found no room.
func TestNotesApplied(t *testing.T) {
	for err, want := range map[error]NoteKind{
		nil: NoteKnown, ErrLabelledAddPath: NoteKnown, &bgp.Error{}: NoteKnown, &bmp.Error{}: NoteKnown, ErrTooManyRoutes: NotePlain,
	} {
		var n Notes
		n.Add(&Change{Kind: Announced}, true)
		n.Applied(err)
		r := ReadNotes(n.Append(nil))
		if got := r.Next(); got != want || n.Silent() != (want == NoteKnown) {
			t.Errorf("%v: note %d, want %d", err, got, want)
		}
	}
}

func TestSplitNotes(t *testing.T) {
	msg := bmp.AppendLength(bmp.AppendHeader(nil, bmp.TypeInitiation), 0)
	for _, notes := range []string{"", "x"} {
		m, n := SplitNotes(append(bytes.Clone(msg), notes...))
		if !bytes.Equal(m, msg) || string(n) != notes {
			t.Errorf("%x, %x", m, n)
		}
	}
	for _, body := range [][]byte{nil, {3}, {3, 0, 0, 0, 0, 1, 2}, {3, 0, 0, 0, 5, 1, 2}, {3, 0, 0, 1, 0, 1, 2}, {3, 255, 255, 255, 255, 1}} {
		if m, n := SplitNotes(body); !bytes.Equal(m, body) || n != nil {
			t.Errorf("%x: %x, %x", body, m, n)
		}
	}
}

// randomValue returns one of a few values.
func randomValue(rng *rand.Rand) Value {
	v := Value{Flags: byte(rng.IntN(2)) << 7, TwoOctet: rng.IntN(4) == 0}
	v.Attrs = bytes.Repeat([]byte{byte(rng.IntN(3))}, rng.IntN(3)*100)
	v.Labels = bytes.Repeat([]byte{byte(rng.IntN(3))}, rng.IntN(3)*3)
	return v
}

// TestNotesRandom: what was noted is what is read.
func TestNotesRandom(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	n := Notes{Values: true}
	for range 2000 {
		n.Reset()
		var want []string
		silent := false
		for range rng.IntN(30) {
			c := Change{Kind: Kind(rng.IntN(2)), Found: rng.IntN(3) > 0, Before: randomValue(rng)}
			known := c.Kind == Announced && rng.IntN(2) == 0
			n.Add(&c, known)
			silent = len(want) == 0 || silent
			switch {
			case known:
				want = append(want, "known")
			case c.Kind == Announced:
				want, silent = append(want, "plain"), false
			case !c.Found:
				want = append(want, "unknown")
			default:
				want, silent = append(want, fmt.Sprintf("%q %x %v", c.Before.Attrs, c.Before.Labels, c.Before.TwoOctet)), false
			}
		}
		r := ReadNotes(n.Append(nil))
		for i, w := range append(want, "plain", "plain") {
			if s := r.text(); s != w {
				t.Fatalf("route %d: %s, want %s", i, s, w)
			}
		}
		if r.Err() != nil || n.Silent() != silent {
			t.Fatalf("%v, silent %v, want %v", r.Err(), n.Silent(), silent)
		}
	}
}

func goneText(c *Change) string {
	return fmt.Sprintf("%v %v %v %v %v %v | %v %v %v %v %v | %q %x %v %v", c.Kind, c.RIB.Peer, c.RIB.BGPID, c.RIB.Kind, c.RIB.Type, c.RIB.AS,
		c.Family, c.AddPath, c.PathID, c.RD, c.Prefix, c.Before.Attrs, c.Before.Labels, c.Before.Flags, c.Before.TwoOctet)
}

// TestGoneRandom: the routes that Tidy reports are those that are read.
func TestGoneRandom(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	ribs := []*RIB{
		{Peer: PeerID{Addr: [16]byte{12: 10, 15: 1}}, BGPID: [4]byte{1}, AS: 65001},
		{Peer: PeerID{Addr: [16]byte{0: 0x20}, IPv6: true}, Kind: bmp.AdjRIBOutPost, Type: 1, AS: 65002},
		{Peer: PeerID{Distinguisher: [8]byte{7: 3}}, Kind: bmp.LocRIB, Type: 3},
	}
	var g Gone
	for range 1000 {
		g.Reset()
		var want []string
		rib := ribs[0]
		for range rng.IntN(40) {
			if rng.IntN(5) == 0 {
				rib = ribs[rng.IntN(len(ribs))]
			}
			c := Change{Kind: Swept + Kind(rng.IntN(3)), Found: true, Before: randomValue(rng)}
			c.Route.RIB, c.Family = rib, bgp.Families[rng.IntN(len(bgp.Families))]
			if c.AddPath = rng.IntN(2) == 0; c.AddPath {
				c.PathID = rng.Uint32()
			}
			if c.Family.SAFI == bgp.SAFIVPN {
				c.RD[7] = byte(rng.IntN(2))
			}
			p := prefix([]string{"0.0.0.0/0", "10.1.2.3/17", "10.0.0.0/8", "255.255.255.255/32"}[rng.IntN(4)])
			if c.Family.AFI == bgp.AFIIPv6 {
				p = prefix([]string{"::/0", "2001:db8::7/127", "2001:db8::/32"}[rng.IntN(3)])
			}
			c.Prefix = p
			// Only the host bits of the last byte that is sent are kept.
			keep, _ := p.Addr().Prefix(min((p.Bits()+7)/8*8, p.Addr().BitLen()))
			g.Add(&c)
			c.Prefix = netip.PrefixFrom(keep.Addr(), p.Bits())
			want = append(want, goneText(&c))
		}
		if g.Routes() != len(want) || len(g.Bytes()) != g.Len() {
			t.Fatalf("%d routes, %d bytes", g.Routes(), g.Len())
		}
		r := ReadGone(g.Bytes())
		var got []string
		for r.Next() {
			got = append(got, goneText(r.Change()))
		}
		if r.Err() != nil || !slices.Equal(got, want) {
			t.Fatalf("%v\n%q\n%q", r.Err(), got, want)
		}
	}
}

// TestGoneSize: routes of one RIB with the same attributes take little more
// than their prefixes.
func TestGoneSize(t *testing.T) {
	rib := &RIB{}
	var g Gone
	for i := range 1000 {
		c := Change{Kind: PeerGone, Before: Value{Attrs: make([]byte, 100)}}
		c.Route.RIB, c.Family = rib, bgp.IPv4Unicast
		c.Prefix = prefix(fmt.Sprintf("10.%d.%d.0/24", i>>8, byte(i)))
		g.Add(&c)
	}
	if g.Len() > 1000*5+200 {
		t.Errorf("%d bytes", g.Len())
	}
}

func FuzzReadNotes(f *testing.F) {
	n := Notes{Values: true}
	for i := range 5 {
		c := was("attributes", byte(i/2), 2, 3)
		n.Add(&c, false)
		n.Add(&Change{Kind: Announced}, i > 2)
		n.Add(&Change{Kind: Withdrawn}, false)
		f.Add(n.Append(nil))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r := ReadNotes(b)
		again := Notes{Values: true}
		var want []string
		for range 1000 {
			c := Change{Kind: Announced}
			kind := r.Next()
			switch kind {
			case NoteUnknown:
				c.Kind = Withdrawn
			case NoteValue:
				c = Change{Kind: Withdrawn, Found: true, Before: *r.Value()}
			}
			again.Add(&c, kind == NoteKnown)
			copied := NoteReader{n: 1, kind: kind, value: *r.Value()}
			want = append(want, copied.text())
		}
		if r.Err() != nil && r.Next() != NotePlain {
			t.Error("goes on behind an error")
		}
		if len(again.buf) > maxNotes/2 {
			return
		}
		r2 := ReadNotes(again.Append(nil))
		for i, w := range want {
			if got := r2.text(); got != w {
				t.Fatalf("route %d: %s, want %s", i, got, w)
			}
		}
	})
}

func FuzzReadGone(f *testing.F) {
	var g Gone
	for i, p := range []string{"10.0.0.0/8", "10.1.0.0/17", "2001:db8::/33"} {
		c := Change{Kind: PeerGone, Before: Value{Attrs: []byte("attributes"), Labels: []byte{1, 2, 3}}}
		c.Route.RIB, c.Family, c.Prefix = &RIB{Kind: bmp.RIB(i)}, bgp.Families[i*2], prefix(p)
		c.AddPath, c.PathID = i == 1, uint32(i)
		if c.Family.AFI == bgp.AFIIPv4 && c.Prefix.Addr().Is6() {
			c.Family = bgp.Families[3]
		}
		g.Add(&c)
		f.Add(slices.Clone(g.Bytes()))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r := ReadGone(b)
		var again Gone
		var want []string
		for r.Next() {
			c := *r.Change()
			rib := *c.RIB
			c.Route.RIB = &rib
			again.Add(&c)
			want = append(want, goneText(&c))
		}
		r2 := ReadGone(again.Bytes())
		for i := 0; r2.Next(); i++ {
			if got := goneText(r2.Change()); got != want[i] {
				t.Fatalf("route %d: %s, want %s", i, got, want[i])
			}
		}
		if r2.Err() != nil || again.Routes() != len(want) {
			t.Fatal(r2.Err())
		}
	})
}

// BenchmarkNotes: an operation is a message of 20 withdrawn routes, noted and
// read.
func BenchmarkNotes(b *testing.B) {
	n := Notes{Values: true}
	var buf []byte
	c := was(string(make([]byte, 60)))
	b.ReportAllocs()
	for b.Loop() {
		n.Reset()
		for range 20 {
			n.Add(&c, false)
		}
		buf = n.Append(buf[:0])
		r := ReadNotes(buf)
		for range 20 {
			r.Next()
		}
	}
}
