package bgp_test

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	gobgp "github.com/osrg/gobgp/v4/pkg/packet/bgp"
	gobmp "github.com/osrg/gobgp/v4/pkg/packet/bmp"

	"github.com/bmpha/bmpha/pkg/bgp"
	"github.com/bmpha/bmpha/pkg/bmp"
)

// captures returns the streams of captured router traffic, which lives outside
// of the repository, by name; nil if it is not there.
func captures(t testing.TB) map[string][]byte {
	dir := os.Getenv("BMPHA_FIXTURES")
	if dir == "" {
		dir = filepath.Join("..", "..", "..", "shared", "fixtures")
	}
	names, err := filepath.Glob(filepath.Join(dir, "*.bmp"))
	if err != nil {
		t.Fatal(err)
	}
	var streams map[string][]byte
	for _, name := range names {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if streams == nil {
			streams = make(map[string][]byte)
		}
		streams[filepath.Base(name)] = b
	}
	return streams
}

// handmade is a session with a peer and two updates, for where there are no
// captures.
func handmade() []byte {
	msg := func(typ byte, body string) string {
		n := len(body) + 6
		return string([]byte{3, byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n), typ}) + body
	}
	pdu := func(typ byte, body string) string {
		n := len(body) + 19
		return "\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff" + string([]byte{byte(n >> 8), byte(n), typ}) + body
	}
	peer := string(make([]byte, 22)) + "\xc0\x00\x02\x07\x00\x00\xfb\xf4\xc0\x00\x02\x07\x65\x53\xf1\x00\x00\x00\x00\x01"
	open := pdu(1, "\x04\xfb\xf4\x00\xb4\xc0\x00\x02\x07\x08\x02\x06\x41\x04\x00\x00\xfb\xf4")
	attrs := "\x40\x01\x01\x00" + "\x40\x02\x0e\x02\x03\x00\x00\xfb\xf4\x00\x00\xfb\xfe\x00\x00\xfc\x00" +
		"\x40\x03\x04\xc0\x00\x02\xfe" + "\x80\x04\x04\x00\x00\x00\x0a" + "\xc0\x08\x08\xfb\xf4\x00\x01\xfb\xf4\x00\x02"
	nlri := "\x18\xc6\x33\x64" + "\x18\xcb\x00\x71"
	reach := "\x80\x0e\x2a\x00\x02\x01\x10\x20\x01\x0d\xb8\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x09\x00" +
		"\x30\x20\x01\x0d\xb8\x00\x01" + "\x30\x20\x01\x0d\xb8\x00\x02" + "\x30\x20\x01\x0d\xb8\x00\x03"
	return []byte(msg(4, "\x00\x02\x00\x02r1") +
		msg(3, peer+string(make([]byte, 20))+open+open) +
		msg(0, peer+pdu(2, "\x00\x00\x00"+string([]byte{byte(len(attrs))})+attrs+nlri)) +
		msg(0, peer+pdu(2, "\x00\x00\x00"+string([]byte{byte(len(attrs) + len(reach))})+attrs+reach)))
}

func eachMessage(t testing.TB, stream []byte, f func(msg []byte)) {
	t.Helper()
	for off := 0; off < len(stream); {
		n, err := bmp.Next(stream[off:], 1<<20)
		if err != nil || n == 0 {
			t.Fatalf("no message at offset %d: n=%d, err=%v", off, n, err)
		}
		f(stream[off : off+n])
		off += n
	}
}

// A session is what its Peer Ups say about how UPDATEs are encoded.
type session map[peerKey]*capabilities

type peerKey struct {
	addr netip.Addr
	rd   [8]byte
}

type capabilities struct {
	fourOctet bool
	addPath   map[bgp.Family]bool
}

var families = []bgp.Family{
	bgp.IPv4Unicast, bgp.IPv4Labelled, bgp.IPv4VPN, bgp.IPv6Unicast, bgp.IPv6Labelled, bgp.IPv6VPN,
}

func (s session) learn(t testing.TB, msg []byte) {
	t.Helper()
	u, err := bmp.ParsePeerUp(msg)
	if err != nil {
		t.Fatal(err)
	}
	sent, err := bgp.ParseOpen(u.Sent)
	if err != nil {
		t.Fatal(err)
	}
	received, err := bgp.ParseOpen(u.Received)
	if err != nil {
		t.Fatal(err)
	}
	_, four := sent.FourOctetAS()
	_, four2 := received.FourOctetAS()
	c := &capabilities{fourOctet: four && four2, addPath: map[bgp.Family]bool{}}
	for _, f := range families {
		c.addPath[f] = sent.AddPath(f) != 0 && received.AddPath(f)&bgp.AddPathSend != 0
	}
	s[peerKey{u.Peer.Address(), u.Peer.Distinguisher}] = c
}

func (s session) peer(p *bmp.PerPeer) *capabilities {
	return s[peerKey{p.Address(), p.Distinguisher}]
}

// A routeSet is what an UPDATE says, for comparison.
type routeSet struct {
	Withdrawn, Announced []string
	NextHops             []string
	Path                 []string
	Communities          []uint32
	Ext                  [][]byte
	Large                [][3]uint32
}

func text(id uint32, rd []byte, label any, p netip.Prefix) string {
	return fmt.Sprintf("%d %x %v %v", id, rd, label, p.Masked())
}

// ours decodes an UPDATE by this package.
func ours(pdu []byte, c *capabilities) (r routeSet, err error) {
	u, err := bgp.ParseUpdate(pdu)
	if err != nil {
		return r, err
	}
	walk := func(b []byte, off int, f bgp.Family, labels bgp.Labels) (out []string) {
		w := bgp.Routes(b, off, f, c.addPath[f], labels)
		for w.Next() {
			p := w.Prefix()
			var rd []byte
			var label any // of an announcement; that of a withdrawal means nothing
			if f.SAFI == bgp.SAFIVPN {
				rd = p.RD[:]
			}
			if f.SAFI != bgp.SAFIUnicast && labels == bgp.LabelStack {
				label = p.Label()
			}
			out = append(out, text(p.PathID, rd, label, netip.PrefixFrom(p.Addr(f), p.Bits)))
		}
		err = errors.Join(err, w.Err())
		return out
	}
	r.Withdrawn = walk(u.Withdrawn, bgp.WithdrawnOffset, bgp.IPv4Unicast, bgp.SingleLabel)
	r.Announced = walk(u.NLRI, u.NLRIOffset, bgp.IPv4Unicast, bgp.LabelStack)
	a := u.Attributes()
	for a.Next() {
		t := a.Attr()
		switch t.Type {
		case bgp.AttrNextHop:
			nh, _, e := bgp.NextHop(t.Value)
			err = errors.Join(err, e)
			r.NextHops = append(r.NextHops, nh.String())
		case bgp.AttrMPReach:
			m, e := bgp.ParseMPReach(t)
			err = errors.Join(err, e)
			nh, _, e := bgp.NextHop(m.NextHop)
			err = errors.Join(err, e)
			r.NextHops = append(r.NextHops, nh.String())
			if m.Family.Known() {
				r.Announced = append(r.Announced, walk(m.NLRI, m.NLRIOffset, m.Family, bgp.LabelStack)...)
			}
		case bgp.AttrMPUnreach:
			m, e := bgp.ParseMPUnreach(t)
			err = errors.Join(err, e)
			if m.Family.Known() {
				r.Withdrawn = append(r.Withdrawn, walk(m.Withdrawn, m.WithdrawnOffset, m.Family, bgp.SingleLabel)...)
			}
		case bgp.AttrASPath:
			s := bgp.Path(t, c.fourOctet)
			for s.Next() {
				seg := s.Segment()
				var asns []uint32
				for i := range seg.Len() {
					asns = append(asns, seg.AS(i))
				}
				r.Path = append(r.Path, fmt.Sprint(seg.Type, asns))
			}
			err = errors.Join(err, s.Err())
		case bgp.AttrCommunities:
			v := bgp.Communities(t.Value)
			for i := range v.Len() {
				r.Communities = append(r.Communities, v.At(i))
			}
		case bgp.AttrExtCommunities:
			v := bgp.ExtCommunities(t.Value)
			for i := range v.Len() {
				r.Ext = append(r.Ext, t.Value[8*i:8*i+8])
			}
		case bgp.AttrLargeCommunities:
			v := bgp.LargeCommunities(t.Value)
			for i := range v.Len() {
				x, y, z := v.At(i)
				r.Large = append(r.Large, [3]uint32{x, y, z})
			}
		}
	}
	return r, errors.Join(err, a.Err())
}

func gobgpOptions(c *capabilities) *gobgp.MarshallingOption {
	o := &gobgp.MarshallingOption{AddPath: map[gobgp.Family]gobgp.BGPAddPathMode{}, Use2ByteAS: !c.fourOctet}
	for f, on := range c.addPath {
		if on {
			o.AddPath[gobgp.NewFamily(f.AFI, f.SAFI)] = gobgp.BGP_ADD_PATH_BOTH
		}
	}
	return o
}

// theirs decodes an UPDATE by GoBGP.
func theirs(pdu []byte, c *capabilities) (r routeSet, err error) {
	m, err := gobgp.ParseBGPMessage(pdu, gobgpOptions(c))
	if err != nil {
		return r, err
	}
	u, ok := m.Body.(*gobgp.BGPUpdate)
	if !ok {
		return r, fmt.Errorf("%T", m.Body)
	}
	list := func(routes []gobgp.PathNLRI, withdraw bool) (out []string) {
		for _, p := range routes {
			label := func(l gobgp.MPLSLabelStack) any {
				if withdraw || len(l.Labels) == 0 {
					return nil
				}
				return l.Labels[len(l.Labels)-1]
			}
			switch n := p.NLRI.(type) {
			case *gobgp.IPAddrPrefix:
				out = append(out, text(p.ID, nil, nil, n.Prefix))
			case *gobgp.LabeledIPAddrPrefix:
				out = append(out, text(p.ID, nil, label(n.Labels), n.Prefix))
			case *gobgp.LabeledVPNIPAddrPrefix:
				rd, e := n.RD.Serialize()
				err = errors.Join(err, e)
				out = append(out, text(p.ID, rd, label(n.Labels), n.Prefix))
			}
		}
		return out
	}
	r.Withdrawn = list(u.WithdrawnRoutes, true)
	r.Announced = list(u.NLRI, false)
	for _, a := range u.PathAttributes {
		switch a := a.(type) {
		case *gobgp.PathAttributeNextHop:
			r.NextHops = append(r.NextHops, a.Value.String())
		case *gobgp.PathAttributeMpReachNLRI:
			r.NextHops = append(r.NextHops, a.Nexthop.String())
			r.Announced = append(r.Announced, list(a.Value, false)...)
		case *gobgp.PathAttributeMpUnreachNLRI:
			r.Withdrawn = append(r.Withdrawn, list(a.Value, true)...)
		case *gobgp.PathAttributeAsPath:
			for _, seg := range a.Value {
				r.Path = append(r.Path, fmt.Sprint(seg.GetType(), seg.GetAS()))
			}
		case *gobgp.PathAttributeCommunities:
			r.Communities = append(r.Communities, a.Value...)
		case *gobgp.PathAttributeExtendedCommunities:
			for _, e := range a.Value {
				b, e := e.Serialize()
				err = errors.Join(err, e)
				r.Ext = append(r.Ext, b)
			}
		case *gobgp.PathAttributeLargeCommunities:
			for _, l := range a.Values {
				r.Large = append(r.Large, [3]uint32{l.ASN, l.LocalData1, l.LocalData2})
			}
		}
	}
	return r, err
}

// TestAgreesWithGoBGP decodes every UPDATE of the captures by GoBGP's library
// and by this one.
func TestAgreesWithGoBGP(t *testing.T) {
	streams := captures(t)
	if streams == nil {
		t.Log("no captured traffic (BMPHA_FIXTURES names its folder); a session made by hand instead")
		streams = map[string][]byte{"handmade": handmade()}
	}
	compared, routes, theyFail, weFail := 0, 0, 0, 0
	for name, stream := range streams {
		s := session{}
		eachMessage(t, stream, func(msg []byte) {
			switch bmp.Type(msg) {
			case bmp.TypePeerUp:
				s.learn(t, msg)
			case bmp.TypeRouteMonitoring:
				rm, err := bmp.ParseRouteMonitoring(msg)
				if err != nil {
					t.Fatalf("%s: %v", name, err)
				}
				c := s.peer(&rm.Peer)
				if c == nil {
					return // Route Monitoring before Peer Up
				}
				got, err := ours(rm.Update, c)
				want, werr := theirs(rm.Update, c)
				if err != nil {
					weFail++
				}
				if werr != nil {
					theyFail++
					return
				}
				if err != nil {
					t.Errorf("%s: GoBGP decodes what we do not: %v\n%x", name, err, rm.Update)
					return
				}
				compared++
				routes += len(got.Announced) + len(got.Withdrawn)
				if d := cmp.Diff(want, got); d != "" && !t.Failed() {
					t.Errorf("%s: GoBGP - and we + differ: %s\n%x", name, d, rm.Update)
				}
			}
		})
	}
	if compared == 0 || routes == 0 {
		t.Error("nothing was compared")
	}
	t.Logf("%d updates with %d routes agree; GoBGP fails on %d, we on %d", compared, routes, theyFail, weFail)
}

// A benchMessage is a Route Monitoring message and how to read it.
type benchMessage struct {
	msg   []byte
	c     *benchCaps
	gobgp []*gobgp.MarshallingOption
}

type benchCaps struct {
	fourOctet bool
	addPath   [256]bool // by familyKey
}

func familyKey(f bgp.Family) byte { return byte(f.AFI<<6) ^ f.SAFI }

// benchMessages returns the Route Monitoring messages of all captures.
func benchMessages(b *testing.B) (msgs []benchMessage) {
	streams := captures(b)
	if streams == nil {
		streams = map[string][]byte{"handmade": handmade()}
	}
	for _, stream := range streams {
		s := session{}
		eachMessage(b, stream, func(msg []byte) {
			switch bmp.Type(msg) {
			case bmp.TypePeerUp:
				s.learn(b, msg)
			case bmp.TypeRouteMonitoring:
				p, err := bmp.ParsePerPeer(msg)
				if err != nil {
					b.Fatal(err)
				}
				c := s.peer(&p)
				if c == nil {
					return
				}
				bc := &benchCaps{fourOctet: c.fourOctet}
				for f, on := range c.addPath {
					bc.addPath[familyKey(f)] = on
				}
				msgs = append(msgs, benchMessage{msg: msg, c: bc, gobgp: []*gobgp.MarshallingOption{gobgpOptions(c)}})
			}
		})
	}
	return msgs
}

// sink keeps what is decoded from being optimised away.
var sink uint64

// decode reads every attribute and every route of m.
func decode(m *benchMessage) error {
	rm, err := bmp.ParseRouteMonitoring(m.msg)
	if err != nil {
		return err
	}
	u, err := bgp.ParseUpdate(rm.Update)
	if err != nil {
		return err
	}
	var n uint64
	walk := func(b []byte, off int, f bgp.Family, labels bgp.Labels) error {
		w := bgp.Routes(b, off, f, m.c.addPath[familyKey(f)], labels)
		if !w.Whole() {
			w = reread(w, b, off, f, m.c.addPath[familyKey(f)])
		}
		for w.Next() {
			p := w.Prefix()
			a := p.Addr(f).As16()
			n += uint64(p.Bits) + uint64(p.Label()) + uint64(p.PathID) + uint64(a[15]) + uint64(p.RD[7])
		}
		return w.Err()
	}
	if err := walk(u.Withdrawn, bgp.WithdrawnOffset, bgp.IPv4Unicast, bgp.SingleLabel); err != nil {
		return err
	}
	if err := walk(u.NLRI, u.NLRIOffset, bgp.IPv4Unicast, bgp.LabelStack); err != nil {
		return err
	}
	attrs := u.Attributes()
	for attrs.Next() {
		t := attrs.Attr()
		switch t.Type {
		case bgp.AttrOrigin:
			v, e := t.Origin()
			err, n = e, n+uint64(v)
		case bgp.AttrASPath, bgp.AttrAS4Path:
			s := bgp.Path(t, t.Type == bgp.AttrAS4Path || bgp.FourOctetPath(t, m.c.fourOctet))
			for s.Next() {
				seg := s.Segment()
				for i := range seg.Len() {
					n += uint64(seg.AS(i))
				}
			}
			err = s.Err()
		case bgp.AttrNextHop:
			nh, _, e := bgp.NextHop(t.Value)
			b := nh.As4()
			err, n = e, n+uint64(b[3])
		case bgp.AttrMED, bgp.AttrLocalPref, bgp.AttrOTC:
			v, e := t.Uint32()
			err, n = e, n+uint64(v)
		case bgp.AttrCommunities:
			v := bgp.Communities(t.Value)
			for i := range v.Len() {
				n += uint64(v.At(i))
			}
		case bgp.AttrExtCommunities:
			v := bgp.ExtCommunities(t.Value)
			for i := range v.Len() {
				n += v.At(i)
			}
		case bgp.AttrLargeCommunities:
			v := bgp.LargeCommunities(t.Value)
			for i := range v.Len() {
				x, y, z := v.At(i)
				n += uint64(x) + uint64(y) + uint64(z)
			}
		case bgp.AttrMPReach:
			r, e := bgp.ParseMPReach(t)
			if e != nil {
				return e
			}
			nh, _, e := bgp.NextHop(r.NextHop)
			if e != nil {
				return e
			}
			b := nh.As16()
			n += uint64(b[15])
			err = walk(r.NLRI, r.NLRIOffset, r.Family, bgp.LabelStack)
		case bgp.AttrMPUnreach:
			r, e := bgp.ParseMPUnreach(t)
			if e != nil {
				return e
			}
			if len(r.Withdrawn) != 0 {
				err = walk(r.Withdrawn, r.WithdrawnOffset, r.Family, bgp.SingleLabel)
			}
		case bgp.AttrAIGP:
			v, e := bgp.AIGP(t)
			err, n = e, n+v
		case bgp.AttrPrefixSID:
			v, _, e := bgp.LabelIndex(t)
			err, n = e, n+uint64(v)
		}
		if err != nil {
			return err
		}
	}
	sink += n
	return attrs.Err()
}

// reread returns a walk over routes that are not encoded as the router said:
// with path identifiers that were not negotiated, or labels without a
// bottom-of-stack bit. Without such a walk it returns w.
func reread(w bgp.Prefixes, b []byte, off int, f bgp.Family, addPath bool) bgp.Prefixes {
	for _, labels := range [...]bgp.Labels{bgp.LabelStack, bgp.SingleLabel} {
		for _, add := range [...]bool{addPath, !addPath} {
			if other := bgp.Routes(b, off, f, add, labels); other.Whole() {
				return other
			}
		}
	}
	return w
}

// BenchmarkDecode reads every attribute and every route of the captured Route
// Monitoring messages, over and over.
func BenchmarkDecode(b *testing.B) {
	msgs := benchMessages(b)
	b.ReportAllocs()
	bad := 0
	n := 0
	for b.Loop() {
		if err := decode(&msgs[n%len(msgs)]); err != nil {
			bad++
		}
		n++
	}
	b.ReportMetric(100*float64(bad)/float64(n), "%errors")
}

// BenchmarkDecodeGoBGP has GoBGP's library do the same.
func BenchmarkDecodeGoBGP(b *testing.B) {
	msgs := benchMessages(b)
	b.ReportAllocs()
	bad := 0
	n := 0
	for b.Loop() {
		m := &msgs[n%len(msgs)]
		if _, err := gobmp.ParseBMPMessageWithOptions(m.msg, func(gobmp.BMPPeerHeader) []*gobgp.MarshallingOption { return m.gobgp }); err != nil {
			bad++
		}
		n++
	}
	b.ReportMetric(100*float64(bad)/float64(n), "%errors")
}
