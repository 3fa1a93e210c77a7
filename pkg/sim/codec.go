package sim

import (
	"encoding/binary"
	"fmt"

	"github.com/bmpha/bmpha/pkg/gate"
	"github.com/bmpha/bmpha/pkg/record"
)

// What a message or record is about.
const (
	kindOpen byte = iota
	kindClose
	kindPeerUp
	kindPeerDown
	kindRoute
	kindEndOfRIB
	kindGone // a message of the collector's own: routes that the router is silent about
)

// A change is what one record says. Versions number everything that a router
// ever says, so that each word of it can be followed.
type change struct {
	kind     byte
	dump     bool // part of a session's table dump
	partial  bool // an End-of-RIB of a dump of which something was left out
	withdraw bool
	peer     byte
	prefix   uint16
	version  uint32
}

const changeLen = 10

func appendChange(b []byte, c change) []byte {
	var f byte
	if c.dump {
		f |= 1
	}
	if c.withdraw {
		f |= 2
	}
	if c.partial {
		f |= 4
	}
	b = append(b, c.kind, f, c.peer)
	b = binary.BigEndian.AppendUint16(b, c.prefix)
	b = binary.BigEndian.AppendUint32(b, c.version)
	return append(b, c.check())
}

func parseChange(b []byte) (change, bool) {
	if len(b) != changeLen {
		return change{}, false
	}
	c := change{
		kind: b[0], dump: b[1]&1 != 0, withdraw: b[1]&2 != 0, partial: b[1]&4 != 0, peer: b[2],
		prefix: binary.BigEndian.Uint16(b[3:]), version: binary.BigEndian.Uint32(b[5:]),
	}
	return c, b[9] == c.check() && c.kind <= kindEndOfRIB
}

// check is no linear function of what is masked.
func (c *change) check() byte {
	return byte(c.version)*5 + byte(c.prefix)*3 + c.peer*7 + c.kind*11 + byte(c.version>>8)*13 + 0x5a
}

// message is appendMessage to memory of its own.
func (w *world) message(salt byte, cap uint32, cs []change) []byte {
	return appendMessage(w.bytes(6+len(cs)*changeLen), salt, cap, cs)
}

// A message on the wire is its kind, its peer, and changes. Those of a route are
// masked with the salt of the session and with what the Peer Up before it said,
// as the capabilities in a real Peer Up decide how the routes are read: whoever
// decodes with the state of another place reads garbage.
func appendMessage(b []byte, salt byte, cap uint32, cs []change) []byte {
	b = append(b, cs[0].kind, cs[0].peer)
	b = binary.BigEndian.AppendUint32(b, cap)
	mask := byte(0)
	if cs[0].kind == kindRoute || cs[0].kind == kindEndOfRIB {
		mask = salt ^ byte(cap) ^ byte(cap>>8)
		binary.BigEndian.PutUint32(b[len(b)-4:], 0)
	}
	for _, c := range cs {
		from := len(b)
		b = appendChange(b, c)
		for i := range b[from:] {
			b[from+i] ^= mask
		}
	}
	return b
}

// codec implements gate.Codec for the simulator's messages.
type codec struct {
	salt byte
	caps [8]uint32 // by peer, 0 while it is down

	stamped bool // by a built-in mistake, hashes cover the arrival
	at      int64
}

var _ gate.Codec = (*codec)(nil)

func (c *codec) put(b *record.Batch, o *record.Origin, index int, raw []byte) {
	var r record.Rec
	r.HeaderOff = uint32(len(b.Data))
	key, value := c.hashes(raw)
	if raw[0] == kindRoute {
		b.Data = record.AppendRouteHeader(b.Data, o, index, key, value)
	} else {
		b.Data = record.AppendStateHeader(b.Data, o, index, key, value)
	}
	r.HeaderLen = uint32(len(b.Data)) - r.HeaderOff
	r.ValueOff = uint32(len(b.Data))
	b.Data = append(b.Data, raw...)
	r.ValueLen = uint32(len(b.Data)) - r.ValueOff
	b.Recs = append(b.Recs, r)
}

// hashes are those of package pmacct: of what is said about, and of what is said.
func (c *codec) hashes(raw []byte) (of, said uint64) {
	ch, _ := parseChange(raw)
	k := ch.kind
	switch k {
	case kindRoute:
		said = 1 // withdrawn
		if !ch.withdraw {
			said = uint64(content(key(ch.peer, ch.prefix), ch.version)) + 1
		}
	case kindPeerUp:
		said = 1<<32 | uint64(c.caps[ch.peer])
	case kindPeerDown:
		k = kindPeerUp // one key for both
	}
	if c.stamped {
		said |= uint64(c.at) << 16
	}
	return keyHash(k, ch.peer, ch.prefix), said
}

func keyHash(kind, peer byte, prefix uint16) uint64 {
	return uint64(kind)<<32 | uint64(key(peer, prefix)) + 1
}

func (c *codec) Open(b *record.Batch, o *record.Origin, at int64) {
	var raw [changeLen]byte
	c.put(b, o, 0, appendChange(raw[:0], change{kind: kindOpen}))
}

func (c *codec) Close(b *record.Batch, o *record.Origin, at int64) {
	var raw [changeLen]byte
	c.put(b, o, 0, appendChange(raw[:0], change{kind: kindClose}))
}

func (c *codec) Message(b *record.Batch, o *record.Origin, at int64, msg []byte) error {
	c.at = at
	c.Observe(msg)
	mask := byte(0)
	if msg[0] == kindRoute || msg[0] == kindEndOfRIB {
		cap := c.caps[msg[1]]
		if cap == 0 {
			return fmt.Errorf("route of peer %d before its Peer Up", msg[1])
		}
		mask = c.salt ^ byte(cap) ^ byte(cap>>8)
	}
	var raw [changeLen]byte
	for i, off := 0, 6; off < len(msg); i, off = i+1, off+changeLen {
		for j := range raw {
			raw[j] = msg[off+j] ^ mask
		}
		if _, ok := parseChange(raw[:]); !ok {
			return fmt.Errorf("peer %d read with the state of another place", msg[1])
		}
		c.put(b, o, i, raw[:])
	}
	return nil
}

func (c *codec) Observe(msg []byte) {
	switch msg[0] {
	case kindPeerUp:
		c.caps[msg[1]] = binary.BigEndian.Uint32(msg[2:])
	case kindPeerDown:
		c.caps[msg[1]] = 0
	}
}

func (c *codec) Clone() gate.Codec { d := *c; return &d }
