package intake

import (
	"bytes"
	"net/netip"
	"unsafe"
)

// A Kind is what a record of pmacct's is about, as far as it matters for passing
// it on.
type Kind uint8

// The kinds.
const (
	Other  Kind = iota
	Opened      // a router's session has begun: event_type log_init
	Closed      // it has ended: log_close
	Dump        // part of a table dump: dump_init, dump, dump_close
)

func (k Kind) String() string { return [...]string{"other", "opened", "closed", "dump"}[k&3] }

// Identify returns the router that a value of pmacct's is about: bmp_router of the
// BMP daemons, peer_ip_src of the BGP daemons. It knows JSON, Avro as JSON, and
// Avro as binary (BMP only) with or without a registry's framing. It reads no more
// than it needs and does not judge the rest; ok is false when in doubt.
// It allocates nothing.
func Identify(value []byte) (router netip.Addr, kind Kind, ok bool) {
	if len(value) > 0 && value[0] == '{' {
		router, kind, ok = identifyJSON(value)
	} else {
		router, kind, ok = identifyAvro(value)
	}
	if !ok {
		return netip.Addr{}, Other, false
	}
	return router, kind, true
}

// identifyJSON looks at the keys of the outermost object, in any order, up to where
// router and kind are known.
func identifyJSON(b []byte) (router netip.Addr, kind Kind, ok bool) {
	var bmp, bgp netip.Addr
	event := false
	i := space(b, 1)
	for i < len(b) && b[i] == '"' {
		key, at := quoted(b, i+1)
		if at < 0 {
			return netip.Addr{}, Other, false
		}
		if i = space(b, at); i >= len(b) || b[i] != ':' {
			return netip.Addr{}, Other, false
		}
		if i = space(b, i+1); i >= len(b) {
			return netip.Addr{}, Other, false
		}
		if b[i] == '"' {
			text, at := quoted(b, i+1)
			if at < 0 {
				return netip.Addr{}, Other, false
			}
			i = at
			switch {
			case len(key) == 10 && string(key) == "bmp_router":
				if bmp.IsValid() {
					return netip.Addr{}, Other, false
				}
				if bmp, ok = address(text); !ok {
					return netip.Addr{}, Other, false
				}
			case len(key) == 10 && string(key) == "event_type":
				if event {
					return netip.Addr{}, Other, false
				}
				kind, _ = eventKind(text)
				event = true
			case len(key) == 11 && string(key) == "peer_ip_src":
				if bgp.IsValid() {
					return netip.Addr{}, Other, false
				}
				if bgp, ok = address(text); !ok {
					return netip.Addr{}, Other, false
				}
			}
			if event && bmp.IsValid() {
				return bmp, kind, true
			}
		} else if i = skip(b, i); i < 0 {
			return netip.Addr{}, Other, false
		}
		i = space(b, i)
		if i < len(b) && b[i] == ',' {
			i = space(b, i+1)
			continue
		}
		if i >= len(b) || b[i] != '}' {
			return netip.Addr{}, Other, false
		}
		if bmp.IsValid() {
			return bmp, kind, true
		}
		return bgp, kind, bgp.IsValid()
	}
	return netip.Addr{}, Other, false
}

// space returns the index of the first byte from i on that is not white space.
func space(b []byte, i int) int {
	for i < len(b) && (b[i] == ' ' || b[i] == '\n' || b[i] == '\t' || b[i] == '\r') {
		i++
	}
	return i
}

// quoted returns the text of a string that begins at i, after its quote, and the
// index after its closing quote, -1 if there is none. What is escaped stays so: a
// key or an address with anything escaped is not one of those looked for.
func quoted(b []byte, i int) (text []byte, end int) {
	for at := i; ; {
		n := bytes.IndexByte(b[at:], '"')
		if n < 0 {
			return nil, -1
		}
		q := at + n
		slashes := 0
		for q-slashes > i && b[q-slashes-1] == '\\' {
			slashes++
		}
		if slashes%2 == 0 {
			return b[i:q], q + 1
		}
		at = q + 1
	}
}

// skip returns the index after the value that begins at i and is not a string, -1
// if it has no end.
func skip(b []byte, i int) int {
	if b[i] != '{' && b[i] != '[' {
		for ; i < len(b); i++ {
			switch b[i] {
			case ',', '}', ']', ' ', '\n', '\t', '\r':
				return i
			case '"', '{', '[', ':':
				return -1
			}
		}
		return -1
	}
	depth := 0
	for i < len(b) {
		switch b[i] {
		case '{', '[':
			depth++
		case '}', ']':
			if depth--; depth == 0 {
				return i + 1
			}
		case '"':
			_, end := quoted(b, i+1)
			if end < 0 {
				return -1
			}
			i = end
			continue
		}
		i++
	}
	return -1
}

// eventKind returns the kind that an event_type stands for, and whether it is one.
func eventKind(b []byte) (Kind, bool) {
	switch string(b) {
	case "log":
		return Other, true
	case "log_init":
		return Opened, true
	case "log_close":
		return Closed, true
	case "dump", "dump_init", "dump_close":
		return Dump, true
	}
	return Other, false
}

// address reads an IP address. IPv4 in IPv6 is IPv4, zones are not addresses of
// routers.
func address(b []byte) (netip.Addr, bool) {
	if len(b) < 2 || len(b) > 45 || bytes.IndexByte(b, '%') >= 0 {
		return netip.Addr{}, false
	}
	// The string is gone before b can change: an address without a zone keeps
	// none, and the error, which would, is dropped.
	a, err := netip.ParseAddr(unsafe.String(&b[0], len(b)))
	if err != nil {
		return netip.Addr{}, false
	}
	return a.Unmap(), true
}

// identifyAvro reads Avro without its schema: the fields that come before the
// router are the same in all records of a kind, except those of routes, where the
// three fields bmp_router, bmp_router_port and bmp_msg_type are looked for.
func identifyAvro(b []byte) (router netip.Addr, kind Kind, ok bool) {
	if router, kind, ok = datum(b); ok {
		return router, kind, ok
	}
	// A registry's framing: 0 and the schema's id.
	if len(b) > 5 && b[0] == 0 {
		return datum(b[5:])
	}
	return netip.Addr{}, Other, false
}

func datum(b []byte) (netip.Addr, Kind, bool) {
	a := avro{b: b}
	var none netip.Addr
	// A route of a log begins with log_type.
	isRoute := false
	if text := a.text(); !a.bad {
		switch string(text) {
		case "update", "withdraw", "end-of-rib", "delete":
			isRoute = true
		}
	}
	if !isRoute {
		a = avro{b: b}
	}
	a.long() // seq
	if stamp := a.text(); a.bad || !isStamp(stamp) {
		return none, Other, false
	}
	if isRoute {
		kind, ok := eventKind(a.text())
		if a.bad || !ok {
			return none, Other, false
		}
		router, ok := route(a.b)
		return router, kind, ok
	}
	// What happened: two optional timestamps before event_type. Otherwise
	// event_type comes at once.
	then := a
	event, arrival := then.optionalStamp(), then.optionalStamp()
	if event && arrival {
		if kind, ok := eventKind(then.text()); ok && !then.bad {
			router, ok := address(then.text())
			then.port()
			return router, kind, ok && !then.bad && isMessage(then.text())
		}
	}
	kind, ok := eventKind(a.text())
	if a.bad || !ok {
		return none, Other, false
	}
	if kind == Other || kind == Dump && !bytes.HasPrefix(a.last, []byte("dump_")) {
		router, ok := route(a.b)
		return router, kind, ok
	}
	a.text() // writer_id
	router, ok := address(a.text())
	a.port()
	return router, kind, ok && !a.bad
}

// isStamp says whether b can be one of pmacct's timestamps.
func isStamp(b []byte) bool { return len(b) >= 8 && len(b) <= 40 && '0' <= b[0] && b[0] <= '9' }

// isMessage says whether b is a bmp_msg_type.
func isMessage(b []byte) bool {
	switch string(b) {
	case "route_monitor", "internal", "init", "term", "peer_up", "peer_down", "stats", "rpat":
		return true
	}
	return false
}

var routeWords = [...][]byte{[]byte("\x1aroute_monitor"), []byte("\x10internal")}

// route looks in what follows event_type for the one place that can be router,
// port and the type of a route.
func route(b []byte) (router netip.Addr, ok bool) {
	for _, word := range routeWords {
		for at := 0; ; at++ {
			n := bytes.Index(b[at:], word)
			if n < 0 {
				break
			}
			at += n
			a, found := before(b[:at])
			if !found {
				continue
			}
			if ok && a != router {
				return netip.Addr{}, false
			}
			router, ok = a, true
		}
	}
	return router, ok
}

// before reads backwards: an optional port at the end of b, and an address with its
// length before it. There must be one way only to read it.
func before(b []byte) (router netip.Addr, ok bool) {
	// The port: null, or 1 (which is 0x02) and one to three bytes.
	for n := 1; n <= 4 && n < len(b); n++ {
		at := len(b) - n
		p := avro{b: b[at:]}
		if p.port(); p.bad || len(p.b) > 0 {
			continue
		}
		for l := 2; l <= 45 && l < at && isAddressByte(b[at-l]); l++ {
			if b[at-l-1] != byte(2*l) {
				continue
			}
			if !plausible(b[at-l : at]) {
				continue
			}
			a, valid := address(b[at-l : at])
			if !valid {
				continue
			}
			if ok && a != router {
				return netip.Addr{}, false
			}
			router, ok = a, true
		}
	}
	return router, ok
}

// plausible says whether no group of an IPv6 address is too long: where a digit
// before it is taken for its length's neighbour, it is.
func plausible(b []byte) bool {
	colon := bytes.IndexByte(b, ':')
	return colon < 0 && len(b) <= len("255.255.255.255") || 0 <= colon && colon <= 4
}

func isAddressByte(x byte) bool {
	return '0' <= x && x <= '9' || 'a' <= x && x <= 'f' || 'A' <= x && x <= 'F' || x == ':' || x == '.'
}

// An avro reads Avro's binary encoding. bad stays.
type avro struct {
	b    []byte
	last []byte // the text read last
	bad  bool
}

func (a *avro) long() int64 {
	var u uint64
	for i, x := range a.b {
		if i == 10 {
			break
		}
		u |= uint64(x&0x7f) << (7 * i)
		if x < 0x80 {
			a.b = a.b[i+1:]
			return int64(u>>1) ^ -int64(u&1)
		}
	}
	a.bad, a.b = true, nil
	return 0
}

func (a *avro) text() []byte {
	n := a.long()
	if n < 0 || n > int64(len(a.b)) {
		a.bad, a.b = true, nil
		return nil
	}
	a.last = a.b[:n]
	a.b = a.b[n:]
	return a.last
}

// union reads which of null and something else follows.
func (a *avro) union() bool {
	switch a.long() {
	case 0:
		return false
	case 1:
		return !a.bad
	}
	a.bad = true
	return false
}

func (a *avro) optionalStamp() bool {
	if a.union() {
		return isStamp(a.text()) && !a.bad
	}
	return !a.bad
}

func (a *avro) port() {
	if a.union() {
		if p := a.long(); p < 0 || p > 65535 {
			a.bad = true
		}
	}
}
