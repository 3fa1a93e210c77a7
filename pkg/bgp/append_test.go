package bgp

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	oracle "github.com/osrg/gobgp/v4/pkg/packet/bgp"
)

// appendDescribe decodes an UPDATE with GoBGP and prints what it found.
func appendDescribe(t *testing.T, msg []byte, options ...*oracle.MarshallingOption) string {
	t.Helper()
	m, err := oracle.ParseBGPMessage(msg, options...)
	if err != nil {
		t.Fatalf("decode % x: %v", msg, err)
	}
	if int(m.Header.Len) != len(msg) {
		t.Fatalf("length %d, message has %d bytes", m.Header.Len, len(msg))
	}
	u := m.Body.(*oracle.BGPUpdate)
	var out []string
	for _, r := range u.WithdrawnRoutes {
		out = append(out, fmt.Sprintf("withdraw %s id %d", r.NLRI, r.ID))
	}
	for _, a := range u.PathAttributes {
		switch a := a.(type) {
		case *oracle.PathAttributeMpReachNLRI:
			for _, r := range a.Value {
				out = append(out, fmt.Sprintf("reach %d/%d via %s %s id %d", a.AFI, a.SAFI, a.Nexthop, r.NLRI, r.ID))
			}
		case *oracle.PathAttributeMpUnreachNLRI:
			out = append(out, fmt.Sprintf("unreach %d/%d", a.AFI, a.SAFI))
			for _, r := range a.Value {
				out = append(out, fmt.Sprintf("unreach %s", r.NLRI))
			}
		default:
			out = append(out, a.String())
		}
	}
	for _, r := range u.NLRI {
		out = append(out, fmt.Sprintf("announce %s id %d", r.NLRI, r.ID))
	}
	return strings.Join(out, "\n")
}

func TestAppendUpdate(t *testing.T) {
	v4 := netip.MustParsePrefix("192.0.2.0/25")
	v6 := netip.MustParsePrefix("2001:db8:1::/48")
	hop4 := netip.MustParseAddr("198.51.100.1")
	hop6 := netip.MustParseAddr("2001:db8::1")
	const rd = 0x0000fde8_00000007 // 0:65000:7

	tests := []struct {
		name    string
		msg     []byte
		options []*oracle.MarshallingOption
		want    string
	}{
		{
			name: "every attribute",
			msg: AppendUpdate(nil,
				AppendPrefix(nil, netip.MustParsePrefix("10.0.0.0/8")),
				AppendLargeCommunities(AppendExtCommunities(AppendCommunities(AppendLocalPref(AppendMED(AppendNextHop(
					AppendASPath(AppendOrigin(nil, 2), 65001, 4200000001), hop4), 50), 200),
					65001<<16|1, 65001<<16|2), 0x0002_fde9_0000_0064), [3]uint32{65001, 1, 2}),
				AppendPrefix(AppendPrefix(nil, v4), netip.MustParsePrefix("0.0.0.0/0"))),
			want: `withdraw 10.0.0.0/8 id 0
{Origin: ?}
{AsPath: 65001 4200000001}
{Nexthop: 198.51.100.1}
{Med: 50}
{LocalPref: 200}
{Communities: 65001:1, 65001:2}
{Extcomms: [65001:100]}
{LargeCommunity: [ 65001:1:2]}
announce 192.0.2.0/25 id 0
announce 0.0.0.0/0 id 0`,
		},
		{
			name: "ipv6 unicast",
			msg:  AppendUpdate(nil, nil, AppendMPReach(nil, 2, 1, hop6, AppendPrefix(nil, v6)), nil),
			want: "reach 2/1 via 2001:db8::1 2001:db8:1::/48 id 0",
		},
		{
			name: "labelled",
			msg:  AppendUpdate(nil, nil, AppendMPReach(nil, 1, 4, hop4, AppendLabelled(nil, 1000, v4)), nil),
			want: "reach 1/4 via 198.51.100.1 192.0.2.0/25 id 0",
		},
		{
			name: "vpn",
			msg:  AppendUpdate(nil, nil, AppendMPReach(nil, 2, 128, hop6, AppendVPN(nil, 1000, rd, v6)), nil),
			want: "reach 2/128 via 2001:db8::1 65000:7:2001:db8:1::/48 id 0",
		},
		{
			name: "unreach",
			msg:  AppendUpdate(nil, nil, AppendMPUnreach(nil, 1, 128, AppendVPN(nil, 0x80000, rd, v4)), nil),
			want: "unreach 1/128\nunreach 65000:7:192.0.2.0/25",
		},
		{
			name: "path id",
			msg:  AppendUpdate(nil, nil, AppendOrigin(nil, 0), AppendPrefix(AppendPathID(nil, 42), v4)),
			options: []*oracle.MarshallingOption{{AddPath: map[oracle.Family]oracle.BGPAddPathMode{
				oracle.RF_IPv4_UC: oracle.BGP_ADD_PATH_BOTH}}},
			want: "{Origin: i}\nannounce 192.0.2.0/25 id 42",
		},
		{name: "end of rib, ipv4 unicast", msg: AppendEndOfRIB(nil, 1, 1), want: ""},
		{name: "end of rib, vpnv6", msg: AppendEndOfRIB(nil, 2, 128), want: "unreach 2/128"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if got := appendDescribe(t, test.msg, test.options...); got != test.want {
				t.Errorf("got:\n%s\nwant:\n%s", got, test.want)
			}
		})
	}
}

// A path of more than 255 numbers takes two segments and an extended length.
func TestAppendASPathLong(t *testing.T) {
	asns := make([]uint32, 300)
	var want []string
	for i := range asns {
		asns[i] = uint32(70000 + i)
		want = append(want, fmt.Sprint(asns[i]))
	}
	got := appendDescribe(t, AppendUpdate(nil, nil, AppendASPath(nil, asns...), nil))
	if got != "{AsPath: "+strings.Join(want, " ")+"}" {
		t.Errorf("got %s", got)
	}
}

func TestAppendOpen(t *testing.T) {
	caps := AppendCapAddPath(AppendCapAS4(AppendCapMP(AppendCapMP(nil, 1, 1), 2, 1), 4200000001), 1, 1, 3)
	m, err := oracle.ParseBGPMessage(AppendOpen(nil, 4200000001, 90, netip.MustParseAddr("192.0.2.9"), caps))
	if err != nil {
		t.Fatal(err)
	}
	open := m.Body.(*oracle.BGPOpen)
	if open.MyAS != 23456 || open.HoldTime != 90 || open.ID.String() != "192.0.2.9" {
		t.Errorf("got AS %d, hold time %d, ID %s", open.MyAS, open.HoldTime, open.ID)
	}
	var got []string
	for _, p := range open.OptParams {
		for _, c := range p.(*oracle.OptionParameterCapability).Capability {
			switch c := c.(type) {
			case *oracle.CapMultiProtocol:
				got = append(got, "mp "+c.CapValue.String())
			case *oracle.CapFourOctetASNumber:
				got = append(got, fmt.Sprint("as4 ", c.CapValue))
			case *oracle.CapAddPath:
				for _, tuple := range c.Tuples {
					got = append(got, fmt.Sprint("add-path ", tuple.Family.String(), " ", uint8(tuple.Mode)))
				}
			}
		}
	}
	if got, want := strings.Join(got, ", "), "mp ipv4-unicast, mp ipv6-unicast, as4 4200000001, add-path ipv4-unicast 3"; got != want {
		t.Errorf("capabilities: got %s, want %s", got, want)
	}
	m, err = oracle.ParseBGPMessage(AppendOpen(nil, 65001, 90, netip.MustParseAddr("192.0.2.9"), nil))
	if err != nil {
		t.Fatal(err)
	}
	if open := m.Body.(*oracle.BGPOpen); open.MyAS != 65001 || len(open.OptParams) != 0 {
		t.Errorf("without capabilities: AS %d, %d parameters", open.MyAS, len(open.OptParams))
	}
}

func TestAppendNotification(t *testing.T) {
	m, err := oracle.ParseBGPMessage(AppendNotification(nil, 6, 2, nil))
	if err != nil {
		t.Fatal(err)
	}
	if n := m.Body.(*oracle.BGPNotification); n.ErrorCode != 6 || n.ErrorSubcode != 2 {
		t.Errorf("got %d/%d", n.ErrorCode, n.ErrorSubcode)
	}
}
