package table_test

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"

	"github.com/bmpha/bmpha/pkg/bgp"
	"github.com/bmpha/bmpha/pkg/bmp"
)

// A conversation is what one router says: the messages of each of its sessions,
// of which the last one stays open.
type conversation struct {
	seed     uint64
	sessions [][][]byte
	out      func(i int) bool // which messages were left out, see without
}

func (c *conversation) messages() (n int) {
	for _, s := range c.sessions {
		n += len(s)
	}
	return n
}

// A talker makes a conversation.
type talker struct {
	rng   *rand.Rand
	peers []*talkPeer
	port  uint16
	at    time.Time

	// What is out of the ordinary in this conversation.
	mutates, collides, newIDs, newF, upAgain, pairs48, shortOTC bool
}

type talkPeer struct {
	kind     byte // of the per-peer header
	addr     netip.Addr
	rd       uint64
	as       uint32
	id       netip.Addr
	four     bool
	addPath  [len(bgp.Families)]bool
	oneSided bool // only the peer has the ADD-PATH capability
	flags    []byte
	port     uint16
	up       bool
}

func one(rng *rand.Rand, in int) bool { return rng.IntN(in) == 0 }

// converse makes the conversation of a seed.
func converse(seed uint64) *conversation {
	rng := rand.New(rand.NewPCG(seed, 0x6e66))
	t := &talker{rng: rng, port: 1000, at: time.Unix(1_700_000_000, 0)}
	t.mutates = one(rng, 2)
	t.collides, t.newIDs, t.newF, t.upAgain = one(rng, 8), one(rng, 8), one(rng, 8), one(rng, 6)
	t.pairs48, t.shortOTC = one(rng, 10), one(rng, 10)
	labelledPaths, oneSided := one(rng, 12), one(rng, 12)
	t.makePeers(labelledPaths, oneSided)
	c := &conversation{seed: seed}
	for range 1 + rng.IntN(5)/3 {
		c.sessions = append(c.sessions, t.session())
	}
	return c
}

func (t *talker) makePeers(labelledPaths, oneSided bool) {
	for i := range 2 + t.rng.IntN(4) {
		p := &talkPeer{as: uint32(65001 + i), id: netip.AddrFrom4([4]byte{10, 255, 0, byte(i + 1)}), four: !one(t.rng, 4)}
		if p.four && one(t.rng, 3) {
			p.as += 4_200_000_000 - 65000
		}
		switch t.rng.IntN(6) {
		case 0:
			p.kind = bmp.PeerRD
		case 1:
			p.kind = bmp.PeerLocRIB
		}
		if p.kind == bmp.PeerRD || p.kind == bmp.PeerLocRIB && one(t.rng, 2) {
			p.rd = t.distinguisher()
		}
		p.addr = netip.AddrFrom4([4]byte{10, 0, 0, byte(i + 1)})
		if one(t.rng, 3) {
			p.addr = netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, 15: byte(i + 1)})
		}
		p.flags = []byte{0, bmp.FlagL, bmp.FlagO, bmp.FlagO | bmp.FlagL}
		t.rng.Shuffle(4, func(i, j int) { p.flags[i], p.flags[j] = p.flags[j], p.flags[i] })
		p.flags = p.flags[:1+t.rng.IntN(3)]
		if p.kind == bmp.PeerLocRIB {
			p.addr = netip.Addr{}
			p.flags = []byte{bmp.FlagF * byte(t.rng.IntN(2))}
			if t.newF {
				p.flags = []byte{0, bmp.FlagF}
			}
			// All Loc-RIBs of a router have the same address.
			if !t.collides && slices.ContainsFunc(t.peers, func(q *talkPeer) bool { return q.kind == bmp.PeerLocRIB }) {
				continue
			}
		}
		if one(t.rng, 3) {
			for f := range p.addPath {
				p.addPath[f] = (labelledPaths || bgp.Families[f].SAFI == bgp.SAFIUnicast) && one(t.rng, 2)
			}
			p.oneSided = oneSided
		}
		t.peers = append(t.peers, p)
		if t.collides && p.kind == bmp.PeerRD {
			q := *p
			q.rd++
			q.addPath = [len(bgp.Families)]bool{}
			t.peers = append(t.peers, &q)
		}
	}
}

func (t *talker) distinguisher() uint64 {
	return uint64(t.rng.IntN(3))<<48 | uint64(64496+t.rng.IntN(2))<<16 | uint64(1+t.rng.IntN(2))
}

func (t *talker) header(p *talkPeer) []byte {
	t.at = t.at.Add(time.Millisecond)
	flags := p.flags[t.rng.IntN(len(p.flags))]
	if !p.four && p.kind != bmp.PeerLocRIB {
		flags |= bmp.FlagA
	}
	return bmp.AppendPeerHeader(nil, p.kind, flags, p.rd, p.addr, p.as, p.id, t.at)
}

func (t *talker) peerUp(p *talkPeer) []byte {
	caps := func(as uint32, paths bool) []byte {
		var b []byte
		for i, f := range bgp.Families {
			if p.addPath[i] && paths {
				b = bgp.AppendCapAddPath(b, f.AFI, f.SAFI, bgp.AddPathBoth)
			}
		}
		if p.four {
			b = bgp.AppendCapAS4(b, as)
		}
		return b
	}
	local := netip.MustParseAddr("10.0.0.254")
	return bmp.AppendPeerUp(nil, t.header(p), local, 179, p.port, bgp.AppendOpen(nil, 64500, 90, local, caps(64500, !p.oneSided)),
		bgp.AppendOpen(nil, p.as, 90, p.id, caps(p.as, true)), nil)
}

// session makes the messages of one session.
func (t *talker) session() [][]byte {
	s := [][]byte{bmp.AppendInitiation(nil, "made up", "r")}
	for _, p := range t.peers {
		t.port++
		p.port = t.port
		if p.up = !one(t.rng, 12); p.up {
			s = append(s, t.peerUp(p))
		}
	}
	for range 20 + t.rng.IntN(100) {
		p := t.peers[t.rng.IntN(len(t.peers))]
		switch op := t.rng.IntN(100); {
		case op < 60:
			s = t.say(s, p, t.announcement(p))
		case op < 82:
			s = t.say(s, p, t.withdrawal(p))
		case op < 86:
			s = append(s, bmp.AppendPeerDown(nil, t.header(p), bmp.DownRemote, nil))
			p.up = false
			if t.newIDs {
				p.id = p.id.Next()
			}
		case op < 93:
			if p.up && !t.upAgain {
				break
			}
			t.port++
			p.port = t.port
			p.up = true
			s = append(s, t.peerUp(p))
		case op < 95 && t.newIDs:
			p.id = p.id.Next()
		case op < 97:
			f := bgp.Families[t.rng.IntN(len(bgp.Families))]
			s = append(s, bmp.AppendRouteMonitoring(nil, t.header(p), bgp.AppendEndOfRIB(nil, f.AFI, f.SAFI)))
		case op < 99:
			s = append(s, bmp.AppendStats(nil, t.header(p), bmp.AppendStat{Type: 7, Value: 5}, bmp.AppendStat{Type: 9, AFI: 1, SAFI: 1, Value: 3}))
		default:
			s = append(s, bmp.AppendInitiation(nil, "made up, again", "r"))
		}
	}
	return s
}

// say appends the message with an UPDATE of three parts, as it is or mutated.
func (t *talker) say(s [][]byte, p *talkPeer, u bgp.Update) [][]byte {
	if t.mutates && one(t.rng, 3) {
		u = t.mutate(u)
	}
	pdu := bgp.AppendUpdate(nil, u.Withdrawn, u.Attrs, u.NLRI)
	if t.mutates && one(t.rng, 6) { // bits anywhere behind the header
		for range 1 + t.rng.IntN(2) {
			pdu[bgp.HeaderLen+t.rng.IntN(len(pdu)-bgp.HeaderLen)] ^= 1 << t.rng.IntN(8)
		}
	}
	if t.mutates && one(t.rng, 12) { // cut off
		pdu = pdu[:bgp.HeaderLen+4+t.rng.IntN(len(pdu)-bgp.HeaderLen-3)]
		bgp.AppendLength(pdu, 0)
	}
	msg := bmp.AppendRouteMonitoring(nil, t.header(p), pdu)
	if crashes(msg, p.four && p.kind != bmp.PeerLocRIB) {
		return s
	}
	return append(s, msg)
}

// mutate changes something within the parts of an UPDATE whose lengths stay right.
func (t *talker) mutate(u bgp.Update) bgp.Update {
	flip := func(b []byte) []byte {
		b = slices.Clone(b)
		if len(b) > 0 {
			b[t.rng.IntN(len(b))] ^= 1 << t.rng.IntN(8)
		}
		return b
	}
	part := func(b []byte) []byte { return b[:t.rng.IntN(len(b)+1)] }
	switch t.rng.IntN(24) {
	case 0, 2, 3:
		return bgp.Update{Withdrawn: flip(u.Withdrawn), Attrs: u.Attrs, NLRI: flip(u.NLRI)}
	case 1:
		return bgp.Update{Withdrawn: part(u.Withdrawn), Attrs: u.Attrs, NLRI: part(u.NLRI)}
	}
	// One attribute: its bits, length, type, flags; twice, or not at all.
	var all []bgp.Attr
	walk := u.Attributes()
	for walk.Next() {
		all = append(all, walk.Attr())
	}
	if len(all) == 0 {
		return u
	}
	i := t.rng.IntN(len(all))
	switch t.rng.IntN(10) {
	case 0, 1, 2:
		all[i].Value = flip(all[i].Value)
	case 3:
		all[i].Value = part(all[i].Value)
	case 4:
		all[i].Value = append(slices.Clone(all[i].Value), byte(t.rng.Uint32()))
	case 5:
		all[i].Type = byte(1 + t.rng.IntN(36))
	case 6:
		all[i].Flags ^= 1 << (4 + t.rng.IntN(4))
	case 7:
		all = slices.Delete(all, i, i+1)
	default:
		all = append(all, all[i])
		last := &all[len(all)-1]
		last.Value = flip(last.Value)
	}
	u.Attrs = nil
	for _, x := range all {
		u.Attrs = appendAttr(u.Attrs, x.Flags, x.Type, x.Value)
	}
	return u
}

func appendAttr(dst []byte, flags, kind byte, value []byte) []byte {
	if flags&0x10 != 0 || len(value) > 255 {
		dst = binary.BigEndian.AppendUint16(append(dst, flags|0x10, kind), uint16(len(value)))
	} else {
		dst = append(dst, flags, kind, byte(len(value)))
	}
	return append(dst, value...)
}

// routes makes routes of a family out of few, so that they meet again.
func (t *talker) routes(p *talkPeer, family int, announce bool) []byte {
	var b []byte
	f := bgp.Families[family]
	for range 1 + t.rng.IntN(5) {
		if p.addPath[family] {
			b = bgp.AppendPathID(b, t.rng.Uint32N(3))
		}
		x := byte(t.rng.IntN(6))
		var prefix netip.Prefix
		if f.AFI == bgp.AFIIPv4 {
			prefix = netip.PrefixFrom(netip.AddrFrom4([4]byte{20, x, byte(t.rng.IntN(2)), byte(t.rng.IntN(256))}), []int{0, 8, 15, 16, 19, 24, 32}[t.rng.IntN(7)])
		} else {
			prefix = netip.PrefixFrom(netip.AddrFrom16([16]byte{0x20, 1, 0xd, x, 4: byte(t.rng.IntN(2)), 15: x}), []int{0, 32, 33, 40, 64, 127, 128}[t.rng.IntN(7)])
		}
		label := 16 + t.rng.Uint32N(2)
		if !announce {
			label = 0x80000
		}
		switch f.SAFI {
		case bgp.SAFIUnicast:
			b = bgp.AppendPrefix(b, prefix)
		case bgp.SAFILabelled:
			if announce && one(t.rng, 10) && prefix.Bits() <= 8 { // a stack of two
				one := bgp.AppendLabelled(nil, label, prefix)
				b = append(append(b, one[0]+24, 0, 1, 0), one[1:]...)
				break
			}
			b = bgp.AppendLabelled(b, label, prefix)
		default:
			b = bgp.AppendVPN(b, label, t.distinguisher(), prefix)
		}
	}
	return b
}

func (t *talker) withdrawal(p *talkPeer) bgp.Update {
	family := t.rng.IntN(len(bgp.Families))
	b := t.routes(p, family, false)
	if family == 0 && !one(t.rng, 3) {
		return bgp.Update{Withdrawn: b}
	}
	return bgp.Update{Attrs: bgp.AppendMPUnreach(nil, bgp.Families[family].AFI, bgp.Families[family].SAFI, b)}
}

func (t *talker) announcement(p *talkPeer) bgp.Update {
	family := t.rng.IntN(len(bgp.Families))
	f := bgp.Families[family]
	b := t.routes(p, family, true)
	attrs := t.attributes(p)
	hop := netip.AddrFrom4([4]byte{192, 0, 2, byte(t.rng.IntN(3))})
	if family == 0 && !one(t.rng, 3) {
		u := bgp.Update{Attrs: bgp.AppendNextHop(attrs, hop), NLRI: b}
		if one(t.rng, 10) { // withdraws as well
			u.Withdrawn = t.routes(p, 0, false)
		}
		return u
	}
	if one(t.rng, 4) {
		attrs = bgp.AppendNextHop(attrs, hop)
	}
	if f.AFI == bgp.AFIIPv6 && !one(t.rng, 4) || one(t.rng, 10) {
		hop = netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, 15: byte(t.rng.IntN(3))})
	}
	attrs = bgp.AppendMPReach(attrs, f.AFI, f.SAFI, hop, b)
	if hop.Is6() && one(t.rng, 4) && (f.SAFI != bgp.SAFIVPN || t.pairs48) {
		// With the link-local address: RFC 2545, RFC 4659.
		attrs = t.withLinkLocal(attrs)
	}
	if one(t.rng, 10) { // and withdraws routes of another family
		g := t.rng.IntN(len(bgp.Families))
		attrs = bgp.AppendMPUnreach(attrs, bgp.Families[g].AFI, bgp.Families[g].SAFI, t.routes(p, g, false))
	}
	return bgp.Update{Attrs: attrs}
}

// withLinkLocal doubles the next hop of the MP_REACH_NLRI, the last attribute.
func (t *talker) withLinkLocal(attrs []byte) []byte {
	var out []byte
	u := bgp.Update{Attrs: attrs}
	walk := u.Attributes()
	for walk.Next() {
		a := walk.Attr()
		if v := a.Value; a.Type == bgp.AttrMPReach {
			n := int(v[3])
			v = slices.Concat(v[:3], []byte{byte(2 * n)}, v[4:4+n], v[4:4+n], v[4+n:])
			a.Value = v
		}
		out = appendAttr(out, a.Flags, a.Type, a.Value)
	}
	return out
}

// attributes makes attributes, some of few and some of many, so that routes are
// announced again as they were, with other labels or with anything else.
func (t *talker) attributes(p *talkPeer) []byte {
	rng := t.rng
	b := bgp.AppendOrigin(nil, byte(rng.IntN(3)))
	b = appendAttr(b, 0x40, bgp.AttrASPath, t.path(p.four))
	if one(rng, 2) {
		return b
	}
	if !p.four && one(rng, 2) {
		b = appendAttr(b, 0xc0, bgp.AttrAS4Path, t.path(true))
	}
	if one(rng, 2) {
		b = bgp.AppendMED(b, rng.Uint32N(3))
	}
	if one(rng, 3) {
		b = bgp.AppendLocalPref(b, 100*rng.Uint32N(3))
	}
	if one(rng, 3) {
		var c []uint32
		for range rng.IntN(5) {
			c = append(c, []uint32{0, 0xffffff01, 0xffffff02, 0xffffff03, 65000<<16 | rng.Uint32N(4), rng.Uint32()}[rng.IntN(6)])
		}
		b = bgp.AppendCommunities(b, c...)
	}
	if one(rng, 3) {
		var c []uint64
		for range 1 + rng.IntN(4) {
			c = append(c, uint64([]uint32{0x0002fde8, 0x0003fde9, 0x0102c000, 0x02020001, 0x03000000, rng.Uint32()}[rng.IntN(6)])<<32|uint64(rng.Uint32N(5)))
		}
		b = bgp.AppendExtCommunities(b, c...)
	}
	if one(rng, 4) {
		var c [][3]uint32
		for range rng.IntN(3) {
			c = append(c, [3]uint32{4_200_000_000, rng.Uint32N(3), rng.Uint32N(3)})
		}
		b = bgp.AppendLargeCommunities(b, c...)
	}
	if one(rng, 8) {
		b = appendAttr(b, 0x80, bgp.AttrAIGP, []byte{1, 0, 11, 0, 0, 0, 0, 0, 0, 0, byte(rng.IntN(3))})
	}
	if one(rng, 8) {
		b = appendAttr(b, 0xc0, bgp.AttrPrefixSID, []byte{1, 0, 7, 0, 0, 0, 0, 0, 0, byte(rng.IntN(3))})
	}
	if one(rng, 8) {
		b = appendAttr(b, 0xc0, 99, []byte{byte(rng.IntN(3))}) // nobody knows it
	}
	if t.shortOTC && one(rng, 4) {
		b = appendAttr(b, 0xc0, bgp.AttrOTC, []byte{0, 0, 1}[:rng.IntN(4)])
	} else if one(rng, 8) {
		b = appendAttr(b, 0xc0, bgp.AttrOTC, []byte{0, 0, 0, byte(rng.IntN(3))})
	}
	return b
}

// path makes the value of an AS_PATH.
func (t *talker) path(four bool) []byte {
	var b []byte
	for range t.rng.IntN(3) {
		kind := bgp.ASSequence
		if one(t.rng, 4) {
			kind = []byte{bgp.ASSet, bgp.ASConfedSequence, bgp.ASConfedSet}[t.rng.IntN(3)]
		}
		n := 1 + t.rng.IntN(3)
		b = append(b, kind, byte(n))
		for range n {
			as := 64496 + t.rng.Uint32N(4)
			if four {
				b = binary.BigEndian.AppendUint32(b, as+t.rng.Uint32N(2)*1_000_000)
			} else {
				b = binary.BigEndian.AppendUint16(b, uint16(as))
			}
		}
	}
	return b
}
