package collector

import "github.com/bmpha/bmpha/pkg/bmp"

// isEndOfRIB reports whether a BMP message is a marker of RFC 4724, 2, by its length
// and its one attribute: it is asked of each message.
func isEndOfRIB(msg []byte) bool {
	const update = 48 // where the UPDATE begins, behind common and per-peer header
	const empty = update + 23
	switch len(msg) {
	case empty:
	case empty + 6, empty + 7:
		if msg[empty+1] != 15 { // MP_UNREACH_NLRI of a family, and nothing else
			return false
		}
	default:
		return false
	}
	return bmp.Type(msg) == bmp.TypeRouteMonitoring
}
