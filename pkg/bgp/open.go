package bgp

import (
	"encoding/binary"
	"fmt"
)

// Capability codes.
const (
	CapMultiprotocol byte = 1  // RFC 4760
	CapFourOctetAS   byte = 65 // RFC 6793
	CapAddPath       byte = 69 // RFC 7911
)

// ASTrans stands in for an AS number that needs four octets, RFC 6793.
const ASTrans = 23456

// An Open is an OPEN message, RFC 4271 section 4.2.
type Open struct {
	Version  byte
	MyAS     uint16 // the two-octet field; see AS
	HoldTime uint16
	ID       [4]byte

	pdu      []byte
	params   int // offset of the optional parameters
	extended bool
}

// ParseOpen decodes pdu, one whole OPEN message with its header. The optional
// parameters, extended ones (RFC 9072) included, are checked to fit; their
// contents are read by Capabilities.
func ParseOpen(pdu []byte) (Open, error) {
	const section = "RFC 4271 section 4.2"
	t, err := Type(pdu)
	if err != nil {
		return Open{}, err
	}
	if t != TypeOpen {
		return Open{}, &Error{fmt.Sprintf("message type %d where an OPEN was expected", t), 18, section}
	}
	const fixed = HeaderLen + 10
	if len(pdu) < fixed {
		return Open{}, &Error{"message ends within the fixed part of OPEN", len(pdu), section}
	}
	o := Open{
		Version:  pdu[19],
		MyAS:     binary.BigEndian.Uint16(pdu[20:]),
		HoldTime: binary.BigEndian.Uint16(pdu[22:]),
		ID:       [4]byte(pdu[24:28]),
		params:   fixed,
	}
	n := int(pdu[28])
	if n != 0 && len(pdu) >= fixed+3 && pdu[29] == 255 {
		o.extended = true
		o.params = fixed + 3
		n = int(binary.BigEndian.Uint16(pdu[30:]))
	}
	if n > len(pdu)-o.params {
		return Open{}, &Error{fmt.Sprintf("%d bytes of optional parameters where %d are left", n, len(pdu)-o.params), 28, section}
	}
	o.pdu = pdu[:o.params+n]
	return o, nil
}

// ParseStrictOpen is ParseOpen with what pmacct makes sure of besides: the version,
// and that the AS number (as, of four octets if the capability says so) is one.
func ParseStrictOpen(pdu []byte) (open Open, as uint32, fourOctet bool, err error) {
	open, err = ParseOpen(pdu)
	if err != nil {
		return open, 0, false, err
	}
	if open.Version != 4 {
		return open, 0, false, &Error{What: "BGP version is not 4", Offset: 19, Section: "RFC 4271 section 4.2"}
	}
	var as4 uint32
	caps := open.Capabilities()
	for caps.Next() {
		if caps.Code() != CapFourOctetAS {
			continue
		}
		if len(caps.Value()) != 4 {
			return open, 0, false, &Error{What: "four-octet AS capability is not 4 bytes", Offset: HeaderLen + 10, Section: "RFC 6793 section 3"}
		}
		fourOctet = true
		as4 = binary.BigEndian.Uint32(caps.Value())
	}
	if err := caps.Err(); err != nil {
		return open, 0, false, err
	}
	as = uint32(open.MyAS)
	switch {
	case as == ASTrans && as4 != 0 && as4 != ASTrans:
		as = as4
	case as == ASTrans, as4 != 0 && as4 != as:
		return open, 0, false, &Error{What: "AS numbers of OPEN and capability do not go together", Offset: 20, Section: "RFC 6793 section 4.2"}
	}
	return open, as, fourOctet, nil
}

// Capabilities returns a walk over the capabilities of o.
func (o *Open) Capabilities() Capabilities {
	return Capabilities{pdu: o.pdu, off: o.params, extended: o.extended}
}

// AS returns the AS number of the speaker: that of the four-octet capability
// if there is one, else the field of the message.
func (o *Open) AS() uint32 {
	if as, ok := o.FourOctetAS(); ok {
		return as
	}
	return uint32(o.MyAS)
}

// FourOctetAS returns the AS number of the four-octet AS capability and
// whether o has a well-formed one. The last one counts.
func (o *Open) FourOctetAS() (as uint32, ok bool) {
	for c := o.Capabilities(); c.Next(); {
		if c.Code() == CapFourOctetAS && len(c.Value()) == 4 {
			as, ok = binary.BigEndian.Uint32(c.Value()), true
		}
	}
	return as, ok
}

// Values of the Send/Receive field of the ADD-PATH capability, RFC 7911.
const (
	AddPathReceive byte = 1
	AddPathSend    byte = 2
	AddPathBoth    byte = 3
)

// AddPath returns the Send/Receive field of the ADD-PATH capability for f, 0
// if o does not have it. The last one counts.
func (o *Open) AddPath(f Family) (mode byte) {
	for c := o.Capabilities(); c.Next(); {
		if c.Code() != CapAddPath {
			continue
		}
		for v := c.Value(); len(v) >= 4; v = v[4:] {
			if binary.BigEndian.Uint16(v) == f.AFI && v[2] == f.SAFI {
				mode = v[3]
			}
		}
	}
	return mode
}

// Multiprotocol reports whether o announces f by the multiprotocol capability.
func (o *Open) Multiprotocol(f Family) bool {
	for c := o.Capabilities(); c.Next(); {
		v := c.Value()
		if c.Code() == CapMultiprotocol && len(v) == 4 && binary.BigEndian.Uint16(v) == f.AFI && v[3] == f.SAFI {
			return true
		}
	}
	return false
}

// Capabilities walks the capabilities (RFC 5492) of an OPEN message.
type Capabilities struct {
	pdu      []byte
	off      int
	end      int // of the capabilities parameter that off is in
	extended bool
	code     byte
	value    []byte
	err      *Error
}

// Next advances to the next capability and reports whether there is one.
func (c *Capabilities) Next() bool {
	const section = "RFC 5492 section 4"
	if c.err != nil {
		return false
	}
	for c.off >= c.end { // the next parameter
		head := 2
		if c.extended {
			head = 3
		}
		if c.off >= len(c.pdu) {
			return false
		}
		if len(c.pdu)-c.off < head {
			c.err = &Error{"OPEN ends within an optional parameter", c.off, section}
			return false
		}
		typ, n := c.pdu[c.off], int(c.pdu[c.off+1])
		if c.extended {
			n = int(binary.BigEndian.Uint16(c.pdu[c.off+1:]))
		}
		if n > len(c.pdu)-c.off-head {
			c.err = &Error{fmt.Sprintf("optional parameter of %d bytes where %d are left", n, len(c.pdu)-c.off-head), c.off + 1, section}
			return false
		}
		c.off += head
		if typ != 2 { // not capabilities
			c.off += n
			continue
		}
		c.end = c.off + n
	}
	if c.end-c.off < 2 {
		c.err = &Error{"parameter ends within a capability", c.off, section}
		return false
	}
	n := int(c.pdu[c.off+1])
	if n > c.end-c.off-2 {
		c.err = &Error{fmt.Sprintf("capability of %d bytes where %d are left", n, c.end-c.off-2), c.off + 1, section}
		return false
	}
	c.code, c.value = c.pdu[c.off], c.pdu[c.off+2:c.off+2+n]
	c.off += 2 + n
	return true
}

// Code returns the code of the current capability.
func (c *Capabilities) Code() byte { return c.code }

// Value returns the value of the current capability.
func (c *Capabilities) Value() []byte { return c.value }

// Err returns what ended the walk early, or nil.
func (c *Capabilities) Err() error {
	if c.err == nil {
		return nil
	}
	return c.err
}
