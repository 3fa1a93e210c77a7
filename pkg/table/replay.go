package table

import (
	"encoding/binary"
	"math"
	"slices"

	"github.com/bmpha/bmpha/pkg/bgp"
	"github.com/bmpha/bmpha/pkg/bmp"
)

// A Replay makes a BMP stream of a table whose session goes on: the Initiation,
// the Peer Ups, the routes, an End-of-RIB for each family whose dump is over, and
// in between what of the messages that are applied meanwhile has to be said. Who
// reads it from its first byte has the table at its end, and at no time a route
// older than one it had before.
//
// What is behind the Replay has been said, so that what becomes of it is said at
// once; what is ahead is left out, because the Replay will come by. Stale routes
// are left out: had the reader been there all the time, their new generation would
// be all that it has. So are statistics, and what no table keeps, which is other
// families and Route Mirroring, unless it comes during the Replay.
//
// Steps, and each Apply with its calls of Change and of Message, must exclude each
// other, and what they return must reach the reader in that order. Tidy and Settle
// may be called at any time. The Replay is void once Open or Clear is called.
type Replay struct {
	t      *Table
	begun  bool
	done   bool
	owed   []PeerID // that were up in the beginning and have not been told of
	seq    uint64   // of the RIB to go on with; all peers have been told of
	family int
	key    key
	flags  byte // of a route of the RIB
	sec    uint32
	usec   uint32

	passed []byte // routes of the message being applied that are behind
	ahead  int    // how many others it has
}

// stepBytes bounds what a step makes, but for the last message of it.
const stepBytes = 64 << 10

// maxUpdate is the length of a BGP message that every reader takes (RFC 4271).
const maxUpdate = 4096

// Replay returns a Replay from the beginning.
func (t *Table) Replay() *Replay { return &Replay{t: t} }

// Done reports whether there is nothing left to replay, so that each message is
// passed on as it is.
func (r *Replay) Done() bool { return r.done }

// Step appends whole messages for up to n peers or routes further on, or about 64
// KiB, and reports whether there is more. The table cannot change meanwhile.
func (r *Replay) Step(dst []byte, n int) (_ []byte, more bool) {
	if r.done {
		return dst, false
	}
	t := r.t
	most := len(dst) + stepBytes
	t.mu.RLock()
	defer t.mu.RUnlock()
	if !r.begun {
		r.begun = true
		dst = append(dst, t.initiation...)
		for id, p := range t.peers {
			if p.up {
				r.owed = append(r.owed, id)
			}
		}
		slices.SortFunc(r.owed, comparePeers)
	}
	for ; len(r.owed) > 0; n-- {
		if n <= 0 || len(dst) >= most {
			return dst, true
		}
		if p := t.peers[r.owed[0]]; p != nil && p.up {
			dst = p.appendUps(dst)
		}
		r.owed = r.owed[1:]
	}
	at, _ := slices.BinarySearchFunc(t.order, r.seq, compareSeq)
	for ; at < len(t.order); at++ {
		rib := t.order[at]
		if rib.seq != r.seq {
			r.seq, r.family, r.key = rib.seq, 0, key{}
			r.flags, r.sec, r.usec = rib.flags(), 0, 0
		}
		for ; r.family < len(bgp.Families); r.family, r.key = r.family+1, (key{}) {
			f := rib.families[r.family]
			if f == nil || !rib.peer.up {
				continue
			}
			if n <= 0 || len(dst) >= most {
				return dst, true
			}
			var left bool
			if dst, n, left = r.routes(dst, f, n, most); left {
				return dst, true
			}
			if f.state == EndOfRIB || f.state == Live {
				dst = r.appendMarker(dst, rib, bgp.Families[r.family])
				n--
			}
		}
	}
	r.seq, r.done = math.MaxUint64, true
	r.owed, r.passed = nil, nil
	return dst, false
}

// appendUps appends the Peer Ups of p so that they are taken as they were: the
// first, then those that follow it. If there was another session since, which one
// for the pre-policy Adj-RIB-In begins for all RIBs, that one leads the others.
func (p *peer) appendUps(dst []byte) []byte {
	dst = append(dst, p.first...)
	leads := func(m []byte) bool {
		u, _ := bmp.ParsePeerUp(m) // was good before
		return u.Peer.RIB() == bmp.AdjRIBInPre
	}
	again := !slices.ContainsFunc(p.ups, func(m []byte) bool { return &m[0] == &p.first[0] })
	if again {
		for _, m := range p.ups {
			if leads(m) {
				dst = append(dst, m...)
			}
		}
	}
	for _, m := range p.ups {
		if &m[0] != &p.first[0] && !(again && leads(m)) {
			dst = append(dst, m...)
		}
	}
	return dst
}

// routes appends up to n routes of f. Neighbours that have everything in common
// share an UPDATE.
func (r *Replay) routes(dst []byte, f *familyTable, n, most int) (_ []byte, rest int, left bool) {
	var (
		all   Walk
		rt    Route
		buf   [4]byte
		last  value // of the message at start
		start = -1
		reach int // where its MP_REACH_NLRI is, once known
	)
	it := iterator{f: f}
	for ok := it.seek(&all, &r.key); ok; ok = it.next(&all) {
		if n <= 0 || len(dst) >= most {
			r.key = it.key
			return dst, n, true
		}
		n--
		v := &it.l.vals[it.i]
		if v.state&stateWithdrawn != 0 || v.gen != f.rib.gen {
			continue
		}
		rt = Route{RIB: f.rib}
		f.describe(&rt, &it.key, v.host)
		r.t.value(&rt.Value, f, v, &buf)
		if start >= 0 && v.attrs == last.attrs && v.sec == last.sec && v.usec == last.usec && v.flags == last.flags && v.state == last.state {
			var fits bool
			if dst, fits = rt.extend(dst, start, &reach); fits {
				continue
			}
		}
		start, reach, last = len(dst), 0, *v
		r.flags, r.sec, r.usec = v.flags, v.sec, v.usec
		dst = rt.AppendMessage(dst)
	}
	return dst, n, false
}

// extend adds a route to the announcement that dst ends with and that began at
// start, unless that has no room. reach keeps where its MP_REACH_NLRI is, 0 at
// first.
func (r *Route) extend(dst []byte, start int, reach *int) (_ []byte, fits bool) {
	const longest = 4 + 1 + 24 + 3 + 8 + 16 // with a few labels
	pdu := start + bmp.HeaderLen + bmp.PerPeerLen
	if len(dst)-pdu+longest+len(r.Labels) > maxUpdate {
		return dst, false
	}
	if r.Classic {
		dst = r.appendNLRI(dst)
		return bmp.AppendLength(bgp.AppendLength(dst, pdu), start), true
	}
	attrs := pdu + bgp.HeaderLen + 4 // no routes are withdrawn
	if *reach == 0 {
		for at := attrs; at < len(dst); {
			if dst[at+1] == bgp.AttrMPReach {
				*reach = at
				break
			}
			if dst[at]&0x10 != 0 {
				at += 4 + int(binary.BigEndian.Uint16(dst[at+2:]))
			} else {
				at += 3 + int(dst[at+2])
			}
		}
		if *reach == 0 {
			return dst, false
		}
	}
	size := dst[*reach+2:] // of two bytes, as AppendMessage writes it
	end := *reach + 4 + int(binary.BigEndian.Uint16(size))
	var buf [longest + 64]byte
	nlri := r.appendNLRI(buf[:0])
	dst = slices.Insert(dst, end, nlri...)
	binary.BigEndian.PutUint16(dst[*reach+2:], uint16(end-*reach-4+len(nlri)))
	binary.BigEndian.PutUint16(dst[attrs-2:], uint16(len(dst)-attrs))
	return bmp.AppendLength(bgp.AppendLength(dst, pdu), start), true
}

// flags returns the flags that the messages of a RIB have by what it is.
func (r *RIB) flags() (flags byte) {
	switch r.Kind {
	case bmp.LocRIB:
		return 0
	case bmp.AdjRIBInPost:
		flags = bmp.FlagL
	case bmp.AdjRIBOutPre:
		flags = bmp.FlagO
	case bmp.AdjRIBOutPost:
		flags = bmp.FlagO | bmp.FlagL
	}
	if r.Peer.IPv6 {
		flags |= bmp.FlagV
	}
	return flags
}

// appendMarker appends an End-of-RIB, as of the last route of the RIB.
func (r *Replay) appendMarker(dst []byte, rib *RIB, f bgp.Family) []byte {
	start := len(dst)
	dst = bmp.AppendHeader(dst, bmp.TypeRouteMonitoring)
	dst = append(dst, rib.Type, r.flags)
	dst = append(dst, rib.Peer.Distinguisher[:]...)
	dst = append(dst, rib.Peer.Addr[:]...)
	dst = binary.BigEndian.AppendUint32(dst, rib.AS)
	dst = append(dst, rib.BGPID[:]...)
	dst = binary.BigEndian.AppendUint32(dst, r.sec)
	dst = binary.BigEndian.AppendUint32(dst, r.usec)
	return bmp.AppendLength(bgp.AppendEndOfRIB(dst, f.AFI, f.SAFI), start)
}

func comparePeers(a, b PeerID) int {
	if c := slices.Compare(a.Distinguisher[:], b.Distinguisher[:]); c != 0 {
		return c
	}
	if c := slices.Compare(a.Addr[:], b.Addr[:]); c != 0 {
		return c
	}
	switch {
	case a.IPv6 == b.IPv6:
		return 0
	case b.IPv6:
		return -1
	}
	return 1
}

// told reports whether messages about a peer are to be passed on.
func (r *Replay) told(id PeerID) bool {
	if !r.begun {
		return false
	}
	_, ahead := slices.BinarySearchFunc(r.owed, id, comparePeers)
	return !ahead
}

// behind reports whether the Replay has been where c is.
func (r *Replay) behind(c *Change) bool {
	i := c.Family.Index()
	switch {
	case i < 0: // a marker of a family that no table has
		return r.told(c.RIB.Peer)
	case c.RIB.seq != r.seq:
		return c.RIB.seq < r.seq
	case i != r.family:
		return i < r.family
	case c.Kind == Marker:
		return false // the Replay says it when it leaves the family
	}
	var k key
	word := 0
	if c.Family.SAFI == bgp.SAFIVPN {
		word, k[0] = 1, binary.BigEndian.Uint64(c.RD[:])
	}
	setPrefix(&k, word, c.Prefix.Masked(), c.PathID)
	return slices.Compare(k[:], r.key[:]) < 0
}

// Change takes what Apply says of a message. It may be called under the table's
// lock, that is, by the function given to Apply, and keeps nothing of c.
func (r *Replay) Change(c *Change) {
	switch {
	case r.done:
	case !r.begun || !r.behind(c):
		r.ahead++
	case c.Kind != Marker:
		r.passed = c.Route.AppendMessage(r.passed)
	}
}

// Message appends what is to be passed on of msg, which has been applied with the
// given outcome: all of it, nothing, or the routes of it that are behind, one by
// one.
func (r *Replay) Message(dst, msg []byte, err error) []byte {
	if r.done {
		return append(dst, msg...)
	}
	passed, ahead := r.passed, r.ahead
	r.passed, r.ahead = passed[:0], 0
	if !r.begun || len(msg) < bmp.HeaderLen {
		return dst
	}
	switch bmp.Type(msg) {
	case bmp.TypeTermination:
		r.done = true // nothing may follow it
	case bmp.TypeRouteMonitoring, bmp.TypeStatisticsReport, bmp.TypePeerDown, bmp.TypePeerUp, bmp.TypeRouteMirroring:
		if ahead > 0 || err != nil {
			return append(dst, passed...)
		}
		if per, err := bmp.ParsePerPeer(msg); err != nil || !r.told(IDOf(&per)) {
			return dst
		}
	}
	return append(dst, msg...)
}
