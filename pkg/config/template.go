package config

import (
	"net/netip"
	"strconv"
	"strings"
)

// Variables of topics and keys. The two of a pair mean the same.
var (
	addressVariables = []string{"$peer_src_ip", "$bmp_router"}
	portVariables    = []string{"$peer_tcp_port", "$bmp_router_port"}
)

// Expand fills in a Kafka topic or key for the router at addr and port by the
// rule of pmacct, so that both put a router's records in the same place:
//
//   - one address variable is replaced, the first $peer_src_ip or, without one,
//     the first $bmp_router; then one port variable, the first $peer_tcp_port or,
//     without one, the first $bmp_router_port;
//   - dots and colons of the address become underscores: 192_0_2_1.
//
// So $bmp_router_port needs an address variable before it, else it is taken for
// $bmp_router and the letters _port; and more variables than one of each kind stay
// as they are.
func Expand(tmpl string, addr netip.Addr, port uint16) string {
	s := replaceFirst(tmpl, addressVariables, func() string {
		return strings.NewReplacer(".", "_", ":", "_").Replace(addr.Unmap().WithZone("").String())
	})
	return replaceFirst(s, portVariables, func() string { return strconv.Itoa(int(port)) })
}

func replaceFirst(s string, variables []string, value func() string) string {
	for _, v := range variables {
		if strings.Contains(s, v) {
			return strings.Replace(s, v, value(), 1)
		}
	}
	return s
}

// varies reports whether tmpl expands differently for two sessions of one
// router, as it would on two collectors.
func varies(tmpl string) bool {
	addr := netip.AddrFrom4([4]byte{192, 0, 2, 1})
	return Expand(tmpl, addr, 1) != Expand(tmpl, addr, 2)
}
