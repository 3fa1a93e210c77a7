package table

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net/netip"

	"github.com/bmpha/bmpha/pkg/bgp"
	"github.com/bmpha/bmpha/pkg/bmp"
)

// What a table knew is written down for whoever makes records of the messages
// later and keeps no routes himself. Notes stand behind a Route Monitoring
// message and say of its routes, in the order in which Apply told of them:
//
//	run    uvarint: number of routes ·4 + a NoteKind
//	value  of NoteValue with no routes: what the runs of it from here on mean.
//	       One byte, 1 two-octet AS numbers, 2 attributes follow, 4 labels
//	       follow (without, they are those of the value before); each with its
//	       length (uvarint)
//
// What no run covers is NotePlain, so a message of plain routes has no notes.
//
// The body that tells of routes which are gone is, route after route, one byte
// of what has changed since the route before, and these parts in this order:
//
//	01  RIB: kind of change, 1 if the peer is IPv6, address (16), distinguisher
//	    (8), BGP identifier (4), RIB, peer type, AS number (4)
//	02  family: its index in bgp.Families, ·128 with path identifiers
//	04  route distinguisher (8)
//	08  attributes, with their length (uvarint)
//	10  labels, likewise
//	20  flags of the per-peer header
//	40  AS numbers have two octets: this is the value, not a change
//	    path identifier (uvarint) if there are any
//	    prefix: length in bits, and as many bytes as that takes, host bits as
//	    received

// A NoteKind is what a note says about a route of a message.
type NoteKind uint8

const (
	NotePlain   NoteKind = iota // nothing: it is as the message says
	NoteKnown                   // it was announced just so before, and need not be told again
	NoteUnknown                 // it was withdrawn, and was not there
	NoteValue                   // it was withdrawn, and had a value, which the note has
)

const (
	valueTwoOctet = 1 << iota
	valueAttrs
	valueLabels
)

// maxNotes bounds the notes of one message, in bytes. A withdrawal takes two
// bytes in a message, and what was withdrawn up to 64 KiB in a note.
const maxNotes = 256 << 10

// Notes are made of what Apply tells of one message. The zero value is ready to
// use; its memory is kept from message to message.
type Notes struct {
	// Values makes notes of withdrawn routes: what they were, or that they were
	// unknown. Without, withdrawals are plain.
	Values bool

	buf    []byte
	kind   NoteKind // of the run that goes on
	n      uint64   // its length
	routes int
	news   bool
	value  bool // there is one
	two    bool
	attrs  span // of the value, in buf
	labels span
}

type span struct{ from, to int }

// Reset begins the notes of another message.
func (n *Notes) Reset() {
	*n = Notes{Values: n.Values, buf: n.buf[:0]}
}

// Applied is to be called with what Apply returned. Something wrong with the
// message changes nothing; but a route that found no room Apply does not tell
// of, and what was noted of those behind it would be said of others: then the
// message has no notes.
func (n *Notes) Applied(err error) {
	if err == nil || err == ErrLabelledAddPath {
		return
	}
	var inBMP *bmp.Error
	var inBGP *bgp.Error
	if !errors.As(err, &inBMP) && !errors.As(err, &inBGP) {
		n.Reset()
	}
}

// Add notes what happened to a route, and for an announcement whether it is
// known and need not be told again. It is called for everything that Apply tells
// of, in order.
func (n *Notes) Add(c *Change, known bool) {
	kind := NotePlain
	switch {
	case c.Kind == Marker:
		n.news = true
		return
	case c.Kind == Announced && known:
		kind = NoteKnown
	case c.Kind != Withdrawn || !n.Values:
	case !c.Found:
		kind = NoteUnknown
	case n.define(&c.Before):
		kind = NoteValue
	}
	n.routes++
	if kind == NotePlain || kind == NoteValue {
		n.news = true
	}
	n.run(kind)
	n.n++
}

// AddPlain notes nothing about a route that Apply tells of.
func (n *Notes) AddPlain() {
	n.routes++
	n.news = true
	n.run(NotePlain)
	n.n++
}

// run makes kind the one of the run that goes on.
func (n *Notes) run(kind NoteKind) {
	if kind == n.kind {
		return
	}
	n.flush()
	n.kind = kind
}

func (n *Notes) flush() {
	if n.n > 0 {
		n.buf = binary.AppendUvarint(n.buf, n.n<<2|uint64(n.kind))
		n.n = 0
	}
}

// define makes v the value that runs mean, if there is room for it.
func (n *Notes) define(v *Value) bool {
	what := byte(0)
	if v.TwoOctet {
		what = valueTwoOctet
	}
	if !n.value || !bytes.Equal(n.buf[n.attrs.from:n.attrs.to], v.Attrs) {
		what |= valueAttrs
	}
	if !n.value || !bytes.Equal(n.buf[n.labels.from:n.labels.to], v.Labels) {
		what |= valueLabels
	}
	if n.value && what&^valueTwoOctet == 0 && n.two == v.TwoOctet {
		return true
	}
	if len(n.buf)+len(v.Attrs)+len(v.Labels) > maxNotes {
		return false
	}
	n.flush()
	n.value, n.two = true, v.TwoOctet
	n.buf = append(n.buf, byte(NoteValue), what)
	put := func(s *span, b []byte) {
		n.buf = binary.AppendUvarint(n.buf, uint64(len(b)))
		s.from = len(n.buf)
		n.buf = append(n.buf, b...)
		s.to = len(n.buf)
	}
	if what&valueAttrs != 0 {
		put(&n.attrs, v.Attrs)
	}
	if what&valueLabels != 0 {
		put(&n.labels, v.Labels)
	}
	return true
}

// Silent reports whether the message says nothing that makes a record: it has
// routes, all of them are known or were withdrawn without having been there, and
// it has no End-of-RIB. What is wrong with it may still be worth telling.
func (n *Notes) Silent() bool { return n.routes > 0 && !n.news }

// Append appends the notes: nothing at all if all routes are plain.
func (n *Notes) Append(dst []byte) []byte {
	dst = append(dst, n.buf...)
	if n.kind != NotePlain && n.n > 0 {
		dst = binary.AppendUvarint(dst, n.n<<2|uint64(n.kind))
	}
	return dst
}

// SplitNotes divides a BMP message with notes behind it. What is no BMP
// message has none.
func SplitNotes(body []byte) (msg, notes []byte) {
	if len(body) < bmp.HeaderLen {
		return body, nil
	}
	n := binary.BigEndian.Uint32(body[1:])
	if n < bmp.HeaderLen || uint64(n) >= uint64(len(body)) {
		return body, nil
	}
	return body[:n:n], body[n:]
}

// errNotes means that notes, or a body of routes that are gone, are not what
// this package has written.
var errNotes = errors.New("notes of a table are damaged")

// A NoteReader goes through the notes of a message. The zero value reads none.
type NoteReader struct {
	rest    []byte
	kind    NoteKind
	n       uint64
	defined bool
	value   Value
	err     error
}

// ReadNotes returns a reader of notes, as Notes.Append or SplitNotes return
// them.
func ReadNotes(notes []byte) NoteReader { return NoteReader{rest: notes} }

// Next returns the note of the next route of the message, NotePlain when there
// are no more.
func (r *NoteReader) Next() NoteKind {
	if r.n == 0 && !r.run() {
		return NotePlain
	}
	r.n--
	return r.kind
}

// run begins the next run.
func (r *NoteReader) run() bool {
	for len(r.rest) > 0 {
		x, ok := uvarint(&r.rest)
		r.kind, r.n = NoteKind(x&3), x>>2
		switch {
		case !ok || r.n == 0 && r.kind != NoteValue || r.n > 0 && r.kind == NoteValue && !r.defined:
			return r.fail()
		case r.n > 0:
			return true
		case !r.define():
			return r.fail()
		}
	}
	return false
}

func (r *NoteReader) fail() bool {
	*r = NoteReader{err: errNotes}
	return false
}

func (r *NoteReader) define() bool {
	if len(r.rest) == 0 {
		return false
	}
	what := r.rest[0]
	r.rest = r.rest[1:]
	if what&^(valueTwoOctet|valueAttrs|valueLabels) != 0 || !r.defined && what|valueTwoOctet != valueTwoOctet|valueAttrs|valueLabels {
		return false
	}
	r.defined = true
	r.value.TwoOctet = what&valueTwoOctet != 0
	return (what&valueAttrs == 0 || content16(&r.rest, &r.value.Attrs)) &&
		(what&valueLabels == 0 || content16(&r.rest, &r.value.Labels))
}

// Value returns the attributes, the labels and the width of AS numbers of the
// route that the last note was about, if that was NoteValue. The bytes are those
// of the notes, and the rest of it is zero.
func (r *NoteReader) Value() *Value { return &r.value }

// Err returns an error if the notes were damaged; routes from there on are
// plain.
func (r *NoteReader) Err() error { return r.err }

func uvarint(b *[]byte) (uint64, bool) {
	x, n := binary.Uvarint(*b)
	if n <= 0 {
		return 0, false
	}
	*b = (*b)[n:]
	return x, true
}

// content16 takes bytes with their length off b.
func content16(b, dst *[]byte) bool {
	n, ok := uvarint(b)
	if !ok || n >= maxContent || n > uint64(len(*b)) {
		return false
	}
	*dst, *b = (*b)[:n:n], (*b)[n:]
	return true
}

const (
	goneRIB = 1 << iota
	goneFamily
	goneRD
	goneAttrs
	goneLabels
	goneFlags
	goneTwoOctet

	goneKnown = 1<<iota - 1
)

// Gone is the body of a log entry that tells of routes which are gone without
// a message, made of what Tidy reports. The zero value is ready to use; its
// memory is kept.
type Gone struct {
	buf    []byte
	n      int
	rib    *RIB
	kind   Kind
	family bgp.Family
	add    bool
	rd     [8]byte
	flags  byte
	attrs  span
	labels span
}

// Reset begins another body.
func (g *Gone) Reset() { *g = Gone{buf: g.buf[:0]} }

// Len returns the length of the body in bytes. One more route adds up to
// 64 KiB to it, usually some ten bytes.
func (g *Gone) Len() int { return len(g.buf) }

// Routes returns how many routes it tells of.
func (g *Gone) Routes() int { return g.n }

// Bytes returns the body, valid until Reset or Add.
func (g *Gone) Bytes() []byte { return g.buf }

// Add appends a route that Tidy reports.
func (g *Gone) Add(c *Change) {
	what, v := byte(0), &c.Before
	if c.RIB != g.rib || c.Kind != g.kind {
		what |= goneRIB
	}
	if g.n == 0 || c.Family != g.family || c.AddPath != g.add {
		what |= goneFamily
	}
	if c.RD != g.rd {
		what |= goneRD
	}
	if !bytes.Equal(g.buf[g.attrs.from:g.attrs.to], v.Attrs) {
		what |= goneAttrs
	}
	if !bytes.Equal(g.buf[g.labels.from:g.labels.to], v.Labels) {
		what |= goneLabels
	}
	if v.Flags != g.flags {
		what |= goneFlags
	}
	if v.TwoOctet {
		what |= goneTwoOctet
	}
	b := append(g.buf, what)
	if what&goneRIB != 0 {
		b = append(b, byte(c.Kind), 0)
		if c.RIB.Peer.IPv6 {
			b[len(b)-1] = 1
		}
		b = append(b, c.RIB.Peer.Addr[:]...)
		b = append(b, c.RIB.Peer.Distinguisher[:]...)
		b = append(b, c.RIB.BGPID[:]...)
		b = append(b, byte(c.RIB.Kind), c.RIB.Type)
		b = binary.BigEndian.AppendUint32(b, c.RIB.AS)
	}
	if what&goneFamily != 0 {
		f := byte(c.Family.Index())
		if c.AddPath {
			f |= 0x80
		}
		b = append(b, f)
	}
	if what&goneRD != 0 {
		b = append(b, c.RD[:]...)
	}
	if what&goneAttrs != 0 {
		b = binary.AppendUvarint(b, uint64(len(v.Attrs)))
		g.attrs.from = len(b)
		b = append(b, v.Attrs...)
		g.attrs.to = len(b)
	}
	if what&goneLabels != 0 {
		b = binary.AppendUvarint(b, uint64(len(v.Labels)))
		g.labels.from = len(b)
		b = append(b, v.Labels...)
		g.labels.to = len(b)
	}
	if what&goneFlags != 0 {
		b = append(b, v.Flags)
	}
	if c.AddPath {
		b = binary.AppendUvarint(b, uint64(c.PathID))
	}
	b = append(b, byte(c.Prefix.Bits()))
	g.buf = c.Route.appendAddr(b)
	g.n++
	g.rib, g.kind, g.family, g.add, g.rd, g.flags = c.RIB, c.Kind, c.Family, c.AddPath, c.RD, v.Flags
}

// A GoneReader goes through a body made by Gone.
type GoneReader struct {
	rest   []byte
	rib    RIB
	begun  bool
	change Change
	err    error
}

// ReadGone returns a reader of body.
func ReadGone(body []byte) *GoneReader {
	r := new(GoneReader)
	r.Reset(body)
	return r
}

// Reset makes r a reader of body.
func (r *GoneReader) Reset(body []byte) { *r = GoneReader{rest: body} }

// Next goes to the next route and reports whether there is one.
func (r *GoneReader) Next() bool {
	if len(r.rest) == 0 {
		return false
	}
	if !r.next() {
		r.rest, r.err = nil, errNotes
		return false
	}
	return true
}

// take takes n bytes off the body.
func (r *GoneReader) take(n int) ([]byte, bool) {
	if n > len(r.rest) {
		return nil, false
	}
	b := r.rest[:n:n]
	r.rest = r.rest[n:]
	return b, true
}

func (r *GoneReader) next() bool {
	what := r.rest[0]
	r.rest = r.rest[1:]
	if what&^byte(goneKnown) != 0 || !r.begun && what&(goneRIB|goneFamily) != goneRIB|goneFamily {
		return false
	}
	r.begun = true
	c := &r.change
	c.Found = true
	c.Before.TwoOctet = what&goneTwoOctet != 0
	if what&goneRIB != 0 {
		b, ok := r.take(36)
		if !ok || Kind(b[0]) < Swept || Kind(b[0]) > SessionGone || b[1] > 1 || bmp.RIB(b[30]) > bmp.LocRIB {
			return false
		}
		c.Kind = Kind(b[0])
		r.rib = RIB{
			Peer:  PeerID{IPv6: b[1] == 1, Addr: [16]byte(b[2:]), Distinguisher: [8]byte(b[18:])},
			BGPID: [4]byte(b[26:]), Kind: bmp.RIB(b[30]), Type: b[31], AS: binary.BigEndian.Uint32(b[32:]),
		}
		c.RIB = &r.rib
	}
	if what&goneFamily != 0 {
		b, ok := r.take(1)
		if !ok || int(b[0]&0x7f) >= len(bgp.Families) {
			return false
		}
		c.Family, c.AddPath = bgp.Families[b[0]&0x7f], b[0]&0x80 != 0
	}
	if what&goneRD != 0 {
		b, ok := r.take(8)
		if !ok {
			return false
		}
		c.RD = [8]byte(b)
	}
	if what&goneAttrs != 0 && !content16(&r.rest, &c.Before.Attrs) ||
		what&goneLabels != 0 && !content16(&r.rest, &c.Before.Labels) {
		return false
	}
	if what&goneFlags != 0 {
		b, ok := r.take(1)
		if !ok {
			return false
		}
		c.Before.Flags = b[0]
	}
	c.PathID = 0
	if c.AddPath {
		id, ok := uvarint(&r.rest)
		if !ok || id > 1<<32-1 {
			return false
		}
		c.PathID = uint32(id)
	}
	b, ok := r.take(1)
	if !ok || int(b[0]) > c.Family.Bits() {
		return false
	}
	bits := int(b[0])
	if b, ok = r.take((bits + 7) / 8); !ok {
		return false
	}
	var a [16]byte
	copy(a[:], b)
	if c.Family.AFI == bgp.AFIIPv4 {
		c.Prefix = netip.PrefixFrom(netip.AddrFrom4([4]byte(a[:4])), bits)
	} else {
		c.Prefix = netip.PrefixFrom(netip.AddrFrom16(a), bits)
	}
	return true
}

// Change returns the route that Next went to, as Tidy reported it: of the value
// before, the attributes, the labels, the flags and the width of AS numbers. It
// is valid until Next; its RIB must not be kept either, and belongs to no table.
func (r *GoneReader) Change() *Change { return &r.change }

// Err returns an error if the body was damaged.
func (r *GoneReader) Err() error { return r.err }
