package control

import (
	"encoding/binary"
	"fmt"
	"maps"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/bmpha/bmpha/pkg/bgp"
	"github.com/bmpha/bmpha/pkg/bmp"
	"github.com/bmpha/bmpha/pkg/table"
)

// DefaultLimit is how many routes a query gets that does not say otherwise.
const DefaultLimit = 1000

// A Query asks a collector for routes. What is zero does not narrow it, except
// for Match and Limit.
type Query struct {
	Prefix   netip.Prefix // without host bits; invalid means all
	Match    table.Match  // what Prefix finds; see ParseQuery for the default
	Router   string       // identity or address
	Peer     netip.Addr
	OriginAS uint32
	RIB      string // one of RIBWords
	Family   string // one of FamilyWords
	// RD is of the route, or of the peer for routes without one.
	RD        *[8]byte
	Withdrawn bool // also routes that are only kept
	Limit     int  // of routes in the answer; 0 means none
}

// RIBWords are the short names of the tables that BMP monitors, by bmp.RIB.
var RIBWords = [...]string{
	bmp.AdjRIBInPre: "in-pre", bmp.AdjRIBInPost: "in-post", bmp.AdjRIBOutPre: "out-pre",
	bmp.AdjRIBOutPost: "out-post", bmp.LocRIB: "loc",
}

// FamilyWords are what a query may call families: one, or all of a version of IP.
var FamilyWords = [...]string{
	"ipv4", "ipv4-unicast", "ipv4-labelled", "ipv4-vpn",
	"ipv6", "ipv6-unicast", "ipv6-labelled", "ipv6-vpn",
}

// familyWord returns the word for one family.
func familyWord(f bgp.Family) string {
	i := f.Index()
	if i < 0 {
		return f.String()
	}
	return FamilyWords[i/3*4+1+i%3]
}

// families returns the families of a word, all for none.
func families(word string) []bgp.Family {
	i := slices.Index(FamilyWords[:], word)
	switch {
	case i < 0:
		return bgp.Families[:]
	case i%4 == 0:
		return bgp.Families[i/4*3:][:3]
	}
	return bgp.Families[i/4*3+i%4-1:][:1]
}

// Words of a match.
const (
	MatchLongest = "longest"
	MatchExact   = "exact"
	MatchShorter = "shorter"
	MatchLonger  = "longer"
)

var matches = map[string]table.Match{
	MatchLongest: table.Longest, MatchExact: table.Exact, MatchShorter: table.Shorter, MatchLonger: table.Longer,
}

// A QueryError says which part of a query is wrong.
type QueryError struct{ Key, Value, Want string }

func (e *QueryError) Error() string { return fmt.Sprintf("%s %q: want %s", e.Key, e.Value, e.Want) }

// maxName bounds the name of a router in a query.
const maxName = 255

// ParseQuery reads a query as it stands in a URL. All values are text, each at
// most once: prefix (an address means itself), match (longest unless said
// otherwise, only with a prefix), router, peer, origin_as, rib, family, rd (as
// 64500:1, 192.0.2.1:1 or in pmacct's form, with the type before it), withdrawn
// (true or false), limit (DefaultLimit unless said otherwise, 0 for none). An
// empty value is as good as none. The error is a *QueryError.
func ParseQuery(v url.Values) (Query, error) {
	q := Query{Match: table.Longest, Limit: DefaultLimit}
	for _, key := range slices.Sorted(maps.Keys(v)) {
		if len(v[key]) > 1 {
			return Query{}, &QueryError{key, v[key][1], "it only once"}
		}
		text := v.Get(key)
		if text == "" {
			continue
		}
		if want := q.set(key, text); want != "" {
			return Query{}, &QueryError{key, text, want}
		}
	}
	if m := v.Get("match"); m != "" && !q.Prefix.IsValid() {
		return Query{}, &QueryError{"match", m, "a prefix with it"}
	}
	return q, nil
}

// set takes one value, or says what it wants instead.
func (q *Query) set(key, text string) (want string) {
	var ok bool
	switch key {
	case "prefix":
		if q.Prefix, ok = parsePrefix(text); !ok {
			return "a prefix as in 203.0.113.0/24 or 2001:db8::/32, or an address"
		}
	case "match":
		if q.Match, ok = matches[text]; !ok {
			return "longest, exact, shorter or longer"
		}
	case "router":
		if len(text) > maxName {
			return fmt.Sprintf("at most %d bytes", maxName)
		}
		q.Router = text
	case "peer":
		if q.Peer, ok = parseAddr(text); !ok {
			return "the address of a BGP peer"
		}
	case "origin_as":
		if q.OriginAS, ok = parseAS(text); !ok {
			return "an AS number, 1 to 4294967295"
		}
	case "rib":
		q.RIB = strings.TrimPrefix(text, "adj-")
		if !slices.Contains(RIBWords[:], q.RIB) {
			return "in-pre, in-post, out-pre, out-post or loc"
		}
	case "family":
		if !slices.Contains(FamilyWords[:], text) {
			return "ipv4 or ipv6, alone or with -unicast, -labelled or -vpn"
		}
		q.Family = text
	case "rd":
		rd, ok := parseRD(text)
		if !ok {
			return "a route distinguisher as in 64500:1 or 192.0.2.1:1"
		}
		q.RD = &rd
	case "withdrawn":
		if text != "true" && text != "false" {
			return "true or false"
		}
		q.Withdrawn = text == "true"
	case "limit":
		n, err := strconv.ParseUint(text, 10, 31)
		if err != nil {
			return "a number of routes, 0 for no limit"
		}
		q.Limit = int(n)
	default:
		return "no such key"
	}
	return ""
}

// Values returns q as ParseQuery reads it.
func (q *Query) Values() url.Values {
	v := url.Values{"limit": {strconv.Itoa(q.Limit)}}
	if q.Prefix.IsValid() {
		v.Set("prefix", q.Prefix.String())
		for word, m := range matches {
			if m == q.Match {
				v.Set("match", word)
			}
		}
	}
	set := func(key, text string) {
		if text != "" {
			v.Set(key, text)
		}
	}
	set("router", q.Router)
	set("rib", q.RIB)
	set("family", q.Family)
	if q.Peer.IsValid() {
		v.Set("peer", q.Peer.String())
	}
	if q.OriginAS != 0 {
		v.Set("origin_as", strconv.FormatUint(uint64(q.OriginAS), 10))
	}
	if q.RD != nil {
		v.Set("rd", rdText(*q.RD))
	}
	if q.Withdrawn {
		v.Set("withdrawn", "true")
	}
	return v
}

// Narrowed reports whether q says which routes it wants.
func (q *Query) Narrowed() bool {
	return q.Prefix.IsValid() || q.Router != "" || q.Peer.IsValid() || q.OriginAS != 0 || q.RIB != "" || q.Family != "" || q.RD != nil
}

func parseAddr(text string) (netip.Addr, bool) {
	a, err := netip.ParseAddr(text)
	return a.Unmap(), err == nil && a.Zone() == ""
}

// parsePrefix takes an address for the prefix that is only itself.
func parsePrefix(text string) (netip.Prefix, bool) {
	if p, err := netip.ParsePrefix(text); err == nil {
		return p.Masked(), true
	}
	a, ok := parseAddr(text)
	if !ok {
		return netip.Prefix{}, false
	}
	return netip.PrefixFrom(a, a.BitLen()), true
}

func parseAS(text string) (uint32, bool) {
	if len(text) > 2 && strings.EqualFold(text[:2], "as") {
		text = text[2:]
	}
	n, err := strconv.ParseUint(text, 10, 32)
	return uint32(n), err == nil && n > 0
}

// Types of a route distinguisher, RFC 4364 section 4.2.
const (
	rdAS  = 0 // two octets of AS, four of number
	rdIP  = 1 // an IPv4 address, two octets of number
	rdAS4 = 2 // four octets of AS, two of number

	rdVRF = 0x800 // pmacct's own: a VRF's number, little-endian
)

// parseRD reads a route distinguisher. Where its type is not said, an AS number
// that fits into two octets makes it the first.
func parseRD(text string) (rd [8]byte, ok bool) {
	parts := strings.Split(text, ":")
	kind := -1
	if len(parts) == 3 {
		n, err := strconv.ParseUint(parts[0], 10, 2)
		if err != nil || n > rdAS4 {
			return rd, false
		}
		kind, parts = int(n), parts[1:]
	}
	if len(parts) != 2 {
		return rd, false
	}
	number, err := strconv.ParseUint(parts[1], 10, 32)
	if err != nil {
		return rd, false
	}
	if a, err := netip.ParseAddr(parts[0]); err == nil && a.Is4() {
		ip := a.As4()
		copy(rd[2:], ip[:])
		rd[1] = rdIP
	} else if as, err := strconv.ParseUint(parts[0], 10, 32); err != nil {
		return rd, false
	} else if kind == rdAS4 || kind < 0 && as > 0xffff {
		binary.BigEndian.PutUint32(rd[2:], uint32(as))
		rd[1] = rdAS4
	} else {
		if as > 0xffff {
			return rd, false
		}
		binary.BigEndian.PutUint16(rd[2:], uint16(as))
		binary.BigEndian.PutUint32(rd[4:], uint32(number))
		return rd, kind <= rdAS
	}
	if number > 0xffff {
		return rd, false
	}
	binary.BigEndian.PutUint16(rd[6:], uint16(number))
	return rd, kind < 0 || kind == int(rd[1])
}

// rdText writes a route distinguisher as records do, with its type. parseRD reads
// those of RFC 4364.
func rdText(rd [8]byte) string {
	switch t := binary.BigEndian.Uint16(rd[:]); {
	case t == rdAS:
		return fmt.Sprintf("0:%d:%d", binary.BigEndian.Uint16(rd[2:]), binary.BigEndian.Uint32(rd[4:]))
	case t == rdIP:
		return fmt.Sprintf("1:%s:%d", netip.AddrFrom4([4]byte(rd[2:])), binary.BigEndian.Uint16(rd[6:]))
	case t == rdAS4:
		return fmt.Sprintf("2:%d:%d", binary.BigEndian.Uint32(rd[2:]), binary.BigEndian.Uint16(rd[6:]))
	case t&0xfff == rdVRF:
		return fmt.Sprintf("vrfid:%d", binary.LittleEndian.Uint32(rd[4:]))
	}
	return fmt.Sprintf("%x", rd[:])
}
