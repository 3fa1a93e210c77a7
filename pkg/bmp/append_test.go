package bmp

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/osrg/gobgp/v4/pkg/packet/bgp"
	oracle "github.com/osrg/gobgp/v4/pkg/packet/bmp"
)

// putOpen is a minimal OPEN, as package bgp would write it.
func putOpen(as uint16, id byte) []byte {
	open := []byte(strings.Repeat("\xff", 16))
	return append(open, 0, 29, 1, 4, byte(as>>8), byte(as), 0, 90, 192, 0, 2, id, 0)
}

func appendTestPeer(peerType, flags uint8, addr string) []byte {
	a, _ := netip.ParseAddr(addr) // "" is the zero Addr of a Loc-RIB peer
	return AppendPeerHeader(nil, peerType, flags, 7, a, 65001, netip.MustParseAddr("192.0.2.1"),
		time.Unix(1700000000, 250_000_000))
}

func appendDescribe(t *testing.T, msg []byte) string {
	t.Helper()
	m, err := oracle.ParseBMPMessage(msg)
	if err != nil {
		t.Fatalf("decode % x: %v", msg, err)
	}
	if int(m.Header.Length) != len(msg) || m.Header.Version != 3 {
		t.Fatalf("version %d, length %d, message has %d bytes", m.Header.Version, m.Header.Length, len(msg))
	}
	p := m.PeerHeader
	peer := fmt.Sprintf("type %d flags %#x rd %d addr %s as %d id %s at %.2f: ",
		p.PeerType, p.Flags, p.PeerDistinguisher, p.PeerAddress, p.PeerAS, p.PeerBGPID, p.Timestamp)
	switch b := m.Body.(type) {
	case *oracle.BMPInitiation:
		s := "init"
		for _, i := range b.Info {
			tlv := i.(*oracle.BMPInfoTLVString)
			s += fmt.Sprintf(" %d=%s", tlv.Type, tlv.Value)
		}
		return s
	case *oracle.BMPTermination:
		s := "term"
		for _, i := range b.Info {
			switch tlv := i.(type) {
			case *oracle.BMPTermTLVString:
				s += " " + tlv.Value
			case *oracle.BMPTermTLV16:
				s += fmt.Sprint(" ", tlv.Value)
			}
		}
		return s
	case *oracle.BMPPeerUpNotification:
		s := fmt.Sprintf("up %s %d %d sent %d received %d", b.LocalAddress, b.LocalPort, b.RemotePort,
			b.SentOpenMsg.Body.(*bgp.BGPOpen).MyAS, b.ReceivedOpenMsg.Body.(*bgp.BGPOpen).MyAS)
		for _, i := range b.Info {
			s += " " + i.(*oracle.BMPInfoTLVString).Value
		}
		return peer + s
	case *oracle.BMPPeerDownNotification:
		return peer + fmt.Sprintf("down %d % x", b.Reason, b.Data)
	case *oracle.BMPStatisticsReport:
		s := "stats"
		for _, i := range b.Stats {
			switch tlv := i.(type) {
			case *oracle.BMPStatsTLV32:
				s += fmt.Sprintf(" %d=%d", tlv.Type, tlv.Value)
			case *oracle.BMPStatsTLV64:
				s += fmt.Sprintf(" %d=%d", tlv.Type, tlv.Value)
			case *oracle.BMPStatsTLVPerAfiSafi64:
				s += fmt.Sprintf(" %d=%d/%d/%d", tlv.Type, tlv.AFI, tlv.SAFI, tlv.Value)
			}
		}
		return peer + s
	case *oracle.BMPRouteMonitoring:
		return peer + fmt.Sprintf("route %d bytes", b.BGPUpdate.Header.Len)
	}
	t.Fatalf("unexpected body %T", m.Body)
	return ""
}

func TestAppend(t *testing.T) {
	endOfRIB := append([]byte(strings.Repeat("\xff", 16)), 0, 23, 2, 0, 0, 0, 0)
	peer := appendTestPeer(0, 0, "198.51.100.2")
	const head = "type 0 flags 0x0 rd 7 addr 198.51.100.2 as 65001 id 192.0.2.1 at 1700000000.25: "
	tests := []struct {
		name string
		msg  []byte
		want string
	}{
		{"initiation", AppendInitiation(nil, "a router", "r1"), "init 1=a router 2=r1"},
		{"termination", AppendTermination(nil, 1, "bye"), "term bye 1"},
		{"peer up", AppendPeerUp(nil, peer, netip.MustParseAddr("198.51.100.1"), 179, 33000, putOpen(65000, 9), putOpen(65001, 1), AppendTLV(nil, 0, "note")),
			head + "up 198.51.100.1 179 33000 sent 65000 received 65001 note"},
		{"peer down", AppendPeerDown(nil, peer, 2, []byte{0, 18}), head + "down 2 00 12"},
		{"statistics", AppendStats(nil, peer, AppendStat{Type: 1, Value: 5}, AppendStat{Type: 7, Value: 1 << 40},
			AppendStat{Type: 9, AFI: 2, SAFI: 1, Value: 77}), head + "stats 1=5 7=1099511627776 9=2/1/77"},
		{"route monitoring", AppendRouteMonitoring(nil, peer, endOfRIB), head + "route 23 bytes"},
		{"ipv6 peer, post-policy", AppendRouteMonitoring(nil, appendTestPeer(0, 0x40, "2001:db8::2"), endOfRIB),
			strings.Replace(strings.Replace(head, "0x0", "0xc0", 1), "198.51.100.2", "2001:db8::2", 1) + "route 23 bytes"},
		{"adj-rib-out", AppendRouteMonitoring(nil, appendTestPeer(0, 0x10, "198.51.100.2"), endOfRIB),
			strings.Replace(head, "0x0", "0x10", 1) + "route 23 bytes"},
		{"loc-rib", AppendRouteMonitoring(nil, appendTestPeer(3, 0, ""), endOfRIB),
			strings.Replace(strings.Replace(head, "type 0", "type 3", 1), "198.51.100.2", "invalid IP", 1) + "route 23 bytes"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if got := appendDescribe(t, test.msg); got != test.want {
				t.Errorf("got  %s\nwant %s", got, test.want)
			}
		})
	}
}

// A peer without a time has the time 0, not a time before 1970.
func TestAppendPeerHeaderZeroTime(t *testing.T) {
	h := AppendPeerHeader(nil, 3, 0, 0, netip.Addr{}, 0, netip.Addr{}, time.Time{})
	if len(h) != 42 || strings.Trim(string(h[1:]), "\x00") != "" {
		t.Errorf("got % x", h)
	}
}
