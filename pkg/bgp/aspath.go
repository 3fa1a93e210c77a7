package bgp

import (
	"encoding/binary"
	"fmt"
	"math"
)

// Segment types of an AS path, RFC 4271 section 4.3 and RFC 5065 section 3.
const (
	ASSet            byte = 1
	ASSequence       byte = 2
	ASConfedSequence byte = 3
	ASConfedSet      byte = 4
)

// A Segment is one segment of an AS path.
type Segment struct {
	Type byte
	asns []byte
	size int // octets per AS number
}

// Len returns the number of AS numbers in s.
func (s Segment) Len() int { return len(s.asns) / s.size }

// AS returns AS number i of s.
func (s Segment) AS(i int) uint32 {
	if s.size == 2 {
		return uint32(binary.BigEndian.Uint16(s.asns[2*i:]))
	}
	return binary.BigEndian.Uint32(s.asns[4*i:])
}

// hops returns how many ASes s counts for in the length of a path, RFC 4271
// section 9.1.2.2 and RFC 5065 section 5.3.
func (s Segment) hops() int {
	switch s.Type {
	case ASSequence:
		return s.Len()
	case ASSet:
		return 1
	}
	return 0
}

// Segments walks the segments of an AS_PATH or AS4_PATH.
type Segments struct {
	a    Attr
	off  int
	size int
	cur  Segment
	err  *Error
}

// Path returns a walk over the segments of a, an AS_PATH or AS4_PATH
// attribute. fourOctet tells whether AS numbers have four octets, as they do
// in AS4_PATH and between speakers that both announced the capability.
func Path(a Attr, fourOctet bool) Segments {
	size := 2
	if fourOctet {
		size = 4
	}
	return Segments{a: a, size: size}
}

// FourOctetPath reports whether the AS numbers of a, an AS_PATH, have four
// octets: as negotiated, unless it can be read the other way only. Some
// routers make up the OPEN messages that say what was negotiated.
func FourOctetPath(a Attr, negotiated bool) bool {
	size, other := 2, 4
	if negotiated {
		size, other = other, size
	}
	if !pathFits(a.Value, size) && pathFits(a.Value, other) {
		return !negotiated
	}
	return negotiated
}

// pathFits reports whether b is a path with AS numbers of size octets.
func pathFits(b []byte, size int) bool {
	for len(b) >= 2 {
		n := 2 + int(b[1])*size
		if n > len(b) {
			return false
		}
		b = b[n:]
	}
	return len(b) == 0
}

// Next advances to the next segment and reports whether there is one.
func (s *Segments) Next() bool {
	b := s.a.Value[s.off:]
	if len(b) == 0 || s.err != nil {
		return false
	}
	if len(b) < 2 {
		s.err = &Error{"AS path ends within a segment header", s.a.Offset + s.off, attributesSection}
		return false
	}
	n := int(b[1]) * s.size
	if n > len(b)-2 {
		s.err = &Error{fmt.Sprintf("AS path segment of %d bytes where %d are left", n, len(b)-2), s.a.Offset + s.off, attributesSection}
		return false
	}
	s.cur = Segment{Type: b[0], asns: b[2 : 2+n], size: s.size}
	s.off += 2 + n
	return true
}

// Segment returns the current segment.
func (s *Segments) Segment() Segment { return s.cur }

// Err returns what ended the walk early, or nil.
func (s *Segments) Err() error {
	if s.err == nil {
		return nil
	}
	return s.err
}

// MergeAS4Path reconstructs the AS path of a route that came through a speaker
// without four-octet AS numbers, RFC 6793 section 4.2.3: the leading part of
// the two-octet asPath that as4Path is too short for, followed by as4Path. The
// path is appended to dst in the four-octet format of AS_PATH. An as4Path that
// is longer than asPath is ignored.
func MergeAS4Path(dst []byte, asPath, as4Path Attr) ([]byte, error) {
	keep := 0
	w := Path(asPath, false)
	for w.Next() {
		keep += w.Segment().hops()
	}
	if err := w.Err(); err != nil {
		return dst, err
	}
	w4 := Path(as4Path, true)
	for w4.Next() {
		keep -= w4.Segment().hops()
	}
	if err := w4.Err(); err != nil {
		return dst, err
	}
	use4 := keep >= 0
	if !use4 {
		keep = math.MaxInt
	}
	for w = Path(asPath, false); w.Next(); {
		seg := w.Segment()
		// Confederation segments count for nothing and are kept as long as
		// they lead or lie next to what is kept.
		if use4 && keep <= 0 && seg.hops() > 0 {
			break
		}
		n := seg.Len()
		if seg.Type == ASSequence {
			n = min(n, keep)
		}
		keep -= seg.hops()
		dst = append(dst, seg.Type, byte(n))
		for i := range n {
			dst = binary.BigEndian.AppendUint32(dst, seg.AS(i))
		}
	}
	if use4 {
		for w4 = Path(as4Path, true); w4.Next(); {
			seg := w4.Segment()
			if seg.Type == ASConfedSequence || seg.Type == ASConfedSet {
				continue // must not be there, RFC 6793 section 3
			}
			dst = append(dst, seg.Type, byte(seg.Len()))
			dst = append(dst, seg.asns...)
		}
	}
	return dst, nil
}
