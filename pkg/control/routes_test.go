package control

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/bmpha/bmpha/pkg/bgp"
	"github.com/bmpha/bmpha/pkg/bmp"
	"github.com/bmpha/bmpha/pkg/pmacct"
	"github.com/bmpha/bmpha/pkg/record"
	"github.com/bmpha/bmpha/pkg/table"
)

// A speaker makes the messages of a BGP peer of a router.
type speaker struct {
	addr    string
	as      uint32
	rd      uint64
	kind    bmp.RIB
	addPath bool
	two     bool // AS numbers of two octets
	at      time.Time
}

func (s speaker) header() []byte {
	at := s.at
	if at.IsZero() {
		at = ago(3*time.Hour + 12*time.Minute)
	}
	if s.kind == bmp.LocRIB {
		return bmp.AppendPeerHeader(nil, bmp.PeerLocRIB, 0, s.rd, netip.Addr{}, s.as, netip.MustParseAddr("192.0.2.1"), at)
	}
	peerType := bmp.PeerGlobal
	if s.rd != 0 {
		peerType = bmp.PeerRD
	}
	flags := [...]byte{0, bmp.FlagL, bmp.FlagO, bmp.FlagO | bmp.FlagL}[s.kind]
	id := netip.MustParseAddr("192.0.2.255")
	addr := netip.MustParseAddr(s.addr)
	if addr.Is4() {
		id = addr
	}
	return bmp.AppendPeerHeader(nil, peerType, flags, s.rd, addr, s.as, id, at)
}

func (s speaker) up() []byte {
	var caps []byte
	for _, f := range []bgp.Family{bgp.IPv4Unicast, bgp.IPv6Unicast} {
		caps = bgp.AppendCapMP(caps, f.AFI, f.SAFI)
		if s.addPath {
			caps = bgp.AppendCapAddPath(caps, f.AFI, f.SAFI, bgp.AddPathBoth)
		}
	}
	open := func(as uint32) []byte {
		own := caps[:len(caps):len(caps)]
		if !s.two {
			own = bgp.AppendCapAS4(own, as)
		}
		return bgp.AppendOpen(nil, as, 90, netip.MustParseAddr("192.0.2.1"), own)
	}
	return bmp.AppendPeerUp(nil, s.header(), netip.MustParseAddr("192.0.2.1"), 179, 50000, open(64500), open(s.as), nil)
}

func (s speaker) down(reason uint8, data []byte) []byte {
	return bmp.AppendPeerDown(nil, s.header(), reason, data)
}

func (s speaker) say(update []byte) []byte { return bmp.AppendRouteMonitoring(nil, s.header(), update) }

func (s speaker) end(f bgp.Family) []byte { return s.say(bgp.AppendEndOfRIB(nil, f.AFI, f.SAFI)) }

// announce announces prefixes over a path; more are further attributes.
func (s speaker) announce(path []uint32, more []byte, prefixes ...string) []byte {
	attrs := bgp.AppendASPath(bgp.AppendOrigin(nil, 0), path...)
	return s.announceWith(attrs, more, prefixes...)
}

func (s speaker) announceWith(attrs, more []byte, prefixes ...string) []byte {
	var nlri []byte
	first := netip.MustParsePrefix(prefixes[0])
	for i, p := range prefixes {
		if s.addPath {
			nlri = bgp.AppendPathID(nlri, uint32(i+1))
		}
		nlri = bgp.AppendPrefix(nlri, netip.MustParsePrefix(p))
	}
	if first.Addr().Is4() {
		hop := "192.0.2.1"
		if a, err := netip.ParseAddr(s.addr); err == nil && a.Is4() {
			hop = s.addr
		}
		attrs = bgp.AppendNextHop(attrs, netip.MustParseAddr(hop))
		return s.say(bgp.AppendUpdate(nil, nil, append(attrs, more...), nlri))
	}
	attrs = append(attrs, more...)
	attrs = bgp.AppendMPReach(attrs, bgp.AFIIPv6, bgp.SAFIUnicast, netip.MustParseAddr("2001:db8::7"), nlri)
	return s.say(bgp.AppendUpdate(nil, nil, attrs, nil))
}

func (s speaker) vpn(path []uint32, rd uint64, prefix string) []byte {
	attrs := bgp.AppendASPath(bgp.AppendOrigin(nil, 2), path...)
	attrs = bgp.AppendExtCommunities(attrs, 2<<48|64500<<32|1)
	nlri := bgp.AppendVPN(nil, 100, rd, netip.MustParsePrefix(prefix))
	return s.say(bgp.AppendUpdate(nil, nil, bgp.AppendMPReach(attrs, bgp.AFIIPv4, bgp.SAFIVPN, netip.MustParseAddr("192.0.2.99"), nlri), nil))
}

// apply takes messages into a table as of a time.
func apply(t testing.TB, tab *table.Table, arrival time.Time, messages ...[]byte) {
	t.Helper()
	for _, m := range messages {
		if err := tab.Apply(m, arrival.UnixMicro(), nil); err != nil {
			t.Fatal(err)
		}
	}
}

var (
	rd1 = uint64(64500)<<32 | 1 // 0:64500:1
	rd2 = uint64(1)<<48 | 192<<40 | 0<<32 | 2<<24 | 1<<16 | 9

	transit  = speaker{addr: "192.0.2.7", as: 64501}
	filtered = speaker{addr: "192.0.2.7", as: 64501, kind: bmp.AdjRIBInPost}
	customer = speaker{addr: "192.0.2.8", as: 64502, two: true}
	gone     = speaker{addr: "2001:db8::9", as: 4200000001, at: ago(4 * time.Minute)}
	inVRF    = speaker{addr: "10.9.9.9", as: 64777, rd: rd1}
	paths    = speaker{addr: "198.51.100.3", as: 64503, addPath: true}
	local    = speaker{as: 64500, kind: bmp.LocRIB}
)

// lookingGlass are the tables of two routers, and a third that has said nothing yet.
func lookingGlass(t testing.TB) []RouterTable {
	store := table.NewStore()
	edge := table.NewTable(store, table.Options{Withdrawn: true})
	long := bgp.AppendLargeCommunities(bgp.AppendCommunities(bgp.AppendLocalPref(bgp.AppendMED(nil, 50), 200),
		64501<<16|1, 64501<<16|2, 64501<<16|300), [3]uint32{64501, 7, 8})
	apply(t, edge, ago(2*time.Hour), bmp.AppendInitiation(nil, "a router of tests", "edge-1.example.net"), transit.up(), customer.up(), gone.up(), inVRF.up())
	apply(t, edge, ago(2*time.Hour),
		transit.announce([]uint32{64501, 64510}, nil, "0.0.0.0/0"),
		transit.announce([]uint32{64501, 64510, 64520}, long, "203.0.113.0/24", "203.0.112.0/23"),
		transit.announce([]uint32{64501, 64530}, nil, "2001:db8:1::/48"),
		transit.end(bgp.IPv4Unicast),
		filtered.announce([]uint32{64501, 64510, 64520}, nil, "203.0.113.0/24"),
	)
	// Old numbers with AS4_PATH: the last AS needs four octets.
	old := []byte{0x40, bgp.AttrASPath, 6, bgp.ASSequence, 2, 64502 >> 8, 64502 & 0xff, bgp.ASTrans >> 8, bgp.ASTrans & 0xff}
	as4 := []byte{0xc0, bgp.AttrAS4Path, 6, bgp.ASSequence, 1, 0xfa, 0x56, 0xea, 0x05}
	// The path ends with a set.
	set := []byte{0x40, bgp.AttrASPath, 10, bgp.ASSequence, 1, 64502 >> 8, 64502 & 0xff, bgp.ASSet, 2, 64520 >> 8, 64520 & 0xff, 64521 >> 8, 64521 & 0xff}
	apply(t, edge, ago(90*time.Second),
		customer.announceWith(append(bgp.AppendOrigin(nil, 1), old...), as4, "203.0.113.0/24"),
		customer.announceWith(append(bgp.AppendOrigin(nil, 0), set...), nil, "198.51.100.0/24"),
		transit.vpn([]uint32{64501}, rd1, "10.1.0.0/16"),
		transit.vpn([]uint32{64501, 64999}, rd2, "10.1.2.0/24"),
		inVRF.announce([]uint32{64777}, nil, "10.1.0.0/16"),
		transit.announce([]uint32{64501}, nil, "203.0.113.128/25"),
		transit.say(bgp.AppendUpdate(nil, bgp.AppendPrefix(nil, netip.MustParsePrefix("203.0.113.128/25")), nil, nil)),
		gone.announce([]uint32{4200000001}, nil, "2001:db8:2::/48"),
		gone.down(bmp.DownRemoteNotification, bgp.AppendNotification(nil, 6, 2, append([]byte{8}, "rack 12\x07"...))),
	)
	core := table.NewTable(store, table.Options{})
	apply(t, core, ago(26*time.Hour), paths.up(), local.up(),
		paths.announce([]uint32{64503, 64520}, nil, "203.0.113.0/24", "203.0.113.0/24", "192.0.2.0/25"),
		local.announce(nil, nil, "203.0.0.0/16"))
	core.Open(ago(time.Hour).UnixMicro())
	apply(t, core, ago(time.Hour), paths.up(), paths.announce([]uint32{64503, 64520}, nil, "203.0.113.0/24"))
	return []RouterTable{
		{Router: "edge-1", Address: netip.MustParseAddr("::ffff:198.51.100.1"), State: "up", Table: edge},
		{Router: "core-2", Address: netip.MustParseAddr("198.51.100.2"), State: "down", Table: core},
		{Router: "new", Table: table.NewTable(store, table.Options{})},
	}
}

// ask answers a query from tables, without a server.
func ask(t testing.TB, tables []RouterTable, query string) (lines []string, more bool) {
	t.Helper()
	v, err := url.ParseQuery(query)
	if err != nil {
		t.Fatal(err)
	}
	q, err := ParseQuery(v)
	if err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	s := &Server{tables: func() []RouterTable { return tables }}
	some, err := s.tablesOf(q.Router, true)
	if err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	var all bytes.Buffer
	look := search{q: &q, left: q.Limit, write: func(_ context.Context, b []byte) error { all.Write(b); return nil }}
	for i := range some {
		if err := look.table(t.Context(), &some[i]); err != nil {
			t.Fatal(err)
		}
		if look.more {
			break
		}
	}
	lines = slices.Collect(strings.Lines(all.String()))
	if look.found != len(lines) {
		t.Errorf("%s: %d found, %d lines", query, look.found, len(lines))
	}
	return lines, look.more
}

// brief writes a line as "router peer rib [rd] prefix [#path]".
func brief(t testing.TB, line string) string {
	t.Helper()
	var r Route
	if err := json.Unmarshal([]byte(line), &r); err != nil {
		t.Fatalf("%v: %s", err, line)
	}
	s := r.Router + " " + r.PeerIP + " " + r.RIB + " "
	if r.RD != "" {
		s += r.RD + " "
	}
	s += r.Prefix
	if r.PathID != 0 {
		s += fmt.Sprintf(" #%d", r.PathID)
	}
	return s
}

func TestRoutes(t *testing.T) {
	tables := lookingGlass(t)
	for _, c := range []struct {
		query string
		want  []string
	}{
		// An address: the longest match of each RIB.
		{"prefix=203.0.113.9", []string{
			"core-2 198.51.100.3 in-pre 203.0.113.0/24 #1", "core-2 198.51.100.3 in-pre 203.0.113.0/24 #2", "core-2 0.0.0.0 loc 203.0.0.0/16",
			"edge-1 192.0.2.7 in-pre 203.0.113.0/24", "edge-1 192.0.2.7 in-post 203.0.113.0/24", "edge-1 192.0.2.8 in-pre 203.0.113.0/24",
		}},
		{"prefix=203.0.113.200/25&router=edge-1&rib=in-pre&peer=192.0.2.7", []string{"edge-1 192.0.2.7 in-pre 203.0.113.0/24"}},
		{"prefix=203.0.113.9&match=exact", nil},
		{"prefix=203.0.113.99/24&match=exact&rib=adj-in-post", []string{"edge-1 192.0.2.7 in-post 203.0.113.0/24"}},
		{"prefix=203.0.113.0/24&match=shorter&peer=192.0.2.7&rib=in-pre", []string{
			"edge-1 192.0.2.7 in-pre 203.0.113.0/24", "edge-1 192.0.2.7 in-pre 203.0.112.0/23", "edge-1 192.0.2.7 in-pre 0.0.0.0/0",
		}},
		{"prefix=203.0.0.0/16&match=longer&router=edge-1", []string{
			"edge-1 192.0.2.7 in-pre 203.0.112.0/23", "edge-1 192.0.2.7 in-pre 203.0.113.0/24",
			"edge-1 192.0.2.7 in-post 203.0.113.0/24", "edge-1 192.0.2.8 in-pre 203.0.113.0/24",
		}},
		{"prefix=203.0.113.128/25&match=exact", nil},
		{"prefix=203.0.113.128/25&match=exact&withdrawn=true", []string{"edge-1 192.0.2.7 in-pre 203.0.113.128/25"}},
		{"prefix=2001:db8:1:2::3", []string{"edge-1 192.0.2.7 in-pre 2001:db8:1::/48"}},
		{"prefix=2001:db8:2::/48", nil}, // its peer is down
		{"prefix=::ffff:203.0.113.9&rib=loc", []string{"core-2 0.0.0.0 loc 203.0.0.0/16"}},
		// The router by its identity, or by its address.
		{"router=198.51.100.2&rib=loc", []string{"core-2 0.0.0.0 loc 203.0.0.0/16"}},
		{"router=198.51.100.1&family=ipv6", []string{"edge-1 192.0.2.7 in-pre 2001:db8:1::/48"}},
		{"router=new", nil},
		{"prefix=2001:db8::/32&family=ipv4", nil},
		{"prefix=2001:db8::/32&family=ipv6-unicast&match=longer", []string{"edge-1 192.0.2.7 in-pre 2001:db8:1::/48"}},
		// Route distinguishers: of the route, and of the peer.
		{"rd=64500:1", []string{"edge-1 10.9.9.9 in-pre 0:64500:1 10.1.0.0/16", "edge-1 192.0.2.7 in-pre 0:64500:1 10.1.0.0/16"}},
		{"rd=0:64500:1&family=ipv4-vpn", []string{"edge-1 192.0.2.7 in-pre 0:64500:1 10.1.0.0/16"}},
		{"rd=192.0.2.1:9&prefix=10.1.2.3", []string{"edge-1 192.0.2.7 in-pre 1:192.0.2.1:9 10.1.2.0/24"}},
		{"prefix=10.0.0.0/8&match=longer&family=ipv4-vpn", []string{
			"edge-1 192.0.2.7 in-pre 0:64500:1 10.1.0.0/16", "edge-1 192.0.2.7 in-pre 1:192.0.2.1:9 10.1.2.0/24",
		}},
		// The origin: the last of the path, of AS4_PATH, or any of a set.
		{"origin_as=64510", []string{"edge-1 192.0.2.7 in-pre 0.0.0.0/0"}},
		{"origin_as=AS4200000005", []string{"edge-1 192.0.2.8 in-pre 203.0.113.0/24"}},
		{"origin_as=23456", nil},
		{"origin_as=64521", []string{"edge-1 192.0.2.8 in-pre 198.51.100.0/24"}},
		{"origin_as=64520&router=edge-1", []string{
			"edge-1 192.0.2.8 in-pre 198.51.100.0/24", "edge-1 192.0.2.7 in-pre 203.0.112.0/23",
			"edge-1 192.0.2.7 in-pre 203.0.113.0/24", "edge-1 192.0.2.7 in-post 203.0.113.0/24",
		}},
		{"prefix=203.0.113.9&origin_as=64520&match=longest&peer=192.0.2.8", nil},
	} {
		lines, more := ask(t, tables, c.query)
		var got []string
		for _, l := range lines {
			got = append(got, brief(t, l))
		}
		if diff := cmp.Diff(c.want, got); diff != "" || more {
			t.Errorf("%s: more %v (-want +got):\n%s", c.query, more, diff)
		}
	}
}

func TestLimit(t *testing.T) {
	tables := lookingGlass(t)
	all, _ := ask(t, tables, "limit=0")
	if len(all) != 14 {
		t.Fatalf("%d routes:\n%s", len(all), strings.Join(all, ""))
	}
	for n := 1; n <= len(all)+1; n++ {
		got, more := ask(t, tables, fmt.Sprintf("limit=%d", n))
		want := all[:min(n, len(all))]
		if !slices.Equal(got, want) || more != (n < len(all)) {
			t.Errorf("limit %d: %d routes, more %v", n, len(got), more)
		}
	}
}

// The lines of a route, and what people see of it.
func TestRouteLines(t *testing.T) {
	tables := lookingGlass(t)
	lines, _ := ask(t, tables, "withdrawn=true&limit=0")
	golden(t, "looking/routes.jsonl", strings.Join(lines, ""))
	show := func(name string, lines []string, width int, color, wide bool) {
		var out bytes.Buffer
		p := NewRoutePrinter(&out, RenderOptions{Width: width, Color: color, Now: at}, wide)
		for _, l := range lines {
			if err := p.Line([]byte(l)); err != nil {
				t.Fatal(err)
			}
		}
		if err := p.Flush(); err != nil {
			t.Fatal(err)
		}
		golden(t, "looking/"+name+".txt", out.String())
	}
	show("routes", lines, 140, false, false)
	show("routes-wide", lines, 1<<16, false, true)
	show("routes-80", lines, 80, false, false)
	show("routes-80-wide", lines, 80, false, true)
	show("routes-color", lines, 140, true, false)
	slices.Reverse(lines) // the order in which they come does not matter
	show("routes", lines, 140, false, false)
	some, _ := ask(t, tables, "prefix=203.0.113.9")
	show("address", some, 120, false, false)
}

// A table that is too long to be kept lines up with what was printed.
func TestManyRoutesArePrinted(t *testing.T) {
	line, _ := ask(t, lookingGlass(t), "prefix=2001:db8:1::/48")
	var out bytes.Buffer
	p := NewRoutePrinter(&out, RenderOptions{Width: 200, Now: at}, false)
	for range routesAtOnce + 1 {
		if err := p.Line([]byte(line[0])); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.Flush(); err != nil {
		t.Fatal(err)
	}
	got := slices.Collect(strings.Lines(out.String()))
	if len(got) != routesAtOnce+2 || got[2] != got[len(got)-1] || !strings.HasPrefix(got[2], " ") {
		t.Errorf("%d lines: %q … %q", len(got), got[:3], got[len(got)-1])
	}
	if err := p.Line([]byte("{")); err == nil {
		t.Error("half a line is taken")
	}
}

// Keys that records have as well have the values that they have there.
func TestLinesAreLikeRecords(t *testing.T) {
	enc, err := pmacct.NewEncoder(pmacct.Options{Timestamps: pmacct.RFC3339, Zone: time.UTC})
	if err != nil {
		t.Fatal(err)
	}
	addr := netip.MustParseAddr("198.51.100.1")
	for _, s := range []speaker{transit, filtered, customer, inVRF, paths, local, {addr: "192.0.2.7", as: 64501, kind: bmp.AdjRIBOutPost}} {
		tab := table.NewTable(table.NewStore(), table.Options{})
		session := enc.Session(pmacct.Identity{Router: "r", Addr: addr, Port: 1})
		more := bgp.AppendLargeCommunities(bgp.AppendCommunities(bgp.AppendLocalPref(bgp.AppendMED(nil, 5), 6), 1, 2), [3]uint32{1, 2, 3})
		messages := [][]byte{s.up(), s.announce([]uint32{64501, 64520}, more, "203.0.113.0/24")}
		if !s.addPath {
			messages = append(messages, s.vpn([]uint32{64501}, rd2, "10.1.0.0/16"))
		}
		if s.two {
			messages = messages[:1]
			path := []byte{0x40, bgp.AttrASPath, 4, bgp.ASSequence, 1, 0xfb, 0xf6}
			messages = append(messages, s.announceWith(append(bgp.AppendOrigin(nil, 1), path...), more, "203.0.113.0/24"))
		}
		var batch record.Batch
		for _, m := range messages {
			if err := session.Message(&batch, nil, at.UnixMicro(), m); err != nil {
				t.Fatal(err)
			}
		}
		apply(t, tab, at, messages...)
		lines, _ := ask(t, []RouterTable{{Router: "r", Address: addr, Table: tab}}, "")
		if len(lines) != len(messages)-1 {
			t.Fatalf("%d lines of %d messages", len(lines), len(messages))
		}
		for i, line := range lines {
			var got, want map[string]any
			rec := batch.Recs[len(batch.Recs)-len(lines)+i]
			value := batch.Data[rec.ValueOff : rec.ValueOff+rec.ValueLen]
			if err := json.Unmarshal(value, &want); err != nil {
				t.Fatal(err)
			}
			if err := json.Unmarshal([]byte(line), &got); err != nil {
				t.Fatal(err)
			}
			for key, v := range got {
				switch key {
				case "router", "session", "rib", "received", "stale", "withdrawn", "timestamp":
					delete(got, key) // not in records, or in another form
				default:
					if !cmp.Equal(v, want[key]) {
						t.Errorf("%s: %v, in records %v", key, v, want[key])
					}
				}
			}
			for key := range want {
				switch key {
				case "seq", "log_type", "event_type", "timestamp", "timestamp_arrival", "bmp_router_port", "peer_type", "peer_tcp_port",
					"bmp_msg_type", "is_filtered", "is_in", "is_out", "is_post", "is_loc", "peer_type_str":
				default:
					if _, ok := got[key]; !ok {
						t.Errorf("records have %s, %s has not", key, line)
					}
				}
			}
		}
	}
}

func TestPeers(t *testing.T) {
	var lines, narrow, wide bytes.Buffer
	for _, tab := range lookingGlass(t) {
		r := peersOf(&tab)
		b, err := json.MarshalIndent(r, "", "  ")
		if err != nil {
			t.Fatal(err)
		}
		lines.Write(append(b, '\n'))
		if err := RenderPeers(&narrow, r, RenderOptions{Width: 80, Now: at}); err != nil {
			t.Fatal(err)
		}
		if err := RenderPeers(&wide, r, RenderOptions{Width: 1 << 16, Now: at, Color: true}); err != nil {
			t.Fatal(err)
		}
	}
	golden(t, "looking/peers.json", lines.String())
	golden(t, "looking/peers.txt", narrow.String())
	golden(t, "looking/peers-wide.txt", wide.String())
}

func TestDownReasons(t *testing.T) {
	cease := func(sub byte, data string) []byte { return bgp.AppendNotification(nil, 6, sub, []byte(data)) }
	for _, c := range []struct {
		reason uint8
		data   []byte
		want   string
	}{
		{bmp.DownLocalNotification, cease(1, ""), "sent: NOTIFICATION 6/1, cease: maximum number of prefixes reached"},
		{bmp.DownRemoteNotification, cease(4, "\x05hello"), `received: NOTIFICATION 6/4, cease: administrative reset ("hello")`},
		{bmp.DownRemoteNotification, cease(4, "\x06hello"), "received: NOTIFICATION 6/4, cease: administrative reset"},
		{bmp.DownRemoteNotification, cease(2, "\x00"), "received: NOTIFICATION 6/2, cease: administrative shutdown"},
		{bmp.DownRemoteNotification, cease(99, ""), "received: NOTIFICATION 6/99, cease"},
		{bmp.DownRemoteNotification, bgp.AppendNotification(nil, 4, 0, nil), "received: NOTIFICATION 4/0, hold timer expired"},
		{bmp.DownRemoteNotification, bgp.AppendNotification(nil, 0, 0, nil), "received: NOTIFICATION 0/0"},
		{bmp.DownRemoteNotification, []byte("short"), "NOTIFICATION received"},
		{bmp.DownLocal, []byte{0, 18}, "closed by the router, FSM event 18"},
		{bmp.DownRemote, nil, "closed by the peer without a NOTIFICATION"},
		{bmp.DownDeconfigured, nil, "no longer monitored"},
		{bmp.DownLocRIB, nil, "Loc-RIB no longer monitored"},
		{77, nil, "reason 77"},
	} {
		d, err := bmp.ParsePeerDown(transit.down(c.reason, c.data))
		if err != nil {
			t.Fatal(err)
		}
		if got := downOf(&d).Text; got != c.want {
			t.Errorf("reason %d: %q, want %q", c.reason, got, c.want)
		}
	}
}

// A step that finds more than it may have is done again in parts, and nothing is
// lost or repeated.
func TestLongRoutes(t *testing.T) {
	tab := table.NewTable(table.NewStore(), table.Options{})
	apply(t, tab, at, transit.up())
	many := bgp.AppendCommunities(nil, make([]uint32, 12000)...)
	for i := range many[4:] {
		many[4+i] = byte(i * 7) // all different, so that they make long text
	}
	var prefixes []string
	for i := range 60 {
		prefixes = append(prefixes, fmt.Sprintf("10.0.%d.0/24", i), fmt.Sprintf("10.0.%d.0/25", i))
	}
	slices.SortFunc(prefixes, func(a, b string) int {
		p, q := netip.MustParsePrefix(a), netip.MustParsePrefix(b)
		return p.Compare(q)
	})
	for _, p := range prefixes {
		apply(t, tab, at, transit.announce([]uint32{1}, many, p))
	}
	for i := range 33 {
		apply(t, tab, at, transit.announce([]uint32{1}, many, netip.PrefixFrom(netip.MustParseAddr("192.0.2.1"), i).Masked().String()))
	}
	tables := []RouterTable{{Router: "r", Table: tab}}
	for query, want := range map[string]int{
		"prefix=10.0.0.0/16&match=longer": len(prefixes), "": len(prefixes) + 33, "limit=50": 50, "prefix=192.0.2.1&match=shorter": 33,
	} {
		lines, _ := ask(t, tables, query)
		seen := map[string]bool{}
		for _, l := range lines {
			seen[brief(t, l)] = true
		}
		if len(lines) != want || len(seen) != want {
			t.Errorf("%q: %d lines, %d different ones, want %d", query, len(lines), len(seen), want)
		}
	}
}
