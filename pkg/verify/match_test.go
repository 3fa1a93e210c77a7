package verify

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/bmpha/bmpha/pkg/replay"
)

// route is a record of a peer's route, with v as its AS path; nothing withdraws it.
func route(peer string, prefix int, v string) string {
	kind, attrs := "update", fmt.Sprintf(`"bgp_nexthop": "192.0.2.11", "as_path": %q, "origin": "i", `, v)
	if v == "" {
		kind, attrs = "withdraw", ""
	}
	return fmt.Sprintf(`{"log_type": %q, "event_type": "log", "afi": 1, "safi": 1, "ip_prefix": "198.18.%d.0/24", %s"is_post": 0, "is_in": 1, "bmp_router": "192.0.2.1", "peer_ip": %q, "bmp_msg_type": "route_monitor"}`, kind, prefix, attrs, peer)
}

// told is a route as a collector tells it.
func told(peer string, prefix int, v string) string {
	return fmt.Sprintf(`{"router": "edge-1", "bmp_router": "192.0.2.1", "session": "up", "peer_ip": %q, "rib": "in-pre", "afi": 1, "safi": 1, "ip_prefix": "198.18.%d.0/24", "bgp_nexthop": "192.0.2.11", "as_path": %q, "origin": "i", "stale": false, "withdrawn": false}`, peer, prefix, v)
}

func event(peer, kind, more string) string {
	return fmt.Sprintf(`{"event_type": "log", "bmp_msg_type": %q, %s"bmp_router": "192.0.2.1", "peer_ip": %q, "is_post": 0, "is_in": 1}`, kind, more, peer)
}

const (
	peerA  = "192.0.2.11"
	peerB  = "192.0.2.12"
	edge1  = `{"router": "edge-1", "bmp_router": "192.0.2.1", "state": "up", "peers": []}`
	vpn    = `"afi": 1, "safi": 128, "ip_prefix": "198.18.1.0/24", "bgp_nexthop": "192.0.2.11", "as_path": "1", "origin": "i", "rd": "0:64500:1", "rd_origin": "bgp", "mpls_label": "17", `
	vpnLog = `{"log_type": "update", "event_type": "log", ` + vpn + `"is_post": 0, "is_in": 1, "bmp_router": "192.0.2.1", "peer_ip": "192.0.2.11"}`
	vpnHas = `{"bmp_router": "192.0.2.1", "rib": "in-pre", ` + vpn + `"peer_ip": "192.0.2.11"}`
)

// taken is a ledger of records.
func taken(o Options, records ...string) *Ledger {
	l := New(o)
	for i, s := range records {
		l.Record(Record{Offset: int64(i), Time: start, Value: []byte(s)})
	}
	return l
}

func pass(t testing.TB, m *Match, lines ...string) {
	t.Helper()
	m.Begin()
	for _, s := range lines {
		must(t, m.Route([]byte(s)))
	}
	m.End()
}

func compared(t testing.TB, o Options, scope Scope, records, lines []string) *TableComparison {
	t.Helper()
	m := NewMatch(taken(o, records...), scope)
	must(t, m.Router([]byte(edge1)))
	pass(t, m, lines...)
	m.Check()
	return m.Result("s", 0)
}

func names(u Unequal) string {
	var all []string
	for _, d := range u.First {
		all = append(all, strings.TrimSuffix(strings.TrimPrefix(d.Prefix, "198.18."), ".0/24"))
	}
	return strings.Join(all, " ")
}

// What a topic and a collector can say of the same routes.
func TestMatch(t *testing.T) {
	partial := Options{Partial: true}
	has := func(s ...string) []string { return s }
	tests := []struct {
		name                       string
		o                          Options
		scope                      Scope
		records, lines             []string
		equal                      int64
		missing, extra, diff, rest string
		unclear                    int64
	}{
		{name: "nothing at all"},
		{name: "equal", records: has(route(peerA, 1, "1"), route(peerB, 1, "2")), lines: has(told(peerB, 1, "2"), told(peerA, 1, "1")), equal: 2},
		{name: "each sort", records: has(route(peerA, 1, "1"), route(peerA, 2, "1"), route(peerA, 3, "1")), lines: has(told(peerA, 1, "1"), told(peerA, 2, "2"), told(peerA, 4, "1")),
			equal: 1, missing: "4", extra: "3", diff: "2"},
		{name: "of another peer", records: has(route(peerA, 1, "1")), lines: has(told(peerB, 1, "1")), missing: "1", extra: "1"},
		{name: "a withdrawal of what nobody knows is no fault", records: has(route(peerA, 1, ""), route(peerA, 2, "1")), lines: has(told(peerA, 2, "1")), equal: 1},
		{name: "withdrawn with attributes", records: has(route(peerA, 1, "1"), strings.Replace(route(peerA, 1, "1"), "update", "withdraw", 1))},
		{name: "deleted", records: has(route(peerA, 1, "1"), strings.NewReplacer("update", "delete", "route_monitor", "internal").Replace(route(peerA, 1, "1")))},
		{name: "deleted after its peer went down", records: has(route(peerA, 1, "1"), event(peerA, "peer_down", ""), strings.Replace(route(peerA, 1, "1"), "update", "delete", 1))},
		{name: "a session is no life of a table", records: has(route(peerA, 1, "1"), event("", "term", ""), `{"event_type": "log_close", "bmp_router": "192.0.2.1"}`, `{"event_type": "log_init", "bmp_router": "192.0.2.1"}`),
			lines: has(told(peerA, 1, "1")), equal: 1},
		{name: "a Peer Up begins anew", records: has(route(peerA, 1, "1"), route(peerA, 2, "1"), event(peerA, "peer_up", ""), route(peerA, 2, "1")), lines: has(told(peerA, 2, "1")), equal: 1},
		{name: "only a peer", scope: Scope{Peer: netip.MustParseAddr(peerB)}, records: has(route(peerA, 1, "1"), route(peerB, 1, "1")), lines: has(told(peerA, 2, "1"), told(peerB, 1, "1")), equal: 1},
		{name: "only a RIB", scope: Scope{RIB: replay.InPost}, records: has(route(peerA, 1, "1")), lines: has(told(peerA, 2, "1"))},
		{name: "only a family", scope: Scope{AFIs: []uint16{2}}, records: has(route(peerA, 1, "1")), lines: has(told(peerA, 2, "1"))},
		{name: "not mentioned since", o: partial, records: has(route(peerA, 1, "1")), lines: has(told(peerA, 1, "1"), told(peerA, 2, "1"), told(peerB, 1, "1")), equal: 1, rest: "2 1"},
		{name: "nothing mentioned since", o: partial, lines: has(told(peerA, 2, "1")), rest: "2"},
		{name: "mentioned since as withdrawn", o: partial, records: has(route(peerA, 1, "")), lines: has(told(peerA, 1, "1"), told(peerA, 2, "1")), missing: "1", rest: "2"},
		{name: "withdrawn since, and not there", o: partial, records: has(route(peerA, 1, ""))},
		{name: "whole since a Peer Up", o: partial, records: has(event(peerA, "peer_up", "")), lines: has(told(peerA, 1, "1"), told(peerB, 2, "1")), missing: "1", rest: "2"},
		{name: "whole since a Peer Down", o: partial, records: has(route(peerA, 1, "1"), event(peerA, "peer_down", "")), lines: has(told(peerA, 1, "1")), missing: "1"},
		{name: "a RIB whole since a Peer Up", o: partial, records: has(strings.Replace(event(peerA, "peer_up", ""), `"is_post": 0`, `"is_post": 1`, 1)),
			lines: has(told(peerA, 1, "1"), strings.Replace(told(peerA, 2, "1"), "in-pre", "in-post", 1)), missing: "2", rest: "1"},
		{name: "VPN", records: has(vpnLog), lines: has(vpnHas), equal: 1},
		{name: "VPN, another label", records: has(vpnLog), lines: has(strings.Replace(vpnHas, `"17"`, `"18"`, 1)), diff: "1"},
		{name: "VPN, label of pmacct 1.7.7", records: has(strings.Replace(vpnLog, `"mpls_label"`, `"label"`, 1)), lines: has(vpnHas), equal: 1},
		{name: "VPN of a peer with a distinguisher, told by some", records: has(strings.Replace(vpnLog, `{`, `{"pd": "0:64500:9", `, 1)), lines: has(vpnHas), equal: 1},
		{name: "VPN, and an instance of its peer went down", records: has(vpnLog, event(peerA, "peer_down", `"rd": "0:64500:9", "rd_origin": "bmp", `)), unclear: 1},
		{name: "VPN, told since", records: has(vpnLog, event(peerA, "peer_down", `"rd": "0:64500:9", "rd_origin": "bmp", `), vpnLog), extra: "1"},
		{name: "VPN, and it itself went down", records: has(vpnLog, event(peerA, "peer_down", ""))},
		{name: "two peers whose records do not differ", records: has(route(peerA, 1, "1")), lines: has(told(peerA, 1, "2"), told(peerA, 1, "1")), equal: 1},
		{name: "two peers whose records do not differ, the other way", records: has(route(peerA, 1, "1")), lines: has(told(peerA, 1, "1"), told(peerA, 1, "2")), equal: 1},
		{name: "a family that is not kept", records: has(strings.Replace(route(peerA, 1, "1"), `"safi": 1`, `"safi": 70`, 1))},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			c := compared(t, test.o, test.scope, test.records, test.lines)
			if c.Equal != test.equal || names(c.Missing) != test.missing || names(c.Extra) != test.extra || names(c.Different) != test.diff ||
				names(c.NotMentioned) != test.rest || c.Unclear != test.unclear || len(c.Routers) != 1 {
				t.Errorf("%+v", c)
			}
			if want := int64(len(strings.Fields(test.missing + " " + test.extra + " " + test.diff))); c.Differences() != want || c.First != want {
				t.Errorf("%d differences, %d at first, want %d", c.Differences(), c.First, want)
			}
		})
	}
}

// Which spellings are of the same attributes, and which are not.
func TestMatchAttributes(t *testing.T) {
	plain := attributes{nextHop: "192.0.2.11", asPath: "1 2", origin: "i"}
	for _, test := range []struct {
		change func(*attributes)
		want   []string
	}{
		{func(a *attributes) {}, nil},
		{func(a *attributes) { a.nextHop = "::ffff:192.0.2.11" }, nil},
		{func(a *attributes) { a.nextHop = "192.0.2.12" }, []string{"bgp_nexthop"}},
		{func(a *attributes) { a.asPath, a.origin = "1", "e" }, []string{"as_path", "origin"}},
		{func(a *attributes) { a.comms = "1:1" }, []string{"comms"}},
		{func(a *attributes) { a.extComms = "RT:1:1" }, []string{"ecomms"}},
		{func(a *attributes) { a.largeComms = "1:1:1" }, []string{"lcomms"}},
		{func(a *attributes) { a.med = "0" }, []string{"med"}},
		{func(a *attributes) { a.localPref = "100" }, []string{"local_pref"}},
		{func(a *attributes) { a.aigp, a.sid, a.otc, a.tag = "1", "2", "3", "4" }, nil}, // some dialects do not tell
	} {
		other := plain
		test.change(&other)
		if got := plain.differ(&other); !slices.Equal(got, test.want) {
			t.Errorf("%s against %s: %v, want %v", plain.String(), other.String(), got, test.want)
		}
	}
	a, b := plain, plain
	a.comms, b.comms = "no-export 1:1", "1:1 65535:65281"
	a.asPath, b.asPath = "1 {2,3}", "1 {3,2}"
	a.otc, b.otc = "1", "2"
	if got := a.differ(&b); !slices.Equal(got, []string{"otc"}) {
		t.Error(got)
	}
	const all = "via 192.0.2.11 path [1 {2,3}] origin i comms no-export 1:1 otc 1"
	if a.String() != all {
		t.Error(a.String())
	}
}

// What differs for a moment is no difference, whoever is late.
func TestMatchSettles(t *testing.T) {
	l := taken(Options{}, route(peerA, 1, "1"), route(peerA, 2, "1"), route(peerA, 3, "1"), route(peerA, 5, "1"))
	m := NewMatch(l, Scope{})
	must(t, m.Router([]byte(edge1)))
	if asks, all := m.Open(); asks != nil || !all {
		t.Error(asks, all)
	}
	pass(t, m, told(peerA, 2, "2"), told(peerA, 3, "2"), told(peerA, 4, "1"))
	if n := m.Check(); n != 5 {
		t.Fatalf("%d differ at first", n)
	}
	// The topic follows: 4 is there, 1 is gone; 3 says another thing than both did.
	for _, s := range []string{route(peerA, 4, "1"), route(peerA, 1, ""), route(peerA, 3, "3")} {
		l.Record(Record{Value: []byte(s)})
	}
	if n := m.Check(); n != 3 {
		t.Fatalf("%d differ", n)
	}
	asks, all := m.Open()
	want := []Ask{{testRouter, netip.MustParsePrefix("198.18.2.0/24")}, {testRouter, netip.MustParsePrefix("198.18.3.0/24")}, {testRouter, netip.MustParsePrefix("198.18.5.0/24")}}
	if all || !slices.Equal(asks, want) {
		t.Error(asks, all)
	}
	// The collector has moved on with 3, and with others that are not asked for.
	pass(t, m, told(peerA, 2, "2"), told(peerA, 3, "3"), told(peerA, 9, "1"))
	c := m.Result("s", time.Second)
	if c.First != 5 || c.Equal != 2 || names(c.Different) != "2" || names(c.Extra) != "5" || c.Missing.Count != 0 || c.Waited != 1 {
		t.Errorf("%+v", c)
	}
	d := c.Different.First[0]
	if d.Collector != "via 192.0.2.11 path [2] origin i" || d.Kafka != "via 192.0.2.11 path [1] origin i" || !slices.Equal(d.Fields, []string{"as_path"}) ||
		d.String() != "router 192.0.2.1 peer 192.0.2.11 adj-in-pre 198.18.2.0/24" {
		t.Errorf("%+v", d)
	}
	// A peer that goes takes what was open along.
	l.Record(Record{Value: []byte(event(peerA, "peer_down", ""))})
	pass(t, m)
	if c := m.Result("s", time.Second); c.Differences() != 0 || c.First != 5 {
		t.Errorf("%+v", c)
	}
}

// Which routers are compared, and what is said of the others.
func TestMatchRouters(t *testing.T) {
	at := func(s, router string) string {
		return strings.Replace(s, `"bmp_router": "192.0.2.1"`, fmt.Sprintf(`"bmp_router": %q`, router), 1)
	}
	records := []string{route(peerA, 1, "1"), at(route(peerA, 1, "1"), "192.0.2.2"), at(route(peerA, 1, "1"), "192.0.2.3")}
	lines := []string{told(peerA, 1, "1"), at(told(peerA, 1, "1"), "192.0.2.4"), at(told(peerA, 1, "1"), "192.0.2.2")}
	run := func(o Options) *TableComparison {
		m := NewMatch(taken(o, records...), Scope{})
		must(t, m.Router([]byte(edge1)))
		must(t, m.Router([]byte(`{"router": "edge-2", "bmp_router": "192.0.2.2", "no_table": "out of memory"}`)))
		pass(t, m, lines...)
		return m.Result("s", 0)
	}
	c := run(Options{})
	if !slices.Equal(c.Routers, []string{"192.0.2.1", "192.0.2.4"}) || c.Equal != 1 || c.Differences() != 1 || c.Missing.First[0].Router != "192.0.2.4" ||
		!slices.Equal(c.Without, []Without{{"192.0.2.2", "out of memory", true}, {"192.0.2.3", "the collector has not heard it", false}}) {
		t.Errorf("%+v", c)
	}
	c = run(Options{Router: netip.MustParseAddr("192.0.2.1")})
	if !slices.Equal(c.Routers, []string{"192.0.2.1"}) || c.Equal != 1 || c.Differences() != 0 || len(c.Without) != 0 {
		t.Errorf("%+v", c)
	}
	m := NewMatch(New(Options{}), Scope{})
	for _, bad := range []string{"", "[]", `{"rib": "main"}`, `{"rib": "in-pre", "afi": "one"}`} {
		m.Begin()
		if err := m.Route([]byte(bad)); err == nil {
			t.Errorf("route %q is taken", bad)
		}
	}
	if err := m.Router([]byte(`{"router": 1}`)); err == nil {
		t.Error("a router without a name is taken")
	}
}

// More differences than are looked at one by one are all counted, and all looked at
// again.
func TestMatchMany(t *testing.T) {
	const n = mostOpen + 10
	line := func(i int) string {
		return strings.Replace(told(peerA, 1, "1"), "198.18.1.0", fmt.Sprintf("10.%d.%d.%d", i>>16, i>>8&255, i&255), 1)
	}
	l := New(Options{})
	m := NewMatch(l, Scope{})
	m.Begin()
	for i := range n {
		must(t, m.Route([]byte(line(i))))
	}
	m.End()
	c := m.Result("s", 0)
	if m.Check() != n || c.Differences() != n || c.First != n || c.Unsorted != 10 || len(c.Missing.First) != mostListed {
		t.Errorf("%d differences, %d at first, %d unsorted, %d listed", c.Differences(), c.First, c.Unsorted, len(c.Missing.First))
	}
	if _, all := m.Open(); !all {
		t.Error("some are asked for one by one")
	}
	l.Record(Record{Value: []byte(strings.NewReplacer("198.18.1.0", "10.0.0.7").Replace(route(peerA, 1, "1")))})
	pass(t, m, line(7), line(8))
	if c := m.Result("s", 0); c.Equal != 1 || c.Differences() != 1 || c.First != n {
		t.Errorf("%d equal, %d differences, %d at first", c.Equal, c.Differences(), c.First)
	}
}

func TestMatchText(t *testing.T) {
	var records, lines []string
	for i := range 12 {
		lines = append(lines, told(peerA, 100+i, "1"))
	}
	records = append(records, event(peerB, "peer_up", ""), route(peerA, 1, "1"), route(peerA, 2, "1"), route(peerA, 3, "1 \x1b"), route(peerA, 50, "1"),
		strings.Replace(route(peerA, 9, "1"), `"safi": 1`, `"safi": 70`, 1), vpnLog, event(peerA, "peer_down", `"rd": "0:64500:9", "rd_origin": "bmp", `))
	lines = append(lines, told(peerA, 1, "1"), told(peerA, 2, "2"), told(peerB, 4, "1"), strings.Replace(told(peerB, 5, "1"), `"safi": 1`, `"safi": 1, "as_path_id": 7`, 1))
	l := taken(Options{Partial: true}, append(records, strings.Replace(route(peerA, 1, "1"), `"192.0.2.1"`, `"192.0.2.77"`, 1))...)
	m := NewMatch(l, Scope{})
	must(t, m.Router([]byte(edge1)))
	pass(t, m, lines...)
	r := Result{Topic: "bmp", Partitions: []Span{{0, 7, 33}}, Report: &Report{}, Collector: m.Result("/run/bmpha/bmpha.sock", 1500*time.Millisecond),
		Dumps: &DumpReport{Topic: "bmp.dump", Whole: 3, Broken: 1, Bases: []Base{{testRouter, 2, 17, start, 1}}}}
	var b bytes.Buffer
	must(t, r.Write(&b, false))
	golden(t, "match", b.String())
	j, err := json.MarshalIndent(r, "", "  ")
	must(t, err)
	golden(t, "match-json", string(j))
	if r.Sound() {
		t.Error("it is sound")
	}
}

// A table of a Ledger is the one of the model consumer, whatever stands in a topic.
func FuzzTable(f *testing.F) {
	f.Add([]byte(strings.Join([]string{update1, update2, withdraw1, peerDown, update1b, peerUp}, "\n")))
	f.Add([]byte(strings.Join([]string{vpnLog, event(peerA, "peer_down", ""), route(peerA, 1, "1"), strings.Replace(event(peerA, "peer_up", ""), `"is_post": 0`, `"is_post": 1`, 1)}, "\n")))
	f.Add([]byte(`{"bmp_router": "r", "event_type": "log", "log_type": "update", "as_path_id": -1, "med": 0, "peer_type": 3}`))
	f.Fuzz(func(t *testing.T, topic []byte) {
		var model replay.Consumer
		whole, part := New(Options{}), New(Options{Partial: true})
		for line := range bytes.Lines(topic) {
			var r struct {
				Router string `json:"bmp_router"`
			}
			if v, ok := scan(line); !ok || json.Unmarshal(line, &r) != nil || r.Router == "" || r.Router != string(v.router) {
				continue // a name that comes twice is read in other ways by other readers
			}
			_ = model.Record(line) // what it refuses, a Ledger does
			whole.Record(Record{Value: line})
			part.Record(Record{Value: line})
		}
		for _, l := range []*Ledger{whole, part} {
			got, n := make(map[replay.Key]string), 0
			for name, rt := range l.routers {
				maps.Copy(got, rt.table.keyed(name))
				n += rt.table.count()
			}
			if n != len(got) {
				continue // keys do not tell path distinguishers
			}
			if d := replay.Compare(model.Routes(), got); !d.Empty() {
				t.Fatal(d)
			}
		}
	})
}

// Whatever a collector answers and a topic holds, it is compared or refused.
func FuzzMatch(f *testing.F) {
	f.Add([]byte(edge1), []byte(told(peerA, 1, "1")+"\n"+told(peerA, 2, "1")), []byte(route(peerA, 1, "1")+"\n"+route(peerA, 2, "")), true)
	f.Add([]byte(edge1), []byte(vpnHas), []byte(vpnLog+"\n"+event(peerA, "peer_down", `"rd": "0:64500:9", "rd_origin": "bmp", `)), false)
	f.Fuzz(func(t *testing.T, router, answer, topic []byte, partial bool) {
		l := New(Options{Partial: partial})
		for line := range bytes.Lines(topic) {
			l.Record(Record{Value: line})
		}
		m := NewMatch(l, Scope{})
		_ = m.Router(router)
		for range 2 {
			m.Begin()
			for line := range bytes.Lines(answer) {
				_ = m.Route(line)
			}
			m.End()
			m.Open()
		}
		c := m.Result("s", 0)
		if c.Differences() != m.Check() || c.Differences() > c.First || partial == false && c.NotMentioned.Count > 0 {
			t.Fatalf("%d open: %+v", m.Check(), c)
		}
		if err := (&Result{Report: &Report{}, Collector: c}).Write(&bytes.Buffer{}, true); err != nil {
			t.Fatal(err)
		}
	})
}

// BenchmarkMatch is what it costs to compare a route.
func BenchmarkMatch(b *testing.B) {
	var records, lines []string
	for i := range 10_000 {
		at := strings.NewReplacer("198.18.1.0", fmt.Sprintf("10.%d.%d.0", i>>8, i&255))
		records, lines = append(records, at.Replace(route(peerA, 1, "64500 64501 64502"))), append(lines, at.Replace(told(peerA, 1, "64500 64501 64502")))
	}
	m := NewMatch(taken(Options{}, records...), Scope{})
	must(b, m.Router([]byte(edge1)))
	m.Begin()
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		must(b, m.Route([]byte(lines[i%len(lines)])))
	}
}
