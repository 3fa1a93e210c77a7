package pmacct

import (
	"encoding/binary"
	"net/netip"
	"strconv"
	"unicode/utf8"
)

const hexUpper = "0123456789ABCDEF"

// appendString appends s, valid UTF-8, as the inside of a JSON string. Only
// quotes, backslashes and control characters are escaped.
func appendString(dst, s []byte) []byte {
	for _, c := range s {
		switch {
		case c == '"' || c == '\\':
			dst = append(dst, '\\', c)
		case c >= ' ':
			dst = append(dst, c)
		case c == '\b':
			dst = append(dst, '\\', 'b')
		case c == '\f':
			dst = append(dst, '\\', 'f')
		case c == '\n':
			dst = append(dst, '\\', 'n')
		case c == '\r':
			dst = append(dst, '\\', 'r')
		case c == '\t':
			dst = append(dst, '\\', 't')
		default:
			dst = append(dst, '\\', 'u', '0', '0', hexUpper[c>>4], hexUpper[c&15])
		}
	}
	return dst
}

// validText reports whether pmacct's JSON library takes s for a string.
func validText(s []byte) bool { return utf8.Valid(s) }

// appendHex appends b in upper-case hexadecimal, bytes joined by dashes.
func appendHex(dst, b []byte) []byte {
	for i, c := range b {
		if i > 0 {
			dst = append(dst, '-')
		}
		dst = append(dst, hexUpper[c>>4], hexUpper[c&15])
	}
	return dst
}

// appendAddr appends a, without its zone, as inet_ntop writes it.
func appendAddr(dst []byte, a netip.Addr) []byte {
	if a.Is4() {
		b := a.As4()
		return appendIPv4(dst, b[:])
	}
	b := a.As16()
	return appendIPv6(dst, b[:])
}

// appendIPv4 appends the four bytes of b as an address.
func appendIPv4(dst, b []byte) []byte {
	_ = b[3]
	dst = append(appendByte(dst, b[0]), '.')
	dst = append(appendByte(dst, b[1]), '.')
	dst = append(appendByte(dst, b[2]), '.')
	return appendByte(dst, b[3])
}

func appendByte(dst []byte, c byte) []byte {
	switch {
	case c >= 100:
		return append(dst, '0'+c/100, '0'+c/10%10, '0'+c%10)
	case c >= 10:
		return append(dst, '0'+c/10, '0'+c%10)
	}
	return append(dst, '0'+c)
}

// appendIPv6 appends the sixteen bytes of b as inet_ntop of the C library
// writes them. It differs from netip in addresses of the form ::192.0.2.1.
func appendIPv6(dst, b []byte) []byte {
	_ = b[15]
	// The first of the longest runs of zero words.
	best, bestLen := -1, 1
	for i := 0; i < 8; i++ {
		if b[2*i]|b[2*i+1] != 0 {
			continue
		}
		n := i
		for n < 8 && b[2*n]|b[2*n+1] == 0 {
			n++
		}
		if n-i > bestLen {
			best, bestLen = i, n-i
		}
		i = n
	}
	for i := 0; i < 8; i++ {
		if i == best {
			dst = append(dst, ':')
			i += bestLen - 1
			if i == 7 {
				dst = append(dst, ':')
			}
			continue
		}
		if i > 0 {
			dst = append(dst, ':')
		}
		if i == 6 && best == 0 && (bestLen == 6 || bestLen == 5 && b[10]&b[11] == 0xff) {
			return appendIPv4(dst, b[12:])
		}
		dst = appendWord(dst, binary.BigEndian.Uint16(b[2*i:]))
	}
	return dst
}

func appendWord(dst []byte, w uint16) []byte {
	const hex = "0123456789abcdef"
	switch {
	case w >= 0x1000:
		return append(dst, hex[w>>12], hex[w>>8&15], hex[w>>4&15], hex[w&15])
	case w >= 0x100:
		return append(dst, hex[w>>8], hex[w>>4&15], hex[w&15])
	case w >= 0x10:
		return append(dst, hex[w>>4], hex[w&15])
	}
	return append(dst, hex[w])
}

// Types of route distinguishers, RFC 4364 section 4.2. The VRF id is pmacct's
// own and never came over a wire; it prints such bytes all the same.
const (
	rdAS    = 0
	rdIP    = 1
	rdAS4   = 2
	rdVRFID = 0x800
)

// appendRD appends the text of a route or peer distinguisher. The top four
// bits of the type are pmacct's, for where the distinguisher comes from.
func appendRD(dst []byte, rd [8]byte) []byte {
	switch t := binary.BigEndian.Uint16(rd[:]) & 0xfff; t {
	case rdAS:
		dst = append(dst, '0', ':')
		dst = strconv.AppendUint(dst, uint64(binary.BigEndian.Uint16(rd[2:])), 10)
		dst = append(dst, ':')
		return strconv.AppendUint(dst, uint64(binary.BigEndian.Uint32(rd[4:])), 10)
	case rdIP:
		dst = appendIPv4(append(dst, '1', ':'), rd[2:6])
		dst = append(dst, ':')
		return strconv.AppendUint(dst, uint64(binary.BigEndian.Uint16(rd[6:])), 10)
	case rdAS4:
		dst = append(dst, '2', ':')
		dst = strconv.AppendUint(dst, uint64(binary.BigEndian.Uint32(rd[2:])), 10)
		dst = append(dst, ':')
		return strconv.AppendUint(dst, uint64(binary.BigEndian.Uint16(rd[6:])), 10)
	case rdVRFID:
		dst = append(dst, "vrfid:"...)
		return strconv.AppendUint(dst, uint64(binary.LittleEndian.Uint32(rd[4:])), 10)
	}
	return append(dst, "unknown"...)
}
