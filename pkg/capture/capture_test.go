package capture

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/osrg/gobgp/v4/pkg/packet/bgp"
	"github.com/osrg/gobgp/v4/pkg/packet/bmp"
)

// allowed are the blocks that addresses in the captures come from: documentation
// (RFC 5737, RFC 3849) and private (RFC 1918).
var allowed = []netip.Prefix{
	netip.MustParsePrefix("192.0.2.0/24"),
	netip.MustParsePrefix("198.51.100.0/24"),
	netip.MustParsePrefix("203.0.113.0/24"),
	netip.MustParsePrefix("10.0.0.0/8"),
	netip.MustParsePrefix("2001:db8::/32"),
}

func isAllowed(a netip.Addr) bool {
	if !a.IsValid() || a.IsUnspecified() { // the peer of a Loc-RIB, the ID of one not yet up
		return true
	}
	for _, p := range allowed {
		if p.Contains(a.Unmap()) {
			return true
		}
	}
	return false
}

// documentationAS says whether an AS number is for documentation (RFC 5398).
func documentationAS(n uint32) bool {
	return n >= 64496 && n <= 64511 || n >= 65536 && n <= 65551
}

// A content counts what a capture has.
type content struct {
	Initiation, PeerUp, PeerDown, Statistics, RouteMonitoring int

	PrePolicy, PostPolicy, LocRIB   int // of the Route Monitoring messages
	Announced4, Announced6          int // prefixes
	Withdrawn4, Withdrawn6          int
	EndOfRIB, WithMED, WithComm, V6 int // messages; V6: from peers with an IPv6 address
}

func count(t *testing.T, stream []byte) content {
	t.Helper()
	var c content
	for n := 0; len(stream) > 0; n++ {
		if len(stream) < 6 || uint32(len(stream)) < binary.BigEndian.Uint32(stream[1:]) {
			t.Fatalf("message %d is cut off", n)
		}
		raw := stream[:binary.BigEndian.Uint32(stream[1:])]
		stream = stream[len(raw):]
		m, err := bmp.ParseBMPMessage(raw)
		if err != nil {
			t.Fatalf("message %d: %v", n, err)
		}
		if n == 0 != (m.Header.Type == initiation) {
			t.Errorf("message %d has type %d", n, m.Header.Type)
		}
		if m.Header.Type == initiation {
			c.Initiation++
			continue
		}
		if !isAllowed(m.PeerHeader.PeerAddress) || !isAllowed(m.PeerHeader.PeerBGPID) {
			t.Errorf("message %d: peer %v, BGP ID %v", n, m.PeerHeader.PeerAddress, m.PeerHeader.PeerBGPID)
		}
		if m.PeerHeader.PeerAddress.Is6() {
			c.V6++
		}
		switch body := m.Body.(type) {
		case *bmp.BMPPeerUpNotification:
			c.PeerUp++
			if !isAllowed(body.LocalAddress) {
				t.Errorf("message %d: local address %v", n, body.LocalAddress)
			}
		case *bmp.BMPPeerDownNotification:
			c.PeerDown++
		case *bmp.BMPStatisticsReport:
			c.Statistics++
		case *bmp.BMPRouteMonitoring:
			c.RouteMonitoring++
			switch {
			case m.PeerHeader.PeerType == bmp.BMP_PEER_TYPE_LOCAL_RIB:
				c.LocRIB++
			case m.PeerHeader.IsPostPolicy():
				c.PostPolicy++
			default:
				c.PrePolicy++
			}
			c.update(t, n, body.BGPUpdate.Body.(*bgp.BGPUpdate))
		default:
			t.Errorf("message %d has type %d", n, m.Header.Type)
		}
	}
	return c
}

func (c *content) update(t *testing.T, n int, u *bgp.BGPUpdate) {
	c.Announced4 += len(u.NLRI)
	c.Withdrawn4 += len(u.WithdrawnRoutes)
	if ok, _ := u.IsEndOfRib(); ok {
		c.EndOfRIB++
	}
	routes := append(append([]bgp.PathNLRI(nil), u.NLRI...), u.WithdrawnRoutes...)
	for _, a := range u.PathAttributes {
		switch a := a.(type) {
		case *bgp.PathAttributeMultiExitDisc:
			c.WithMED++
		case *bgp.PathAttributeCommunities:
			c.WithComm++
		case *bgp.PathAttributeNextHop:
			if !isAllowed(a.Value) {
				t.Errorf("message %d: next hop %v", n, a.Value)
			}
		case *bgp.PathAttributeMpReachNLRI:
			c.Announced6 += len(a.Value)
			routes = append(routes, a.Value...)
			if !isAllowed(a.Nexthop) {
				t.Errorf("message %d: next hop %v", n, a.Nexthop)
			}
		case *bgp.PathAttributeMpUnreachNLRI:
			c.Withdrawn6 += len(a.Value)
			routes = append(routes, a.Value...)
		case *bgp.PathAttributeAsPath:
			for _, seg := range a.Value {
				for _, as := range seg.GetAS() {
					if !documentationAS(as) {
						t.Errorf("message %d: AS %d", n, as)
					}
				}
			}
		}
	}
	for _, r := range routes {
		if p := netip.MustParsePrefix(r.NLRI.String()); !isAllowed(p.Addr()) {
			t.Errorf("message %d: prefix %v", n, p)
		}
	}
}

// TestCaptures states what the captures hold, all of it decodable by GoBGP's
// parser and none of it anybody's address.
func TestCaptures(t *testing.T) {
	for _, c := range []struct {
		name   string
		stream []byte
		want   content
	}{
		{"frr", FRR, content{
			Initiation: 1, PeerUp: 5, PeerDown: 4, Statistics: 6, RouteMonitoring: 2398,
			PrePolicy: 1199, PostPolicy: 1199,
			Announced4: 1512, Announced6: 592, Withdrawn4: 188, Withdrawn6: 98,
			EndOfRIB: 8, WithMED: 1054, WithComm: 1634, V6: 448,
		}},
		{"gobgp", GoBGP, content{
			Initiation: 1, PeerUp: 5, PeerDown: 2, Statistics: 6, RouteMonitoring: 3223,
			PrePolicy: 1018, PostPolicy: 1600, LocRIB: 605,
			Announced4: 2095, Announced6: 821, Withdrawn4: 440, Withdrawn6: 180,
			EndOfRIB: 8, WithMED: 1299, WithComm: 2022, V6: 454,
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if n := len(c.stream); n < 150<<10 || n > 400<<10 {
				t.Errorf("%d bytes", n)
			}
			if d := cmp.Diff(c.want, count(t, c.stream)); d != "" {
				t.Errorf("content (-want +got):\n%s", d)
			}
		})
	}
}
