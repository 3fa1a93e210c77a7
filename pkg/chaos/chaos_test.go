package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/bmpha/bmpha/pkg/config"
	"github.com/bmpha/bmpha/pkg/record"
	"github.com/bmpha/bmpha/pkg/replay"
	"github.com/bmpha/bmpha/pkg/rig"
	"github.com/bmpha/bmpha/pkg/verify"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestPlan: a seed makes one plan; it has all faults, in the order of time, and never
// hurts more than it may.
func TestPlan(t *testing.T) {
	of, err := chooseKinds("", true)
	if err != nil {
		t.Fatal(err)
	}
	for seed := range uint64(200) {
		const n, total = 200, 10 * time.Minute
		p := plan(seed, total, n, of)
		if len(p) != n || !reflect.DeepEqual(p, plan(seed, total, n, of)) {
			t.Fatalf("seed %d: %d faults, or another plan the second time", seed, len(p))
		}
		seen := make(map[string]int)
		for i, f := range p {
			seen[f.Kind]++
			k := kinds[slices.IndexFunc(kinds, func(k kind) bool { return k.name == f.Kind })]
			if f.N != i+1 || i > 0 && f.At < p[i-1].At || f.At >= seconds(total) {
				t.Fatalf("seed %d: fault %d at %s", seed, f.N, f.At)
			}
			if slack := seconds(time.Microsecond); f.Lasts < seconds(k.from)-slack || f.Lasts > seconds(k.to)+slack {
				t.Errorf("seed %d: %s lasts %s", seed, f.Kind, f.Lasts)
			}
			collectors, all := 0, 0
			for _, o := range p[:i+1] {
				if o.hits == collector && o.end() > f.At {
					collectors++
				}
				if o.hits == shared && o.end() > f.At {
					all++
				}
			}
			if collectors > 2 || all > 1 || collectors == 2 && all == 1 {
				t.Fatalf("seed %d, fault %d: %d collectors are hurt and %d of what all need", seed, f.N, collectors, all)
			}
		}
		if len(seen) < len(of)-4 {
			t.Errorf("seed %d: only %d of %d kinds", seed, len(seen), len(of))
		}
	}
	without, err := chooseKinds("", false)
	if err != nil {
		t.Fatal(err)
	}
	for i, f := range plan(1, 10*time.Minute, 200, without) {
		with := plan(1, 10*time.Minute, 200, of)[i]
		if with.Kind = strings.Replace(with.Kind, "link-", "redis-", 1); with != f {
			t.Fatalf("without links %+v, with links %+v", f, with)
		}
	}
	if p := plan(1, time.Minute, 20, of); reflect.DeepEqual(p, plan(2, time.Minute, 20, of)) {
		t.Error("two seeds make one plan")
	}
	if p := plan(1, time.Minute, 0, of); len(p) != 0 {
		t.Errorf("of no fault %v", p)
	}
}

func TestChooseKinds(t *testing.T) {
	for _, test := range []struct {
		names string
		links bool
		want  string
	}{
		{"kill,pause", false, ""},
		{"link-mute", true, ""},
		{"link-mute", false, "needs -link"},
		{"kill,quake", false, `no fault "quake"`},
	} {
		if _, err := chooseKinds(test.names, test.links); test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
			t.Errorf("%q: %v, want %q", test.names, err, test.want)
		}
	}
}

// TestTalk: what a router says can be followed, has each number once, and covers no
// change by a later one beyond its window.
func TestTalk(t *testing.T) {
	const peers, prefixes, changes = 2, 200, 4000
	stream := newTalk(3, "r", peers, prefixes, changes, time.Millisecond)
	sink, err := rig.OpenSink("")
	if err != nil {
		t.Fatal(err)
	}
	defer sink.Close()
	r, err := replay.NewRouter(replay.Config{Stream: replay.Limit(stream, stream.opening()+changes/2), To: []string{sink.Addr()}})
	if err != nil {
		t.Fatal(err)
	}
	stream.Flap()
	r.Start()
	if err := r.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	n := r.Counters()
	if n.Opaque != 0 || n.Withdrawn == 0 || n.EndOfRIB != 2*peers {
		t.Errorf("%+v", n)
	}
	own := make(map[string]bool)
	for peer := range peers {
		for i, med := range stream.routes[peer] {
			addr, _ := stream.peer(peer)
			if med != 0 {
				own[fmt.Sprint(addr, " ", i, " ", med)] = true
			}
		}
	}
	table := r.Table()
	if len(table) != len(own) {
		t.Errorf("%d routes in the table, %d in the stream", len(table), len(own))
	}
	if at := stream.changes / stream.stay; at == 0 || at > prefixes {
		t.Errorf("the window is at %d of %d", at, prefixes)
	}
	if err := r.Stop(t.Context(), replay.Abort); err != nil {
		t.Error(err)
	}
}

// A feed makes records for a reader.
type feed struct {
	r  *reader
	at time.Time
}

func (f *feed) record(instance, token, message uint64, flags uint8, number int) {
	o := record.Origin{Instance: instance, Session: 1, Message: message, Token: token, Flags: flags}
	f.at = f.at.Add(time.Millisecond)
	f.r.take(rig.Record{
		Value:   fmt.Appendf(nil, `{"event_type": "log", "bmp_msg_type": "route_monitor", "log_type": "update", "bmp_router": "127.3.2.1", "peer_ip": "10.254.0.1", "is_in": 1, "afi": 1, "safi": 1, "ip_prefix": "20.0.%d.0/24", "med": %d}`, number%2, number),
		Headers: []rig.Header{{Key: record.HeaderName, Value: record.AppendRouteHeader(nil, &o, 0, uint64(number%2), uint64(number))}}, Timestamp: f.at,
	})
}

// TestReader: what is counted, and as what.
func TestReader(t *testing.T) {
	f := &feed{r: newReader(medOf), at: time.Now().Add(-time.Minute)}
	f.r.tables, f.r.opening = true, 3
	for i := range 10 { // messages 0 to 2 are its table
		f.record(1, 1, uint64(i), 0, i+1)
	}
	// The sender dies; another goes on 2 s later, two numbers back.
	var killed tally
	f.r.spans = append(f.r.spans, span{f.at.Add(100 * time.Millisecond), &killed})
	f.at = f.at.Add(2 * time.Second)
	f.record(2, 2, 20, record.FlagReplayed, 9)
	f.record(2, 2, 21, record.FlagReplayed, 10)
	f.record(2, 2, 22, 0, 11)
	want := tally{Records: 3, Replayed: 2, Writers: 1, Backs: 1, Far: 1, Gap: seconds(2001 * time.Millisecond)}
	after := f.r.look(&killed)
	if after.Quiet = 0; after != want {
		t.Errorf("after a kill %+v, want %+v", after, want)
	}
	// A late word of the first, and one of a table that is told again.
	f.record(1, 1, 10, 0, 11)
	f.record(2, 2, 23, 0, 3)
	f.record(2, 2, 24, record.FlagShared, 11)
	f.record(3, 2, 25, 0, 10)
	f.record(3, 2, 26, 0, 11)
	got := f.r.all()
	if got.Late != 1 || got.Told != 1 || got.Shared != 2 || got.Plain != 1 || got.Older != 0 {
		t.Errorf("all: %+v", got)
	}
	if n := f.r.distinct("127.3.2.1"); n != 11 {
		t.Errorf("%d numbers came, want 11", n)
	}
	// An older word of one sender, unflagged.
	f.record(3, 2, 27, 0, 13)
	f.record(3, 2, 20, 0, 12)
	f.record(3, 2, 20, 0, 11)
	if got := f.r.all(); got.Older != 1 || len(f.r.older) != 1 {
		t.Errorf("older: %+v %v", got, f.r.older)
	}
	route := wordKey{"127.3.2.1", "10.254.0.1", "20.0.1.0/24", replay.InPre}
	if f.r.ambiguous(route, "via a med 13") {
		t.Error("a route with a plain last word is ambiguous")
	}
	f.record(3, 2, 30, record.FlagShared, 15)
	if !f.r.ambiguous(route, "via a med 11") {
		t.Error("a route with a shared last word is not ambiguous")
	}
	if f.r.ambiguous(route, "via a med 17") {
		t.Error("a word that never came is excused")
	}
	if late := f.r.late(); len(late) != 0 {
		t.Errorf("late words are the last of %v", late)
	}
	f.record(1, 1, 40, 0, 17) // it stood still
	if late := f.r.late(); len(late) != 1 || !late[route] {
		t.Errorf("late words are the last of %v, want one route", late)
	}
	if bad := f.r.faults(); len(bad) != 0 {
		t.Error(bad)
	}
	f.r.take(rig.Record{Value: []byte("no JSON")})
	if bad := f.r.faults(); len(bad) != 1 {
		t.Errorf("faults %v, want one", bad)
	}
}

// word gives a reader a record of the only sender about a peer, as in "up", "up post"
// and "down", or about its route, as in "5" and "5 post", an announcement with that MED,
// and "gone"; with ! it is sent while two might.
func (f *feed) word(message uint64, what string) {
	o := record.Origin{Instance: 1, Session: 1, Message: message, Token: 1}
	if w, ok := strings.CutSuffix(what, "!"); ok {
		what, o.Flags = w, record.FlagShared
	}
	what, post := strings.CutSuffix(what, " post")
	const route = `"bmp_msg_type": "route_monitor", "afi": 1, "safi": 1, "ip_prefix": "20.0.0.0/24", "log_type": `
	value, header := route+`"update", "med": `+what, record.AppendRouteHeader(nil, &o, 0, 1, message)
	switch what {
	case "up", "down":
		value, header = `"bmp_msg_type": "peer_`+what+`"`, record.AppendStateHeader(nil, &o, 0, 7, 1)
	case "gone":
		value = route + `"withdraw"`
	}
	is := 0
	if post {
		is = 1
	}
	f.r.take(rig.Record{
		Value:   fmt.Appendf(nil, `{"event_type": "log", %s, "bmp_router": "127.1.0.1", "peer_ip": "192.0.2.9", "is_in": 1, "is_post": %d}`, value, is),
		Headers: []rig.Header{{Key: record.HeaderName, Value: header}}, Timestamp: f.at,
	})
}

// TestAmbiguous: a route has an excuse for its own last word, or for one about its peer
// that came behind it, if the router's word came, too; and for nothing else.
func TestAmbiguous(t *testing.T) {
	const before, after = replay.InPre, replay.InPost
	for _, test := range []struct {
		words string
		own   string // what the router says
		rib   replay.RIB
		want  bool
	}{
		{"up, 1", "med 2", before, false},
		{"up, 2, 1", "med 2", before, false},
		{"up, 2, 1!", "med 2", before, true},
		{"up, 2!, 1!", "med 2", before, true},
		{"up, 0, 2!, 0!, 1!", "med 2", before, true},
		{"up!, 2, 1", "med 2", before, false},
		{"up!, 2!, 1!, 1", "med 2", before, false},
		{"up, 2, 1, 1!", "med 2", before, false}, // one sender has said since that it is 1
		{"up, 0, 1!", "med 2", before, false},    // it never came
		{"up!, 1!", "med 2", before, false},
		{"up, 2, gone!", "med 2", before, true},
		{"up, gone!", "med 2", before, false},
		{"up, 1, gone!, 1!", "", before, true},
		{"up, gone, 1!", "", before, true},
		{"up, 0, 1!", "", before, false},
		{"up, 0, down!, 1!", "", before, true},
		{"up, down!, 0, 1!", "", before, false},
		{"up, 2, up!", "med 2", before, true},
		{"up, 2, down!", "med 2", before, true},
		{"up, 1, up!", "med 2", before, false},
		{"up, 2, down!, up", "med 2", before, false},
		{"up, 2, up!, up", "med 2", before, false},
		{"up, 2, up!, 1", "med 2", before, false},
		{"up!", "med 2", before, false},
		{"up", "med 2", before, false},
		{"up, 2, up post!", "med 2", before, false},
		{"up, 2, 2 post!", "med 2", before, false},
		{"up, up post, 2, 2 post, up post!", "med 2", after, true},
		{"up, up post, 2, 2 post, up!", "med 2", after, true}, // it ends all
		{"up, up post, 2, 2 post, 1!", "med 2", after, false},
	} {
		f := &feed{r: newReader(medOf)}
		f.r.tables = true
		for i, w := range strings.Split(test.words, ", ") {
			f.word(uint64(i), w)
		}
		if got := f.r.ambiguous(wordKey{"127.1.0.1", "192.0.2.9", "20.0.0.0/24", test.rib}, strings.ReplaceAll(test.own, "med", "via a med")); got != test.want {
			t.Errorf("%s, and the router says %q: %v, want %v", test.words, test.own, got, test.want)
		}
		if bad := f.r.faults(); len(bad) != 0 {
			t.Error(bad)
		}
	}
}

// TestUnflagged: what the known run repeats without a flag is let pass, and one
// takeover at its worst; several are not.
func TestUnflagged(t *testing.T) {
	for _, test := range []struct {
		rate, records, repeats int
		pass                   bool
	}{
		{1250, 5_010_961, 37, true},
		{1250, 5_010_961, 1250, true},
		{1250, 5_010_961, 2 * 1250, false},
		{1250, 742_061, 38, true},
		{1250, 559_404, 7820, false}, // senders that forgot their seam
		{2000, 20_000, 0, true},
	} {
		if pass := test.repeats <= unflaggedMost(test.rate, test.records); pass != test.pass {
			t.Errorf("%+v: let pass %v", test, pass)
		}
	}
	tl := timelinesReport{Outcomes: []outcome{{Name: "kill", Rate: 2000, Seen: tally{Records: 20_000, Plain: 2002}}}}
	if err := tl.verdict(); err != nil {
		t.Error(err)
	}
	tl.Outcomes[0].Seen.Plain++
	if err := tl.verdict(); err == nil {
		t.Error("a timeline may repeat anything")
	}
}

// TestDifferences: what bmpha verify lists is named as the reader names it, and what it
// does not list is counted.
func TestDifferences(t *testing.T) {
	r := verify.Result{Collector: &verify.TableComparison{
		Equal:     7,
		Missing:   verify.Unequal{Count: 2, First: []verify.RouteDifference{{Router: "127.1.0.1", Peer: "192.0.2.9", RIB: replay.InPost, Prefix: "20.0.0.0/24"}}},
		Different: verify.Unequal{Count: 1, First: []verify.RouteDifference{{Router: "127.1.0.1", Peer: "192.0.2.9", RIB: replay.InPre, Prefix: "20.0.0.0/24"}}},
	}}
	d := differencesOf(&r)
	if want := (wordKey{"127.1.0.1", "192.0.2.9", "20.0.0.0/24", replay.InPost}); d.equal != 7 || d.count != 3 || len(d.listed) != 2 || d.listed[0].wordKey != want {
		t.Errorf("%+v", d)
	}
	r = verify.Result{Comparison: &verify.Comparison{Router: "127.1.0.1", Equal: 3, Extra: []verify.Difference{{
		Peer: netip.MustParseAddr("192.0.2.9"), RIB: replay.InPost, Prefix: netip.MustParsePrefix("20.0.0.0/24"),
	}}}}
	d = differencesOf(&r)
	if want := (wordKey{"127.1.0.1", "192.0.2.9", "20.0.0.0/24", replay.InPost}); d.equal != 3 || d.count != 1 || len(d.listed) != 1 || d.listed[0].wordKey != want {
		t.Errorf("%+v", d)
	}
	if d := differencesOf(new(verify.Result)); d.count != 0 {
		t.Errorf("%+v", d)
	}
}

// TestConfiguration: the template makes a configuration that is valid, with all parts
// and with none.
func TestConfiguration(t *testing.T) {
	for _, v := range []values{
		{Process: "a", Cluster: "c", Listen: "127.0.0.1:1", Redis: "127.0.0.1:2", Kafka: "127.0.0.1:3", Topic: "t", Dir: "/d"},
		{
			Process: "a", Cluster: "c", Listen: "127.0.0.1:1", Redis: "127.0.0.1:2", Kafka: "127.0.0.1:3", Topic: "t", Dir: "/d", Dumps: "t.dump",
			Link: "127.0.0.1:4", Advertise: "127.0.0.1:5", Secret: "only for this run, and for no other",
		},
	} {
		text, err := v.fill(collectorTemplate)
		if err != nil {
			t.Fatal(err)
		}
		var set settings
		for _, s := range []string{"redis.expiry=3s", "hold.memory=64MiB"} {
			if err := set.Set(s); err != nil {
				t.Fatal(err)
			}
		}
		c, err := config.Parse("collector.yaml", text, func(name string) (string, bool) {
			for _, kv := range set.env() {
				if key, value, _ := strings.Cut(kv, "="); key == name {
					return value, true
				}
			}
			return "", false
		})
		if err != nil {
			t.Errorf("%v\n%s", err, text)
			continue
		}
		// A table would be all that the memory of a timeline's standby shows.
		if want := map[bool]string{true: config.TableFull, false: config.TableAuto}[v.Dumps != ""]; c.Table != want {
			t.Errorf("table %s, want %s", c.Table, want)
		}
		if c.Kafka.Topic != "t" || c.Redis.Expiry != 3*time.Second {
			t.Errorf("topic %q, expiry %s", c.Kafka.Topic, c.Redis.Expiry)
		}
	}
	if err := new(settings).Set("nothing"); err == nil {
		t.Error("a setting without = is taken")
	}
}

// TestReports: both are written, as text and as JSON that can be read back.
func TestReports(t *testing.T) {
	seen := tally{Records: 1234567, Replayed: 12, Gap: seconds(1500 * time.Millisecond)}
	r := faultsReport{Faults: []*result{
		{fault: fault{N: 1, Kind: "kill", hits: collector}, Role: "active", Seen: &seen},
		{fault: fault{N: 2, Kind: "kill", hits: collector}, Role: "standby", Seen: new(tally)},
		{fault: fault{N: 3, Kind: "handover"}, Note: "left out: nobody free is active", Seen: new(tally)},
	}, Tables: []table{{Router: "127.3.2.1", Equal: 1000, Lost: 1, Shared: 2}, {Router: "127.3.2.2", Equal: 500, Shared: 3}}, Failed: []string{"something"}}
	var b bytes.Buffer
	r.write(&b)
	if len(r.Kinds) != 2 || r.Kinds[0].Role != "active" || r.Kinds[0].Replayed != 12 || r.Kinds[0].GapMax != seen.Gap {
		t.Errorf("%+v", r.Kinds)
	}
	if r.verdict() == nil || !strings.Contains(b.String(), "=> something") {
		t.Errorf("a failure is not told:\n%s", b.String())
	}
	if want := "excused: 5 of 1,506 routes"; !strings.Contains(b.String(), want) {
		t.Errorf("no line %q:\n%s", want, b.String())
	}
	text, err := json.Marshal(&r)
	if err != nil {
		t.Fatal(err)
	}
	var back faultsReport
	if err := json.Unmarshal(text, &back); err != nil || *back.Faults[0].Seen != seen {
		t.Errorf("%v: %s", err, text)
	}
	tl := timelinesReport{Outcomes: []outcome{{Name: "kill", Sent: 10, Lost: 1, Memory: []int{50, 60}, Native: native{Lost: "0"}}}}
	b.Reset()
	tl.write(&b)
	if err := tl.verdict(); err == nil || !strings.Contains(b.String(), "50 60") {
		t.Errorf("%v\n%s", err, b.String())
	}
	tl.Outcomes[0].Lost = 0
	if err := tl.verdict(); err != nil {
		t.Error(err)
	}
}

func TestNever(t *testing.T) {
	k := track{seen: []arrival{missing, alone, missing, missing, ofTwo, missing}}
	want := []stretch{{"r", 2, 3}, {"r", 5, 7}}
	if got := k.never("r", 7); !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

func TestGrid(t *testing.T) {
	g := grid{columns: []string{"what", "n"}}
	g.row("a", count(1234567))
	g.row("bcd", "-1")
	var b strings.Builder
	g.write(&b)
	if want := "  what          n\n  ----  ---------\n  a     1,234,567\n  bcd          -1\n"; b.String() != want {
		t.Errorf("%q, want %q", b.String(), want)
	}
	h := newHistogram(0, 10, 1000)
	for _, x := range []float64{0, 1, 10, 11, 1001} {
		h.add(x)
	}
	if !slices.Equal(h.Counts, []int{1, 2, 1, 1}) || strings.Join(h.heads(), " ") != "0 ≤10 ≤1k >1k" {
		t.Errorf("%v %v", h.Counts, h.heads())
	}
}

// TestCommands: what is wrong with a command line is said, and nothing is started.
func TestCommands(t *testing.T) {
	for _, test := range []struct{ args, want string }{
		{"", "want timelines or faults"},
		{"dance", "want timelines or faults"},
		{"timelines -only sleep", `no timeline "sleep"`},
		{"timelines -scale 0", "-scale 0"},
		{"timelines more", `unexpected argument "more"`},
		{"faults -time 1ms", "want -time"},
		{"faults -kinds quake", `no fault "quake"`},
		{"faults -bmpha /nowhere/bmpha", "find bmpha"},
	} {
		if err := run(t.Context(), strings.Fields(test.args), io.Discard); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%q: %v, want %q", test.args, err, test.want)
		}
	}
	var b bytes.Buffer
	if err := run(t.Context(), []string{"faults", "-plan", "-seed", "7"}, &b); err != nil || strings.Count(b.String(), "\n") != 202 {
		t.Errorf("a plan of 200 faults: %v\n%s", err, b.String())
	}
}
