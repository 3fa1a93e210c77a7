package pmacct

import (
	"encoding/binary"
	"slices"
	"strconv"

	"github.com/bmpha/bmpha/pkg/bgp"
)

// A path is an AS path as pmacct keeps it: adjacent sequences are one, sets
// are sorted and have no duplicates.
type path struct {
	segs []segment
	asns []uint32
}

type segment struct {
	typ byte
	end int // in asns; it begins where the one before ends
}

func (p *path) reset() { p.segs, p.asns = p.segs[:0], p.asns[:0] }

// add appends a segment with the AS numbers that were appended to p.asns since
// the last one.
func (p *path) add(typ byte) {
	from := p.last()
	switch typ {
	case bgp.ASSet, bgp.ASConfedSet:
		set := p.asns[from:]
		slices.Sort(set)
		p.asns = p.asns[:from+len(slices.Compact(set))]
	case bgp.ASSequence:
		if n := len(p.segs); n > 0 && p.segs[n-1].typ == bgp.ASSequence {
			p.segs[n-1].end = len(p.asns)
			return
		}
	}
	p.segs = append(p.segs, segment{typ, len(p.asns)})
}

func (p *path) last() int {
	if n := len(p.segs); n > 0 {
		return p.segs[n-1].end
	}
	return 0
}

// parse reads an AS_PATH or AS4_PATH. A path with anything wrong is an empty
// one. Routers make up the OPEN messages in Peer Up, so what they negotiated
// is not to be trusted: from a segment on whose remaining bytes are four for
// each AS number, pmacct takes AS numbers to have four octets.
func (p *path) parse(b []byte, fourOctet bool) {
	p.reset()
	for len(b) >= 2 {
		typ, n := b[0], int(b[1])
		b = b[2:]
		if n == 0 {
			p.reset()
			return
		}
		if len(b)/n == 4 {
			fourOctet = true
		}
		size := 2
		if fourOctet {
			size = 4
		}
		if n*size > len(b) {
			p.reset()
			return
		}
		for i := range n {
			if fourOctet {
				p.asns = append(p.asns, binary.BigEndian.Uint32(b[4*i:]))
			} else {
				p.asns = append(p.asns, uint32(binary.BigEndian.Uint16(b[2*i:])))
			}
		}
		p.add(typ)
		b = b[n*size:]
	}
}

// hops counts the ASes of p as the length of a path does: a set is one. With
// confed, confederation segments count as well.
func (p *path) hops(confed bool) int {
	n, from := 0, 0
	for _, s := range p.segs {
		switch {
		case s.typ == bgp.ASSequence, confed && s.typ == bgp.ASConfedSequence:
			n += s.end - from
		case s.typ == bgp.ASSet, confed && s.typ == bgp.ASConfedSet:
			n++
		}
		from = s.end
	}
	return n
}

// merge makes p the AS path of a route with AS_PATH old, which has two-octet
// numbers, and AS4_PATH long. It is the reconstruction of RFC 6793 section
// 4.2.3, except that an AS4_PATH longer than the AS_PATH is appended to it.
func (p *path) merge(old, long *path) {
	p.reset()
	hops := old.hops(true) - long.hops(false)
	if hops < 0 {
		hops = old.hops(false)
	}
	from := 0
	for _, s := range old.segs {
		if hops <= 0 {
			break
		}
		n := s.end - from
		switch s.typ {
		case bgp.ASSet, bgp.ASConfedSet:
			hops--
		case bgp.ASConfedSequence: // is never split
			hops = max(hops, n) - n
		case bgp.ASSequence:
			n, hops = min(n, hops), hops-n
		}
		p.asns = append(p.asns, old.asns[from:from+n]...)
		p.add(s.typ)
		from = s.end
	}
	from = 0
	for _, s := range long.segs {
		p.asns = append(p.asns, long.asns[from:s.end]...)
		p.add(s.typ)
		from = s.end
	}
}

// appendText appends p: "64512 {1,2} (3 4) [5,6]". A path with a segment of an
// unknown type has no text.
func (p *path) appendText(d []byte) []byte {
	start, from := len(d), 0
	for i, s := range p.segs {
		if i > 0 {
			d = append(d, ' ')
		}
		var open, sep, end byte
		switch s.typ {
		case bgp.ASSequence:
			sep = ' '
		case bgp.ASSet:
			open, sep, end = '{', ',', '}'
		case bgp.ASConfedSequence:
			open, sep, end = '(', ' ', ')'
		case bgp.ASConfedSet:
			open, sep, end = '[', ',', ']'
		default:
			return d[:start]
		}
		if open != 0 {
			d = append(d, open)
		}
		for j, as := range p.asns[from:s.end] {
			if j > 0 {
				d = append(d, sep)
			}
			d = strconv.AppendUint(d, uint64(as), 10)
		}
		if end != 0 {
			d = append(d, end)
		}
		from = s.end
	}
	return d
}

// hasASPath reports whether a has an AS_PATH that may be one.
func (a *attributes) hasASPath() bool { return a.hasPath && len(a.asPath.Value)%2 == 0 }

// mergesAS4 reports whether a has an AS4_PATH that counts: the peer's own AS
// numbers have two octets.
func (a *attributes) mergesAS4(fourOctet bool) bool {
	return a.hasAS4 && !fourOctet && len(a.as4Path.Value)%2 == 0
}

// appendPath appends the text of the AS path of a.
func (s *scratch) appendPath(d []byte, fourOctet bool, a *attributes) []byte {
	if !a.hasASPath() {
		return d
	}
	s.path.parse(a.asPath.Value, fourOctet)
	if !a.mergesAS4(fourOctet) {
		return s.path.appendText(d)
	}
	s.path4.parse(a.as4Path.Value, true)
	s.merged.merge(&s.path, &s.path4)
	return s.merged.appendText(d)
}
