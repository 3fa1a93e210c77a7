package verify

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cespare/xxhash/v2"
	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/bmpha/bmpha/pkg/record"
	"github.com/bmpha/bmpha/pkg/replay"
)

var update = flag.Bool("update", false, "write the golden files anew")

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// golden compares text with a file of testdata.
func golden(t *testing.T, name, text string) {
	t.Helper()
	file := filepath.Join("testdata", name+".txt")
	if *update {
		must(t, os.WriteFile(file, []byte(text), 0o644))
	}
	want, err := os.ReadFile(file)
	must(t, err)
	if d := cmp.Diff(string(want), text); d != "" {
		t.Errorf("%s is not as in %s (-update writes it anew):\n%s", name, file, d)
	}
}

func read(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name))
	must(t, err)
	return b
}

const testRouter = "192.0.2.1"

var start = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// recorded is a ledger of what a real router's BMP made.
func recorded(t testing.TB, name string) *Ledger {
	t.Helper()
	l := New(Options{})
	for i, line := range lines(t, read(t, name+".bmp")) {
		l.Record(Record{Offset: int64(i), Time: start, Value: line})
	}
	return l
}

// What real routers print of their tables equals what their BMP told of them.
func TestRealRouters(t *testing.T) {
	tests := []struct {
		bmp   string
		files []string
		peer  string
		rib   replay.RIB
		equal int
	}{
		{"frr", []string{"frr-ipv4", "frr-ipv6"}, "", replay.InPost, 10},
		{"frr", []string{"frr-ipv4"}, "", replay.InPost, 6},
		{"frr", []string{"frr-ipv6"}, "127.2.0.32", replay.InPost, 2},
		{"frr", []string{"frr-detail"}, "", replay.InPost, 6},
		{"frr", []string{"frr-routes"}, "127.2.0.31", replay.InPost, 3},
		{"frr", []string{"frr-received"}, "127.2.0.31", replay.InPre, 3},
		{"frr", []string{"frr-received", "frr-received6"}, "127.2.0.31", replay.InPre, 5},
		{"gobgp", []string{"gobgp-ipv4", "gobgp-ipv6"}, "", replay.InPost, 10},
		{"gobgp", []string{"gobgp-ipv6"}, "127.2.0.31", replay.InPost, 2},
		{"gobgp", []string{"gobgp-received"}, "", replay.InPre, 3},
	}
	for _, test := range tests {
		t.Run(strings.Join(append(test.files, test.peer), " "), func(t *testing.T) {
			parse := ParseFRR
			if test.bmp == "gobgp" {
				parse = ParseGoBGP
			}
			var text []byte // several in one file
			for _, f := range test.files {
				text = append(text, read(t, f+".json")...)
			}
			tables, err := parse(bytes.NewReader(text))
			must(t, err)
			if len(tables) != len(test.files) {
				t.Errorf("%d tables", len(tables))
			}
			var scope Scope
			if test.peer != "" {
				scope.Peer = netip.MustParseAddr(test.peer)
			}
			routes, ok := recorded(t, test.bmp).Routes(testRouter)
			if !ok {
				t.Fatal("no such router")
			}
			c, err := Compare(testRouter, tables, routes, scope)
			must(t, err)
			if c.Equal != test.equal || c.Differences() != 0 || !slices.Equal(c.RIBs, []replay.RIB{test.rib}) {
				got, _ := json.MarshalIndent(c, "", " ")
				t.Errorf("%s", got)
			}
		})
	}
}

// Each attribute that both sides tell counts.
func TestDifferences(t *testing.T) {
	routes, _ := recorded(t, "frr").Routes(testRouter)
	change := func(prefix, from, to string) {
		t.Helper()
		for k, v := range routes {
			if k.RIB == replay.InPost && k.Peer == "127.2.0.31" && k.Prefix == prefix {
				if from == "" {
					delete(routes, k)
				} else if routes[k] = strings.Replace(v, from, to, 1); routes[k] == v {
					t.Fatalf("%q has no %q", v, from)
				}
				return
			}
		}
		t.Fatalf("no route %s", prefix)
	}
	change("198.18.0.0/24", "", "")
	change("198.51.100.0/25", "path [65000 64501 4200000001]", "path [65000 64501]")
	change("198.51.100.128/25", "med 50 comms 64501:7 no-export lcomms 64501:1:2", "comms 64501:7")
	change("2001:db8:1::/48", "via 2001:db8::11", "via 2001:db8::99")
	change("2001:db8:2::/48", "origin e", "origin i")
	routes[replay.Key{Router: testRouter, Peer: "127.2.0.32", RIB: replay.InPost, AFI: 1, SAFI: 1, Prefix: "192.0.2.128/25", PathID: -1}] = "via 192.0.2.11 path [1] origin i"
	// Not compared: other families, other RIBs, VPNs.
	routes[replay.Key{Router: testRouter, Peer: "127.2.0.32", RIB: replay.InPost, AFI: 1, SAFI: 4, Prefix: "192.0.2.128/25", PathID: -1}] = "via 192.0.2.11 path [1] origin i"
	routes[replay.Key{Router: testRouter, Peer: "127.2.0.32", RIB: replay.InPost, AFI: 1, SAFI: 1, Prefix: "192.0.2.128/25", RD: "0:1:2", PathID: -1}] = "via 192.0.2.11 path [1] origin i"

	var tables []Table
	for _, f := range []string{"frr-detail.json", "frr-ipv6.json"} {
		some, err := ParseFRR(bytes.NewReader(read(t, f)))
		must(t, err)
		tables = append(tables, some...)
	}
	c, err := Compare(testRouter, tables, routes, Scope{})
	must(t, err)
	r := Result{Topic: "bmp", Report: &Report{}, Comparison: c}
	var b bytes.Buffer
	must(t, r.Write(&b, false))
	golden(t, "differences", b.String())
	if r.Sound() {
		t.Error("differences are sound")
	}
}

// Of what differs, Kafka's last word is told with its sender and time.
func TestAttribute(t *testing.T) {
	l := take(Options{}, []said{{1, 1, 1, 0, 0, update1, 0, 0}, {2, 2, 1, 0, 0, update2, 0, 0}})
	routes, _ := l.Routes(testRouter)
	c, err := Compare(testRouter, []Table{{RIB: replay.InPre}}, routes, Scope{})
	must(t, err)
	l.Attribute(c)
	if len(c.Extra) != 2 || c.Extra[0].Sender == nil || c.Extra[0].Sender.Token != 1 || c.Extra[1].Sender == nil || c.Extra[1].Sender.Token != 2 || !c.Extra[1].At.Equal(start.Add(time.Second)) {
		t.Errorf("%+v", c.Extra)
	}
	l.Attribute(&Comparison{Router: "192.0.2.99", Extra: c.Extra})
}

// With ADD-PATH, routes of one prefix are paired whatever their order and their
// path identifiers.
func TestAddPath(t *testing.T) {
	peer, prefix := netip.MustParseAddr("198.51.100.7"), netip.MustParsePrefix("192.0.2.0/24")
	path := func(as string) Path {
		return Path{Peer: peer, Prefix: prefix, Attributes: Attributes{ASPath: &as}}
	}
	kafka := map[replay.Key]string{}
	for i, as := range []string{"3", "2", "1"} {
		kafka[replay.Key{Peer: peer.String(), RIB: replay.InPost, AFI: 1, SAFI: 1, Prefix: "192.0.2.0/24", PathID: int64(i)}] = "via  path [" + as + "] origin i"
	}
	c, err := Compare("r", []Table{{RIB: replay.InPost, Paths: []Path{path("1"), path("2"), path("4"), path("5")}}}, kafka, Scope{})
	must(t, err)
	if c.Equal != 2 || len(c.Different) != 1 || len(c.Missing) != 1 || len(c.Extra) != 0 {
		t.Errorf("%+v", c)
	}
}

func TestScope(t *testing.T) {
	a, b := netip.MustParseAddr("198.51.100.1"), netip.MustParseAddr("198.51.100.2")
	p4, p6 := netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("2001:db8::/32")
	key := func(peer netip.Addr, rib replay.RIB, p netip.Prefix) replay.Key {
		return replay.Key{Peer: peer.String(), RIB: rib, AFI: afiOf(p.Addr()), SAFI: 1, Prefix: p.String(), PathID: -1}
	}
	const value = "via 192.0.2.9 path [1] origin i"
	kafka := map[replay.Key]string{
		key(a, replay.InPost, p4): value, key(b, replay.InPost, p4): value,
		key(a, replay.InPost, p6): value, key(b, replay.InPre, p4): value, key(a, replay.InPre, p4): value,
	}
	path := func(peer netip.Addr, p netip.Prefix) Path { return Path{Peer: peer, Prefix: p} }
	post := Table{RIB: replay.InPost, Paths: []Path{path(a, p4)}}
	tests := []struct {
		name                  string
		table                 Table
		scope                 Scope
		equal, missing, extra int
	}{
		{"the families of the router's routes", post, Scope{}, 1, 0, 1},
		{"both families", post, Scope{AFIs: []uint16{1, 2}}, 1, 0, 2},
		{"the other family", post, Scope{AFIs: []uint16{2}}, 0, 0, 1},
		{"one peer", post, Scope{Peer: a}, 1, 0, 0},
		{"another peer", post, Scope{Peer: b}, 0, 0, 1},
		{"nothing in the router", Table{RIB: replay.InPost}, Scope{}, 0, 0, 3},
		{"nothing in Kafka", post, Scope{RIB: replay.Loc}, 0, 1, 0},
		{"another RIB", post, Scope{RIB: replay.InPre}, 1, 0, 1},
		{"received routes speak for their peer only", Table{RIB: replay.InPre, Paths: []Path{path(a, p4)}}, Scope{}, 1, 0, 0},
		{"received routes of a peer that is named elsewhere", Table{RIB: replay.InPre, Unnamed: true, Paths: []Path{{Prefix: p4}}}, Scope{Peer: b}, 1, 0, 0},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			c, err := Compare("r", []Table{test.table}, kafka, test.scope)
			must(t, err)
			if c.Equal != test.equal || len(c.Missing) != test.missing || len(c.Extra) != test.extra || len(c.Different) != 0 {
				t.Errorf("%+v", c)
			}
		})
	}
	if _, err := Compare("r", []Table{{RIB: replay.InPre, Unnamed: true}}, kafka, Scope{}); err == nil {
		t.Error("received routes of nobody were compared")
	}
}

func TestParseErrors(t *testing.T) {
	for text, want := range map[string]string{
		"":                                     "nothing there",
		"% BGP instance not found":             "after byte",
		"[]":                                   "object was expected",
		`{"routes":{"192.0.2.0/24":[{"valid"`:  "unexpected EOF",
		`{"routes":{"here":[]}}`:               "",
		`{"routes":{"here":[{"valid":true}]}}`: "only unicast",
		`{"vrfName":"red","routes":{}}`:        `VRF "red"`,
		`{"warning":"No such neighbor"}`:       "No such neighbor",
		`{"localAS":-1,"routes":{}}`:           "localAS",
		`{}`:                                   "neither routes nor receivedRoutes",
		`{"routes":{}} {"routes":3}`:           "object was expected",
	} {
		_, err := ParseFRR(strings.NewReader(text))
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("frr %q: %v, want %q", text, err, want)
		}
	}
	for text, want := range map[string]string{
		"":                             "nothing there",
		"{}":                           "",
		`{"[type:macadv][rd:1:1]":[]}`: "only unicast",
		`{"192.0.2.0/24":[{"neighbor-ip":"192.0.2.1","attrs":[{"type":1,"value":"x"}]}]}`: "ORIGIN",
		"rpc error": "after byte",
	} {
		_, err := ParseGoBGP(strings.NewReader(text))
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("gobgp %q: %v, want %q", text, err, want)
		}
	}
}

func TestCanonical(t *testing.T) {
	for text, want := range map[string]string{
		"65001 {3,20,1,3} (64512 64513) [5,4]": "65001 {1,3,20} (64512 64513) [4,5]",
		"":                                     "",
		"{}":                                   "{}",
		"{":                                    "{",
	} {
		if got := canonicalPath(text); got != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
	a := readValue("via ::ffff:192.0.2.9 path [1 [2,3]] origin i med 0 local-pref 100 comms 1:2 no-export lcomms 1:2:3 4:5:6")
	const want = "via 192.0.2.9 path [1 [2,3]] origin i med 0 local-pref 100 comms 1:2 65535:65281 lcomms 1:2:3 4:5:6"
	if a.String() != want {
		t.Errorf("got  %s\nwant %s", a, want)
	}
}

// A said is one record of a test's topic.
type said struct {
	instance, token, message uint64
	index                    uint16
	flags                    uint8
	value                    string
	partition                int32
	at                       time.Duration
}

const (
	update1  = `{"log_type": "update", "is_post": 0, "is_in": 1, "event_type": "log", "afi": 1, "safi": 1, "ip_prefix": "198.18.0.0/24", "bgp_nexthop": "192.0.2.11", "as_path": "1", "origin": "i", "bmp_router": "192.0.2.1", "peer_ip": "192.0.2.11", "bmp_msg_type": "route_monitor"}`
	peerUp   = `{"event_type": "log", "bmp_router": "192.0.2.1", "bmp_msg_type": "peer_up", "peer_ip": "192.0.2.11", "peer_type": 0, "is_post": 0, "is_in": 1}`
	peerDown = `{"event_type": "log", "bmp_router": "192.0.2.1", "bmp_msg_type": "peer_down", "peer_ip": "192.0.2.11", "peer_type": 0, "is_post": 0, "is_in": 1}`
)

var (
	update2   = strings.Replace(update1, "198.18.0.0", "198.18.1.0", 1)
	update1b  = strings.Replace(update1, `"as_path": "1"`, `"as_path": "1 2"`, 1)
	withdraw1 = strings.Replace(update1, `"update"`, `"withdraw"`, 1)
)

// take makes a ledger of records, with headers if they have an instance.
func take(o Options, records []said) *Ledger {
	l := New(o)
	for i, s := range records {
		r := Record{Partition: s.partition, Offset: int64(i), Time: start.Add(time.Duration(i)*time.Second + s.at), Value: []byte(s.value)}
		if s.instance != 0 {
			o := record.Origin{Instance: s.instance, Session: 1, Message: s.message, Token: s.token, Flags: s.flags}
			f, _ := scan(r.Value)
			if len(f.prefix) > 0 {
				r.Header = record.AppendRouteHeader(nil, &o, int(s.index), xxhash.Sum64(f.prefix), xxhash.Sum64(f.appendValue(nil, r.Value)))
			} else {
				r.Header = record.AppendHeader(nil, &o, int(s.index))
			}
		}
		l.Record(r)
	}
	return l
}

func TestLedger(t *testing.T) {
	const replayed, shared = record.FlagReplayed, record.FlagShared
	tests := []struct {
		name    string
		records []said
		repeats Repeats
		faults  int64
		senders int
		routes  int
	}{
		{"clean", []said{{1, 1, 1, 0, 0, peerUp, 0, 0}, {1, 1, 2, 0, 0, update1, 0, 0}, {1, 1, 2, 1, 0, update2, 0, 0}, {1, 1, 3, 0, 0, withdraw1, 0, 0}},
			Repeats{}, 0, 1, 1},
		{"the router says it again", []said{{1, 1, 2, 0, 0, update1, 0, 0}, {1, 1, 3, 0, 0, update1, 0, 0}},
			Repeats{Router: 1}, 0, 1, 1},
		{"a flap is no repeat", []said{{1, 1, 2, 0, 0, update1, 0, 0}, {1, 1, 3, 0, 0, withdraw1, 0, 0}, {1, 1, 4, 0, 0, update1, 0, 0}},
			Repeats{}, 0, 1, 1},
		{"after a Peer Up it is needed again", []said{{1, 1, 2, 0, 0, update1, 0, 0}, {1, 1, 3, 0, 0, peerDown, 0, 0}, {1, 1, 4, 0, 0, peerUp, 0, 0}, {1, 1, 5, 0, 0, update1, 0, 0}},
			Repeats{}, 0, 1, 1},
		{"sent again and flagged", []said{{1, 1, 2, 0, 0, update1, 0, 0}, {1, 1, 2, 0, replayed, update1, 0, 0}, {1, 1, 3, 0, 0, update2, 0, 0}},
			Repeats{Replayed: 1}, 0, 1, 2},
		{"sent again and not flagged", []said{{1, 1, 2, 0, 0, update1, 0, 0}, {1, 1, 2, 0, 0, update1, 0, 0}},
			Repeats{Other: 1}, 1, 1, 1},
		{"out of order", []said{{1, 1, 2, 1, 0, update1, 0, 0}, {1, 1, 3, 0, 0, update1b, 0, 0}, {1, 1, 2, 0, 0, update2, 0, 0}},
			Repeats{}, 1, 1, 2},
		{"out of order within a message", []said{{1, 1, 2, 1, 0, update1, 0, 0}, {1, 1, 2, 0, 0, update2, 0, 0}},
			Repeats{}, 1, 1, 2},
		{"partitions have orders of their own", []said{{1, 1, 3, 0, 0, update1, 0, 0}, {1, 1, 2, 0, 0, update2, 1, 0}},
			Repeats{}, 0, 2, 2},
		{"takeover", []said{{1, 1, 2, 0, 0, update1, 0, 0}, {2, 2, 9, 0, replayed, update1, 0, 0}, {2, 2, 10, 0, 0, update2, 0, 0}},
			Repeats{Replayed: 1}, 0, 2, 2},
		{"the seam, not flagged", []said{{1, 1, 2, 0, 0, update1, 0, 0}, {2, 2, 9, 0, 0, update1, 0, 0}},
			Repeats{Other: 1}, 0, 2, 1},
		{"a table that the router tells another collector", []said{{1, 1, 1, 0, 0, peerUp, 0, 0}, {1, 1, 2, 0, 0, update1, 0, 0}, {2, 2, 1, 0, replayed, peerUp, 0, 0}, {2, 2, 2, 0, 0, update1, 0, 0}},
			Repeats{Told: 1}, 0, 2, 1},
		{"and once it has told it, what is repeated is not the router's", []said{{2, 1, 1, 0, 0, peerUp, 0, 0}, {2, 1, 2, 0, 0, update1, 0, 0}, {1, 2, 3, 0, 0, update1b, 0, 0}, {2, 3, 3, 0, 0, update1b, 0, 0}},
			Repeats{Other: 1}, 0, 3, 1},
		{"nor is it by a Peer Up of another peer", []said{{1, 1, 2, 0, 0, update1, 0, 0}, {2, 2, 1, 0, replayed, strings.ReplaceAll(peerUp, "192.0.2.11", "192.0.2.12"), 0, 0}, {2, 2, 2, 0, 0, update1, 0, 0}},
			Repeats{Other: 1}, 0, 2, 1},
		{"the old sender goes on", []said{{1, 1, 2, 0, 0, update1, 0, 0}, {2, 2, 9, 0, 0, update2, 0, 0}, {1, 1, 3, 0, 0, update1b, 0, 0}},
			Repeats{}, 1, 3, 2},
		{"two may send", []said{{1, 1, 2, 0, shared, update1, 0, 0}, {2, 2, 9, 0, shared, update1, 0, 0}, {1, 1, 3, 0, shared, update1b, 0, 0}},
			Repeats{Shared: 1}, 0, 3, 1},
		{"a replayed Peer Up is no new life", []said{{1, 1, 1, 0, 0, peerUp, 0, 0}, {1, 1, 2, 0, 0, update1, 0, 0}, {2, 2, 1, 0, replayed, peerUp, 0, 0}, {2, 2, 2, 0, replayed, update1, 0, 0}},
			Repeats{Replayed: 1}, 0, 2, 1},
		{"without header, equal and soon", []said{{value: update1}, {value: update1}},
			Repeats{Router: 1}, 0, 1, 1},
		{"without header, two writers", []said{{value: update1}, {value: strings.Replace(update1, "{", `{"seq": 77, "writer_id": "b/2", `, 1)}},
			Repeats{Other: 1}, 0, 2, 1},
		{"without header, equal and late", []said{{value: update1}, {value: update1, at: time.Minute}},
			Repeats{}, 0, 1, 1},
		{"without header, another value", []said{{value: update1}, {value: update1b}},
			Repeats{}, 0, 1, 1},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			rep := take(Options{}, test.records).Report()
			if rep.Records != int64(len(test.records)) || len(rep.Routers) != 1 {
				t.Fatalf("%+v", rep)
			}
			got := rep.Routers[0]
			if got.Repeats != test.repeats || got.Faults != test.faults || len(got.Senders) != test.senders || got.Routes != test.routes || got.PeersUp != got.Peers {
				t.Errorf("%+v", got)
			}
			if rep.Faults() != test.faults {
				t.Errorf("%d faults in all", rep.Faults())
			}
		})
	}
}

// What is not a record of BMP is counted and named, and harms nothing.
func TestUnreadable(t *testing.T) {
	l := take(Options{}, []said{
		{value: update1}, {value: ""}, {value: "Avro\x00"}, {value: "{}"}, {value: `{"bmp_router": "192.0.2.1", "afi": "one"}`},
		{value: `{"bmp_router": "192.0.2.1", `}, {value: `{"event_type": "log", "peer_ip_src": "192.0.2.1"}`},
		{value: strings.ReplaceAll(update2, "192.0.2.1\"", "192.0.2.2\"")},
	})
	l.Record(Record{Offset: 9, Value: []byte(update1), Header: []byte{1}})
	rep := l.Report()
	if rep.Unreadable != 5 || rep.Foreign != 2 || len(rep.Routers) != 2 || rep.Faults() != 5 {
		t.Errorf("%+v", rep)
	}
	rep = take(Options{Router: netip.MustParseAddr("192.0.2.2")}, []said{{value: update1}, {value: strings.ReplaceAll(update2, "192.0.2.1\"", "192.0.2.2\"")}}).Report()
	if rep.Skipped != 1 || len(rep.Routers) != 1 || rep.Routers[0].Router != "192.0.2.2" {
		t.Errorf("%+v", rep)
	}
}

func TestText(t *testing.T) {
	records := []said{
		{1, 1, 1, 0, 0, peerUp, 0, 0}, {1, 1, 2, 0, 0, update1, 0, 0}, {1, 1, 3, 0, 0, update2, 0, 0},
		{0xabc, 2, 7, 0, record.FlagReplayed, update2, 0, 0}, {0xabc, 2, 8, 0, 0, withdraw1, 0, 0},
		{1, 1, 4, 0, 0, update1, 0, 0}, {1, 1, 3, 0, 0, update1, 1, 0}, {value: "x"},
		{value: strings.Replace(update1, "192.0.2.1\"", "2001:db8::1\\u001b[2J\"", 1)},
	}
	for i := range uint64(12) {
		records = append(records, said{2, 3, 20 - i, 0, record.FlagShared, update1b, 0, 0}, said{3, 3, 20 - i, 0, 0, update1, 0, 0})
	}
	r := Result{Topic: "bmp", Partitions: []Span{{0, 0, 33}, {1, 0, 1}}, Report: take(Options{}, records).Report()}
	for _, all := range []bool{false, true} {
		var b bytes.Buffer
		must(t, r.Write(&b, all))
		golden(t, map[bool]string{false: "few", true: "all"}[all], b.String())
	}
	b, err := json.MarshalIndent(r, "", "  ")
	must(t, err)
	golden(t, "json", string(b))
}

// What pmacct wrote, in both dialects, makes the tables of the model consumer, and
// of the records nothing is a fault.
func TestDialects(t *testing.T) {
	dir := os.Getenv("BMPHA_FIXTURES")
	if dir == "" {
		dir = filepath.Join("..", "..", "..", "shared", "fixtures")
	}
	for _, dialect := range []string{"1.7.7", "1.8"} {
		t.Run(dialect, func(t *testing.T) {
			f, err := os.Open(filepath.Join(dir, "pmacct-"+dialect+".jsonl.gz"))
			if err != nil {
				t.Skipf("captured records are not here (BMPHA_FIXTURES): %v", err)
			}
			defer f.Close()
			z, err := gzip.NewReader(f)
			must(t, err)
			l := New(Options{})
			var model replay.Consumer
			lines := bufio.NewScanner(z)
			lines.Buffer(nil, 1<<20)
			for n := int64(0); lines.Scan(); n++ {
				l.Record(Record{Offset: n, Time: start, Value: lines.Bytes()})
				must(t, model.Record(lines.Bytes()))
			}
			must(t, lines.Err())
			rep := l.Report()
			got := make(map[replay.Key]string)
			for _, rt := range rep.Routers {
				routes, _ := l.Routes(rt.Router)
				maps.Copy(got, routes)
				if rt.Routes != len(routes) || rt.Peers == 0 || rt.PeersUp > rt.Peers || len(rt.Senders) != 1 {
					t.Errorf("%+v", rt)
				}
			}
			if d := replay.Compare(model.Routes(), got); !d.Empty() || d.Equal < 8000 {
				t.Error(d)
			}
			if rep.Faults() != 0 || rep.Foreign != 0 || len(rep.Routers) < 10 {
				t.Errorf("%d faults, %d foreign, %d routers", rep.Faults(), rep.Foreign, len(rep.Routers))
			}
		})
	}
}

// The seeds are short, one route each: the fuzzer spends its time on making long
// ones shorter.
func FuzzFRR(f *testing.F) {
	for _, text := range []string{
		`{"localAS":65000,"routes":{"192.0.2.0/24":[{"valid":true,"pathFrom":"external","metric":5,"peerId":"192.0.2.1","path":"1 {3,2}","origin":"IGP","nexthops":[{"ip":"192.0.2.1"}]}]}}`,
		`{"routes":{"2001:db8::/32":[{"prefix":"2001:db8::/32"},{"aspath":{"string":"1"},"valid":true,"community":{"list":["1:2","noExport"]},"nexthops":[{"ip":"fe80::1","scope":"link-local"}],"peer":{"peerId":"2001:db8::1","type":"internal"}}]}}`,
		`{"receivedRoutes":{"192.0.2.0/24":{"nextHop":"192.0.2.1","path":"1","bgpOriginCode":"?"}}}`,
		`{"routes":{}}{"routes":{}}`,
		`{"warning":"x"}`,
	} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) { checkTables(t, text, ParseFRR) })
}

func FuzzGoBGP(f *testing.F) {
	for _, text := range []string{
		`{"192.0.2.0/24":[{"best":true,"attrs":[{"type":1,"value":0},{"type":2,"as_paths":[{"segment_type":1,"asns":[2,1]}]},{"type":3,"nexthop":"192.0.2.1"},{"type":4,"metric":5}],"neighbor-ip":"192.0.2.1"}]}`,
		`{"2001:db8::/32":[{"attrs":[{"type":5,"value":1},{"type":8,"communities":[1]},{"type":14,"nexthop":"::1"},{"type":32,"value":[{"ASN":1}]}],"neighbor-ip":"::2"}]}`,
		`{}`,
	} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) { checkTables(t, text, ParseGoBGP) })
}

// checkTables: what a parser takes can be compared, and every path is then
// accounted for.
func checkTables(t *testing.T, text string, parse func(io.Reader) ([]Table, error)) {
	tables, err := parse(strings.NewReader(text))
	if err != nil {
		return
	}
	peer := netip.MustParseAddr("192.0.2.99")
	for _, table := range tables {
		scope := Scope{}
		if table.Unnamed {
			scope.Peer = peer
		}
		kafka := make(map[replay.Key]string)
		for i, p := range table.Paths {
			if !p.Prefix.IsValid() || p.Prefix != p.Prefix.Masked() || !table.Unnamed && !p.Peer.IsValid() {
				t.Fatalf("%+v", p)
			}
			if table.Unnamed {
				p.Peer = peer
			}
			kafka[replay.Key{Peer: p.Peer.String(), RIB: table.RIB, AFI: afiOf(p.Prefix.Addr()), SAFI: 1, Prefix: p.Prefix.String(), PathID: int64(i)}] = "via  path [] origin "
		}
		c, err := Compare("r", []Table{table}, kafka, scope)
		if err != nil {
			t.Fatal(err)
		}
		if got := c.Equal + len(c.Different); got != len(table.Paths) || len(c.Missing)+len(c.Extra) != 0 {
			t.Fatalf("%d paths: %+v", len(table.Paths), c)
		}
		if err := (&Result{Report: &Report{}, Comparison: c}).Write(&bytes.Buffer{}, true); err != nil {
			t.Fatal(err)
		}
	}
}

// Whatever stands in a topic, a Ledger takes it, and an object is one for both
// readers.
func FuzzRecord(f *testing.F) {
	header := record.AppendRouteHeader(nil, &record.Origin{Instance: 1, Session: 2, Message: 3}, 0, 4, 5)
	for _, v := range []string{update1, peerUp, peerDown, withdraw1, "{}", `{"a":[{"b":"}"}],"bmp_router":"x\"y"}`, "\x00", `{"bmp_router": "r", "ip_prefix": "\ud800"}`} {
		f.Add([]byte(v), header)
	}
	f.Fuzz(func(t *testing.T, value, header []byte) {
		if json.Valid(value) {
			var o map[string]json.RawMessage
			isObject := json.Unmarshal(value, &o) == nil && o != nil
			if _, ok := scan(value); ok != isObject {
				t.Fatalf("%q: an object %v, found %v", value, isObject, ok)
			}
		}
		l := New(Options{})
		for i := range int64(2) {
			l.Record(Record{Offset: i, Value: value, Header: header})
		}
		rep := l.Report()
		n := rep.Unreadable + rep.Foreign
		for _, r := range rep.Routers {
			n += r.Records
		}
		if n != 2 {
			t.Fatalf("%+v", rep)
		}
		if err := (&Result{Report: rep}).Write(&bytes.Buffer{}, true); err != nil {
			t.Fatal(err)
		}
	})
}

func BenchmarkLedger(b *testing.B) {
	l := New(Options{})
	var records []Record
	for i := range 10_000 {
		v := strings.Replace(update1, "198.18.0.0/24", fmt.Sprintf("10.%d.%d.0/24", i>>8, i&255), 1)
		o := record.Origin{Instance: 1, Session: 1, Message: uint64(i)}
		records = append(records, Record{Time: start, Value: []byte(v), Header: record.AppendRouteHeader(nil, &o, 0, uint64(i), 1)})
	}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		l.Record(records[i%len(records)])
	}
}
