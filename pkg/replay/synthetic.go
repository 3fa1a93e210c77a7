package replay

import (
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"strings"
	"time"

	"github.com/bmpha/bmpha/pkg/bgp"
	"github.com/bmpha/bmpha/pkg/bmp"
)

// Synthetic describes a made-up router. The same description always makes the
// same bytes. Zero fields have the defaults given.
type Synthetic struct {
	Seed       uint64
	Name       string        // sysName; "replay"
	Peers      int           // 4
	Prefixes   int           // routes per peer; 1000
	IPv6       float64       // share of them that is IPv6, 0 to 1; 0
	Routes     int           // most routes in one UPDATE; 1
	Attributes int           // distinct sets of path attributes; 1000
	PostPolicy bool          // send everything for the post-policy Adj-RIB-In too
	Start      time.Time     // of the messages; 2026-01-01 UTC
	Step       time.Duration // from one message to the next; 100 µs

	// Churn is what goes on after the dump. Zero: nothing, the stream ends.
	Churn Churn

	// Numbered makes a stream without end in which each Route Monitoring message
	// announces one new prefix, numbered from 0: see Number. Prefixes, Routes and
	// Churn are not used. The table is empty at first, as End-of-RIBs say, and grows
	// with it.
	Numbered bool
}

// Churn gives how often each sort of event happens, relative to the others.
type Churn struct {
	Withdraw float64 // withdraw routes
	Announce float64 // announce routes with other attributes, or again after a withdrawal
	Flap     float64 // withdraw routes and announce them at once, as they were
	Repeat   float64 // announce a route as it is
	PeerFlap float64 // take a peer down and up again and announce its routes
}

// DefaultChurn is what routers do on an ordinary day, somewhat lively: no peer
// stays away, and one event in 10,000 is the flap of a peer.
var DefaultChurn = Churn{Withdraw: 0.2, Announce: 0.5, Flap: 0.1, Repeat: 0.2, PeerFlap: 0.0001}

func (c Churn) total() float64 { return c.Withdraw + c.Announce + c.Flap + c.Repeat + c.PeerFlap }

// Stream returns the stream of s.
func (s Synthetic) Stream() (Stream, error) {
	if s.Peers == 0 {
		s.Peers = 4
	}
	if s.Prefixes == 0 {
		s.Prefixes = 1000
	}
	if s.Routes == 0 {
		s.Routes = 1
	}
	if s.Attributes == 0 {
		s.Attributes = 1000
	}
	if s.Name == "" {
		s.Name = "replay"
	}
	if s.Start.IsZero() {
		s.Start = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	}
	if s.Step == 0 {
		s.Step = 100 * time.Microsecond
	}
	c := s.Churn
	switch {
	case s.Peers < 0 || s.Peers > 60000:
		return nil, fmt.Errorf("synthetic router: %d peers, want 1 to 60000", s.Peers)
	case s.Prefixes < 0 || s.Prefixes > 1<<23:
		return nil, fmt.Errorf("synthetic router: %d prefixes per peer, want 1 to %d", s.Prefixes, 1<<23)
	case s.Routes < 0 || s.Routes > 100:
		return nil, fmt.Errorf("synthetic router: %d routes per update, want 1 to 100", s.Routes)
	case s.Attributes < 0 || s.Attributes > 1<<20:
		return nil, fmt.Errorf("synthetic router: %d attribute sets, want 1 to %d", s.Attributes, 1<<20)
	case !(s.IPv6 >= 0 && s.IPv6 <= 1):
		return nil, fmt.Errorf("synthetic router: IPv6 share %v, want 0 to 1", s.IPv6)
	case !(min(c.Withdraw, c.Announce, c.Flap, c.Repeat, c.PeerFlap) >= 0):
		return nil, fmt.Errorf("synthetic router: churn %+v, want shares of at least 0", c)
	}
	return newGenerator(s), nil
}

// absent stands for no attribute set: the route is not announced.
const absent = -1

// A generator makes the messages of a Synthetic. In each call of Next it makes
// one message, and leaves in todo what must follow it.
type generator struct {
	Synthetic
	rng   *rand.Rand
	v4    int // prefixes below are IPv4, from here on IPv6
	attrs []attributeSet
	peers []generatedPeer
	phase int // see the phase constants
	peer  int // within a phase
	at    int
	count uint64 // messages made
	todo  []run  // what must follow, last first
	again []byte // the message to be sent once more, for the post-policy RIB
	// Scratch for one message.
	nlri []byte
}

const (
	phaseInitiation = iota
	phasePeerUp
	phaseDump
	phaseEndOfRIB
	phaseChurn
)

type attributeSet struct {
	v4, v6 []byte // encoded attributes; v6 lacks its MP_REACH
	hop6   [16]byte
}

type generatedPeer struct {
	header [peerLen]byte
	up     []byte  // the Peer Up
	routes []int32 // per prefix, the attribute set or absent
}

// A run is something that will be sent later: an announcement of routes as they
// stand from at to end, or of the peer itself.
type run struct {
	peer, at, end int
	peerUp        bool
}

func newGenerator(s Synthetic) *generator {
	g := &generator{
		Synthetic: s,
		rng:       rand.New(rand.NewPCG(s.Seed, 0x626d706861)),
		v4:        int(float64(s.Prefixes)*(1-s.IPv6) + 0.5),
	}
	g.attrs = makeAttributes(g.rng, s.Attributes)
	local := netip.MustParseAddr("192.0.2.254")
	const localAS = 64496
	for i := range s.Peers {
		addr := netip.AddrFrom4([4]byte{10, 255, byte(i >> 8), byte(i)})
		as := uint32(4200000000 + i)
		p := generatedPeer{header: [peerLen]byte(bmp.AppendPeerHeader(nil, 0, 0, 0, addr, as, addr, s.Start))}
		caps := func(as uint32) []byte {
			return bgp.AppendCapAS4(bgp.AppendCapMP(bgp.AppendCapMP(nil, 1, 1), 2, 1), as)
		}
		p.up = bmp.AppendPeerUp(nil, p.header[:], local, 179, uint16(33000+i%32000),
			bgp.AppendOpen(nil, localAS, 90, local, caps(localAS)), bgp.AppendOpen(nil, as, 90, addr, caps(as)), nil)
		if !s.Numbered {
			p.routes = make([]int32, s.Prefixes)
			for j := range p.routes {
				p.routes[j] = absent
			}
		}
		g.peers = append(g.peers, p)
	}
	return g
}

// makeAttributes makes n sets: ORIGIN, AS_PATH of four or five numbers, a next
// hop, MED in half of them, one to six communities.
func makeAttributes(rng *rand.Rand, n int) []attributeSet {
	sets := make([]attributeSet, n)
	var path [5]uint32
	var comms [6]uint32
	for i := range sets {
		origin := uint8(rng.IntN(3))
		asns := path[:4+rng.IntN(2)]
		for j := range asns {
			asns[j] = 131072 + rng.Uint32N(300000)
		}
		hop := rng.Uint32()
		withMED, med := rng.IntN(2) == 0, rng.Uint32N(1000)
		cs := comms[:1+rng.IntN(6)]
		for j := range cs {
			cs[j] = (64496+rng.Uint32N(15))<<16 | rng.Uint32N(0x10000)
		}
		for _, v6 := range []bool{false, true} {
			b := bgp.AppendASPath(bgp.AppendOrigin(nil, origin), asns...)
			if !v6 {
				b = bgp.AppendNextHop(b, netip.AddrFrom4([4]byte{10, byte(hop >> 16), byte(hop >> 8), byte(hop)}))
			}
			if withMED {
				b = bgp.AppendMED(b, med)
			}
			b = bgp.AppendCommunities(b, cs...)
			if v6 {
				sets[i].v6 = b
			} else {
				sets[i].v4 = b
			}
		}
		sets[i].hop6 = [16]byte{0x20, 0x01, 0x0d, 0xb8, 12: byte(hop >> 24), byte(hop >> 16), byte(hop >> 8), byte(hop)}
	}
	return sets
}

// Next appends the next message to dst.
func (g *generator) Next(dst []byte) ([]byte, error) {
	if len(g.again) > 0 {
		start := len(dst)
		dst = append(dst, g.again...)
		dst[start+commonLen+1] |= 0x40
		g.again = g.again[:0]
		return dst, nil
	}
	start := len(dst)
	dst, err := g.make(dst)
	if err != nil {
		return dst, err
	}
	g.count++
	if g.PostPolicy && dst[start+5] == routeMonitoring {
		g.again = append(g.again, dst[start:]...)
	}
	return dst, nil
}

func (g *generator) make(dst []byte) ([]byte, error) {
	if n := len(g.todo); n > 0 {
		r := &g.todo[n-1]
		if r.peerUp {
			g.todo = g.todo[:n-1]
			return g.up(dst, r.peer), nil
		}
		if made, ok := g.announceNext(dst, r.peer, &r.at, r.end); ok {
			return made, nil
		}
		g.todo = g.todo[:n-1]
		return g.make(dst)
	}
	switch g.phase {
	case phaseInitiation:
		g.phase++
		return bmp.AppendInitiation(dst, "bmpha replay, synthetic", g.Name), nil
	case phasePeerUp:
		dst = g.up(dst, g.peer)
		if g.peer++; g.peer == len(g.peers) {
			g.phase, g.peer = phaseDump, 0
			if g.Numbered {
				g.phase = phaseEndOfRIB
			}
		}
		return dst, nil
	case phaseDump:
		if g.at == 0 {
			g.fill(g.peer)
		}
		dst, _ = g.announceNext(dst, g.peer, &g.at, g.Prefixes)
		if g.at == g.Prefixes {
			g.at = 0
			if g.peer++; g.peer == len(g.peers) {
				g.phase, g.peer = phaseEndOfRIB, 0
			}
		}
		return dst, nil
	case phaseEndOfRIB:
		afi := uint16(1 + g.at)
		start := len(dst)
		dst = bmp.AppendHeader(dst, routeMonitoring)
		dst = g.header(dst, g.peer)
		dst = bmp.AppendLength(bgp.AppendEndOfRIB(dst, afi, 1), start)
		if g.at++; g.at == 2 {
			g.at = 0
			if g.peer++; g.peer == len(g.peers) {
				g.phase = phaseChurn
			}
		}
		return dst, nil
	}
	if g.Numbered {
		return g.numbered(dst), nil
	}
	if g.Churn.total() == 0 {
		return dst, io.EOF
	}
	return g.event(dst), nil
}

// header appends the per-peer header with the time of the message being made.
func (g *generator) header(dst []byte, peer int) []byte {
	at := len(dst)
	dst = append(dst, g.peers[peer].header[:]...)
	g.stamp(dst[at+34:])
	return dst
}

func (g *generator) stamp(b []byte) {
	t := g.Start.UnixMicro() + int64(g.count)*g.Step.Microseconds()
	binary.BigEndian.PutUint32(b, uint32(t/1e6))
	binary.BigEndian.PutUint32(b[4:], uint32(t%1e6))
}

func (g *generator) up(dst []byte, peer int) []byte {
	at := len(dst)
	dst = append(dst, g.peers[peer].up...)
	g.stamp(dst[at+commonLen+34:])
	return dst
}

// fill chooses attributes for all routes of a peer, the same for neighbouring
// prefixes so that they fit into one UPDATE.
func (g *generator) fill(peer int) {
	routes := g.peers[peer].routes
	for i := 0; i < len(routes); {
		set := g.rng.Int32N(int32(len(g.attrs)))
		for n := 1 + g.rng.IntN(g.Routes); n > 0 && i < len(routes); n-- {
			routes[i] = set
			i++
		}
	}
}

// extent returns the end of the run of routes from at on that one UPDATE can
// announce: of one family, with equal attributes, at most Routes.
func (g *generator) extent(peer, at, end int) int {
	routes := g.peers[peer].routes
	if at < g.v4 {
		end = min(end, g.v4)
	}
	end = min(end, at+g.Routes)
	for i := at + 1; i < end; i++ {
		if routes[i] != routes[at] {
			return i
		}
	}
	return end
}

// announceNext appends an announcement of the next routes from *at on that are
// there, and moves *at behind them. It returns false if there are none before
// end.
func (g *generator) announceNext(dst []byte, peer int, at *int, end int) ([]byte, bool) {
	routes := g.peers[peer].routes
	for *at < end && routes[*at] == absent {
		*at++
	}
	if *at == end {
		return dst, false
	}
	stop := g.extent(peer, *at, end)
	g.nlri = g.nlri[:0]
	for i := *at; i < stop; i++ {
		g.nlri = g.prefix(g.nlri, i)
	}
	dst = g.announcement(dst, peer, *at >= g.v4, &g.attrs[routes[*at]], g.nlri)
	*at = stop
	return dst, true
}

// prefix appends prefix number i: an IPv4 /24 from 11.0.0.0 on, or an IPv6 /48
// from 2a00:: on.
func (g *generator) prefix(dst []byte, i int) []byte {
	if i < g.v4 {
		return append(dst, 24, byte(11+i>>16), byte(i>>8), byte(i))
	}
	i -= g.v4
	return append(dst, 48, 0x2a, byte(i>>24), byte(i>>16), byte(i>>8), byte(i), 0)
}

// announcement appends a Route Monitoring message that announces encoded routes.
func (g *generator) announcement(dst []byte, peer int, v6 bool, set *attributeSet, nlri []byte) []byte {
	start := len(dst)
	dst = bmp.AppendHeader(dst, routeMonitoring)
	dst = g.header(dst, peer)
	pdu := len(dst)
	dst = bgp.AppendHeader(dst, 2)
	dst = append(dst, 0, 0, 0, 0)
	from := len(dst)
	if v6 {
		dst = append(dst, set.v6...)
		dst = bgp.AppendMPReach(dst, 2, 1, netip.AddrFrom16(set.hop6), nlri)
	} else {
		dst = append(dst, set.v4...)
	}
	binary.BigEndian.PutUint16(dst[from-2:], uint16(len(dst)-from))
	if !v6 {
		dst = append(dst, nlri...)
	}
	return bmp.AppendLength(bgp.AppendLength(dst, pdu), start)
}

// withdrawal appends a Route Monitoring message that withdraws routes at to end.
func (g *generator) withdrawal(dst []byte, peer, at, end int) []byte {
	start := len(dst)
	dst = bmp.AppendHeader(dst, routeMonitoring)
	dst = g.header(dst, peer)
	pdu := len(dst)
	dst = bgp.AppendHeader(dst, 2)
	g.nlri = g.nlri[:0]
	for i := at; i < end; i++ {
		g.nlri = g.prefix(g.nlri, i)
	}
	if at < g.v4 {
		dst = binary.BigEndian.AppendUint16(dst, uint16(len(g.nlri)))
		dst = append(dst, g.nlri...)
		dst = append(dst, 0, 0)
	} else {
		dst = append(dst, 0, 0, 0, 0)
		from := len(dst)
		dst = bgp.AppendMPUnreach(dst, 2, 1, g.nlri)
		binary.BigEndian.PutUint16(dst[from-2:], uint16(len(dst)-from))
	}
	return bmp.AppendLength(bgp.AppendLength(dst, pdu), start)
}

// event appends the first message of the next event of the churn.
func (g *generator) event(dst []byte) []byte {
	peer := g.rng.IntN(len(g.peers))
	at := g.rng.IntN(g.Prefixes)
	routes := g.peers[peer].routes
	c := g.Churn
	roll := g.rng.Float64() * c.total()

	if roll -= c.PeerFlap; roll < 0 {
		g.todo = append(g.todo, run{peer: peer, end: g.Prefixes}, run{peer: peer, peerUp: true})
		start := len(dst)
		dst = bmp.AppendHeader(dst, peerDown)
		dst = g.header(dst, peer)
		dst = append(dst, 4) // the remote system closed, no data
		return bmp.AppendLength(dst, start)
	}
	end := at + 1 + g.rng.IntN(g.Routes)
	end = min(end, g.Prefixes)
	if at < g.v4 {
		end = min(end, g.v4)
	}
	roll -= c.Withdraw
	withdraw := roll < 0
	roll -= c.Flap
	flap := !withdraw && roll < 0
	roll -= c.Repeat
	repeat := !withdraw && !flap && roll < 0

	// Routes that are not there can only be announced.
	if routes[at] == absent || !withdraw && !flap && !repeat {
		set := g.rng.Int32N(int32(len(g.attrs)))
		for i := at; i < end; i++ {
			routes[i] = set
		}
		dst, _ = g.announceNext(dst, peer, &at, end)
		return dst
	}
	switch end = g.extent(peer, at, end); {
	case repeat:
		dst, _ = g.announceNext(dst, peer, &at, end)
		return dst
	case flap:
		g.todo = append(g.todo, run{peer: peer, at: at, end: end})
	default:
		for i := at; i < end; i++ {
			routes[i] = absent
		}
	}
	return g.withdrawal(dst, peer, at, end)
}

// numbered appends the next announcement of a numbered stream.
func (g *generator) numbered(dst []byte) []byte {
	n := uint64(g.at)
	g.at++
	set := &g.attrs[g.rng.IntN(len(g.attrs))]
	v6 := g.rng.Float64() < g.IPv6
	g.nlri = appendNumber(g.nlri[:0], n, v6)
	return g.announcement(dst, int(n%uint64(len(g.peers))), v6, set, g.nlri)
}

// The ranges of numbered prefixes: /32s in 240.0.0.0/4, which nobody routes, and
// /64s in 3fff::/20, which is for documentation (RFC 9637).
var (
	numbered4 = netip.MustParsePrefix("240.0.0.0/4")
	numbered6 = netip.MustParsePrefix("3fff::/20")
)

func appendNumber(dst []byte, n uint64, v6 bool) []byte {
	if !v6 {
		return binary.BigEndian.AppendUint32(append(dst, 32), 0xf0000000|uint32(n)&0x0fffffff)
	}
	return binary.BigEndian.AppendUint64(append(dst, 64), 0x3fff<<48|n&(1<<44-1))
}

// Number returns the number of a prefix that a numbered stream announced, given
// as in ip_prefix, and false for any other prefix. IPv4 numbers start anew at
// 2^28, IPv6 numbers at 2^44.
func Number(prefix string) (uint64, bool) {
	p, err := netip.ParsePrefix(prefix)
	switch {
	case err != nil || strings.Contains(prefix, "%"):
	case p.Bits() == 32 && numbered4.Contains(p.Addr()):
		a := p.Addr().As4()
		return uint64(binary.BigEndian.Uint32(a[:]) & 0x0fffffff), true
	case p.Bits() == 64 && numbered6.Contains(p.Addr()):
		a := p.Addr().As16()
		return binary.BigEndian.Uint64(a[:]) & (1<<44 - 1), true
	}
	return 0, false
}

// Big returns the stream that this project's benchmarks decode: one Initiation,
// four Peer Ups and n Route Monitoring messages that only announce, each prefix
// new. With v4 each message has one IPv4 route; else 70 % of them have one to
// five IPv4 routes and the others as many IPv6 ones. There are 80,000 sets of
// attributes, or n if that is less.
func Big(n int, seed uint64, v4 bool) []byte {
	g := newGenerator(Synthetic{Seed: seed, Name: "big", Peers: 4, Attributes: max(1, min(n, 80000)), Numbered: true,
		Start: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC), Step: 100 * time.Microsecond})
	dst := make([]byte, 0, 150*n+1024)
	for range 1 + len(g.peers) {
		dst, _ = g.Next(dst)
	}
	var next4, next6 uint64
	for i := range n {
		v6, routes := false, 1
		if !v4 {
			v6, routes = g.rng.Float64() < 0.3, 1+g.rng.IntN(5)
		}
		g.nlri = g.nlri[:0]
		for range routes {
			if v6 {
				// /48s, as in the Internet
				g.nlri = append(g.nlri, 48, 0x2a, 0, byte(next6>>24), byte(next6>>16), byte(next6>>8), byte(next6))
				next6++
			} else {
				g.nlri = append(g.nlri, 24, byte(1+next4>>16), byte(next4>>8), byte(next4))
				next4++
			}
		}
		dst = g.announcement(dst, i%len(g.peers), v6, &g.attrs[g.rng.IntN(len(g.attrs))], g.nlri)
		g.count++
	}
	return dst
}
