package collector

import (
	"testing"

	"github.com/bmpha/bmpha/pkg/bgp"
	"github.com/bmpha/bmpha/pkg/bmp"
)

func monitoring(update func(dst []byte) []byte) []byte {
	msg := append(bmp.AppendHeader(nil, bmp.TypeRouteMonitoring), make([]byte, 42)...)
	return bmp.AppendLength(update(msg), 0)
}

func TestIsEndOfRIB(t *testing.T) {
	for _, f := range bgp.Families {
		msg := monitoring(func(dst []byte) []byte { return bgp.AppendEndOfRIB(dst, f.AFI, f.SAFI) })
		if !isEndOfRIB(msg) {
			t.Errorf("%v: the marker is not seen", f)
		}
	}
	withdrawal := monitoring(func(dst []byte) []byte {
		start := len(dst)
		dst = append(bgp.AppendHeader(dst, 2), 0, 1, 0, 0, 0) // 0.0.0.0/0
		return bgp.AppendLength(dst, start)
	})
	origin := monitoring(func(dst []byte) []byte {
		start := len(dst)
		dst = append(bgp.AppendHeader(dst, 2), 0, 0, 0, 6, 0x40, 1, 1, 0, 24, 10)
		return bgp.AppendLength(dst, start)
	})
	down := append(bmp.AppendHeader(nil, bmp.TypePeerDown), make([]byte, 65)...)
	for name, msg := range map[string][]byte{"a withdrawal": withdrawal, "another attribute": origin, "a Peer Down": down, "nothing": nil} {
		if isEndOfRIB(msg) {
			t.Errorf("%s is taken for a marker", name)
		}
	}
}
