package intake

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"encoding/json"
	"net/netip"
	"os"
	"strings"
	"testing"
)

const routeJSON = `{"seq": 72679, "log_type": "update", "timestamp": "2023-11-14 22:13:20.123456", "bmp_rib_type": "Adj-Rib-In Pre-Policy", "is_filtered": 0, "is_post": 0, "is_in": 1, "bgp_id": "10.0.0.1", "event_type": "log", "afi": 1, "safi": 1, "ip_prefix": "192.0.2.0/24", "bgp_nexthop": "10.9.9.9", "as_path": "65001 65010 65020", "comms": "65001:1 65535:666", "origin": "i", "local_pref": 0, "med": 0, "timestamp_arrival": "2026-11-21 01:23:25.312330", "bmp_router": "127.0.0.100", "bmp_router_port": 55199, "peer_ip": "10.0.0.1", "peer_asn": 65001, "peer_tcp_port": 0, "bmp_msg_type": "route_monitor"}`

// An avroDatum is built field by field.
type avroDatum []byte

func (d avroDatum) long(n int64) avroDatum { return binary.AppendVarint(d, n) }
func (d avroDatum) text(s string) avroDatum {
	return append(binary.AppendVarint(d, int64(len(s))), s...)
}
func (d avroDatum) null() avroDatum             { return append(d, 0) }
func (d avroDatum) some() avroDatum             { return append(d, 2) }
func (d avroDatum) framed() []byte              { return append([]byte{0, 0, 0, 0, 7}, d...) }
func (d avroDatum) router(ip string) avroDatum  { return d.text(ip).some().long(40001) }
func (d avroDatum) optional(s string) avroDatum { return d.some().text(s) }

const stamp = "2026-11-21 01:23:25.312332"

func avroRoute(logType, event, ip, msg string) avroDatum {
	var d avroDatum
	if logType != "" {
		d = d.text(logType)
	}
	d = d.long(44).text(stamp).text(event).text("pmacct/1").long(1).long(1)
	d = d.optional("192.0.2.0/24").null().null().optional("10.9.9.9").optional("65001 65010").null().optional("65001:1")
	d = d.null().null().optional("i").null().null().null().null().null().null()
	d = d.text("10.0.0.1").long(65001).text("10.0.0.1").some().long(0).optional(stamp)
	return d.router(ip).text(msg).text("Loc-Rib").long(0).null().some().long(1).null().null()
}

func avroEvent(event, ip, msg string, rest ...string) avroDatum {
	d := avroDatum{}.long(0).text(stamp).null().optional(stamp).text(event).router(ip).text(msg).text("pmacct/1")
	for _, s := range rest {
		d = d.optional(s)
	}
	return d
}

func avroSession(event, ip string) avroDatum {
	return avroDatum{}.long(0).text(stamp).text(event).text("pmacct/1").router(ip)
}

func TestIdentify(t *testing.T) {
	trick := `\"bmp_router\": \"9.9.9.9\", \"event_type\": \"log_init\"`
	fake := string(avroDatum{}.router("9.9.9.9").text("route_monitor"))
	for name, tt := range map[string]struct {
		value  string
		router string // "" for not ok
		kind   Kind
	}{
		"route":           {routeJSON, "127.0.0.100", Other},
		"init":            {`{"event_type": "log", "seq": 1, "bmp_router": "2001:db8::1", "bmp_msg_type": "init"}`, "2001:db8::1", Other},
		"log_init":        {`{"seq": 0, "timestamp": "1795224302.771201", "bmp_router": "127.0.0.44", "bmp_router_port": 40623, "event_type": "log_init", "writer_id": "x"}`, "127.0.0.44", Opened},
		"log_close":       {`{"seq": 0, "bmp_router": "127.0.0.44", "event_type": "log_close"}`, "127.0.0.44", Closed},
		"label map":       {`{"seq": 0, "bmp_router": "192.0.2.99", "label": {"nkey": "100.1", "bmp_router": "9.9.9.9", "event_type": "x"}, "event_type": "log_init"}`, "192.0.2.99", Opened},
		"arrays":          {`{"as_path": ["1", "{]", 2], "x": [[{}]], "bmp_router": "192.0.2.99", "event_type": "log"}`, "192.0.2.99", Other},
		"dump_init":       {`{"timestamp": "x", "bmp_router": "127.0.0.2", "bmp_router_port": 34937, "event_type": "dump_init", "dump_period": 60, "seq": 842}`, "127.0.0.2", Dump},
		"dump":            {`{"event_type": "dump", "seq": 842, "bmp_router": "127.0.0.2"}`, "127.0.0.2", Dump},
		"dump_close":      {`{"bmp_router": "127.0.0.2", "event_type": "dump_close"}`, "127.0.0.2", Dump},
		"no event":        {`{"bmp_router": "127.0.0.2", "seq": 1}`, "127.0.0.2", Other},
		"BGP":             {`{"seq": 1, "log_type": "update", "peer_ip_src": "198.51.100.1", "event_type": "log"}`, "198.51.100.1", Other},
		"BGP log_init":    {`{"seq": 1, "peer_ip_src": "198.51.100.1", "event_type": "log_init"}`, "198.51.100.1", Opened},
		"both":            {`{"peer_ip_src": "198.51.100.1", "event_type": "log", "bmp_router": "192.0.2.1"}`, "192.0.2.1", Other},
		"mapped":          {`{"bmp_router": "::ffff:192.0.2.1", "event_type": "log"}`, "192.0.2.1", Other},
		"compact":         {`{"a":null,"b":-1.5e3,"c":true,"bmp_router":"192.0.2.1","event_type":"log"}`, "192.0.2.1", Other},
		"avro_json":       {`{"seq": 1, "event_type": "log", "timestamp_arrival": {"string": "x"}, "bmp_router": "192.0.2.1", "bmp_router_port": {"int": 1}}` + "\x00", "192.0.2.1", Other},
		"newline":         {`{"seq": 1, "bmp_router": "192.0.2.1"}` + "\n", "192.0.2.1", Other},
		"escaped":         {`{"event_type": "log", "bmp_init_info_sysdescr": "x ` + trick + `", "bmp_router": "192.0.2.1"}`, "192.0.2.1", Other},
		"backslash":       {`{"event_type": "log", "a": "x\\", "b": "\\\"\\\\", "bmp_router": "192.0.2.1"}`, "192.0.2.1", Other},
		"only in text":    {`{"event_type": "log", "a": "` + trick + `"}`, "", Other},
		"only in a map":   {`{"event_type": "log", "a": {"bmp_router": "9.9.9.9"}}`, "", Other},
		"escaped key":     {`{"event_type": "log", "bmp\u005frouter": "9.9.9.9"}`, "", Other},
		"twice":           {`{"bmp_router": "9.9.9.9", "bmp_router": "192.0.2.1", "event_type": "log"}`, "", Other},
		"no address":      {`{"bmp_router": "edge", "event_type": "log"}`, "", Other},
		"zone":            {`{"bmp_router": "fe80::1%eth0", "event_type": "log"}`, "", Other},
		"number":          {`{"bmp_router": 5, "event_type": "log"}`, "", Other},
		"cut":             {`{"event_type": "log", "bmp_router": "192.0.2.1`, "", Other},
		"cut key":         {`{"event_type": "log", "bmp_rou`, "", Other},
		"cut map":         {`{"event_type": "log", "a": {"b": [`, "", Other},
		"no colon":        {`{"event_type" "log"}`, "", Other},
		"no comma":        {`{"event_type": "log" "bmp_router": "192.0.2.1"}`, "", Other},
		"no end":          {`{"bmp_router": "192.0.2.1"`, "", Other},
		"empty":           {``, "", Other},
		"empty object":    {`{}`, "", Other},
		"text":            {`hello world`, "", Other},
		"Avro update":     {string(avroRoute("update", "log", "192.0.2.1", "route_monitor")), "192.0.2.1", Other},
		"Avro withdraw":   {string(avroRoute("withdraw", "log", "2001:db8:0:1:2:3:4:5", "route_monitor")), "2001:db8:0:1:2:3:4:5", Other},
		"Avro length 0":   {string(avroRoute("update", "log", "2001:db8:1:2:3:4:5:6666", "route_monitor")), "2001:db8:1:2:3:4:5:6666", Other},
		"Avro length 24":  {string(avroRoute("update", "log", "2001:db8:1:2:3:4:55:6666", "route_monitor")), "2001:db8:1:2:3:4:55:6666", Other},
		"Avro short IPv6": {string(avroRoute("update", "log", "::1", "route_monitor")), "::1", Other},
		"Avro delete":     {string(avroRoute("delete", "log", "192.0.2.1", "internal")), "192.0.2.1", Other},
		"Avro dump":       {string(avroRoute("", "dump", "192.0.2.1", "route_monitor")), "192.0.2.1", Dump},
		"Avro init":       {string(avroEvent("log", "192.0.2.1", "init", "x "+fake)), "192.0.2.1", Other},
		"Avro stats":      {string(avroEvent("log", "192.0.2.1", "stats")), "192.0.2.1", Other},
		"Avro dump event": {string(avroEvent("dump", "192.0.2.1", "peer_up")), "192.0.2.1", Dump},
		"Avro log_init":   {string(avroSession("log_init", "192.0.2.1")), "192.0.2.1", Opened},
		"Avro log_close":  {string(avroSession("log_close", "2001:db8::1")), "2001:db8::1", Closed},
		"Avro dump_init":  {string(avroSession("dump_init", "192.0.2.1").long(60)), "192.0.2.1", Dump},
		"Avro dump_close": {string(avroSession("dump_close", "192.0.2.1").null().null()), "192.0.2.1", Dump},
		"Avro no port":    {string(avroDatum{}.long(1).text(stamp).text("log_init").text("w").text("192.0.2.1").null()), "192.0.2.1", Opened},
		"Avro framed":     {string(avroRoute("update", "log", "192.0.2.1", "route_monitor").framed()), "192.0.2.1", Other},
		"Avro framed too": {string(avroSession("log_init", "192.0.2.1").framed()), "192.0.2.1", Opened},
		"Avro doubtful":   {string(avroRoute("update", "log", "192.0.2.1", "route_monitor")) + fake, "", Other},
		"Avro type":       {string(avroEvent("log", "192.0.2.1", "other")), "", Other},
		"Avro event type": {string(avroEvent("x", "192.0.2.1", "init")), "", Other},
		"Avro no address": {string(avroSession("log_init", "edge")), "", Other},
		"Avro bare words": {"\x1aroute_monitor", "", Other},
		"framing only":    {"\x00\x00\x00\x00\x07", "", Other},
	} {
		t.Run(name, func(t *testing.T) {
			router, kind, ok := Identify([]byte(tt.value))
			got := ""
			if ok {
				got = router.String()
			}
			if got != tt.router || ok && kind != tt.kind {
				t.Errorf("%q, %v; want %q, %v", got, kind, tt.router, tt.kind)
			}
		})
	}
}

// TestIdentifyPrefixes: of no record cut short another router is read.
func TestIdentifyPrefixes(t *testing.T) {
	for _, value := range []string{routeJSON, string(avroRoute("update", "log", "192.0.2.1", "route_monitor")),
		string(avroEvent("log", "192.0.2.1", "init")), string(avroSession("log_init", "192.0.2.1"))} {
		want, _, ok := Identify([]byte(value))
		if !ok {
			t.Fatalf("%q", value)
		}
		for n := range value {
			if got, _, ok := Identify([]byte(value[:n])); ok && got != want {
				t.Errorf("%q: %v", value[:n], got)
			}
		}
	}
}

// TestIdentifyCaptured goes through what two versions of pmacct wrote.
func TestIdentifyCaptured(t *testing.T) {
	for _, name := range []string{"pmacct-1.7.7", "pmacct-1.8", "rib-1.7.7", "rib-1.8"} {
		f, err := os.Open("/work/shared/fixtures/" + name + ".jsonl.gz")
		if err != nil {
			t.Skip("the captured records are not here: ", err)
		}
		defer f.Close()
		z, err := gzip.NewReader(f)
		if err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(z)
		lines.Buffer(nil, 1<<20)
		n := 0
		for ; lines.Scan(); n++ {
			var want struct {
				Router string `json:"bmp_router"`
				Event  string `json:"event_type"`
			}
			if err := json.Unmarshal(lines.Bytes(), &want); err != nil {
				t.Fatal(err)
			}
			wantKind, _ := eventKind([]byte(want.Event))
			router, kind, ok := Identify(lines.Bytes())
			if !ok || router.String() != want.Router || kind != wantKind {
				t.Fatalf("%s: %v, %v, %v: %s", name, router, kind, ok, lines.Bytes())
			}
		}
		if err := lines.Err(); err != nil || n == 0 {
			t.Errorf("%s: %d records, %v", name, n, err)
		}
	}
}

func FuzzIdentify(f *testing.F) {
	f.Add([]byte(routeJSON))
	f.Add([]byte(avroRoute("update", "log", "192.0.2.1", "route_monitor")))
	f.Add([]byte(avroEvent("log", "2001:db8::1", "init", "x")))
	f.Add(avroSession("log_init", "192.0.2.1").framed())
	f.Fuzz(func(t *testing.T, b []byte) {
		router, _, ok := Identify(b)
		if ok != router.IsValid() {
			t.Fatalf("%v, %v", router, ok)
		}
		// What is valid JSON means the same to encoding/json.
		var m map[string]json.RawMessage
		if !ok || b[0] != '{' || json.Unmarshal(b, &m) != nil {
			return
		}
		var text string
		key := "bmp_router"
		if _, ok := m[key]; !ok {
			key = "peer_ip_src"
		}
		if strings.Count(string(b), key) > 1 || bytes.Contains(b, []byte(`\u`)) {
			return // a key may be there twice
		}
		if err := json.Unmarshal(m[key], &text); err != nil {
			t.Fatal(err)
		}
		if a, err := netip.ParseAddr(text); err != nil || a.Unmap() != router {
			t.Fatalf("%v, want %q", router, text)
		}
	})
}

func BenchmarkIdentify(b *testing.B) {
	for name, value := range map[string][]byte{
		"json": []byte(routeJSON), "avro": avroRoute("update", "log", "192.0.2.1", "route_monitor"),
		"avro-ipv6": avroRoute("update", "log", "2001:db8:1:2:3:4:55:6666", "route_monitor").framed(),
	} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(value)))
			b.ReportAllocs()
			for b.Loop() {
				if _, _, ok := Identify(value); !ok {
					b.Fatal("not ok")
				}
			}
		})
	}
}
