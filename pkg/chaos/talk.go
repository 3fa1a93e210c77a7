package main

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/bmpha/bmpha/pkg/bgp"
	"github.com/bmpha/bmpha/pkg/bmp"
)

// A talk is what a generated router says: it comes up with all its routes and then
// changes some of them. Most announcements carry a number of their own, from 1, as
// their MED, so that each can be told from all others; some repeat one of a few
// values instead, as routers do that change their mind and change it back.
//
// Changes are made in a narrow window that moves over the routes once in a run. So
// what a collector does wrong stays wrong: no later change of the same route covers
// it. It is a replay.Stream; Flap may be called from anywhere.
type talk struct {
	name            string
	peers, prefixes int
	stay            int           // changes before the window moves by a prefix
	step            time.Duration // from one message to the next
	start           time.Time

	rng     *rand.Rand
	said    int // messages
	number  uint32
	changes int
	told    int // of the opening
	routes  [][]uint32
	again   []route // to be announced again after a flap
	up      int     // peer that comes up next, from 1; 0: none
	flap    atomic.Int32
	nlri    []byte
	attrs   []byte
}

// A route of a talk: its peer and prefix, by number.
type route struct{ peer, prefix int }

const (
	window = 50 // prefixes in which changes are made at a time
	// few marks a MED that is one of a few values, not a number.
	few = 1 << 31
)

// newTalk returns a stream that changes all of its routes within so many changes.
func newTalk(seed uint64, name string, peers, prefixes, changes int, step time.Duration) *talk {
	t := &talk{
		name: name, peers: peers, prefixes: prefixes, stay: max(1, changes/prefixes), step: step, start: time.Now(),
		rng: rand.New(rand.NewPCG(seed, 0x74616c6b)),
	}
	for range peers {
		t.routes = append(t.routes, make([]uint32, prefixes))
	}
	return t
}

// opening is the most messages that the beginning of a session may have.
func (t *talk) opening() uint64 { return uint64(1 + 3*t.peers + t.peers*t.prefixes) }

// Flap takes a peer down and up again, soon.
func (t *talk) Flap() { t.flap.Add(1) }

// Next appends the next message.
func (t *talk) Next(dst []byte) ([]byte, error) {
	t.said++
	if t.said == 1 {
		return bmp.AppendInitiation(dst, "bmpha chaos", t.name), nil
	}
	if t.said <= 1+t.peers {
		return t.peerUp(dst, t.said-2), nil
	}
	if n := t.told; n < t.peers*t.prefixes {
		t.told++
		r := route{n / t.prefixes, n % t.prefixes}
		t.routes[r.peer][r.prefix] = t.next()
		return t.announce(dst, r), nil
	}
	if n := t.told - t.peers*t.prefixes; n < 2*t.peers {
		t.told++
		return bmp.AppendRouteMonitoring(dst, t.header(n/2), bgp.AppendEndOfRIB(nil, uint16(1+n%2), 1)), nil
	}
	if t.up > 0 {
		peer := t.up - 1
		t.up = 0
		for i, med := range t.routes[peer] {
			if med != 0 {
				t.again = append(t.again, route{peer, i})
			}
		}
		return t.peerUp(dst, peer), nil
	}
	if n := len(t.again); n > 0 {
		r := t.again[n-1]
		t.again = t.again[:n-1]
		t.routes[r.peer][r.prefix] = t.next()
		return t.announce(dst, r), nil
	}
	if t.flap.Load() > 0 {
		t.flap.Add(-1)
		peer := t.rng.IntN(t.peers)
		t.up = peer + 1
		return bmp.AppendPeerDown(dst, t.header(peer), 4, nil), nil
	}
	return t.change(dst), nil
}

func (t *talk) change(dst []byte) []byte {
	r := route{t.rng.IntN(t.peers), (t.changes/t.stay + t.rng.IntN(window)) % t.prefixes}
	t.changes++
	med := &t.routes[r.peer][r.prefix]
	switch roll := t.rng.IntN(100); {
	case roll < 15 && *med != 0:
		*med = 0
		return t.withdraw(dst, r)
	case roll < 35:
		*med = few | t.rng.Uint32N(3)
	default:
		*med = t.next()
	}
	return t.announce(dst, r)
}

func (t *talk) next() uint32 {
	t.number++
	return t.number
}

// peer returns address and AS number of a peer.
func (t *talk) peer(i int) (netip.Addr, uint32) {
	return netip.AddrFrom4([4]byte{10, 254, 0, byte(i + 1)}), uint32(65001 + i)
}

func (t *talk) header(peer int) []byte {
	addr, as := t.peer(peer)
	return bmp.AppendPeerHeader(nil, 0, 0, 0, addr, as, addr, t.start.Add(time.Duration(t.said)*t.step))
}

func (t *talk) peerUp(dst []byte, peer int) []byte {
	addr, as := t.peer(peer)
	local := netip.AddrFrom4([4]byte{192, 0, 2, 254})
	caps := func(as uint32) []byte {
		return bgp.AppendCapAS4(bgp.AppendCapMP(bgp.AppendCapMP(nil, 1, 1), 2, 1), as)
	}
	// Each life of a peer has a port of its own.
	return bmp.AppendPeerUp(dst, t.header(peer), local, 179, uint16(20000+t.said%40000),
		bgp.AppendOpen(nil, 65000, 90, local, caps(65000)), bgp.AppendOpen(nil, as, 90, addr, caps(as)), nil)
}

// prefix appends prefix number i: every second one is IPv6.
func (t *talk) prefix(i int) (nlri []byte, v6 bool) {
	if i%2 == 0 {
		return append(t.nlri[:0], 24, 20, byte(i>>8), byte(i)), false
	}
	return append(t.nlri[:0], 48, 0x20, 0x01, 0x0d, 0xb8, byte(i>>8), byte(i)), true
}

func (t *talk) announce(dst []byte, r route) []byte {
	_, as := t.peer(r.peer)
	med := t.routes[r.peer][r.prefix]
	nlri, v6 := t.prefix(r.prefix)
	a := bgp.AppendASPath(bgp.AppendOrigin(t.attrs[:0], 0), as, 64500+med%50)
	if v6 {
		a = bgp.AppendMPReach(bgp.AppendMED(a, med), 2, 1, netip.AddrFrom16([16]byte{0x20, 0x01, 0x0d, 0xb8, 15: byte(r.peer + 1)}), nlri)
		nlri = nil
	} else {
		a = bgp.AppendMED(bgp.AppendNextHop(a, netip.AddrFrom4([4]byte{192, 0, 2, byte(r.peer + 1)})), med)
	}
	t.attrs = a
	return bmp.AppendRouteMonitoring(dst, t.header(r.peer), bgp.AppendUpdate(nil, nil, a, nlri))
}

func (t *talk) withdraw(dst []byte, r route) []byte {
	nlri, v6 := t.prefix(r.prefix)
	if v6 {
		return bmp.AppendRouteMonitoring(dst, t.header(r.peer), bgp.AppendUpdate(nil, nil, bgp.AppendMPUnreach(nil, 2, 1, nlri), nil))
	}
	return bmp.AppendRouteMonitoring(dst, t.header(r.peer), bgp.AppendUpdate(nil, nlri, nil, nil))
}

// String names the router.
func (t *talk) String() string {
	return fmt.Sprintf("%s: %d peers with %d routes", t.name, t.peers, t.prefixes)
}
