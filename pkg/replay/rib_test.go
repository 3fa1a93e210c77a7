package replay

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/bmpha/bmpha/pkg/bgp"
	"github.com/bmpha/bmpha/pkg/bmp"
)

// fixtures returns the folder of captured streams, or skips the test.
func fixtures(t testing.TB) string {
	dir := os.Getenv("BMPHA_FIXTURES")
	if dir == "" {
		dir = filepath.Join("..", "..", "..", "shared", "fixtures")
	}
	if _, err := os.Stat(dir); err != nil {
		t.Skipf("captured streams are not here (BMPHA_FIXTURES): %v", err)
	}
	return dir
}

// messages calls f with each message of a byte stream.
func messages(t testing.TB, data []byte, f func(msg []byte)) {
	t.Helper()
	for len(data) > 0 {
		n, err := messageSize(data)
		if err != nil {
			t.Fatal(err)
		}
		f(data[:n])
		data = data[n:]
	}
}

func tableOf(t testing.TB, data []byte) *ribs {
	t.Helper()
	table := newRIBs()
	messages(t, data, func(msg []byte) { table.apply(msg) })
	return table
}

func (t *ribs) text(router string) map[Key]string {
	m := make(map[Key]string)
	t.addTo(m, router)
	return m
}

func (t *ribs) dump() []byte {
	dst, _ := t.appendOpening(nil)
	var w walk
	for done := false; !done; {
		dst, _, done = t.walk(dst, &w, 1000)
	}
	return dst
}

// collect returns n messages of a stream, or all if it ends before.
func collect(t testing.TB, s Stream, n int) []byte {
	t.Helper()
	var data []byte
	for range n {
		var err error
		if data, err = s.Next(data); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
	return data
}

func synthetic(t testing.TB, s Synthetic) Stream {
	t.Helper()
	stream, err := s.Stream()
	if err != nil {
		t.Fatal(err)
	}
	return stream
}

// What pmacct wrote for real routers' streams, read by a Consumer, gives the
// table that is read from the streams themselves: keys and values.
func TestTableEqualsPmacct(t *testing.T) {
	dir := fixtures(t)
	names := []string{"huawei-locrib", "cisco-xr-peer-down", "6wind-frr",
		"mixed-2001-db8-53--1", "mixed-2001-db8-73--1", "mixed-2001-db8-90--1", "mixed-2001-db8-91--1",
		"mixed-203.0.113.19", "mixed-203.0.113.21", "mixed-203.0.113.23", "mixed-203.0.113.24",
		"mixed-203.0.113.44", "mixed-203.0.113.54", "mixed-203.0.113.58", "mixed-203.0.113.81"}
	want := make(map[Key]string)
	for i, name := range names {
		data, err := os.ReadFile(filepath.Join(dir, name+".bmp"))
		if err != nil {
			t.Fatal(err)
		}
		table := tableOf(t, data)
		table.addTo(want, fmt.Sprintf("127.0.1.%d", i+1))
		t.Logf("%s: %d routes, %d announced, %d withdrawn, %d opaque messages",
			name, table.len(), table.announced, table.withdrawn, table.opaque)
	}
	f, err := os.Open(filepath.Join(dir, "pmacct-1.8.jsonl.gz"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	var consumer Consumer
	lines := bufio.NewScanner(z)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		if err := consumer.Record(lines.Bytes()); err != nil {
			t.Fatal(err)
		}
	}
	if lines.Err() != nil {
		t.Fatal(lines.Err())
	}
	// One router tells its ADD-PATH capabilities family by family, in several Peer
	// Ups of the same Loc-RIB peer, and uses them for VPN routes. pmacct goes by one
	// Peer Up and knows path identifiers in unicast only, so it misreads these.
	// Another router sends routes of two peers that never came up and have no BGP
	// identifier; pmacct makes no records of them.
	got := consumer.Routes()
	for _, m := range []map[Key]string{want, got} {
		maps.DeleteFunc(m, func(k Key, _ string) bool {
			return k.Router == "127.0.1.10" && k.RIB == Loc ||
				k.Router == "127.0.1.6" && k.RIB == InPost && k.RD == "2:4226809946:9010"
		})
	}
	d := Compare(want, got)
	if !d.Empty() || d.Equal < 8000 {
		t.Errorf("router's table against pmacct's records: %s", d)
	}
}

// A dump, read by a table that knows nothing, gives the same table: after churn,
// and for every captured stream.
func TestDumpEqualsTable(t *testing.T) {
	check := func(t *testing.T, data []byte) {
		t.Helper()
		table := tableOf(t, data)
		again := tableOf(t, table.dump())
		if d := Compare(table.text("r"), again.text("r")); !d.Empty() {
			t.Errorf("table against its dump: %s", d)
		}
		if a, b := table.dump(), again.dump(); len(a) != len(b) {
			t.Errorf("dump of a dump has %d bytes, the dump %d", len(b), len(a))
		}
	}
	for seed := range uint64(20) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			churn := DefaultChurn
			churn.PeerFlap = 0.01
			s := synthetic(t, Synthetic{Seed: seed, Peers: 3, Prefixes: 200, IPv6: 0.4, Routes: 4, Attributes: 50,
				PostPolicy: seed%2 == 0, Churn: churn})
			check(t, collect(t, s, 5000))
		})
	}
	t.Run("captured", func(t *testing.T) {
		dir := fixtures(t)
		names, _ := filepath.Glob(filepath.Join(dir, "*.bmp"))
		if len(names) == 0 {
			t.Fatalf("no captured streams in %s", dir)
		}
		for _, name := range names {
			t.Run(filepath.Base(name), func(t *testing.T) {
				data, err := os.ReadFile(name)
				if err != nil {
					t.Fatal(err)
				}
				check(t, data)
			})
		}
	})
}

// A dump that is made in steps while the table changes, together with the
// messages of the changes, ends in the same table.
func TestDumpDuringChurn(t *testing.T) {
	for seed := range uint64(20) {
		s := synthetic(t, Synthetic{Seed: seed, Peers: 3, Prefixes: 300, IPv6: 0.3, Routes: 3, Attributes: 50,
			Churn: Churn{Withdraw: 0.4, Announce: 0.3, Flap: 0.1, Repeat: 0.1, PeerFlap: 0.02}})
		table := newRIBs()
		messages(t, collect(t, s, 2000), func(msg []byte) { table.apply(msg) })
		rng := rand.New(rand.NewPCG(seed, 1))
		session, _ := table.appendOpening(nil)
		var w walk
		for done := false; !done; {
			messages(t, collect(t, s, rng.IntN(20)), func(msg []byte) {
				table.apply(msg)
				session = append(session, msg...)
			})
			session, _, done = table.walk(session, &w, rng.IntN(3000))
		}
		if d := Compare(table.text("r"), tableOf(t, session).text("r")); !d.Empty() {
			t.Errorf("seed %d: %s", seed, d)
		}
	}
}

// Families, RIBs and path identifiers have their own keys; the values are what
// pmacct would print.
func TestTableKeys(t *testing.T) {
	peerAddr := netip.MustParseAddr("198.51.100.7")
	id := netip.MustParseAddr("192.0.2.7")
	p4 := netip.MustParsePrefix("192.0.2.0/24")
	p6 := netip.MustParsePrefix("2001:db8::/32")
	hop4, hop6 := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")
	caps := bgp.AppendCapAddPath(bgp.AppendCapAS4(nil, 65001), 1, 1, 3)
	open := bgp.AppendOpen(nil, 65001, 90, id, caps)
	plain := bgp.AppendOpen(nil, 65001, 90, id, bgp.AppendCapAS4(nil, 65001))
	peer := func(kind, flags uint8, rd uint64) []byte {
		a := peerAddr
		if kind == 3 {
			a = netip.Addr{}
		}
		return bmp.AppendPeerHeader(nil, kind, flags, rd, a, 65001, id, time.Unix(1, 0))
	}
	attrs := bgp.AppendCommunities(bgp.AppendASPath(bgp.AppendOrigin(nil, 0), 65001, 4200000000), 0xffffff01, 65001<<16|5)
	attrs4 := bgp.AppendNextHop(attrs[:len(attrs):len(attrs)], hop4)
	mp := func(afi uint16, safi uint8, hop netip.Addr, nlri []byte) []byte {
		return bgp.AppendUpdate(nil, nil, bgp.AppendMPReach(attrs[:len(attrs):len(attrs)], afi, safi, hop, nlri), nil)
	}
	const rd = 1<<48 | 0xc0000209_0007 // 1:192.0.2.9:7
	var data []byte
	data = bmp.AppendPeerUp(data, peer(0, 0, 0), hop4, 179, 179, open, open, nil)
	data = bmp.AppendRouteMonitoring(data, peer(0, 0, 0),
		bgp.AppendUpdate(nil, nil, attrs4, bgp.AppendPrefix(bgp.AppendPathID(bgp.AppendPrefix(bgp.AppendPathID(nil, 1), p4), 2), p4)))
	data = bmp.AppendRouteMonitoring(data, peer(0, 0x40, 0), mp(2, 1, hop6, bgp.AppendPrefix(nil, p6)))
	data = bmp.AppendRouteMonitoring(data, peer(0, 0x10, 0), mp(1, 4, hop4, bgp.AppendLabelled(nil, 100, p4)))
	data = bmp.AppendRouteMonitoring(data, peer(0, 0x50, 0), mp(2, 128, hop6, bgp.AppendVPN(nil, 100, rd, p6)))
	data = bmp.AppendPeerUp(data, peer(3, 0, rd), netip.Addr{}, 0, 0, plain, plain, nil)
	data = bmp.AppendRouteMonitoring(data, peer(3, 0, rd), bgp.AppendUpdate(nil, nil, attrs4, bgp.AppendPrefix(nil, p4)))

	const value = " path [65001 4200000000] origin i comms 65001:5 no-export"
	key := Key{Router: "r", Peer: "198.51.100.7", RIB: InPre, AFI: 1, SAFI: 1, Prefix: "192.0.2.0/24", PathID: 1}
	want := map[Key]string{key: "via 192.0.2.1" + value}
	add := func(change func(k *Key), hop string) {
		k := key
		change(&k)
		want[k] = "via " + hop + value
	}
	add(func(k *Key) { k.PathID = 2 }, "192.0.2.1")
	add(func(k *Key) { k.RIB, k.AFI, k.Prefix, k.PathID = InPost, 2, "2001:db8::/32", -1 }, "2001:db8::1")
	add(func(k *Key) { k.RIB, k.SAFI, k.PathID = OutPre, 4, -1 }, "192.0.2.1")
	add(func(k *Key) {
		k.RIB, k.AFI, k.SAFI, k.RD, k.Prefix, k.PathID = OutPost, 2, 128, "1:192.0.2.9:7", "2001:db8::/32", -1
	}, "2001:db8::1")
	add(func(k *Key) { k.RIB, k.Peer, k.RD, k.PathID = Loc, "0.0.0.0", "1:192.0.2.9:7", -1 }, "192.0.2.1")

	table := tableOf(t, data)
	if d := cmp.Diff(want, table.text("r")); d != "" {
		t.Fatal(d)
	}
	if table.opaque != 0 || table.announced != 6 {
		t.Errorf("%d opaque, %d announced", table.opaque, table.announced)
	}

	// Withdrawals by each family's means.
	data = bmp.AppendRouteMonitoring(nil, peer(0, 0, 0), bgp.AppendUpdate(nil, bgp.AppendPrefix(bgp.AppendPathID(nil, 1), p4), nil, nil))
	data = bmp.AppendRouteMonitoring(data, peer(0, 0x50, 0),
		bgp.AppendUpdate(nil, nil, bgp.AppendMPUnreach(nil, 2, 128, bgp.AppendVPN(nil, 0x80000, rd, p6)), nil))
	messages(t, data, func(msg []byte) { table.apply(msg) })
	if table.len() != 4 || table.withdrawn != 2 {
		t.Errorf("after withdrawals %d routes, %d withdrawn", table.len(), table.withdrawn)
	}
	// A Peer Down ends all RIBs of the peer, not those of the Loc-RIB peer.
	table.apply(bmp.AppendPeerDown(nil, peer(0, 0, 0), 4, nil))
	if table.len() != 1 || len(table.interned) != 1 {
		t.Errorf("after the peer went down %d routes, %d attribute sets", table.len(), len(table.interned))
	}
	// The dump tells that it is down.
	if !bytes.Contains(table.dump(), bmp.AppendPeerDown(nil, peer(0, 0, 0), 4, nil)) {
		t.Error("no Peer Down in the dump")
	}
}

// Whatever a router's OPENs and UPDATEs hold, reading them does not fail, and a
// dump of the table gives the same table.
func FuzzTable(f *testing.F) {
	id := netip.MustParseAddr("192.0.2.7")
	p4, p6 := netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("2001:db8::/32")
	hop4, hop6 := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")
	plain := bgp.AppendOpen(nil, 65001, 90, id, bgp.AppendCapAS4(nil, 65001))
	addPath := bgp.AppendOpen(nil, 65001, 90, id, bgp.AppendCapAddPath(nil, 1, 1, 3))
	attrs := bgp.AppendLargeCommunities(bgp.AppendCommunities(bgp.AppendNextHop(
		bgp.AppendASPath(bgp.AppendOrigin(nil, 0), 1, 2), hop4), 1, 2), [3]uint32{1, 2, 3})
	body := func(update []byte) []byte { return update[bgpLen:] }
	announce := body(bgp.AppendUpdate(nil, nil, attrs, bgp.AppendPrefix(nil, p4)))
	f.Add(slices.Concat(plain, plain), byte(0), announce, body(bgp.AppendUpdate(nil, bgp.AppendPrefix(nil, p4), nil, nil)))
	f.Add(slices.Concat(addPath, addPath), byte(0x40), body(bgp.AppendUpdate(nil, nil, attrs, bgp.AppendPrefix(bgp.AppendPathID(nil, 7), p4))), announce)
	f.Add(slices.Concat(plain, plain), byte(0x10), body(bgp.AppendUpdate(nil, nil, bgp.AppendMPReach(attrs, 2, 128, hop6, bgp.AppendVPN(nil, 9, 7, p6)), nil)),
		body(bgp.AppendUpdate(nil, nil, bgp.AppendMPUnreach(nil, 2, 128, bgp.AppendVPN(nil, 0x80000, 7, p6)), nil)))
	f.Add(slices.Concat(plain, plain), byte(0), body(bgp.AppendUpdate(nil, nil, bgp.AppendMPReach(attrs, 1, 4, hop4, bgp.AppendLabelled(nil, 9, p4)), nil)),
		body(bgp.AppendEndOfRIB(nil, 2, 1)))
	f.Fuzz(func(t *testing.T, opens []byte, flags byte, first, second []byte) {
		if len(first)+len(second)+len(opens) > 10000 {
			return
		}
		table := newRIBs()
		table.initiation = bmp.AppendInitiation(nil, "", "")
		peer := bmp.AppendPeerHeader(nil, 0, flags, 0, id, 65001, id, time.Time{})
		table.apply(bmp.AppendPeerUp(nil, peer, hop4, 1, 2, opens, nil, nil))
		for _, update := range [][]byte{first, second} {
			pdu := bgp.AppendLength(append(bgp.AppendHeader(nil, 2), update...), 0)
			table.apply(bmp.AppendRouteMonitoring(nil, peer, pdu))
		}
		if d := Compare(table.text("r"), tableOf(t, table.dump()).text("r")); !d.Empty() {
			t.Errorf("table against its dump: %s", d)
		}
	})
}

func TestConsumer(t *testing.T) {
	route := func(kind, peer, prefix, more string) string {
		return fmt.Sprintf(`{"log_type": %q, "is_post": 0, "is_in": 1, "event_type": "log", "afi": 1, "safi": 1, "ip_prefix": %q, "bmp_router": "r", "peer_ip": %q, "bmp_msg_type": "route_monitor"%s}`,
			kind, prefix, peer, more)
	}
	attrs := `, "bgp_nexthop": "192.0.2.1", "as_path": "1 2", "origin": "i", "med": 0`
	peer := func(kind, addr string) string {
		return fmt.Sprintf(`{"event_type": "log", "bmp_router": "r", "bmp_msg_type": %q, "peer_ip": %q, "peer_type": 0, "is_post": 0, "is_in": 1}`, kind, addr)
	}
	a, b := "10.0.0.1", "10.0.0.2"
	tests := []struct {
		name    string
		records []string
		want    string
	}{
		{"update", []string{route("update", a, "1.0.0.0/8", attrs)}, "10.0.0.1 1.0.0.0/8 via 192.0.2.1 path [1 2] origin i med 0"},
		{"withdraw", []string{route("update", a, "1.0.0.0/8", attrs), route("withdraw", a, "1.0.0.0/8", "")}, ""},
		{"withdraw of the unknown", []string{route("withdraw", a, "1.0.0.0/8", "")}, ""},
		{"peer_down ends its peer's routes only", []string{route("update", a, "1.0.0.0/8", attrs), route("update", b, "1.0.0.0/8", ""), peer("peer_down", a)},
			"10.0.0.2 1.0.0.0/8 via  path [] origin "},
		{"peer_up begins anew", []string{route("update", a, "1.0.0.0/8", attrs), peer("peer_up", a)}, ""},
		{"log_close and log_init end nothing", []string{route("update", a, "1.0.0.0/8", ""), `{"seq": 1, "bmp_router": "r", "event_type": "log_close"}`, `{"seq": 1, "bmp_router": "r", "event_type": "log_init"}`},
			"10.0.0.1 1.0.0.0/8 via  path [] origin "},
		{"end-of-rib", []string{route("end-of-rib", a, "", "")}, ""},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			var c Consumer
			for _, r := range test.records {
				if err := c.Record([]byte(r)); err != nil {
					t.Fatal(err)
				}
			}
			var got []string
			for k, v := range c.Routes() {
				got = append(got, k.Peer+" "+k.Prefix+" "+v)
			}
			if s := strings.Join(got, "\n"); s != test.want {
				t.Errorf("got  %s\nwant %s", s, test.want)
			}
		})
	}
	if err := new(Consumer).Record([]byte(`{"seq":`)); err == nil {
		t.Error("half a record was accepted")
	}
}

func TestCompare(t *testing.T) {
	k := func(prefix string) Key { return Key{Router: "r", Prefix: prefix, PathID: -1} }
	d := Compare(map[Key]string{k("a"): "1", k("b"): "1", k("c"): "1"}, map[Key]string{k("b"): "1", k("c"): "2", k("d"): "1"})
	want := Diff{Equal: 1, Missing: []Key{k("a")}, Extra: []Key{k("d")}, Changed: []Change{{k("c"), "1", "2"}}}
	if diff := cmp.Diff(want, d); diff != "" {
		t.Error(diff)
	}
	if d.Empty() || !strings.HasPrefix(d.String(), "1 equal, 1 missing, 1 extra, 1 changed\nmissing: r peer") {
		t.Errorf("got %s", d)
	}
}
