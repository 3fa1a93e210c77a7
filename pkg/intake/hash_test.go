package intake

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/bmpha/bmpha/pkg/pmacct"
)

// edit returns a record with some members changed, with nil taken away, and its keys
// in another order.
func edit(t testing.TB, value string, changes map[string]any) []byte {
	t.Helper()
	m := make(map[string]json.RawMessage)
	if err := json.Unmarshal([]byte(value), &m); err != nil {
		t.Fatal(err)
	}
	for name, to := range changes {
		if to == nil {
			delete(m, name)
			continue
		}
		b, err := json.Marshal(to)
		if err != nil {
			t.Fatal(err)
		}
		m[name] = b
	}
	names := slices.Collect(maps.Keys(m))
	rand.Shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })
	var b bytes.Buffer
	for i, name := range names {
		fmt.Fprintf(&b, `%s%q: %s`, map[bool]string{true: "{", false: ", "}[i == 0], name, m[name])
	}
	return append(b.Bytes(), '}')
}

const (
	peerUpJSON   = `{"event_type": "log", "seq": 3, "timestamp": "2024-11-14 10:51:34.018337", "timestamp_arrival": "2026-11-21 01:22:04.500813", "bmp_router": "192.0.2.19", "bmp_router_port": 40627, "bmp_msg_type": "peer_up", "peer_ip": "198.51.100.1", "peer_asn": 65000, "local_as": 65001, "bgp_id": "203.0.113.81", "peer_type": 1, "bmp_rib_type": "Adj-Rib-In Pre-Policy", "is_filtered": 0, "is_post": 0, "is_in": 1, "local_port": 179, "remote_port": 53012, "local_ip": "198.51.100.0", "rd": "2:65000:17", "rd_origin": "bmp"}`
	peerDownJSON = `{"event_type": "log", "seq": 9, "timestamp": "2024-11-14 10:52:34.018337", "timestamp_arrival": "2026-11-21 01:22:05.500813", "bmp_router": "192.0.2.19", "bmp_router_port": 40627, "bmp_msg_type": "peer_down", "peer_ip": "198.51.100.1", "peer_asn": 65000, "bgp_id": "203.0.113.81", "peer_type": 1, "bmp_rib_type": "Adj-Rib-In Pre-Policy", "is_filtered": 0, "is_post": 0, "is_in": 1, "rd": "2:65000:17", "rd_origin": "bmp", "reason_type": 2, "reason_loc_code": 18}`
	statsJSON    = `{"event_type": "log", "seq": 9, "timestamp": "2024-11-14 10:52:23.256052", "timestamp_arrival": "2026-11-21 01:22:05.208783", "bmp_router": "192.0.2.19", "bmp_router_port": 45073, "bmp_msg_type": "stats", "peer_ip": "198.51.100.1", "peer_asn": 65000, "peer_type": 0, "is_post": 0, "is_in": 1, "counter_type": 9, "counter_type_str": "x", "afi": 1, "safi": 1, "counter_value": 37}`
	initJSON     = `{"event_type": "log", "seq": 1, "timestamp": "0000-00-00 00:00:00.000000", "timestamp_arrival": "2026-11-21 01:19:08.424565", "bmp_router": "192.0.2.19", "bmp_router_port": 33997, "bmp_msg_type": "init", "bmp_init_info_sysname": "r19"}`
	openedJSON   = `{"seq": 0, "timestamp": "1795224302.771201", "bmp_router": "192.0.2.19", "bmp_router_port": 40623, "event_type": "log_init", "writer_id": "core/21671"}`
	eorJSON      = `{"seq": 4, "log_type": "end-of-rib", "timestamp": "2024-11-14 10:51:34.018337", "is_filtered": 0, "is_post": 0, "is_in": 1, "bgp_id": "203.0.113.81", "event_type": "log", "afi": 1, "safi": 1, "timestamp_arrival": "2026-11-21 01:22:04.558045", "bmp_router": "192.0.2.19", "bmp_router_port": 40627, "peer_ip": "198.51.100.1", "peer_asn": 65000, "peer_tcp_port": 0, "bmp_msg_type": "route_monitor"}`
	bgpJSON      = `{"seq": 4, "log_type": "update", "timestamp": "2024-11-14 10:51:34.018337", "peer_ip_src": "198.51.100.1", "peer_tcp_port": 40001, "event_type": "log", "afi": 1, "safi": 1, "ip_prefix": "192.0.2.0/24", "bgp_nexthop": "198.51.100.1", "as_path": "65000", "origin": "i"}`
)

// TestHashes: two collectors agree about what their routers say alike, and only about
// that.
func TestHashes(t *testing.T) {
	type m = map[string]any
	dump := func(s string) string { return string(edit(t, s, m{"event_type": "dump", "log_type": nil})) }
	for _, tt := range []struct {
		name       string
		a          string
		b          m
		key, value bool // is equal
	}{
		{"collectors' own", routeJSON, m{"seq": 1, "writer_id": "b/2", "timestamp": "2026-01-01 00:00:00.000000", "timestamp_arrival": "x", "bmp_router_port": 1}, true, true},
		{"validation", routeJSON, m{"roa": "v"}, true, true},
		{"another prefix", routeJSON, m{"ip_prefix": "192.0.2.0/25"}, false, true},
		{"another path", routeJSON, m{"as_path_id": 0}, false, true},
		{"another peer", routeJSON, m{"peer_ip": "10.0.0.2"}, false, true},
		{"another router", routeJSON, m{"bmp_router": "127.0.0.101"}, false, true},
		{"another family", routeJSON, m{"safi": 4}, false, true},
		{"another table", routeJSON, m{"rd": "0:1:1"}, false, true},
		{"another RIB", routeJSON, m{"is_post": 1}, false, true},
		{"an attribute", routeJSON, m{"med": 1}, true, false},
		{"an attribute more", routeJSON, m{"otc": 64500}, true, false},
		{"an attribute less", routeJSON, m{"med": nil}, true, false},
		{"values of two attributes", routeJSON, m{"med": 1, "local_pref": 1}, true, false},
		{"a list", routeJSON, m{"as_path": []string{"65001", "65010"}}, true, false},
		{"next hop", routeJSON, m{"bgp_nexthop": "10.9.9.8"}, true, false},
		{"next hop, as a table writes it", routeJSON, m{"bgp_nexthop": "::ffff:10.9.9.9"}, true, true},
		{"BGP identifier", routeJSON, m{"bgp_id": "10.0.0.9"}, true, false},
		{"filtered", routeJSON, m{"is_filtered": 1}, true, false},
		{"withdraw", routeJSON, m{"log_type": "withdraw"}, true, false},
		{"null is nothing", routeJSON, m{"rd": json.RawMessage("null"), "otc": json.RawMessage("null")}, true, true},
		{"a dump", routeJSON, m{"event_type": "dump", "log_type": nil}, false, true},
		{"one dump", dump(routeJSON), m{"seq": 12, "bmp_router_port": 2}, true, true},
		{"another dump", dump(routeJSON), m{"timestamp": "2026-11-21 02:25:00"}, false, true},
		{"an event of a dump", dump(peerUpJSON), m{"timestamp_event": "2026-11-21 02:24:01"}, true, true},
		{"Peer Up, later and elsewhere", peerUpJSON, m{"seq": 7, "timestamp": "x", "timestamp_arrival": "y", "bmp_router_port": 1}, true, true},
		{"Peer Up, another session", peerUpJSON, m{"remote_port": 1}, true, false},
		{"Peer Up, another RIB", peerUpJSON, m{"is_post": 1}, true, false},
		{"Peer Up, another peer", peerUpJSON, m{"rd": "2:65000:18"}, false, true},
		{"Peer Down, never up", peerDownJSON, m{"bgp_id": "0.0.0.0"}, true, true},
		{"Peer Down, another reason", peerDownJSON, m{"reason_type": 3}, true, false},
		{"a counter", statsJSON, m{"counter_value": 38, "timestamp": "x"}, true, true},
		{"another counter", statsJSON, m{"counter_type": 10}, false, true},
		{"a counter's family", statsJSON, m{"safi": 2}, false, true},
		{"Initiation", initJSON, m{"seq": 2, "timestamp_arrival": "x"}, true, true},
		{"another Initiation", initJSON, m{"bmp_init_info_sysname": "r20"}, true, false},
		{"log_init", openedJSON, m{"timestamp": "x", "bmp_router_port": 1, "writer_id": "y"}, true, true},
		{"log_close", openedJSON, m{"event_type": "log_close"}, false, true},
		{"End-of-RIB", eorJSON, m{"seq": 12, "timestamp": "x"}, true, true},
		{"End-of-RIB of another family", eorJSON, m{"afi": 2}, false, true},
		{"a BGP daemon's", bgpJSON, m{"seq": 1, "timestamp": "x", "peer_tcp_port": 2}, true, true},
		{"another peer of a BGP daemon", bgpJSON, m{"peer_ip_src": "198.51.100.2"}, false, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := edit(t, tt.a, tt.b)
			k1, v1, ok1 := Hashes([]byte(tt.a))
			k2, v2, ok2 := Hashes(b)
			if !ok1 || !ok2 || (k1 == k2) != tt.key || (v1 == v2) != tt.value {
				t.Errorf("ok %v %v, key equal %v, value equal %v; want %v, %v\n%s\n%s", ok1, ok2, k1 == k2, v1 == v2, tt.key, tt.value, tt.a, b)
			}
		})
	}
	hash := func(s string) [2]uint64 {
		k, v, ok := Hashes([]byte(s))
		if !ok {
			t.Errorf("no hashes: %s", s)
		}
		return [2]uint64{k, v}
	}
	up, down := hash(peerUpJSON), hash(peerDownJSON)
	if up[0] != down[0] || up[1] == down[1] {
		t.Error("Peer Up and Peer Down are not two values of one key")
	}
	if hash(string(edit(t, routeJSON, m{"log_type": "withdraw"}))) != hash(string(edit(t, routeJSON, m{"log_type": "delete", "bmp_msg_type": "internal", "as_path": nil}))) {
		t.Error("withdraw and delete differ")
	}
	// A route and the End-of-RIB of its family are not the same.
	if hash(eorJSON)[0] == hash(string(edit(t, eorJSON, m{"log_type": "update", "ip_prefix": ""})))[0] {
		t.Error("End-of-RIB has a route's key")
	}
	if hash(routeJSON) != hash(routeJSON+"\n\x00") || hash(routeJSON) != hash(strings.ReplaceAll(routeJSON, `": `, `" :	`)) {
		t.Error("white space counts")
	}
}

// TestHashesOf nothing: what is no record, or not known what of.
func TestHashesOfNothing(t *testing.T) {
	for _, s := range []string{
		"", "{}", "[]", "{", `{"a"}`, `{"a":}`, `{"a": 1`, `{"a": 1,}`, routeJSON + "x", routeJSON[:len(routeJSON)-1], "\x00\x00\x00\x00\x07abc",
		`{"event_type": "log_init"}`,
		`{"event_type": "log_init", "bmp_router": "192.0.2.1", "bmp_router": "192.0.2.2"}`,
		`{"event_type": "log", "bmp_router": "192.0.2.1"}`,
		`{"event_type": "log", "bmp_router": "192.0.2.1", "bmp_msg_type": "rpat"}`,
		`{"event_type": "log", "bmp_router": "192.0.2.1", "bmp_msg_type": "peer_up"}`,
		`{"event_type": "log", "bmp_router": "192.0.2.1", "bmp_msg_type": "route_monitor", "log_type": "update"}`,
		`{"event_type": "log", "bmp_router": "192.0.2.1", "log_type": "0", "nlri_type": "Node"}`,
		`{"event_type": "dump_init", "bmp_router": "192.0.2.1"}`,
		`{"event_type": "x", "bmp_router": "192.0.2.1"}`,
		strings.Repeat(`{"a":`, 10000), `{"a":` + strings.Repeat("[", 10000),
	} {
		if k, v, ok := Hashes([]byte(s)); ok || k != 0 || v != 0 {
			t.Errorf("%.100s: %x %x", s, k, v)
		}
	}
}

// lines returns the records of a fixture by router, or skips the test.
func lines(t *testing.T, name string) map[string][][]byte {
	t.Helper()
	f, err := os.Open("/work/shared/fixtures/" + name + ".jsonl.gz")
	if err != nil {
		t.Skip("no records of pmacct: ", err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	all := make(map[string][][]byte)
	s := bufio.NewScanner(z)
	s.Buffer(nil, 1<<20)
	for s.Scan() {
		addr, _, ok := Identify(s.Bytes())
		if !ok {
			t.Fatalf("no router: %s", s.Bytes())
		}
		all[addr.String()] = append(all[addr.String()], bytes.Clone(s.Bytes()))
	}
	return all
}

// TestHashesOfPmacct: two programs with a session each of one router, pmbmpd and
// nfacctd, or pmbmpd and this encoder, agree about each record.
func TestHashesOfPmacct(t *testing.T) {
	same := []string{"127.0.1.1", "127.0.1.2", "127.0.1.3"} // in both, the same streams
	type pair struct{ key, value uint64 }
	hashes := func(list [][]byte) (pairs []pair) {
		for _, b := range list {
			k, v, ok := Hashes(b)
			if !ok {
				t.Fatalf("no hashes: %s", b)
			}
			pairs = append(pairs, pair{k, v})
		}
		return pairs
	}
	for _, version := range []string{"1.7.7", "1.8"} {
		skip, rib := lines(t, "pmacct-"+version), lines(t, "rib-"+version)
		for _, list := range skip {
			hashes(list)
		}
		for _, router := range same {
			told := make(map[pair]bool)
			keys := make(map[uint64]bool)
			for _, p := range hashes(skip[router]) {
				told[p], keys[p.key] = true, true
			}
			missing := 0
			for i, p := range hashes(rib[router]) {
				line := rib[router][i]
				if bytes.Contains(line, []byte(`"log_type": "delete"`)) {
					if !keys[p.key] {
						t.Errorf("nobody announced %s", line)
					}
					continue
				}
				if !told[p] {
					if missing++; missing < 5 {
						t.Errorf("%s of %s only with a table: %s", version, router, line)
					}
				}
			}
			if missing > 0 {
				t.Errorf("%s of %s: %d of %d only with a table", version, router, missing, len(rib[router]))
			}
		}
	}
	// This encoder, at another time.
	theirs := lines(t, "pmacct-1.8")
	for i, name := range []string{"huawei-locrib", "cisco-xr-peer-down", "6wind-frr"} {
		stream, err := os.ReadFile(filepath.Join("/work/shared/fixtures", name+".bmp"))
		if err != nil {
			t.Skip(err)
		}
		router := netip.AddrFrom4([4]byte{127, 0, 1, byte(i + 1)})
		var b bytes.Buffer
		if _, err := pmacct.Decode(&b, bytes.NewReader(stream), pmacct.DecodeOptions{
			Timestamps: pmacct.Epoch, Router: router, Port: 1, WriterID: "other/1", Now: func() time.Time { return time.Unix(1, 0) },
		}); err != nil {
			t.Fatal(err)
		}
		var ours [][]byte
		for line := range bytes.Lines(b.Bytes()) {
			ours = append(ours, line)
		}
		want, got := hashes(theirs[router.String()]), hashes(ours)
		if len(want) != len(got) {
			t.Fatalf("%s: %d and %d records", name, len(want), len(got))
		}
		for j := range want {
			if want[j] != got[j] {
				t.Fatalf("%s: %s\nand %s", name, theirs[router.String()][j], ours[j])
			}
		}
	}
}

// FuzzHashes: whatever is there, hashes do not depend on the order of keys.
func FuzzHashes(f *testing.F) {
	for _, s := range []string{routeJSON, peerUpJSON, peerDownJSON, statsJSON, initJSON, openedJSON, eorJSON, bgpJSON, `{"a": [{"b": "]\""}], "c": null}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		key, value, ok := Hashes(b)
		if !ok {
			return
		}
		var m map[string]json.RawMessage
		if json.Unmarshal(b, &m) != nil || bytes.Contains(b, []byte(`\`)) || bytes.Count(b, []byte(`":`)) != len(m) {
			return // it need not be sound; a key may be there twice
		}
		var again []byte
		for _, name := range slices.Backward(slices.Sorted(maps.Keys(m))) {
			if !bytes.Contains(b, []byte(`"`+name+`"`)) {
				return // not valid UTF-8
			}
			again = slices.Concat(again, []byte(`, "`+name+`": `), m[name])
		}
		again = slices.Concat([]byte("{"), again[1:], []byte("}"))
		if k, v, ok := Hashes(again); !ok || k != key || v != value {
			t.Errorf("%x %x, and as %s %x %x %v", key, value, again, k, v, ok)
		}
	})
}

func BenchmarkHashes(b *testing.B) {
	value := []byte(routeJSON)
	b.ReportAllocs()
	b.SetBytes(int64(len(value)))
	for b.Loop() {
		if _, _, ok := Hashes(value); !ok {
			b.Fatal("no hashes")
		}
	}
	if n := testing.AllocsPerRun(10, func() { Hashes(value) }); n > 0 {
		b.Errorf("%v allocations", n)
	}
}

// TestPeerHash: the peer that a record is about has the key of its peer_up.
func TestPeerHash(t *testing.T) {
	up := edit(t, peerUpJSON, map[string]any{"rd": nil, "rd_origin": nil})
	key, _, _ := Hashes(up)
	for name, value := range map[string][]byte{
		"peer up": up, "peer down": edit(t, peerDownJSON, map[string]any{"rd": nil, "rd_origin": nil}),
		"stats": []byte(statsJSON), "end-of-rib": []byte(eorJSON),
		"a VPN route": edit(t, eorJSON, map[string]any{"log_type": "update", "ip_prefix": "192.0.2.0/24", "rd": "0:1:2"}),
	} {
		if h, ok := PeerHash(value); !ok || h != key {
			t.Errorf("%s: %x, %v, want %x", name, h, ok, key)
		}
	}
	for _, value := range []string{initJSON, openedJSON, "{", ""} {
		if _, ok := PeerHash([]byte(value)); ok {
			t.Errorf("%s is about a peer", value)
		}
	}
}
