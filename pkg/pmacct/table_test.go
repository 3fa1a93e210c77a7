package pmacct

import (
	"bytes"
	"encoding/json"
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

	"github.com/google/go-cmp/cmp"

	"github.com/bmpha/bmpha/pkg/bgp"
	"github.com/bmpha/bmpha/pkg/bmp"
	"github.com/bmpha/bmpha/pkg/record"
	"github.com/bmpha/bmpha/pkg/replay"
	"github.com/bmpha/bmpha/pkg/table"
)

// A keeper makes records as a collector with a table does: what the table
// knows travels with the messages, and what is gone follows them.
type keeper struct {
	tab   *table.Table
	s     *Session
	o     record.Origin
	notes table.Notes
	gone  table.Gone
	diff  bool // leave out what is known
	b     record.Batch
	now   int64
	at    []entry
}

// An entry is what a keeper's session was given: a message with its notes, or a
// body of routes that are gone.
type entry struct {
	gone bool
	at   int64
	body []byte
}

func newKeeper(t testing.TB, rib, diff bool) *keeper {
	_, s := newSession(t, Options{Timestamps: UTC, Header: true, RIB: rib})
	k := &keeper{tab: table.NewTable(table.NewStore(), table.Options{}), s: s, diff: diff}
	k.notes.Values = rib
	return k
}

func (k *keeper) message(msg []byte) {
	k.now++
	k.notes.Reset()
	before := k.b.Len()
	err := k.tab.Apply(msg, k.now, func(c *table.Change) { k.notes.Add(c, k.diff && c.Same) })
	k.notes.Applied(err)
	body := k.notes.Append(bytes.Clone(msg))
	k.enter(entry{at: k.now, body: body})
	if k.notes.Silent() && k.b.Len() != before {
		panic("a silent message made records")
	}
	k.tidy()
}

func (k *keeper) tidy() {
	for more := k.tab.Pending() > 0; more; {
		k.gone.Reset()
		for more && k.gone.Len() < 1000 {
			more = k.tab.Tidy(3, k.gone.Add)
		}
		k.enter(entry{true, k.now, bytes.Clone(k.gone.Bytes())})
	}
}

func (k *keeper) enter(e entry) {
	k.at = append(k.at, e)
	e.encode(k.s, &k.b, &k.o)
}

func (e *entry) encode(s *Session, b *record.Batch, o *record.Origin) {
	if e.gone {
		if err := s.Gone(b, o, e.at, e.body); err != nil {
			panic(err)
		}
		return
	}
	msg, notes := table.SplitNotes(e.body)
	_ = s.Noted(b, o, e.at, msg, notes)
}

// A told route is what records say of a route. Attributes are the members from
// the next hop to the label, as JSON has them.
type told map[string]any

// of returns the key of the route of a record and what is said of it.
func (r told) of() (key string, value told) {
	p := netip.MustParsePrefix(r["ip_prefix"].(string))
	key = fmt.Sprint(r["peer_ip"], r["bmp_rib_type"], r["bgp_id"], r["afi"], r["safi"], r["rd"], p.Masked(), r["as_path_id"])
	value = told{}
	for _, k := range []string{
		"bgp_nexthop", "as_path", "comms", "ecomms", "lcomms", "origin", "local_pref", "med", "aigp", "psid_li", "otc", "mpls_label",
	} {
		if v, ok := r[k]; ok {
			value[k] = v
		}
	}
	return key, value
}

// A follower builds a table of records.
type follower struct {
	routes map[string]told
	hashes map[uint64]uint64
}

// follow applies the records of b and checks what withdrawals say: the value of
// the route, in RIB mode.
func (f *follower) follow(t *testing.T, b *record.Batch, rib bool) {
	t.Helper()
	for i := range b.Len() {
		h, err := record.ParseHeader(b.Header(i))
		if err != nil {
			t.Fatal(err)
		}
		var r told
		if err := json.Unmarshal(b.Value(i), &r); err != nil {
			t.Fatalf("%v: %s", err, b.Value(i))
		}
		if h.Flags&record.FlagRoute == 0 {
			continue
		}
		key, value := r.of()
		switch kind := r["log_type"]; kind {
		case "update":
			f.routes[key] = value
			f.hashes[h.KeyHash] = h.ValueHash
			continue
		case "withdraw", "delete":
			was, ok := f.routes[key]
			if (kind == "delete") != (r["bmp_msg_type"] == "internal") || kind == "delete" && !rib {
				t.Errorf("%s", b.Value(i))
			}
			if rib && (!ok || !maps.Equal(was, value)) {
				t.Errorf("withdrawn was %v: %s", was, b.Value(i))
			}
			delete(value, "mpls_label")
			if !rib && len(value) != 0 {
				t.Errorf("attributes without a table: %s", b.Value(i))
			}
			if h.ValueHash != withdrawn {
				t.Errorf("value hash %x: %s", h.ValueHash, b.Value(i))
			}
			delete(f.routes, key)
			delete(f.hashes, h.KeyHash)
		}
	}
}

// check compares what was followed with the table.
func (f *follower) check(t *testing.T, tab *table.Table) {
	t.Helper()
	routes, hashes := map[string]told{}, map[uint64]uint64{}
	var w table.Walk
	for tab.Walk(&w, 100, func(r *table.Route) {
		var m told
		if err := json.Unmarshal(append(AppendRoute([]byte{'{'}, r), '}'), &m); err != nil {
			t.Fatal(err)
		}
		m["peer_ip"], m["bgp_id"] = r.RIB.Peer.Address().String(), netip.AddrFrom4(r.RIB.BGPID).String()
		m["bmp_rib_type"] = ribNames[r.RIB.Kind]
		if d := r.RIB.Peer.Distinguisher; d != [8]byte{} && m["rd"] == nil {
			m["rd"] = string(appendRD(nil, d))
		}
		key, value := m.of()
		routes[key] = value
		hashes[r.KeyHash("r1")] = r.Value.Hash()
	}) {
	}
	if !maps.EqualFunc(routes, f.routes, func(a, b told) bool { return maps.Equal(a, b) }) {
		t.Errorf("the table -, the records +: %s", cmp.Diff(routes, f.routes))
	}
	if !maps.Equal(hashes, f.hashes) {
		t.Errorf("hashes differ")
	}
}

var ribNames = [...]string{"Adj-Rib-In Pre-Policy", "Adj-Rib-In Post-Policy", "Adj-Rib-Out Pre-Policy", "Adj-Rib-Out Post-Policy", "Loc-Rib"}

// A talker says random things about few routes of some peers.
type talker struct {
	rng   *rand.Rand
	peers []testPeer
	opens [][]byte
}

func newTalker(seed uint64) *talker {
	add := open(64500, capAS4(64500), capAddPath(1, 1, 3), capAddPath(2, 1, 3))
	four := open(64500, capAS4(64500))
	return &talker{
		rng:   rand.New(rand.NewPCG(seed, 1)),
		peers: []testPeer{peerV4, peerV6, peerRD, locRIB, ribOut, twoOct},
		opens: [][]byte{four, four, add, four, four, open(64503)},
	}
}

func (k *talker) up(i int) []byte { return peerUp(k.peers[i], "", k.opens[i], k.opens[i]) }

func (k *talker) routes(i, family int, withdraw bool) []byte {
	var b []byte
	for range 1 + k.rng.IntN(4) {
		p := []string{"10.0.0.0/8", "10.1.0.0/17", "192.0.2.1/32", "0.0.0.0/0"}[k.rng.IntN(4)]
		if family >= 3 {
			p = []string{"2001:db8::/32", "2001:db8:1::/49", "::/0"}[k.rng.IntN(3)]
		}
		switch family % 3 {
		case 0:
			if i == 2 {
				b = append(b, u32(k.rng.Uint32N(2))...)
			}
			b = append(b, pfx(p)...)
		case 1:
			b = append(b, labelled(p, nil, label(k.rng.Uint32N(3), true))...)
		default:
			b = append(b, labelled(p, rd0(1, k.rng.Uint32N(2)), label(k.rng.Uint32N(3), true))...)
		}
	}
	return b
}

func (k *talker) attrs() []byte {
	b := cat(origin(byte(k.rng.IntN(3))), asPath(seg(2, 64500, k.rng.Uint32N(3))), nextHop("192.0.2.7"))
	if k.rng.IntN(2) == 0 {
		b = append(b, med(k.rng.Uint32N(2))...)
	}
	if k.rng.IntN(3) == 0 {
		b = append(b, attr(0xc0, 8, u32(k.rng.Uint32N(3)), u32(7))...)
	}
	if k.rng.IntN(5) == 0 {
		b = append(b, cat(attr(0xc0, 35, u32(64599)), attr(0x80, 26, []byte{1}, u16(11), u64(9)), attr(0xc0, 32, u32(2), u32(1), u32(1)))...)
	}
	return b
}

// next returns a message.
func (k *talker) next() []byte {
	i := k.rng.IntN(len(k.peers))
	p := k.peers[i]
	if i == 0 && k.rng.IntN(2) == 0 {
		p.flags |= bmp.FlagL // post-policy
	}
	p.sec += k.rng.Uint32N(1000)
	family := k.rng.IntN(6)
	if i == 2 {
		family = family / 3 * 3 // path identifiers with labels cannot be read
	}
	afi, safi := 1+family/3, []byte{1, 4, 128}[family%3]
	switch n := k.rng.IntN(100); {
	case n < 2:
		return peerDown(k.peers[i], []byte{4})
	case n < 6:
		return k.up(i)
	case n < 8:
		return route(p, update(nil, mpUnreach(afi, safi, nil), nil))
	case n < 11:
		return route(p, update(nil, nil, nil))
	case n < 40 && family == 0:
		return route(p, update(k.routes(i, 0, true), k.attrs(), k.routes(i, 0, false)))
	case n < 65:
		return route(p, update(nil, mpUnreach(afi, safi, k.routes(i, family, true)), nil))
	case n < 70: // wrong in the middle
		b := k.routes(i, family, true)
		return route(p, update(nil, mpUnreach(afi, safi, b[:len(b)-1]), nil))
	}
	hop := ip("192.0.2.7")
	switch {
	case safi == 128:
		hop = cat(make([]byte, 8), hop)
	case k.rng.IntN(2) == 0:
		hop = ip("::ffff:192.0.2.7")
	}
	return route(p, update(nil, cat(k.attrs(), mpReach(afi, safi, hop, k.routes(i, family, false)), mpUnreach(afi, safi, k.routes(i, family, true))), nil))
}

// TestFold: whatever a router says, the records followed give its table, and so
// they do from a clone of the session in the middle.
func TestFold(t *testing.T) {
	for seed := range uint64(12) {
		rib, diff := seed%2 == 0, seed%4 >= 2
		k := newKeeper(t, rib, diff)
		f := follower{map[string]told{}, map[uint64]uint64{}}
		talk := newTalker(seed)
		for i := range talk.peers {
			k.message(talk.up(i))
		}
		for n := range 500 {
			if n%97 == 96 { // the router comes again
				k.now++
				k.tab.Open(k.now)
				_, s := newSession(t, Options{Timestamps: UTC, Header: true, RIB: rib})
				k.s, k.at = s, nil
				for i := range talk.peers {
					k.message(talk.up(i))
				}
			}
			if n%250 == 249 {
				k.tab.Settle(k.now)
				k.tidy()
			}
			k.message(talk.next())
			f.follow(t, &k.b, rib)
			k.b.Reset()
			if n%50 == 0 {
				f.check(t, k.tab)
			}
			if t.Failed() {
				t.Fatalf("seed %d, message %d", seed, n)
			}
		}
		k.tab.Clear()
		k.tidy()
		f.follow(t, &k.b, rib)
		f.check(t, k.tab)
		if len(f.routes) != 0 {
			t.Errorf("%d routes are left", len(f.routes))
		}
		k.cloned(t, talk.rng)
	}
}

// cloned encodes the entries of the last session again, from some place on with a
// clone as well.
func (k *keeper) cloned(t *testing.T, rng *rand.Rand) {
	t.Helper()
	_, s := newSession(t, Options{Timestamps: UTC, Header: true, RIB: k.s.enc.rib})
	cut := rng.IntN(len(k.at))
	var before, want, got record.Batch
	for i := range k.at[:cut] {
		k.at[i].encode(s, &before, &k.o)
	}
	clone := s.Clone()
	number := s.enc.seq.Load()
	for i := range k.at[cut:] {
		k.at[cut+i].encode(s, &want, &k.o)
	}
	s.enc.seq.Store(number)
	for i := range k.at[cut:] {
		k.at[cut+i].encode(clone, &got, &k.o)
	}
	if !bytes.Equal(want.Data, got.Data) || !slices.Equal(want.Recs, got.Recs) {
		t.Error("a clone makes other records")
	}
}

// TestFoldReplay is TestFold for the router that other tests have.
func TestFoldReplay(t *testing.T) {
	churn := replay.DefaultChurn
	churn.PeerFlap = 0.01
	for _, rib := range []bool{true, false} {
		stream, err := replay.Synthetic{Seed: 5, Peers: 3, Prefixes: 300, IPv6: 0.3, Routes: 5, Attributes: 40, PostPolicy: true, Churn: churn}.Stream()
		if err != nil {
			t.Fatal(err)
		}
		k := newKeeper(t, rib, true)
		f := follower{map[string]told{}, map[uint64]uint64{}}
		for range 2500 {
			msg, err := stream.Next(nil)
			if err != nil {
				t.Fatal(err)
			}
			k.message(msg)
			f.follow(t, &k.b, rib)
			k.b.Reset()
		}
		f.check(t, k.tab)
		if len(f.routes) == 0 {
			t.Error("no routes")
		}
	}
}

// TestRIB: what a table makes of single messages.
func TestRIB(t *testing.T) {
	o := open(64500, capAS4(64500))
	p := peerV4
	announce := func(as uint32) []byte {
		return route(p, update(nil, cat(origin(0), asPath(seg(2, as)), nextHop("192.0.2.7")), pfx("10.0.0.0/8")))
	}
	withdraw := route(p, update(pfx("10.0.0.0/8"), nil, nil))
	vpn := func(attrs []byte, l uint32) []byte {
		return route(p, update(nil, cat(attrs, mpReach(1, 128, cat(make([]byte, 8), ip("192.0.2.9")), labelled("10.0.0.0/8", rd0(1, 1), label(l, true)))), nil))
	}
	down := peerDown(p, []byte{4})
	for _, test := range []struct {
		name      string
		rib, diff bool
		msgs      [][]byte
		want      []string // log_type, as_path, mpls_label
	}{
		{"withdraw has what it withdraws", true, false, [][]byte{announce(1), announce(2), withdraw}, []string{"update 1", "update 2", "withdraw 2"}},
		{"withdraw has the label of the route", true, false,
			[][]byte{vpn(asPath(seg(2, 1)), 77), route(p, update(nil, mpUnreach(1, 128, labelled("10.0.0.0/8", rd0(1, 1), label(0x80000, false))), nil))},
			[]string{"update 1 77", "withdraw 1 77"}},
		{"unknown is silent", true, false, [][]byte{withdraw, announce(1), withdraw, withdraw}, []string{"update 1", "withdraw 1"}},
		{"the same again", true, false, [][]byte{announce(1), announce(1)}, []string{"update 1", "update 1"}},
		{"the same again is no news", true, true, [][]byte{announce(1), announce(1), announce(2)}, []string{"update 1", "update 2"}},
		{"peer down", true, false, [][]byte{announce(1), vpn(asPath(seg(2, 5)), 9), down, peerUp(p, "", o, o), withdraw}, []string{"update 1", "update 5 9", "peer_down", "delete 1", "delete 5 9", "peer_up"}},
		{"termination", true, false, [][]byte{announce(1), termination()}, []string{"update 1", "term", "delete 1", "log_close"}},
		{"end of session", true, false, [][]byte{announce(1)}, []string{"update 1", "delete 1", "log_close"}},

		{"without", false, false, [][]byte{withdraw, announce(1), announce(1), withdraw}, []string{"withdraw", "update 1", "update 1", "withdraw"}},
		{"without, no news", false, true, [][]byte{withdraw, announce(1), announce(1), withdraw}, []string{"withdraw", "update 1", "withdraw"}},
		{"without, peer down", false, true, [][]byte{announce(1), vpn(nil, 9), down}, []string{"update 1", "update 9", "peer_down", "withdraw", "withdraw 9"}},
		{"without, termination", false, true, [][]byte{termination()}, []string{"term", "log_close"}},
	} {
		k := newKeeper(t, test.rib, test.diff)
		k.message(peerUp(p, "", o, o))
		k.b.Reset()
		for _, msg := range test.msgs {
			k.message(msg)
		}
		end := test.want[len(test.want)-1] == "log_close"
		if end {
			k.tab.Clear()
			k.tidy()
			k.s.Close(&k.b, &k.o, 1)
		}
		var got []string
		for _, v := range values(&k.b) {
			what := field(v, "log_type")
			for _, k := range []string{"bmp_msg_type", "event_type"} {
				if what == "" {
					what = field(v, k)
				}
			}
			for _, k := range []string{"as_path", "mpls_label"} {
				if f := field(v, k); f != "" {
					what += " " + f
				}
			}
			got = append(got, what)
		}
		if d := cmp.Diff(test.want, got); d != "" {
			t.Errorf("%s: %s", test.name, d)
		}
	}
}

// TestNotesMissing: a withdrawal of which nothing is noted is told without
// attributes, rather than not at all.
func TestNotesMissing(t *testing.T) {
	_, s := newSession(t, Options{RIB: true})
	var b record.Batch
	o := open(64500, capAS4(64500))
	s.Observe(peerUp(peerV4, "", o, o))
	for _, notes := range [][]byte{nil, {0xff, 0xff}, {3}, {3 + 1<<2}} {
		if err := s.Noted(&b, nil, 1, route(peerV4, update(pfx("10.0.0.0/8"), nil, nil)), notes); err != nil {
			t.Error(err)
		}
	}
	for _, v := range values(&b) {
		if field(v, "log_type") != "withdraw" || strings.Contains(v, "as_path") {
			t.Error(v)
		}
	}
	if b.Len() != 4 {
		t.Errorf("%d records", b.Len())
	}
	if err := s.Gone(&b, nil, 1, []byte("damaged")); err == nil {
		t.Error("no error")
	}
}

// TestNoValue: what a table without attributes has of a route.
func TestNoValue(t *testing.T) {
	_, s := newSession(t, Options{})
	c := table.Change{Kind: table.Swept}
	c.Route.RIB, c.Family, c.Prefix = &table.RIB{}, bgp.IPv4Labelled, netip.MustParsePrefix("10.0.0.0/8")
	var g table.Gone
	g.Add(&c)
	g.Add(&c)
	var b record.Batch
	if err := s.Gone(&b, nil, 1, g.Bytes()); err != nil || b.Len() != 2 {
		t.Fatal(b.Len(), err)
	}
	for _, v := range values(&b) {
		if field(v, "mpls_label") != "524288" || strings.Contains(v, "as_path") {
			t.Error(v)
		}
	}
	want := `"afi": 1, "safi": 4, "ip_prefix": "10.0.0.0/8", "mpls_label": "0"`
	if got := string(AppendRoute(nil, &c.Route)); got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

// TestGoldenDump compares a dump, and the deletes of the same routes, with a file
// that was looked through by hand.
func TestGoldenDump(t *testing.T) {
	opts := decodeOptions(UTC)
	opts.RIB = true
	var got bytes.Buffer
	if _, err := Decode(&got, bytes.NewReader(everything()), opts); err != nil {
		t.Fatal(err)
	}
	for _, form := range []Timestamps{RFC3339, Epoch} {
		enc, err := NewEncoder(Options{Timestamps: form, Zone: opts.Zone, WriterID: "w", Header: true})
		if err != nil {
			t.Fatal(err)
		}
		enc.seq.Store(7)
		d := enc.Dump(Identity{Addr: opts.Router, Port: opts.Port, Topic: 3, Key: []byte("key")}, 1777901400, 60)
		tab := table.NewTable(table.NewStore(), table.Options{})
		var events [][]byte
		eachMessage(t, everything(), func(msg []byte) {
			if bmp.Type(msg) != bmp.TypePeerDown && bmp.Type(msg) != bmp.TypeTermination {
				_ = tab.Apply(msg, 1, nil)
			}
			events = append(events, msg)
		})
		var b record.Batch
		o := &record.Origin{Instance: 1}
		d.Init(&b, o)
		w := table.Walk{ByPrefix: true}
		for tab.Walk(&w, 3, func(r *table.Route) { d.Route(&b, o, r) }) {
		}
		for _, msg := range events {
			if err := d.Event(&b, o, msg); err != nil {
				t.Error(err)
			}
		}
		d.Close(&b, o)
		for i := range b.Len() {
			h, err := record.ParseHeader(b.Header(i))
			if err != nil || h.Flags != 0 || string(b.Key(i)) != "key" || b.Recs[i].Topic != 3 {
				t.Errorf("%v, header %+v, key %q, topic %d", err, h, b.Key(i), b.Recs[i].Topic)
			}
			got.Write(append(bytes.Clone(b.Value(i)), '\n'))
		}
		if enc.seq.Load() != 8 {
			t.Errorf("a dump takes %d numbers", enc.seq.Load()-7)
		}
	}
	checkJSON(t, got.Bytes())
	name := filepath.Join("testdata", "rib.jsonl")
	if *updateGolden {
		if err := os.WriteFile(name, got.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(strings.Split(string(want), "\n"), strings.Split(got.String(), "\n")); d != "" {
		t.Errorf("%s - and records +: %s", name, d)
	}
}

// steady is a table, with messages that withdraw its routes and announce them
// again, noted, and the body of all of them gone.
type steady struct {
	s      *Session
	tab    *table.Table
	noted  [][2][]byte
	gone   []byte
	routes int
}

func newSteady(t testing.TB) *steady {
	_, s := newSession(t, Options{Timestamps: UTC, Header: true, WriterID: "w", RIB: true})
	st := &steady{s: s, tab: table.NewTable(table.NewStore(), table.Options{})}
	stream, err := replay.Synthetic{Seed: 1, Peers: 4, Prefixes: 500, IPv6: 0.3, Routes: 4, Attributes: 200, Churn: replay.Churn{Flap: 1}}.Stream()
	if err != nil {
		t.Fatal(err)
	}
	var n table.Notes
	n.Values = true
	for range 6000 {
		msg, err := stream.Next(nil)
		if err == io.EOF {
			break
		}
		n.Reset()
		if err := st.tab.Apply(msg, 1, func(c *table.Change) { n.Add(c, false) }); err != nil {
			t.Fatal(err)
		}
		s.Observe(msg)
		if bmp.Type(msg) == bmp.TypeRouteMonitoring {
			st.noted = append(st.noted, [2][]byte{bytes.Clone(msg), n.Append(nil)})
		}
	}
	other := table.NewTable(table.NewStore(), table.Options{})
	var g table.Gone
	for _, p := range st.tab.Peers() {
		_ = other.Apply(p.PeerUps[0], 1, nil)
	}
	w := table.Walk{}
	for st.tab.Walk(&w, 1000, func(r *table.Route) { _ = other.Apply(r.AppendMessage(nil), 1, nil) }) {
	}
	other.Clear()
	for other.Tidy(1000, g.Add) {
	}
	st.gone, st.routes = bytes.Clone(g.Bytes()), g.Routes()
	if st.routes == 0 {
		t.Fatal("no routes")
	}
	return st
}

// TestTableAllocates: nothing is allocated once the memory has grown.
func TestTableAllocates(t *testing.T) {
	st := newSteady(t)
	var b record.Batch
	o := &record.Origin{}
	d := st.s.enc.Dump(Identity{}, 0, 0)
	for name, f := range map[string]func(){
		"Noted": func() {
			for _, m := range st.noted {
				_ = st.s.Noted(&b, o, 1, m[0], m[1])
			}
		},
		"Gone": func() { _ = st.s.Gone(&b, o, 1, st.gone) },
		"Dump": func() {
			w := table.Walk{}
			st.tab.Walk(&w, 1e6, func(r *table.Route) { d.Route(&b, o, r) })
		},
	} {
		f()
		want := 0.0
		if name == "Dump" {
			want = 4 // of the walk, whatever its length
		}
		if n := testing.AllocsPerRun(5, func() { b.Reset(); f() }); n > want {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

// BenchmarkEncodeRIB encodes routes that are withdrawn and announced again, with
// notes: one operation is a record.
func BenchmarkEncodeRIB(b *testing.B) {
	st := newSteady(b)
	var batch record.Batch
	o := &record.Origin{}
	b.ReportAllocs()
	b.ResetTimer()
	for n := 0; n < b.N; {
		for _, m := range st.noted {
			batch.Reset()
			_ = st.s.Noted(&batch, o, 1, m[0], m[1])
			n += batch.Len()
		}
	}
}

// BenchmarkGone encodes routes that are gone: one operation is a record.
func BenchmarkGone(b *testing.B) {
	st := newSteady(b)
	var batch record.Batch
	o := &record.Origin{}
	b.ReportAllocs()
	b.ResetTimer()
	for n := 0; n < b.N; n += st.routes {
		batch.Reset()
		if err := st.s.Gone(&batch, o, 1, st.gone); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkDump encodes the routes of a table: one operation is a record.
func BenchmarkDump(b *testing.B) {
	st := newSteady(b)
	var batch record.Batch
	o := &record.Origin{}
	d := st.s.enc.Dump(Identity{}, 0, 0)
	b.ReportAllocs()
	b.ResetTimer()
	for n := 0; n < b.N; n += st.tab.Routes() {
		batch.Reset()
		w := table.Walk{}
		st.tab.Walk(&w, 1e6, func(r *table.Route) { d.Route(&batch, o, r) })
	}
}

// BenchmarkAppendRoute: one operation is a route.
func BenchmarkAppendRoute(b *testing.B) {
	st := newSteady(b)
	var buf []byte
	b.ReportAllocs()
	b.ResetTimer()
	for n := 0; n < b.N; n += st.tab.Routes() {
		w := table.Walk{}
		st.tab.Walk(&w, 1e6, func(r *table.Route) { buf = AppendRoute(buf[:0], r) })
	}
}

// FuzzGone: whatever the bytes say, records are JSON.
func FuzzGone(f *testing.F) {
	k := newKeeper(f, true, false)
	talk := newTalker(1)
	for i := range talk.peers {
		k.message(talk.up(i))
	}
	for range 60 {
		k.message(talk.next())
	}
	k.tab.Clear()
	for more := true; more; {
		k.gone.Reset()
		more = k.tab.Tidy(1, k.gone.Add)
		f.Add(bytes.Clone(k.gone.Bytes()))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		for _, rib := range []bool{true, false} {
			_, s := newSession(t, Options{Header: true, RIB: rib})
			var b record.Batch
			_ = s.Gone(&b, &record.Origin{}, 1, body)
			var lines []byte
			for i := range b.Len() {
				lines = append(append(lines, b.Value(i)...), '\n')
			}
			checkJSON(t, lines)
		}
	})
}

// TestDifferences: the records that docs/pmacct-differences.md shows are those that
// are made.
func TestDifferences(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("..", "..", "docs", "pmacct-differences.md"))
	if err != nil {
		t.Fatal(err)
	}
	o := open(64500, capAS4(64500))
	opts := decodeOptions(UTC)
	opts.RIB = true
	var got bytes.Buffer
	_, err = Decode(&got, bytes.NewReader(cat(initiation(), peerUp(peerV4, "192.0.2.1", o, o),
		route(peerV4, update(nil, cat(origin(0), asPath(seg(2, 64500)), nextHop("192.0.2.254")), pfx("192.0.2.0/24"))))), opts)
	if err != nil {
		t.Fatal(err)
	}
	shown := 0
	for line := range bytes.Lines(text) {
		if line = bytes.TrimSpace(line); bytes.HasPrefix(line, []byte("{")) {
			shown++
			if !bytes.Contains(got.Bytes(), append(line, '\n')) {
				t.Errorf("no such record: %s\nof\n%s", line, got.Bytes())
			}
		}
	}
	if shown == 0 {
		t.Error("no examples")
	}
}
