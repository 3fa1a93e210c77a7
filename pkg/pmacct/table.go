package pmacct

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strconv"
	"sync"

	"github.com/bmpha/bmpha/pkg/bgp"
	"github.com/bmpha/bmpha/pkg/bmp"
	"github.com/bmpha/bmpha/pkg/record"
	"github.com/bmpha/bmpha/pkg/table"
)

// stored is the text of attributes that a table has, and what it is the text
// of: routes with the same ones come one after the other.
type stored struct {
	valid bool
	two   bool
	attrs []byte
	text  []byte
	read  attributes
}

// storedText returns the attributes of v as text, valid until the next call.
func (s *scratch) storedText(v *table.Value) []byte {
	t := &s.stored
	if t.valid && t.two == v.TwoOctet && bytes.Equal(t.attrs, v.Attrs) {
		return t.text
	}
	t.valid, t.two = true, v.TwoOctet
	t.attrs = append(t.attrs[:0], v.Attrs...)
	t.text = s.appendStored(t.text[:0], v)
	return t.text
}

// appendStored appends the attributes of v.
func (s *scratch) appendStored(d []byte, v *table.Value) []byte {
	a := &s.stored.read
	for b := v.Attrs; len(b) >= 4; {
		n := int(binary.BigEndian.Uint16(b[2:]))
		if n > len(b)-4 {
			break
		}
		t := bgp.Attr{Flags: b[0], Type: b[1], Value: b[4 : 4+n]}
		b = b[4+n:]
		// What is wrong with an attribute kept its route out of the table.
		if t.Type != bgp.AttrMPReach {
			_, _ = a.read(&t)
		} else if n >= 4 {
			a.setNextHop(t.Value[4:])
		}
	}
	d = s.appendAttributes(d, !v.TwoOctet, a)
	*a = attributes{} // it points into v
	return d
}

// A ribState is what the routes of a table have in common that are written one
// after the other.
type ribState struct {
	peer   table.PeerID
	bgpID  [4]byte
	typ    byte
	flags  byte
	as     uint32
	family bgp.Family
}

// A tableWriter writes records of routes of a table.
type tableWriter struct {
	routeWriter
	state ribState
	begun bool
	known peer // of state
}

// write writes a record of r, whose value is v. at is its time.
func (w *tableWriter) write(kind, msgType string, at int64, r *table.Route, v *table.Value, attrs []byte) {
	state := ribState{r.RIB.Peer, r.RIB.BGPID, r.RIB.Type, v.Flags, r.RIB.AS, r.Family}
	if !w.begun || state != w.state {
		w.begun, w.state = true, state
		w.per = bmp.PerPeer{
			Type: r.RIB.Type, Flags: v.Flags, Distinguisher: r.RIB.Peer.Distinguisher, RawAddress: r.RIB.Peer.Addr,
			AS: r.RIB.AS, BGPID: r.RIB.BGPID, Sec: uint32(at / 1e6), Usec: uint32(at % 1e6),
		}
		w.s.tail = appendRouteTail(w.s.tail[:0], &w.per, r.RIB.AS, msgType)
		w.known.tail = w.s.tail
		w.peer = &w.known
		key := newPeerKey(&w.per)
		w.begin(&key, at)
		w.setFamily(r.Family)
	}
	var a [16]byte
	p := prefixOf(r, &a)
	w.record(kind, attrs, r.Family, &p, r.AddPath, v.Labels)
}

// appendRouteTail appends what ends the record of a route of p, whose OPEN said
// as.
func appendRouteTail(dst []byte, p *bmp.PerPeer, as uint32, msgType string) []byte {
	dst = appendPeer(dst, p, as)
	dst = append(dst, `, "peer_tcp_port": 0, "bmp_msg_type": "`...)
	dst = append(dst, msgType...)
	return append(dst, '"')
}

// withdrawnLabel is what withdrawals have in place of a label, RFC 8277 section 2.4.
var withdrawnLabel = []byte{0x80, 0, 0}

// Gone appends the records of routes that are gone without a message that
// withdrew them; body is made by table.Gone. They are delete records with
// Options.RIB, withdrawals without attributes otherwise. at is the time of it, in
// microseconds since the Unix epoch. It can come after a Termination message,
// too. An error says that body is damaged; the records made before stay.
func (s *Session) Gone(b *record.Batch, o *record.Origin, at int64, body []byte) error {
	s.begin()
	kind, msgType := "withdraw", "route_monitor"
	if s.enc.rib {
		kind, msgType = "delete", "internal"
	}
	w := &s.rows
	w.begun = false
	w.s, w.b, w.o = s, b, o
	defer func() { w.b, w.o = nil, nil }()
	routes := &s.gone
	routes.Reset(body)
	for routes.Next() {
		c := routes.Change()
		var attrs []byte
		if s.enc.rib {
			attrs = s.storedText(&c.Before)
		} else if len(c.Before.Labels) == 0 {
			c.Before.Labels = withdrawnLabel
		}
		w.write(kind, msgType, at, &c.Route, &c.Before, attrs)
	}
	err := routes.Err()
	routes.Reset(nil)
	if err != nil {
		s.enc.counters.malformed.Add(1)
		return fmt.Errorf("routes that are gone: %w", err)
	}
	return nil
}

var scratches = sync.Pool{New: func() any { return new(scratch) }}

// AppendRoute appends the members of a JSON object that tell of a route, as they
// stand in records, without braces: afi, safi, ip_prefix, and as far as there are
// any as_path_id, its attributes from bgp_nexthop to otc, rd and rd_origin,
// mpls_label. Without attributes are routes that were withdrawn, and those of a
// table that keeps hashes only. The peer distinguisher is not of the route.
func AppendRoute(dst []byte, r *table.Route) []byte {
	dst = appendFamily(dst, r.Family)
	s := scratches.Get().(*scratch)
	defer scratches.Put(s)
	s.attrs = s.attrs[:0]
	if !r.Withdrawn && len(r.Attrs) != 0 {
		s.attrs = s.appendStored(s.attrs, &r.Value)
	}
	var a [16]byte
	p := prefixOf(r, &a)
	return appendRoute(dst, r.Family, &p, r.AddPath, s.attrs, r.Labels, true)
}

// prefixOf returns the route of r as it is on the wire, its address in buf.
func prefixOf(r *table.Route, buf *[16]byte) bgp.Prefix {
	p := bgp.Prefix{PathID: r.PathID, RD: r.RD, Bits: r.Prefix.Bits()}
	if r.Prefix.Addr().Is4() {
		*(*[4]byte)(buf[:]) = r.Prefix.Addr().As4()
	} else {
		*buf = r.Prefix.Addr().As16()
	}
	p.Bytes = buf[:(p.Bits+7)/8]
	return p
}

// A Dump writes the records of one dump of the table of one router: Init, then
// Route for each route and Event for each message that is to be told again, then
// Close. All of them have one number. It is not safe for concurrent use, and
// independent of the router's Session.
type Dump struct {
	s      Session
	seq    uint64
	slot   []byte // its time
	period int64
}

// Dump begins a dump that belongs to the time slot, in seconds since the Unix
// epoch, and comes every period seconds. It copies id.Key.
func (e *Encoder) Dump(id Identity, slot, period int64) *Dump {
	d := &Dump{s: *e.Session(id), seq: e.number(), period: period}
	d.slot = e.clock.appendSeconds(nil, slot)
	d.s.dump = d
	d.s.rows.s = &d.s
	return d
}

// Init appends the dump_init record. o is read only if the encoder writes
// headers; so in the other methods. The headers of a dump name no routes: its
// records are no news.
func (d *Dump) Init(b *record.Batch, o *record.Origin) { d.mark(b, o, "dump_init") }

// Close appends the dump_close record.
func (d *Dump) Close(b *record.Batch, o *record.Origin) { d.mark(b, o, "dump_close") }

func (d *Dump) mark(b *record.Batch, o *record.Origin, event string) {
	s := &d.s
	s.begin()
	off := s.start(b)
	v := append(b.Data, `{"timestamp": "`...)
	v = append(v, d.slot...)
	v = append(v, '"')
	v = append(v, s.router...)
	v = append(v, `, "event_type": "`...)
	v = append(v, event...)
	v = append(v, '"')
	if event == "dump_init" {
		v = append(v, `, "dump_period": `...)
		v = strconv.AppendInt(v, d.period, 10)
	}
	v = append(v, `, "seq": `...)
	b.Data = s.seq(v)
	s.finish(b, o, off)
}

// Route appends the record of a route, unless it is only kept although it was
// withdrawn.
func (d *Dump) Route(b *record.Batch, o *record.Origin, r *table.Route) {
	if r.Withdrawn {
		return
	}
	d.s.keyOff = -1
	w := &d.s.rows
	w.b, w.o = b, o
	w.write("", "route_monitor", 0, r, &r.Value, d.s.storedText(&r.Value))
	w.b, w.o = nil, nil
}

// Event appends the records of an Initiation, Termination, Peer Up, Peer Down
// or Statistics Report message. Others make none. Errors are as of
// Session.Message.
func (d *Dump) Event(b *record.Batch, o *record.Origin, msg []byte) error {
	if len(msg) < bmp.HeaderLen || bmp.Type(msg) == bmp.TypeRouteMonitoring {
		return nil
	}
	err := d.s.Message(b, o, 0, msg)
	d.s.closed = false     // by a Termination
	d.s.rows.begun = false // the message took the memory
	return err
}
