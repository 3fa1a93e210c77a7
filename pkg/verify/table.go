package verify

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/bmpha/bmpha/pkg/replay"
)

// A Path is one route of a router, as it tells it itself.
type Path struct {
	Peer   netip.Addr // zero in a table that is Unnamed
	Prefix netip.Prefix
	Attributes
	// External says that it came from an external peer, or that this is not known.
	External bool
}

// Attributes are what can be compared of a route. Those that are not told are
// nil, or zero.
type Attributes struct {
	NextHop     netip.Addr
	ASPath      *string  // as pmacct writes it
	Origin      string   // i, e or u
	MED         *uint32  // compared where MEDTold
	MEDTold     bool     // no MED means that there is none
	LocalPref   *uint32  //
	Communities []string // a:b, sorted; nil: not told
	Large       []string // a:b:c, sorted; nil: not told
}

// String returns a in one line.
func (a Attributes) String() string {
	var parts []string
	add := func(name, value string) { parts = append(parts, name+" "+value) }
	if a.NextHop.IsValid() {
		add("via", a.NextHop.String())
	}
	if a.ASPath != nil {
		add("path", "["+*a.ASPath+"]")
	}
	if a.Origin != "" {
		add("origin", a.Origin)
	}
	if a.MED != nil {
		add("med", strconv.FormatUint(uint64(*a.MED), 10))
	}
	if a.LocalPref != nil {
		add("local-pref", strconv.FormatUint(uint64(*a.LocalPref), 10))
	}
	if len(a.Communities) > 0 {
		add("comms", strings.Join(a.Communities, " "))
	}
	if len(a.Large) > 0 {
		add("lcomms", strings.Join(a.Large, " "))
	}
	return strings.Join(parts, " ")
}

// A Table is what a router printed of one of its tables.
type Table struct {
	Paths []Path
	// RIB is the one of the peers that BMP tells the same of.
	RIB replay.RIB
	// Unnamed says that the text is about one peer and does not name it.
	Unnamed bool
	// LocalAS is the router's own AS number, 0 where it is not told.
	LocalAS uint32
	// Skipped counts paths that BMP does not tell of peers: the router's own, and
	// those that are not valid.
	Skipped int
}

// ParseFRR reads what vtysh printed: show bgp ipv4|ipv6 unicast json [detail], of
// all peers or one, is a table of the post-policy Adj-RIBs-In;
// show bgp … neighbors … received-routes json is one of a pre-policy Adj-RIB-In
// and does not name the peer. There may be several, one behind the other.
func ParseFRR(r io.Reader) ([]Table, error) {
	d := json.NewDecoder(r)
	return documents(d, func() (Table, error) { return parseFRR(d) })
}

// documents calls parse until the end of its input.
func documents(d *json.Decoder, parse func() (Table, error)) ([]Table, error) {
	var tables []Table
	for {
		t, err := parse()
		if err == io.EOF {
			if len(tables) == 0 {
				return nil, errors.New("nothing there")
			}
			return tables, nil
		}
		if err != nil {
			return nil, fmt.Errorf("after byte %d: %w", d.InputOffset(), noEOF(err))
		}
		tables = append(tables, t)
	}
}

func noEOF(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// object calls f for each member of the object that comes next; f decodes the
// value. At the end of the input it returns io.EOF.
func object(d *json.Decoder, f func(name string) error) error {
	t, err := d.Token()
	if err != nil {
		return err
	}
	if t != json.Delim('{') {
		return fmt.Errorf("%v where an object was expected", t)
	}
	for d.More() {
		name, err := d.Token()
		if err != nil {
			return noEOF(err)
		}
		text, _ := name.(string) // the decoder takes nothing else
		if err := f(text); err != nil {
			return noEOF(err)
		}
	}
	_, err = d.Token()
	return noEOF(err)
}

// frrPath has the members of all three forms.
type frrPath struct {
	Valid    bool    `json:"valid"`
	PathFrom string  `json:"pathFrom"`
	PeerID   string  `json:"peerId"`
	Path     *string `json:"path"`
	Origin   string  `json:"origin"`
	Metric   *uint32 `json:"metric"`
	LocPrf   *uint32 `json:"locPrf"`
	NextHops []struct {
		IP    string `json:"ip"`
		Scope string `json:"scope"`
	} `json:"nexthops"`

	// detail
	ASPath *struct {
		String string `json:"string"`
	} `json:"aspath"`
	Peer *struct {
		ID   string `json:"peerId"`
		Type string `json:"type"`
	} `json:"peer"`
	Community *frrList `json:"community"`
	Large     *frrList `json:"largeCommunity"`

	// received-routes
	NextHop       string `json:"nextHop"`
	NextHopGlobal string `json:"nextHopGlobal"`
	OriginCode    string `json:"bgpOriginCode"`
}

type frrList struct {
	List []string `json:"list"`
}

func parseFRR(d *json.Decoder) (Table, error) {
	t := Table{RIB: replay.InPost}
	found := false
	err := object(d, func(name string) error {
		switch name {
		case "localAS":
			var as json.Number
			if err := d.Decode(&as); err != nil {
				return fmt.Errorf("localAS: %w", err)
			}
			n, err := strconv.ParseUint(as.String(), 10, 32)
			if err != nil {
				return fmt.Errorf("localAS: %w", err)
			}
			t.LocalAS = uint32(n)
			return nil
		case "vrfName":
			var vrf string
			if err := d.Decode(&vrf); err != nil {
				return fmt.Errorf("vrfName: %w", err)
			}
			if vrf != "default" {
				return fmt.Errorf("a table of VRF %q: only the default one can be compared", vrf)
			}
			return nil
		case "routes":
			found = true
			return object(d, func(prefix string) error {
				var paths []frrPath
				if err := d.Decode(&paths); err != nil {
					return fmt.Errorf("%q: %w", prefix, err)
				}
				for i := range paths {
					if err := t.addFRR(prefix, &paths[i]); err != nil {
						return err
					}
				}
				return nil
			})
		case "receivedRoutes":
			found, t.RIB, t.Unnamed = true, replay.InPre, true
			return object(d, func(prefix string) error {
				var p frrPath
				if err := d.Decode(&p); err != nil {
					return fmt.Errorf("%q: %w", prefix, err)
				}
				p.Valid = true // whatever it is, it was received
				return t.addFRR(prefix, &p)
			})
		case "warning":
			var text string
			if err := d.Decode(&text); err != nil {
				return err
			}
			return fmt.Errorf("the router's answer is %q", text)
		}
		var ignored json.RawMessage
		return d.Decode(&ignored)
	})
	if err == nil && !found {
		err = errors.New("neither routes nor receivedRoutes in it")
	}
	return t, err
}

func (t *Table) addFRR(prefix string, p *frrPath) error {
	where, err := netip.ParsePrefix(prefix)
	if err != nil {
		return fmt.Errorf("%w (only unicast tables can be compared)", err)
	}
	if p.Path == nil && p.ASPath == nil && p.Peer == nil && !p.Valid {
		return nil // the head of a prefix, in the form with details
	}
	path := Path{Prefix: where.Masked(), External: p.PathFrom != "internal"}
	peer := p.PeerID
	if p.Peer != nil {
		peer, path.External = p.Peer.ID, p.Peer.Type != "internal"
	}
	if !t.Unnamed {
		if path.Peer, err = netip.ParseAddr(peer); err != nil || path.Peer.IsUnspecified() {
			t.Skipped++ // (unspec), or 0.0.0.0 with details: the router's own
			return nil
		}
		path.Peer = plainAddr(path.Peer)
	}
	if !p.Valid {
		t.Skipped++
		return nil
	}
	for _, hop := range p.NextHops {
		if a, err := netip.ParseAddr(hop.IP); err == nil && (hop.Scope != "link-local" || !path.NextHop.IsValid()) {
			path.NextHop = plainAddr(a)
		}
	}
	for _, hop := range []string{p.NextHop, p.NextHopGlobal} {
		if a, err := netip.ParseAddr(hop); err == nil {
			path.NextHop = plainAddr(a)
		}
	}
	text := p.Path
	if p.ASPath != nil {
		text = &p.ASPath.String
		if *text == "Local" {
			text = new(string)
		}
	}
	if text != nil {
		path.ASPath = new(canonicalPath(*text))
	}
	path.Origin = map[string]string{"IGP": "i", "EGP": "e", "incomplete": "u", "i": "i", "e": "e", "?": "u"}[cmp.Or(p.Origin, p.OriginCode)]
	path.MED, path.MEDTold, path.LocalPref = p.Metric, true, p.LocPrf
	if p.ASPath != nil { // with details: no list means that there are none
		path.Communities, path.Large = frrCommunities(p.Community), []string{}
		if p.Large != nil {
			path.Large = sorted(p.Large.List)
		}
	}
	t.Paths = append(t.Paths, path)
	return nil
}

// frrCommunities returns nil if one has a name that is not known here.
func frrCommunities(l *frrList) []string {
	if l == nil {
		return []string{}
	}
	texts := make([]string, len(l.List))
	for i, c := range l.List {
		if texts[i] = canonicalCommunity(c); texts[i] == "" {
			return nil
		}
	}
	return sorted(texts)
}

// ParseGoBGP reads what gobgp global rib -j printed, a table of the post-policy
// Adj-RIBs-In, or gobgp neighbor … adj-in -j, one of a pre-policy Adj-RIB-In;
// the first has best paths. There may be several, one behind the other.
func ParseGoBGP(r io.Reader) ([]Table, error) {
	d := json.NewDecoder(r)
	return documents(d, func() (Table, error) { return parseGoBGP(d) })
}

type gobgpPath struct {
	Best     bool   `json:"best"`
	Neighbor string `json:"neighbor-ip"`
	Attrs    []struct {
		Type    int             `json:"type"`
		Value   json.RawMessage `json:"value"`
		NextHop string          `json:"nexthop"`
		Metric  *uint32         `json:"metric"`
		Paths   []struct {
			Kind int      `json:"segment_type"`
			ASNs []uint32 `json:"asns"`
		} `json:"as_paths"`
		Communities []uint32 `json:"communities"`
	} `json:"attrs"`
}

func parseGoBGP(d *json.Decoder) (Table, error) {
	t := Table{RIB: replay.InPre}
	any := false
	err := object(d, func(prefix string) error {
		where, err := netip.ParsePrefix(prefix)
		if err != nil {
			return fmt.Errorf("%w (only unicast tables can be compared)", err)
		}
		var paths []gobgpPath
		if err := d.Decode(&paths); err != nil {
			return fmt.Errorf("%q: %w", prefix, err)
		}
		for i := range paths {
			any = true
			if paths[i].Best {
				t.RIB = replay.InPost
			}
			if err := t.addGoBGP(where.Masked(), &paths[i]); err != nil {
				return fmt.Errorf("%q: %w", prefix, err)
			}
		}
		return nil
	})
	if !any {
		t.RIB = replay.InPost
	}
	return t, err
}

func (t *Table) addGoBGP(prefix netip.Prefix, p *gobgpPath) error {
	peer, err := netip.ParseAddr(p.Neighbor)
	if err != nil || peer.IsUnspecified() {
		t.Skipped++ // the router's own
		return nil
	}
	path := Path{Peer: plainAddr(peer), Prefix: prefix, External: true}
	path.ASPath, path.MEDTold, path.Communities, path.Large = new(string), true, []string{}, []string{}
	for _, a := range p.Attrs {
		switch a.Type {
		case 1: // ORIGIN
			var n int
			if err := json.Unmarshal(a.Value, &n); err != nil {
				return fmt.Errorf("ORIGIN: %w", err)
			}
			if n >= 0 && n <= 2 {
				path.Origin = "ieu"[n : n+1]
			}
		case 2: // AS_PATH
			var text strings.Builder
			for _, s := range a.Paths {
				open, between, end := "", " ", ""
				switch s.Kind {
				case 1:
					open, between, end = "{", ",", "}"
				case 3:
					open, end = "(", ")"
				case 4:
					open, between, end = "[", ",", "]"
				}
				if len(s.ASNs) == 0 {
					continue
				}
				text.WriteString(" " + open)
				for i, as := range s.ASNs {
					if i > 0 {
						text.WriteString(between)
					}
					text.WriteString(strconv.FormatUint(uint64(as), 10))
				}
				text.WriteString(end)
			}
			path.ASPath = new(canonicalPath(text.String()))
		case 3, 14: // NEXT_HOP, MP_REACH_NLRI
			if hop, err := netip.ParseAddr(a.NextHop); err == nil {
				path.NextHop = plainAddr(hop)
			}
		case 4: // MULTI_EXIT_DISC
			path.MED = a.Metric
		case 5: // LOCAL_PREF
			var n uint32
			if err := json.Unmarshal(a.Value, &n); err != nil {
				return fmt.Errorf("LOCAL_PREF: %w", err)
			}
			path.LocalPref = &n
		case 8: // COMMUNITIES
			for _, c := range a.Communities {
				path.Communities = append(path.Communities, communityText(c))
			}
			path.Communities = sorted(path.Communities)
		case 32: // LARGE_COMMUNITY
			var list []struct{ ASN, LocalData1, LocalData2 uint32 }
			if err := json.Unmarshal(a.Value, &list); err != nil {
				return fmt.Errorf("LARGE_COMMUNITY: %w", err)
			}
			for _, c := range list {
				path.Large = append(path.Large, fmt.Sprintf("%d:%d:%d", c.ASN, c.LocalData1, c.LocalData2))
			}
			path.Large = sorted(path.Large)
		}
	}
	t.Paths = append(t.Paths, path)
	return nil
}

// plainAddr returns a without its zone, and an IPv4 address in IPv6's clothes as
// what it is.
func plainAddr(a netip.Addr) netip.Addr { return a.Unmap().WithZone("") }

func sorted(list []string) []string {
	if list == nil {
		return []string{}
	}
	list = slices.Clone(list)
	slices.Sort(list)
	return slices.Compact(list)
}

func communityText(c uint32) string { return fmt.Sprintf("%d:%d", c>>16, c&0xffff) }

// canonicalCommunity returns a community as two numbers, whatever pmacct or FRR
// call it; nothing for a name that is not known.
func canonicalCommunity(c string) string {
	switch c {
	case "internet":
		return "0:0"
	case "no-export", "noExport":
		return "65535:65281"
	case "no-advertise", "noAdvertise":
		return "65535:65282"
	case "local-AS", "localAs":
		return "65535:65283"
	case "no-peer", "noPeer":
		return "65535:65284"
	case "blackhole":
		return "65535:666"
	case "graceful-shutdown", "gracefulShutdown":
		return "65535:0"
	}
	if c == "" || c[0] < '0' || c[0] > '9' {
		return ""
	}
	return c
}

// canonicalPath sorts the sets of an AS path, which have no order.
func canonicalPath(text string) string {
	parts := strings.Fields(text)
	for i, p := range parts {
		if len(p) < 2 || p[0] != '{' && p[0] != '[' {
			continue
		}
		members := strings.Split(strings.Trim(p, "{}[]"), ",")
		slices.SortFunc(members, func(a, b string) int {
			return cmp.Or(cmp.Compare(len(a), len(b)), strings.Compare(a, b))
		})
		parts[i] = p[:1] + strings.Join(slices.Compact(members), ",") + map[byte]string{'{': "}", '[': "]"}[p[0]]
	}
	return strings.Join(parts, " ")
}

// readValue reads the text of a route in a table of [replay.Consumer].
func readValue(text string) Attributes {
	var a Attributes
	rest := []byte(text)
	word := func() string {
		w, r, _ := bytes.Cut(rest, []byte(" "))
		rest = r
		return string(w)
	}
	number := func() *uint32 {
		n, err := strconv.ParseUint(word(), 10, 32)
		if err != nil {
			return nil
		}
		return new(uint32(n))
	}
	a.MEDTold, a.Communities, a.Large = true, []string{}, []string{}
	var list *[]string
	for len(rest) > 0 {
		switch w := word(); {
		case w == "via":
			if hop, err := netip.ParseAddr(word()); err == nil {
				a.NextHop = plainAddr(hop)
			}
		case w == "path":
			path, r, ok := bytes.Cut(rest, []byte("] origin "))
			if !ok {
				return a
			}
			a.ASPath = new(canonicalPath(strings.TrimPrefix(string(path), "[")))
			rest = r
			a.Origin = word()
		case w == "med":
			a.MED = number()
		case w == "local-pref":
			a.LocalPref = number()
		case w == "comms":
			list = &a.Communities
		case w == "lcomms":
			list = &a.Large
		case list == &a.Communities:
			*list = append(*list, cmp.Or(canonicalCommunity(w), w))
		case list == &a.Large:
			*list = append(*list, w)
		}
	}
	a.Communities, a.Large = sorted(a.Communities), sorted(a.Large)
	return a
}
