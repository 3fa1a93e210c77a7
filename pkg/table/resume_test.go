package table

import (
	"encoding/binary"
	"errors"
	"testing"

	"github.com/bmpha/bmpha/pkg/bgp"
	"github.com/bmpha/bmpha/pkg/bmp"
)

// TestStartOver: what was said before a Peer Up that is passed on is not resumed by
// later sessions, although their Peer Ups are the same, until it is said again.
func TestStartOver(t *testing.T) {
	var s speaker
	tab := NewTable(NewStore(), Options{})
	a, b := nlri{prefix: prefix("10.1.0.0/16")}, nlri{prefix: prefix("10.2.0.0/16")}
	var at int64
	open := func(port uint16, told bool) {
		t.Helper()
		at++
		tab.Open(at)
		up := s.peerUp(0, 0, port)
		must(t, tab, at, nil, up)
		if tab.Resumed(up) == told {
			t.Errorf("session %d: the Peer Up is resumed: %t", at, !told)
		}
		if told {
			tab.StartOver(up)
		}
	}
	announce := func(n nlri, resumed bool) {
		t.Helper()
		must(t, tab, at, func(c *Change) {
			if !c.Same || !c.Before.Stale || c.Resumed != resumed {
				t.Errorf("session %d: %v: same %t, stale %t, resumed %t", at, n.prefix, c.Same, c.Before.Stale, c.Resumed)
			}
		}, s.announce(0, 0, 1, 0, true, n))
	}
	open(1000, true)
	must(t, tab, at, nil, s.announce(0, 0, 1, 0, true, a, b), s.endOfRIB(0, 0, bgp.IPv4Unicast))
	open(1000, false)
	announce(a, true)
	open(1001, true) // another BGP session; this one ends before all was said
	announce(a, false)
	open(1001, false)
	announce(a, true)
	announce(b, false)
	open(1001, false)
	announce(b, true)
}

// TestStartOverResumed: a Peer Up can be passed on although nothing has changed.
// What follows it is then no repetition either.
func TestStartOverResumed(t *testing.T) {
	var s speaker
	tab := NewTable(NewStore(), Options{})
	n := nlri{prefix: prefix("10.1.0.0/16")}
	up := s.peerUp(0, 0, 1000)
	must(t, tab, 1, nil, up, s.announce(0, 0, 1, 0, true, n), s.endOfRIB(0, 0, bgp.IPv4Unicast))
	tab.Open(2)
	must(t, tab, 2, nil, up)
	tab.StartOver(up)
	if tab.Resumed(up) {
		t.Error("still resumed")
	}
	must(t, tab, 2, func(c *Change) {
		if c.Resumed {
			t.Errorf("%v %v is resumed", c.Kind, c.Prefix)
		}
	}, s.announce(0, 0, 1, 0, true, n), s.endOfRIB(0, 0, bgp.IPv4Unicast))
}

// TestKept: what is kept of peers has a limit, whatever is said about them, and is
// counted right.
func TestKept(t *testing.T) {
	const peers = maxKept/60_000 + 100
	var s speaker
	tab := NewTable(NewStore(), Options{})
	about := func(i int, msg []byte) []byte {
		binary.BigEndian.PutUint32(msg[bmp.HeaderLen+22:], uint32(i)) // the address
		return msg
	}
	up := func(i int, port uint16) []byte {
		msg := about(i, s.peerUp(0, 0, port))
		n := 60_000 - len(msg) - 4
		msg = append(msg, 0, 99, byte(n>>8), byte(n)) // a TLV
		return bmp.AppendLength(append(msg, make([]byte, n)...), 0)
	}
	refused := 0
	apply := func(msg []byte) {
		t.Helper()
		switch err := tab.Apply(msg, 1, nil); {
		case errors.Is(err, ErrPeersFull):
			refused++
		case err != nil && err != ErrNoPeerUp:
			t.Fatal(err)
		}
	}
	check := func(what string) {
		t.Helper()
		n := 0
		for _, p := range tab.peers {
			n += p.kept()
		}
		if n != tab.kept || n > maxKept {
			t.Errorf("%s: %d bytes are kept and %d counted, at most %d wanted", what, n, tab.kept, maxKept)
		}
	}
	route := nlri{prefix: prefix("10.1.0.0/16")}
	for i := range 3 {
		apply(up(i, 1000))
		apply(up(i, 1000))
		apply(up(i, 1001)) // in place of the others
		apply(about(i, s.announce(0, 0, 1, 0, true, route)))
	}
	check("peers")
	apply(about(1, s.peerDown(0, 0)))
	check("Peer Down")
	tab.Open(2)
	check("opened")
	m := up(0, 1001)
	apply(m)
	check("resumed")
	tab.StartOver(m)
	check("started over")
	tab.Settle(3)
	check("settled")
	for i := range peers {
		apply(up(i, 1000))
	}
	check("full")
	if refused == 0 {
		t.Error("no peer was refused")
	}
	for i := range peers {
		apply(about(i, s.peerDown(0, 0)))
	}
	check("all down")
	tab.Clear()
	if tab.kept != 0 {
		t.Errorf("%d bytes are kept of an empty table", tab.kept)
	}
}
