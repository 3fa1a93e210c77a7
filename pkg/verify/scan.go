package verify

import (
	"bytes"
	"encoding/json"
)

// fields are the members of a record that tell what it is about, without quotes
// around strings. They are slices of the record, or of a copy where it escapes
// characters.
type fields struct {
	router, event, msg, log, writer []byte
	peer, rd, rdOrigin, pd          []byte
	peerType                        []byte
	isPost, isIn, isOut, isLoc      []byte
	afi, safi, prefix, pathID       []byte
}

// member returns where a member of that name is kept, nil where nobody asks.
func (f *fields) member(name []byte) *[]byte {
	switch string(name) {
	case "bmp_router":
		return &f.router
	case "event_type":
		return &f.event
	case "bmp_msg_type":
		return &f.msg
	case "log_type":
		return &f.log
	case "writer_id":
		return &f.writer
	case "peer_ip":
		return &f.peer
	case "rd":
		return &f.rd
	case "rd_origin":
		return &f.rdOrigin
	case "pd":
		return &f.pd
	case "peer_type":
		return &f.peerType
	case "is_post":
		return &f.isPost
	case "is_in":
		return &f.isIn
	case "is_out":
		return &f.isOut
	case "is_loc":
		return &f.isLoc
	case "afi":
		return &f.afi
	case "safi":
		return &f.safi
	case "ip_prefix":
		return &f.prefix
	case "as_path_id":
		return &f.pathID
	}
	return nil
}

// kind is the most telling of the three names of a record's type.
func (f *fields) kind() string {
	for _, name := range [...][]byte{f.log, f.msg, f.event} {
		if len(name) > 0 {
			return string(name)
		}
	}
	return "unknown"
}

func (f *fields) loc() bool { return string(f.isLoc) == "1" || string(f.peerType) == "3" }

// appendKey appends what identifies the route within its router.
func (f *fields) appendKey(dst []byte) []byte {
	for _, part := range [...][]byte{f.peer, f.rd, f.pd, f.isPost, f.isIn, f.isOut, f.isLoc, f.afi, f.safi, f.prefix, f.pathID} {
		dst = appendPart(dst, part)
	}
	return dst
}

// appendValue appends what is said about the route: all members of a record but
// those in which two collectors differ that say the same.
func (f *fields) appendValue(dst, value []byte) []byte {
	members(value, func(name, value []byte) {
		switch string(name) {
		case "seq", "timestamp", "timestamp_arrival", "writer_id", "bmp_router_port":
			return
		}
		dst = appendPart(appendPart(dst, name), value)
	})
	return dst
}

// scan reads a record. It is not ok if it is no JSON object; whether the object
// is sound is for a real decoder to find.
func scan(value []byte) (f fields, ok bool) {
	ok = members(value, func(name, value []byte) {
		if at := f.member(name); at != nil {
			*at = plain(value)
		}
	})
	return f, ok
}

// plain returns the inside of a JSON string and any other value as it is.
func plain(value []byte) []byte {
	if len(value) < 2 || value[0] != '"' {
		return value
	}
	if bytes.IndexByte(value, '\\') < 0 {
		return value[1 : len(value)-1]
	}
	var s string
	if json.Unmarshal(value, &s) != nil {
		return nil
	}
	return []byte(s)
}

// members calls f with the name, without quotes, and the value, as it stands, of
// each member of a JSON object, and returns whether it is one in its outline.
func members(b []byte, f func(name, value []byte)) bool {
	b = space(b)
	if len(b) == 0 || b[0] != '{' {
		return false
	}
	b = space(b[1:])
	if len(b) > 0 && b[0] == '}' {
		return len(space(b[1:])) == 0
	}
	for {
		n := stringEnd(b)
		if n == 0 {
			return false
		}
		name := b[1 : n-1]
		if b = space(b[n:]); len(b) == 0 || b[0] != ':' {
			return false
		}
		b = space(b[1:])
		if n = valueEnd(b); n == 0 {
			return false
		}
		f(name, b[:n])
		if b = space(b[n:]); len(b) == 0 {
			return false
		}
		if b[0] == '}' {
			return len(space(b[1:])) == 0
		}
		if b[0] != ',' {
			return false
		}
		b = space(b[1:])
	}
}

func space(b []byte) []byte {
	for len(b) > 0 && (b[0] == ' ' || b[0] == '\n' || b[0] == '\t' || b[0] == '\r') {
		b = b[1:]
	}
	return b
}

// stringEnd returns the length of the string that b begins with, 0 if it does
// not.
func stringEnd(b []byte) int {
	if len(b) == 0 || b[0] != '"' {
		return 0
	}
	for i := 1; i < len(b); i++ {
		switch b[i] {
		case '\\':
			i++
		case '"':
			return i + 1
		}
	}
	return 0
}

// valueEnd returns the length of the value that b begins with, 0 without one.
func valueEnd(b []byte) int {
	depth := 0
	for i := 0; i < len(b); {
		switch b[i] {
		case '"':
			n := stringEnd(b[i:])
			if n == 0 {
				return 0
			}
			i += n
			if depth == 0 {
				return i
			}
			continue
		case '{', '[':
			depth++
		case '}', ']':
			if depth == 0 {
				return i
			}
			if depth--; depth == 0 {
				return i + 1
			}
		case ',', ' ', '\n', '\t', '\r':
			if depth == 0 {
				return i
			}
		}
		i++
	}
	return 0
}
