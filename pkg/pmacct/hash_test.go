package pmacct

import (
	"bytes"
	"fmt"
	"net/netip"
	"testing"

	"github.com/bmpha/bmpha/pkg/bmp"
	"github.com/bmpha/bmpha/pkg/record"
	"github.com/bmpha/bmpha/pkg/table"
)

// said are the hashes of a record and, to tell of it, its text.
type said struct {
	key, value uint64
	route      bool
	text       string
}

// saidIn returns what the headers of b say.
func saidIn(t testing.TB, b *record.Batch) (list []said) {
	t.Helper()
	for i := range b.Len() {
		h, err := record.ParseHeader(b.Header(i))
		if err != nil || !h.Keyed() {
			t.Fatalf("header %+v, %v: %s", h, err, b.Value(i))
		}
		list = append(list, said{h.KeyHash, h.ValueHash, h.Flags&record.FlagRoute != 0, string(b.Value(i))})
	}
	return list
}

// listen returns what a session of the router r1 says of messages.
func listen(t testing.TB, msgs ...[]byte) []said {
	t.Helper()
	enc, err := NewEncoder(Options{Header: true})
	if err != nil {
		t.Fatal(err)
	}
	s := enc.Session(Identity{Router: "r1"})
	var b record.Batch
	o := &record.Origin{}
	s.Open(&b, o, 1)
	for _, msg := range msgs {
		if err := s.Message(&b, o, 2, msg); err != nil {
			t.Fatal(err)
		}
	}
	s.Close(&b, o, 3)
	return saidIn(t, &b)
}

// TestStateHashLayout pins what the hashes of records that are not about routes are
// made of, as hash.go says.
func TestStateHashLayout(t *testing.T) {
	if h := sum([]byte{0}); h != stated {
		t.Errorf("stated is %x, want %x", uint64(stated), h)
	}
	up, init := peerUp(peerRD, "192.0.2.1", open(1), open(2), tlv(3, []byte("red"))), initiation(tlv(2, []byte("r1")), tlv(0, []byte("x")))
	upLoc := peerUp(testPeer{typ: 3, flags: 0x80, id: "192.0.2.10"}, "", open(1), open(1))
	counters := stats(peerRD, tlv(7, u64(5)), tlv(9, cat(u16(2), []byte{128}, u64(6))), tlv(900, make([]byte, 11)))
	got := listen(t, init, up, upLoc, counters,
		route(peerRD, update(nil, mpUnreach(25, 70, nil), nil)), peerDown(peerRD, []byte{2}, u16(18)), peerDown(peerV4, []byte{1}, bgpMsg(3, []byte{6, 2})),
		termination(tlv(0, []byte("bye"))))

	r1 := cat(u16(2), []byte("r1"))
	rd, rdAddr, v4 := rd1("192.0.2.9", 77), addr16("198.51.100.9"), addr16("192.0.2.7")
	for i, want := range []struct{ key, value []byte }{
		{[]byte("o"), []byte{0}},
		{[]byte("i"), cat([]byte("i"), init[6:])},
		{cat([]byte("p"), rd, rdAddr), cat([]byte("u"), []byte{0, 0}, up[48:])},
		{cat([]byte("p"), make([]byte, 24)), cat([]byte("u"), []byte{4, 1}, upLoc[48:])},
		{cat([]byte("s"), rd, rdAddr, []byte{0}, u16(7), []byte{0, 0, 0}), []byte{0}},
		{cat([]byte("s"), rd, rdAddr, []byte{0}, u16(9), []byte{0, 2, 128}), []byte{0}},
		{cat([]byte("s"), rd, rdAddr, []byte{0}, u16(900), []byte{0, 0, 0}), []byte{0}},
		{cat(rd, rdAddr, ip("192.0.2.9"), []byte{0}, u16(25), []byte{70}), []byte{0}},
		{cat([]byte("p"), rd, rdAddr), cat([]byte("d"), []byte{0, 2}, u16(18))},
		{cat([]byte("p"), make([]byte, 8), v4), cat([]byte("d"), []byte{0, 1}, u16(0))},
		{[]byte("t"), []byte{0}},
		{[]byte("c"), []byte{0}},
	} {
		if g := got[i]; g.key != sum(cat(r1, want.key)) || g.value != sum(want.value) || g.route {
			t.Errorf("%d: key %x, value %x, route %v: %s", i, g.key, g.value, g.route, g.text)
		}
	}
}

// TestStateHashes: what is about the same thing has one key, what says the same one
// value, and nothing else has.
func TestStateHashes(t *testing.T) {
	with := func(p testPeer, f func(p *testPeer)) testPeer { f(&p); return p }
	first := func(msg []byte) said { return listen(t, msg)[1] }
	up := func(p testPeer) []byte { return peerUp(p, "192.0.2.1", open(1), open(2)) }
	later := with(peerV4, func(p *testPeer) { p.sec, p.usec = p.sec+9, 1 })
	otherPort := up(peerV4)
	otherPort[bmp.HeaderLen+bmp.PerPeerLen+16]++
	bare := with(peerV4, func(p *testPeer) { p.id = "0.0.0.0" })
	for _, tt := range []struct {
		name       string
		a, b       []byte
		key, value bool // is equal
	}{
		{"Peer Up, live and in a dump", up(peerV4), up(later), true, true},
		{"Peer Up of another BGP session", up(peerV4), otherPort, true, false},
		{"Peer Up of another OPEN", up(peerV4), peerUp(peerV4, "192.0.2.1", open(1), open(3)), true, false},
		{"Peer Up of another RIB", up(peerV4), up(with(peerV4, func(p *testPeer) { p.flags = 0x10 })), true, false},
		{"Peer Up of another peer", up(peerV4), up(peerRD), false, true},
		{"Peer Up and Down", up(peerV4), peerDown(peerV4, []byte{1}), true, false},
		{"Peer Down, of one that was never up", peerDown(peerV4, []byte{2}, u16(0)), peerDown(bare, []byte{2}, u16(0)), true, true},
		{"Peer Down for another reason", peerDown(peerV4, []byte{2}, u16(0)), peerDown(peerV4, []byte{3}), true, false},
		{"Peer Down, the notification", peerDown(peerV4, []byte{1}, bgpMsg(3, []byte{6, 2})), peerDown(peerV4, []byte{1}, bgpMsg(3, []byte{6, 4})), true, true},
		{"counters", stats(peerV4, tlv(7, u64(1))), stats(later, tlv(7, u64(2))), true, true},
		{"counters of two types", stats(peerV4, tlv(7, u64(1))), stats(peerV4, tlv(8, u64(1))), false, true},
		{"counters of two peers", stats(peerV4, tlv(7, u64(1))), stats(peerRD, tlv(7, u64(1))), false, true},
		{"Initiation", initiation(tlv(2, []byte("a"))), initiation(tlv(2, []byte("b"))), true, false},
		{"Termination", termination(tlv(1, u16(0))), termination(tlv(1, u16(1))), true, true},
		{"Initiation and Termination", initiation(), termination(), false, false},
	} {
		a, b := first(tt.a), first(tt.b)
		if (a.key == b.key) != tt.key || (a.value == b.value) != tt.value {
			t.Errorf("%s: key equal %v, value equal %v; want %v, %v", tt.name, a.key == b.key, a.value == b.value, tt.key, tt.value)
		}
	}
	// End-of-RIB is of a RIB and a family.
	v6 := with(peerV4, func(p *testPeer) { p.flags = 0x40 })
	oo := open(64500, capAS4(64500))
	eor := listen(t, peerUp(peerV4, "", oo, oo), route(peerV4, update(nil, nil, nil)), route(later, update(nil, mpUnreach(1, 1, nil), nil)),
		route(peerV4, update(nil, mpUnreach(2, 1, nil), nil)), route(v6, update(nil, nil, nil)))[2:6]
	if eor[0].key != eor[1].key || eor[0].key == eor[2].key || eor[0].key == eor[3].key || eor[2].key == eor[3].key {
		t.Errorf("End-of-RIB: %+v", eor)
	}
}

// retimed returns stream with other times in its per-peer headers, as in another
// session of the router.
func retimed(t testing.TB, stream []byte) []byte {
	stream = bytes.Clone(stream)
	eachMessage(t, stream, func(msg []byte) {
		switch bmp.Type(msg) {
		case bmp.TypeInitiation, bmp.TypeTermination:
			return
		}
		if len(msg) >= bmp.HeaderLen+bmp.PerPeerLen && bmp.Type(msg) <= bmp.TypeRouteMirroring {
			for i := bmp.HeaderLen + bmp.PerPeerLen - 8; i < bmp.HeaderLen+bmp.PerPeerLen; i++ {
				msg[i] ^= 0x15
			}
		}
	})
	return stream
}

// TestTwoSessions: two sessions of one router, at two collectors, agree in the
// hashes of all that they say. So they do if what was said before is not known.
func TestTwoSessions(t *testing.T) {
	streams := map[string][]byte{"everything": everything()}
	if dir, ok := fixturesDir(); ok {
		for _, name := range captures {
			streams[name] = readCapture(t, dir, name)
		}
	}
	for name, stream := range streams {
		for _, rib := range []bool{false, true} {
			var lists [2][]said
			for i, stream := range [][]byte{stream, retimed(t, stream)} {
				enc, err := NewEncoder(Options{Header: true, RIB: rib, WriterID: fmt.Sprint(i)})
				if err != nil {
					t.Fatal(err)
				}
				enc.seq.Store(uint64(100 * i))
				s := enc.Session(Identity{Router: "r1", Addr: netip.MustParseAddr("192.0.2.1"), Port: uint16(1000 + i)})
				var b record.Batch
				o := &record.Origin{Instance: uint64(i), Session: uint32(i), Token: uint64(i)}
				at := int64(1e15 * (i + 1))
				s.Open(&b, o, at)
				eachMessage(t, stream, func(msg []byte) { _ = s.Message(&b, o, at, msg) })
				s.Close(&b, o, at)
				lists[i] = saidIn(t, &b)
			}
			if len(lists[0]) != len(lists[1]) {
				t.Fatalf("%s: %d and %d records", name, len(lists[0]), len(lists[1]))
			}
			keys := make(map[uint64]bool)
			for i, a := range lists[0] {
				if b := lists[1][i]; a.key != b.key || a.value != b.value {
					t.Errorf("%s: %s\nand %s\nhave keys %x and %x, values %x and %x", name, a.text, b.text, a.key, b.key, a.value, b.value)
				}
				keys[a.key] = a.route
			}
			for _, a := range lists[0] {
				if keys[a.key] != a.route {
					t.Errorf("%s: a route and something else have one key: %s", name, a.text)
				}
			}
		}
	}
}

// TestGoneHashes: a route that is gone has the hashes of one that was withdrawn,
// also where records tell what it was.
func TestGoneHashes(t *testing.T) {
	oo := open(64500, capAS4(64500))
	one := update(nil, cat(origin(0), asPath(seg(2, 64500)), nextHop("192.0.2.7")), pfx("10.1.0.0/16"))
	for _, rib := range []bool{false, true} {
		enc, err := NewEncoder(Options{Header: true, RIB: rib})
		if err != nil {
			t.Fatal(err)
		}
		s := enc.Session(Identity{Router: "r1"})
		known := newMemory()
		var b record.Batch
		o := &record.Origin{}
		for _, msg := range [][]byte{
			peerUp(peerV4, "", oo, oo), route(peerV4, one), route(peerV4, update(pfx("10.1.0.0/16"), nil, nil)), route(peerV4, one),
		} {
			if err := s.Noted(&b, o, 1, msg, known.apply(msg, 1)); err != nil {
				t.Fatal(err)
			}
		}
		known.table.Clear()
		var gone table.Gone
		for known.table.Tidy(64, gone.Add) {
		}
		if err := s.Gone(&b, o, 2, gone.Bytes()); err != nil {
			t.Fatal(err)
		}
		got := saidIn(t, &b)[1:]
		if len(got) != 4 {
			t.Fatalf("%d records", len(got))
		}
		announced, withdrawal, again, deleted := got[0], got[1], got[2], got[3]
		if (field(deleted.text, "log_type") == "delete") != rib {
			t.Errorf("%s", deleted.text)
		}
		for _, g := range got {
			if g.key != announced.key || !g.route {
				t.Errorf("another key: %s", g.text)
			}
		}
		if again.value != announced.value || withdrawal.value != withdrawn || deleted.value != withdrawn {
			t.Errorf("values %x %x %x %x", announced.value, withdrawal.value, again.value, deleted.value)
		}
	}
}

// TestStateHashesAllocate: hashes of what comes often need no memory.
func TestStateHashesAllocate(t *testing.T) {
	enc, err := NewEncoder(Options{Header: true})
	if err != nil {
		t.Fatal(err)
	}
	s := enc.Session(Identity{Router: "r1"})
	oo := open(64500, capAS4(64500))
	s.Observe(peerUp(peerV4, "", oo, oo))
	counters, eor, down := stats(peerV4, tlv(7, u64(5)), tlv(9, cat(u16(2), []byte{128}, u64(6)))), route(peerV4, update(nil, nil, nil)), peerDown(peerV6, []byte{2}, u16(1))
	var b record.Batch
	o := &record.Origin{}
	if n := testing.AllocsPerRun(100, func() {
		b.Reset()
		for _, msg := range [][]byte{counters, eor, down} {
			if err := s.Message(&b, o, 1, msg); err != nil {
				t.Fatal(err)
			}
		}
	}); n > 0 {
		t.Errorf("%v allocations", n)
	}
}

// TestPeerHash: the peer that a message is about has the key of its peer_up.
func TestPeerHash(t *testing.T) {
	up := peerUp(peerRD, "192.0.2.1", open(1), open(2))
	key := listen(t, up)[1].key
	for name, msg := range map[string][]byte{
		"peer up": up, "peer down": peerDown(peerRD, []byte{2}, u16(18)),
		"routes": route(peerRD, update(nil, mpUnreach(25, 70, nil), nil)),
	} {
		if h, ok := PeerHash("r1", msg); !ok || h != key {
			t.Errorf("%s: %x, %v, want %x", name, h, ok, key)
		}
		if n := testing.AllocsPerRun(10, func() { PeerHash("r1", msg) }); n > 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
	if h, _ := PeerHash("r1", peerDown(peerV4, []byte{2}, u16(18))); h == key {
		t.Error("another peer has the same key")
	}
	if _, ok := PeerHash("r1", initiation(tlv(2, []byte("r1")))); ok {
		t.Error("an Initiation is about a peer")
	}
}
