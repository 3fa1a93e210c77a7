package dump_test

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/bmpha/bmpha/pkg/bmp"
	"github.com/bmpha/bmpha/pkg/dump"
	"github.com/bmpha/bmpha/pkg/pmacct"
	"github.com/bmpha/bmpha/pkg/record"
	"github.com/bmpha/bmpha/pkg/table"
)

const slot = 1795197840 // 2026-11-20T18:04:00Z

func newRecords(t testing.TB, tab dump.Source, settled, header bool) *dump.Dump {
	enc, err := pmacct.NewEncoder(pmacct.Options{Zone: time.UTC, WriterID: `w, "seq": 9`, Header: header})
	if err != nil {
		t.Fatal(err)
	}
	d := enc.Dump(pmacct.Identity{Router: "r1", Addr: netip.MustParseAddr("192.0.2.1"), Port: 4711, Key: []byte("192_0_2_1")}, slot, 60)
	return dump.New(tab, dump.Records(d, &record.Origin{Instance: 7}, func(err error) { t.Error(err) }), dump.Options{Settled: settled, Stats: true})
}

// capture returns the table of a recorded session.
func capture(t testing.TB, name string) *table.Table {
	stream, err := os.ReadFile("../capture/" + name)
	if err != nil {
		t.Fatal(err)
	}
	tab := table.NewTable(table.NewStore(), table.Options{})
	for len(stream) > 0 {
		n, err := bmp.Next(stream, 1<<20)
		if err != nil || n == 0 {
			t.Fatal("not a whole capture:", err)
		}
		// FRR and GoBGP tell of peers that are not up.
		_ = tab.Apply(stream[:n], slot*1e6, nil)
		stream = stream[n:]
	}
	return tab
}

// What a reader makes of a dump is the table.
func TestReading(t *testing.T) {
	for _, name := range []string{"frr.bmp", "gobgp.bmp"} {
		tab := capture(t, name)
		want := map[string]string{}
		name := func(peer string, prefix string, rib any) string { return fmt.Sprint(peer, prefix, rib) }
		tab.Walk(&table.Walk{}, 1<<30, func(r *table.Route) {
			var m map[string]any
			if err := json.Unmarshal(append(pmacct.AppendRoute([]byte("{"), r), '}'), &m); err != nil {
				t.Fatal(err)
			}
			want[name(r.RIB.Peer.Address().String(), r.Prefix.String(), r.RIB.Kind)] = fmt.Sprint(m["as_path"], m["bgp_nexthop"], m["comms"], m["med"])
		})
		kinds := map[string]bmp.RIB{
			"Adj-Rib-In Pre-Policy": bmp.AdjRIBInPre, "Adj-Rib-In Post-Policy": bmp.AdjRIBInPost, "Loc-Rib": bmp.LocRIB,
		}
		got := map[string]string{}
		var events []string
		d := newRecords(t, tab, true, true)
		var b record.Batch
		for !d.Ended() {
			b.Reset()
			d.Fill(&b, 100, 1<<20)
			for i := range b.Recs {
				var m map[string]any
				if err := json.Unmarshal(b.Value(i), &m); err != nil {
					t.Fatalf("%s: %v", b.Value(i), err)
				}
				if h, err := record.ParseHeader(b.Header(i)); err != nil || h.Instance != 7 || string(b.Key(i)) != "192_0_2_1" {
					t.Fatalf("header %+v, %v, key %s", h, err, b.Key(i))
				}
				if m["seq"] != 0.0 || m["timestamp"] != "2026-11-20 18:04:00" {
					t.Fatalf("%s: another number or timestamp", b.Value(i))
				}
				if m["ip_prefix"] == nil {
					kind, _ := m["bmp_msg_type"].(string)
					if kind == "" {
						kind = m["event_type"].(string)
					}
					if len(events) == 0 || events[len(events)-1] != kind {
						events = append(events, kind)
					}
					continue
				}
				k := name(m["peer_ip"].(string), m["ip_prefix"].(string), kinds[m["bmp_rib_type"].(string)])
				if got[k] != "" {
					t.Errorf("%s is there twice", k)
				}
				got[k] = fmt.Sprint(m["as_path"], m["bgp_nexthop"], m["comms"], m["med"])
			}
		}
		if len(got) != len(want) || len(want) < 300 || d.Routes() != uint64(len(want)) {
			t.Errorf("%d routes in the dump (%d by its own count), %d in the table", len(got), d.Routes(), len(want))
		}
		for k, v := range want {
			if got[k] != v {
				t.Errorf("%s is %q, want %q", k, got[k], v)
			}
		}
		order := strings.Join(events, " ")
		if !strings.HasPrefix(order, "dump_init init peer_up ") || !strings.HasSuffix(order, " dump_close") ||
			!strings.Contains(order, "stats") || !strings.Contains(order, "peer_down") {
			t.Errorf("besides routes there are: %s", order)
		}
	}
}

// The marks of a dump: whole ones are pmacct's, others say what they are.
func TestMarks(t *testing.T) {
	for _, test := range []struct {
		settled      bool
		interruption string
		init, close  string
	}{
		{true, "", `"event_type": "dump_init", "dump_period": 60, "seq": 0`, `"event_type": "dump_close", "seq": 0`},
		{false, "handover", `"event_type": "dump_init", "dump_period": 60, "unsettled": 1, "seq": 0`,
			`"event_type": "dump_close", "interrupted": "handover", "seq": 0`},
	} {
		for _, header := range []bool{false, true} {
			now := int64(1)
			k, s := newBroker(1, &now)
			s.Begin(newRecords(t, table.NewTable(table.NewStore(), table.Options{}), test.settled, header))
			if test.interruption != "" {
				s.Fill()
				s.Hand(now)
				s.Interrupt(test.interruption)
			}
			run(t, k, s, &now, s.Done)
			const head, tail = `{"timestamp": "2026-11-20 18:04:00", "bmp_router": "192.0.2.1", "bmp_router_port": 4711, `, `, "writer_id": "w, \"seq\": 9"}`
			if len(k.stored) != 2 || k.stored[0] != head+test.init+tail || k.stored[1] != head+test.close+tail {
				t.Errorf("stored\n%s\nwant\n%s\n%s", strings.Join(k.stored, "\n"), head+test.init+tail, head+test.close+tail)
			}
		}
	}
}

// A record costs no allocation.
func BenchmarkDump(b *testing.B) {
	tab := capture(b, "frr.bmp")
	var batch record.Batch
	d := newRecords(b, tab, true, true)
	b.ReportAllocs()
	records := 0
	for b.Loop() {
		if d.Ended() {
			records += int(d.Records())
			d = newRecords(b, tab, true, true)
		}
		batch.Reset()
		d.Fill(&batch, 500, 1<<20)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(max(records, 1)), "ns/record")
}
