package bgp

import (
	"encoding/binary"
	"fmt"
	"net/netip"
)

// A Prefix is one route of an UPDATE.
type Prefix struct {
	PathID   uint32  // of ADD-PATH, 0 without
	WireBits int     // the length octet: labels and route distinguisher included
	Labels   []byte  // the label stack, three bytes each; the last one is of this route
	RD       [8]byte // the route distinguisher of a VPN route, else zero
	Bits     int     // the length of the prefix
	Bytes    []byte  // the bytes of the prefix that were sent; host bits as received
	Offset   int     // of the route in the BGP message
}

// Addr returns the address of p, which is of family f, host bits as received.
func (p *Prefix) Addr(f Family) netip.Addr {
	var b [16]byte
	copy(b[:], p.Bytes)
	if f.AFI == AFIIPv4 {
		return netip.AddrFrom4([4]byte(b[:4]))
	}
	return netip.AddrFrom16(b)
}

// Label returns the 20 bits of the last label of p, 0 if it has none.
func (p *Prefix) Label() uint32 {
	n := len(p.Labels)
	if n < 3 {
		return 0
	}
	return uint32(p.Labels[n-3])<<12 | uint32(p.Labels[n-2])<<4 | uint32(p.Labels[n-1])>>4
}

// Labels is how many labels a route of SAFI 4 or 128 has.
type Labels uint8

const (
	// LabelStack means one label after the other up to one with the
	// bottom-of-stack bit, as in RFC 3107 and, where the Multiple Labels
	// capability was exchanged, RFC 8277 section 2.3.
	LabelStack Labels = iota
	// SingleLabel means exactly one label whose bottom-of-stack bit means
	// nothing: RFC 8277 section 2.2, and section 2.4 for all withdrawals.
	SingleLabel
)

// Prefixes walks the routes of one part of an UPDATE. Its zero value has none.
type Prefixes struct {
	b       []byte
	base    int
	off     int
	family  Family
	addPath bool
	labels  Labels
	quiet   bool // make no errors, only remember that there was one
	cur     Prefix
	err     *Error
}

// Routes returns a walk over b, routes of family f. offset is the position of
// b in the message, for errors. addPath tells whether each route is preceded
// by a path identifier (RFC 7911), labels how many labels it has. The walk of
// an unknown family ends at once with an error.
func Routes(b []byte, offset int, f Family, addPath bool, labels Labels) Prefixes {
	return Prefixes{b: b, base: offset, family: f, addPath: addPath, labels: labels}
}

// Next advances to the next route and reports whether there is one.
func (w *Prefixes) Next() bool {
	b := w.b[w.off:]
	if len(b) == 0 || w.err != nil {
		return false
	}
	p := &w.cur
	*p = Prefix{Offset: w.base + w.off}
	if w.addPath {
		if len(b) < 4 {
			return w.fail("routes end within a path identifier", "RFC 7911 section 3")
		}
		p.PathID = binary.BigEndian.Uint32(b)
		b = b[4:]
	}
	if len(b) == 0 {
		return w.fail("routes end before a prefix length", "RFC 4271 section 4.3")
	}
	bits := int(b[0])
	n := (bits + 7) / 8
	b = b[1:]
	if n > len(b) {
		return w.failf("RFC 4271 section 4.3", "prefix of %d bytes where %d are left", n, len(b))
	}
	p.WireBits = bits
	end := w.off + n + 1
	if w.addPath {
		end += 4
	}
	b = b[:n]
	switch w.family.SAFI {
	case SAFIUnicast:
	case SAFILabelled, SAFIVPN:
		stack := 3
		if w.labels == LabelStack {
			for stack <= n && b[stack-1]&1 == 0 {
				stack += 3
			}
		}
		if stack > n {
			return w.fail("label stack overruns its prefix", "RFC 8277 section 2.2")
		}
		p.Labels, b, bits = b[:stack], b[stack:], bits-8*stack
		if w.family.SAFI == SAFIVPN {
			if len(b) < 8 {
				return w.fail("route distinguisher overruns its prefix", "RFC 4364 section 4.3.4")
			}
			p.RD, b, bits = [8]byte(b), b[8:], bits-64
		}
	default:
		return w.failf("RFC 4760 section 5", "routes of AFI %d SAFI %d", int(w.family.AFI), int(w.family.SAFI))
	}
	switch max := w.family.Bits(); {
	case max == 0:
		return w.failf("RFC 4760 section 5", "routes of AFI %d SAFI %d", int(w.family.AFI), int(w.family.SAFI))
	case bits < 0 || bits > max:
		return w.failf("RFC 4271 section 4.3", "prefix length %d, want 0 to %d", bits, max)
	}
	p.Bits, p.Bytes = bits, b
	w.off = end
	return true
}

func (w *Prefixes) fail(what, section string) bool {
	if w.quiet {
		w.err = malformed
	} else {
		w.err = &Error{what, w.base + w.off, section}
	}
	return false
}

func (w *Prefixes) failf(section, format string, x, y int) bool {
	if w.quiet {
		return w.fail("", section)
	}
	return w.fail(fmt.Sprintf(format, x, y), section)
}

// malformed stands for any error of a quiet walk.
var malformed = new(Error)

// Whole reports whether the rest of w can be walked to its end. Some routers
// send path identifiers that they have not negotiated; whoever would rather
// read such routes than report them tries w with addPath turned round.
func (w Prefixes) Whole() bool {
	w.quiet = true
	for w.Next() {
	}
	return w.err == nil
}

// Prefix returns the current route. It is valid until the next call of Next.
func (w *Prefixes) Prefix() *Prefix { return &w.cur }

// Err returns what ended the walk early, or nil. The routes before were good.
func (w *Prefixes) Err() error {
	if w.err == nil {
		return nil
	}
	return w.err
}
