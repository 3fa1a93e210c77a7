// Package pmacct turns BMP messages into the JSON records that pmacct's BMP
// daemon writes for them: dialect 1.8, without a table of routes ("skip-RIB"),
// so that every announced or withdrawn prefix, every counter and every event
// is one record, byte for byte as pmacct would have written it. With Options.RIB
// they are those of a pmacct that keeps a table; what the table knew comes with
// the messages, as notes of package table, so that a Session keeps no routes
// either way.
//
// An Encoder belongs to a process and numbers the records; a Session is what
// must be known of one BMP session to decode its next message: which peers are
// up, and how their AS numbers and path identifiers are encoded. A Session can
// be cloned, and can be moved forward over messages without encoding them, so
// that a standby need not encode what it will not send.
//
// JSON is appended to a record.Batch by hand. In steady state nothing is
// allocated per message; Peer Up messages and malformed ones allocate. Each
// record can carry bmpha's binary header, and those that are not of a dump its two
// hashes; see hash.go for what they are made of.
//
// Where pmacct's own decoding is peculiar, this package follows it: consumers
// depend on the records, not on what they should have been. It does not follow
// where pmacct reads beyond a field or a message; there the record in question
// is left out and the error says where. Nothing in a message makes the package
// panic, and every record is valid JSON in valid UTF-8.
package pmacct

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"strconv"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"github.com/bmpha/bmpha/pkg/bgp"
	"github.com/bmpha/bmpha/pkg/bmp"
	"github.com/bmpha/bmpha/pkg/record"
)

// Dialect18 is the only dialect so far: pmacct 1.8.
const Dialect18 = "1.8"

// maxMessage is the length in bytes above which pmacct reads a BMP message and
// throws it away.
const maxMessage = 100000

// maxPeers bounds what one router can make a session remember.
const maxPeers = 100000

// Options say how records look.
type Options struct {
	Dialect    string         // "" means Dialect18
	Timestamps Timestamps     // the form of all timestamps
	WriterID   string         // value of writer_id; "" leaves the key out
	Header     bool           // give each record bmpha's header
	Zone       *time.Location // for Default and RFC3339; nil means time.Local

	// RIB makes records as a pmacct that keeps a table does: withdrawals have
	// the attributes of what was withdrawn, those of unknown routes make no
	// record, and routes that are gone without a message make delete records.
	RIB bool
}

// An Encoder numbers the records of a process and holds what all its sessions
// share. It is safe for concurrent use.
type Encoder struct {
	clock    clockStyle
	tail     string // what closes a record: writer_id, if any, and the brace
	header   bool
	rib      bool
	seq      atomic.Uint64 // of the next record
	counters counters
}

// NewEncoder returns an encoder whose first record will have the number 0.
func NewEncoder(o Options) (*Encoder, error) {
	if o.Dialect != "" && o.Dialect != Dialect18 {
		return nil, fmt.Errorf("pmacct dialect %q, want %q", o.Dialect, Dialect18)
	}
	style, err := newClockStyle(o.Timestamps, o.Zone)
	if err != nil {
		return nil, err
	}
	if !utf8.ValidString(o.WriterID) {
		return nil, fmt.Errorf("writer id %q is not valid UTF-8", o.WriterID)
	}
	e := &Encoder{clock: style, tail: "}", header: o.Header, rib: o.RIB}
	if o.WriterID != "" {
		e.tail = string(append(appendString([]byte(`, "writer_id": "`), []byte(o.WriterID)), `"}`...))
	}
	return e, nil
}

// Identity is who a router is.
type Identity struct {
	Router string     // identity across collectors; goes into the key hash
	Addr   netip.Addr // source address of the session
	Port   uint16     // source port of the session
	Topic  uint32     // the sink's handle of the topic of all records
	Key    []byte     // Kafka key of all records; nil for none
}

// A Session is the decoding state of one BMP session at one place of its
// stream. It is not safe for concurrent use.
type Session struct {
	enc    *Encoder
	topic  uint32
	key    []byte
	router []byte // `, "bmp_router": …, "bmp_router_port": …`
	hashed []byte // beginning of what the key hash covers: the router
	peers  map[peerKey]*peer
	closed bool  // nothing more is read
	over   bool  // log_close is written
	dump   *Dump // of which this is the state; nil for a session

	// What follows holds only while a message is encoded; the memory is kept.
	event, arrival clock
	keyOff         int // of key in the batch, -1 if it is not there yet
	index          int // of the next record in the message
	scratch
}

// A peerKey names a BGP peer within a session the way pmacct does: by its
// address and, for RD and Loc-RIB instances, its distinguisher.
type peerKey struct {
	addr [16]byte
	rd   [8]byte
	v6   bool
}

func newPeerKey(p *bmp.PerPeer) peerKey {
	k := peerKey{rd: distinguisher(p), v6: p.IPv6()}
	if k.v6 {
		k.addr = p.RawAddress
	} else {
		copy(k.addr[12:], p.RawAddress[12:])
	}
	return k
}

// distinguisher returns the peer distinguisher of p if its type has one.
func distinguisher(p *bmp.PerPeer) [8]byte {
	if p.Type != bmp.PeerRD && p.Type != bmp.PeerLocRIB {
		return [8]byte{}
	}
	return p.Distinguisher
}

// A peer is what Peer Up said about a BGP session. It never changes: a clone
// shares it.
type peer struct {
	fourOctet bool                    // AS_PATH has four-octet AS numbers
	addPath   [len(bgp.Families)]bool // routes have path identifiers, by family
	tail      []byte                  // `, "peer_ip": … "bmp_msg_type": "route_monitor"`
}

// Session returns the state at the beginning of a BMP session. It copies
// id.Key.
func (e *Encoder) Session(id Identity) *Session {
	s := &Session{
		enc:    e,
		topic:  id.Topic,
		key:    append([]byte(nil), id.Key...),
		hashed: hashRouter(id.Router),
		peers:  make(map[peerKey]*peer),
	}
	s.router = append(s.router, `, "bmp_router": "`...)
	s.router = appendAddr(s.router, id.Addr.Unmap().WithZone(""))
	s.router = append(s.router, `", "bmp_router_port": `...)
	s.router = strconv.AppendUint(s.router, uint64(id.Port), 10)
	return s
}

// Clone returns an independent copy of s.
func (s *Session) Clone() *Session {
	return &Session{
		enc: s.enc, topic: s.topic, key: s.key, router: s.router, hashed: s.hashed,
		peers: maps.Clone(s.peers), closed: s.closed, over: s.over, dump: s.dump,
	}
}

// Peers returns the number of BGP peers that are up.
func (s *Session) Peers() int { return len(s.peers) }

// Open appends the log_init record. at is the time of arrival in microseconds
// since the Unix epoch. o is read only if the encoder writes headers.
func (s *Session) Open(b *record.Batch, o *record.Origin, at int64) {
	s.begin()
	s.logEvent(b, o, at, "log_init")
}

// Close appends the log_close record, unless a Termination message has closed
// the session already. With Options.RIB it always comes here, behind the delete
// records that Gone makes of the session's routes.
func (s *Session) Close(b *record.Batch, o *record.Origin, at int64) {
	if s.over {
		return
	}
	s.closed, s.over = true, true
	s.begin()
	s.logEvent(b, o, at, "log_close")
}

// Errors that Message returns, inside an *Error, for messages that were whole
// but could not be used.
var (
	// ErrNoPeerUp means that the message is about a peer that is not up, so
	// that nobody knows how its routes are encoded.
	ErrNoPeerUp = errors.New("no Peer Up for this peer")
	// ErrLocRIBAddress means that a Loc-RIB peer has an address.
	ErrLocRIBAddress = errors.New("Loc-RIB peer with an address (RFC 9069 section 4.1)")
	// ErrLabelledAddPath means that labelled or VPN routes have path
	// identifiers, which pmacct cannot read: it leaves these routes out.
	ErrLabelledAddPath = errors.New("labelled routes with path identifiers")
	// ErrTooManyPeers means that a router has more BGP peers up than anybody
	// has; what it says about further ones is not decoded.
	ErrTooManyPeers = fmt.Errorf("more than %d peers up", maxPeers)
	// ErrTooLong means that the message is longer than pmacct takes.
	ErrTooLong = fmt.Errorf("message longer than %d bytes", maxMessage)
)

// An Error says what in a BMP message could not be turned into records.
type Error struct {
	Type   byte  // the message's type
	Offset int   // in bytes from the start of the message
	Err    error // a *bmp.Error, a *bgp.Error (whose offset counts from the start of the BGP message), or one of the above
}

func (e *Error) Error() string {
	return fmt.Sprintf("%s: byte %d: %v", typeName(e.Type), e.Offset, e.Err)
}

// Unwrap returns e.Err.
func (e *Error) Unwrap() error { return e.Err }

func typeName(t byte) string {
	names := [...]string{
		"Route Monitoring", "Statistics Report", "Peer Down Notification", "Peer Up Notification",
		"Initiation", "Termination", "Route Mirroring",
	}
	if int(t) < len(names) {
		return names[t]
	}
	return "message type " + strconv.Itoa(int(t))
}

// The common errors are made once: a router that talks about a peer that is
// not up may do so with each of many messages.
var (
	errNoPeerUp        = &Error{bmp.TypeRouteMonitoring, bmp.HeaderLen, ErrNoPeerUp}
	errLabelledAddPath = &Error{bmp.TypeRouteMonitoring, bmp.HeaderLen + bmp.PerPeerLen, ErrLabelledAddPath}
	errTooLong         = &Error{bmp.TypeRouteMonitoring, 1, ErrTooLong}
)

// malformed wraps an error of the decoders. base is the position in msg of the
// BGP message that a *bgp.Error counts from.
func (s *Session) malformed(msg []byte, base int, err error) error {
	s.enc.counters.malformed.Add(1)
	e := &Error{Type: bmp.Type(msg), Offset: base, Err: err}
	var be *bmp.Error
	var ge *bgp.Error
	switch {
	case errors.As(err, &be):
		e.Offset = be.Offset
	case errors.As(err, &ge):
		e.Offset = base + ge.Offset
	}
	return e
}

// Message appends the records of msg, one whole BMP message as delimited by
// bmp.Next, and moves s past it. at is the time of arrival in microseconds
// since the Unix epoch. o is read only if the encoder writes headers. b keeps
// no reference to msg.
//
// An error is an *Error and says what in the message could not be decoded. The
// records made before stay, and the session goes on. Messages after a
// Termination are ignored.
func (s *Session) Message(b *record.Batch, o *record.Origin, at int64, msg []byte) error {
	return s.Noted(b, o, at, msg, nil)
}

// Noted is Message for a message with notes of the router's table, as
// table.SplitNotes returns them. Announcements of which they say that they are
// known make no record. With Options.RIB, neither do withdrawals of which they
// say that the route was unknown, and those of known routes get what it was;
// where the notes say nothing a withdrawal is written without attributes.
func (s *Session) Noted(b *record.Batch, o *record.Origin, at int64, msg, notes []byte) error {
	if s.closed {
		return nil
	}
	if len(msg) < bmp.HeaderLen {
		s.enc.counters.malformed.Add(1)
		return &Error{Offset: len(msg), Err: &bmp.Error{What: "message ends within its header", Offset: len(msg), Section: "RFC 7854 section 4.1"}}
	}
	if len(msg) > maxMessage {
		s.enc.counters.tooLong.Add(1)
		if t := bmp.Type(msg); t != bmp.TypeRouteMonitoring {
			return &Error{t, 1, ErrTooLong}
		}
		return errTooLong
	}
	s.begin()
	switch bmp.Type(msg) {
	case bmp.TypeRouteMonitoring:
		return s.routeMonitoring(b, o, at, msg, notes)
	case bmp.TypeStatisticsReport:
		return s.stats(b, o, at, msg)
	case bmp.TypePeerDown:
		return s.peerDown(b, o, at, msg)
	case bmp.TypePeerUp:
		return s.peerUp(b, o, at, msg)
	case bmp.TypeInitiation:
		return s.info(b, o, at, msg, "init", bmp.ParseInitiation(msg), initInfo[:])
	case bmp.TypeTermination:
		err := s.info(b, o, at, msg, "term", bmp.ParseTermination(msg), termInfo[:])
		s.closed = true
		if !s.enc.rib && s.dump == nil {
			s.over = true
			s.logEvent(b, o, at, "log_close")
		}
		return err
	case bmp.TypeRouteMirroring:
		s.enc.counters.mirroring.Add(1)
	default:
		s.enc.counters.unknownMessages.Add(1)
	}
	return nil
}

// Observe moves s past msg without making records of it. For the messages that
// there are many of it looks at the type only.
func (s *Session) Observe(msg []byte) {
	if s.closed || len(msg) < bmp.HeaderLen || len(msg) > maxMessage {
		return
	}
	switch bmp.Type(msg) {
	case bmp.TypePeerUp:
		if u, err := bmp.ParsePeerUp(msg); err == nil {
			_, _ = s.learn(msg, &u)
		}
	case bmp.TypePeerDown:
		if d, err := bmp.ParsePeerDown(msg); err == nil && usable(&d.Peer) && downComplete(&d) {
			delete(s.peers, newPeerKey(&d.Peer))
		}
	case bmp.TypeTermination:
		s.closed, s.over = true, !s.enc.rib
	}
}

// begin prepares s for the records of one message.
func (s *Session) begin() {
	s.keyOff = -1
	s.index = 0
}

// start begins a record in b and returns where its value starts.
func (s *Session) start(b *record.Batch) int {
	if s.keyOff < 0 {
		s.keyOff = len(b.Data)
		b.Data = append(b.Data, s.key...)
	}
	return len(b.Data)
}

// seq appends the number of the next record.
func (s *Session) seq(dst []byte) []byte {
	if s.dump != nil {
		return strconv.AppendUint(dst, s.dump.seq, 10)
	}
	return strconv.AppendUint(dst, s.enc.number(), 10)
}

// number takes the number of the next record.
func (e *Encoder) number() uint64 { return (e.seq.Add(1) - 1) & (1<<63 - 1) }

// finish ends the value that began at off, and with it a record without hashes:
// those of dumps are no news.
func (s *Session) finish(b *record.Batch, o *record.Origin, off int) {
	b.Data = append(b.Data, s.enc.tail...)
	end := len(b.Data)
	if s.enc.header {
		b.Data = record.AppendHeader(b.Data, o, s.index)
	}
	s.add(b, off, end)
}

// finishRoute ends the value that began at off, and with it a route record.
func (s *Session) finishRoute(b *record.Batch, o *record.Origin, off int, key, value uint64) {
	b.Data = append(b.Data, s.enc.tail...)
	end := len(b.Data)
	if s.enc.header {
		b.Data = record.AppendRouteHeader(b.Data, o, s.index, key, value)
	}
	s.add(b, off, end)
}

// finishState ends the value that began at off, and with it a record that is not
// about a route. Without hashes where nobody asks for them.
func (s *Session) finishState(b *record.Batch, o *record.Origin, off int, key, value uint64) {
	if !s.hashes() {
		s.finish(b, o, off)
		return
	}
	b.Data = append(b.Data, s.enc.tail...)
	end := len(b.Data)
	b.Data = record.AppendStateHeader(b.Data, o, s.index, key, value)
	s.add(b, off, end)
}

// hashes reports whether records get hashes.
func (s *Session) hashes() bool { return s.enc.header && s.dump == nil }

// add enters a record whose value is b.Data[off:end] and whose header is the
// rest.
func (s *Session) add(b *record.Batch, off, end int) {
	b.Recs = append(b.Recs, record.Rec{
		Topic:     s.topic,
		KeyOff:    uint32(s.keyOff),
		KeyLen:    uint32(len(s.key)),
		HeaderOff: uint32(end),
		HeaderLen: uint32(len(b.Data) - end),
		ValueOff:  uint32(off),
		ValueLen:  uint32(end - off),
	})
	s.index++
}
