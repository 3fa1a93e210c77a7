package main

import (
	"bytes"
	"context"
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
	"time"

	"github.com/bmpha/bmpha/pkg/bgp"
	"github.com/bmpha/bmpha/pkg/bmp"
	"github.com/bmpha/bmpha/pkg/control"
	"github.com/bmpha/bmpha/pkg/replay"
	"github.com/bmpha/bmpha/pkg/rig"
)

// A witness is a pmbmpd that writes down what it hears. A life of it ends when it
// is killed, and the next one knows nothing.
type witness struct {
	*rig.Pmbmpd
	l    *lab
	file string
	read int64 // bytes of the file that are in heard
	heard
}

// heard is what the present life of a witness has heard.
type heard struct {
	// words are, for each route, what was said of it: announcements with all that
	// was written of them but the time of arrival, and withdrawals of what was
	// announced.
	words map[string][]string
	// last are the announcements that count now.
	last  map[string]pmacctRoute
	table replay.Consumer
}

// A pmacctRoute is what a line says of a route, and of other things.
type pmacctRoute struct {
	Event   string `json:"event_type"`
	Type    string `json:"bmp_msg_type"`
	Log     string `json:"log_type"`
	Router  string `json:"bmp_router"`
	Peer    string `json:"peer_ip"`
	RD      string `json:"rd"`
	Origin  string `json:"rd_origin"`
	In      int    `json:"is_in"`
	Out     int    `json:"is_out"`
	Post    int    `json:"is_post"`
	Loc     int    `json:"is_loc"`
	AFI     int    `json:"afi"`
	SAFI    int    `json:"safi"`
	Prefix  string `json:"ip_prefix"`
	PathID  int    `json:"as_path_id"`
	NextHop string `json:"bgp_nexthop"`
	ASPath  string `json:"as_path"`
}

// withdrawn is the word for the end of a route.
const withdrawn = "withdrawn"

// witness starts a pmbmpd. With dump it keeps a table and dumps it.
func (l *lab) witness(name string, dump bool, config ...string) *witness {
	l.t.Helper()
	w := &witness{l: l, file: filepath.Join(l.t.TempDir(), name)}
	var err error
	w.Pmbmpd, err = rig.StartPmbmpd(l.within(30*time.Second), rig.PmbmpdOptions{Dump: dump, Config: append([]string{
		"bmp_daemon_parse_proxy_header: true", "bmp_daemon_msglog_file: " + w.file, "bmp_daemon_msglog_output: json",
	}, config...)})
	l.must(err)
	l.t.Cleanup(func() { l.must(w.Close()) })
	return w
}

// rise starts a witness that was killed.
func (w *witness) rise() {
	w.l.t.Helper()
	info, err := os.Stat(w.file)
	w.l.must(err)
	w.heard, w.read = heard{}, info.Size()
	w.l.must(w.Restart(w.l.t.Context()))
}

// listen takes what was written since the last call.
func (w *witness) listen() {
	w.l.t.Helper()
	f, err := os.Open(w.file)
	if os.IsNotExist(err) {
		return
	}
	w.l.must(err)
	defer f.Close()
	text, err := io.ReadAll(io.NewSectionReader(f, w.read, 1<<40))
	w.l.must(err)
	text = text[:bytes.LastIndexByte(text, '\n')+1]
	w.read += int64(len(text))
	for line := range bytes.Lines(text) {
		w.l.must(w.line(line))
	}
}

func (h *heard) line(line []byte) error {
	if h.words == nil {
		h.words, h.last = map[string][]string{}, map[string]pmacctRoute{}
	}
	if err := h.table.Record(line); err != nil {
		return err
	}
	var r pmacctRoute
	if err := json.Unmarshal(line, &r); err != nil {
		return err
	}
	gone := func(key string) {
		if _, ok := h.last[key]; ok {
			delete(h.last, key)
			h.words[key] = append(h.words[key], withdrawn)
		}
	}
	key := fmt.Sprint(r.Router, " ", r.Peer, " in ", r.In, " out ", r.Out, " post ", r.Post, " loc ", r.Loc, " ", r.AFI, "/", r.SAFI, " ", r.RD, " ", r.Prefix, " path ", r.PathID)
	switch {
	case r.Event == "log_init": // another session in the same life
		for k, old := range h.last {
			if old.Router == r.Router {
				gone(k)
			}
		}
	case r.Event != "log":
	case r.Type == "peer_down": // an address is one peer here
		for k, old := range h.last {
			if old.Router == r.Router && old.Peer == r.Peer {
				gone(k)
			}
		}
	case r.Log == "withdraw" || r.Log == "delete":
		gone(key)
	case r.Log == "update":
		var all map[string]any
		if err := json.Unmarshal(line, &all); err != nil {
			return err
		}
		delete(all, "seq")
		delete(all, "timestamp_arrival")
		text, err := json.Marshal(all)
		if err != nil {
			return err
		}
		h.words[key] = append(h.words[key], string(text))
		h.last[key] = r
	}
	return nil
}

// postPolicy is what a real router is asked for, too.
func (h *heard) postPolicy() rig.Table {
	t := rig.Table{}
	for _, r := range h.last {
		if r.In == 1 && r.Post == 1 {
			t[rig.Route{Peer: netip.MustParseAddr(r.Peer), Prefix: netip.MustParsePrefix(r.Prefix), NextHop: netip.MustParseAddr(r.NextHop), ASPath: r.ASPath}] = true
		}
	}
	return t
}

// equal reports how the tables of two witnesses differ.
func (w *witness) equal(other *witness) error {
	w.listen()
	other.listen()
	if len(w.last) == 0 {
		return fmt.Errorf("nothing was heard")
	}
	for key := range other.last {
		if _, ok := w.last[key]; !ok {
			return fmt.Errorf("%d routes of %d, without %s", len(w.last), len(other.last), key)
		}
	}
	for key := range w.last {
		mine, theirs := w.words[key], other.words[key]
		if _, ok := other.last[key]; !ok {
			return fmt.Errorf("%d routes of %d, with %s", len(w.last), len(other.last), key)
		}
		if a, b := mine[len(mine)-1], theirs[len(theirs)-1]; a != b {
			return fmt.Errorf("the last words differ:\n%s\n%s", a, b)
		}
	}
	return nil
}

// tail checks that what w was told of each route is what other, who has heard
// everything, was told in the end: nothing was left out from its first word on,
// nothing said twice, nothing turned around.
func (w *witness) tail(other *witness) {
	w.l.t.Helper()
	for key, mine := range w.words {
		theirs := other.words[key]
		if len(mine) > len(theirs) || !slices.Equal(mine, theirs[len(theirs)-len(mine):]) {
			w.l.t.Errorf("%s: was told\n  %s\nand not the end of\n  %s", key, strings.Join(mine, "\n  "), strings.Join(theirs[max(0, len(theirs)-len(mine)-3):], "\n  "))
			return
		}
	}
}

// relaying starts a collector that passes sessions on to witnesses, or what stands
// in front of them, and makes records itself.
func (l *lab) relaying(targets []string, env ...string) *member {
	l.t.Helper()
	m := l.start("a", append([]string{"BMPHA_RELAY_TO=" + strings.Join(targets, ","), "BMPHA_OUTPUT_DECODE=always"}, env...)...)
	m.role(control.RoleActive)
	return m
}

// sessions returns number and port of the sessions of all routers, as `bmpha
// status --json` shows them.
func (m *member) sessions() map[string][2]int {
	m.l.t.Helper()
	all := map[string][2]int{}
	for _, r := range m.l.parseStatus(m.l.command("status", "--json", "--socket", m.socket)).Routers {
		if r.Session == nil {
			m.l.t.Fatalf("no session of %s", r.Address)
		}
		all[r.Address] = [2]int{int(r.Session.ID), r.Session.Port}
	}
	return all
}

// undisturbed checks that a target has lost its sessions and that no router has
// noticed.
func (m *member) undisturbed(before map[string][2]int, replays uint64) {
	m.l.t.Helper()
	if after := m.sessions(); !maps.Equal(before, after) {
		m.l.t.Errorf("sessions of routers were %v and are %v", before, after)
	}
	for i, r := range m.status().Relay {
		if r.Resets != 0 {
			m.l.t.Errorf("%d sessions reset", r.Resets)
		}
		if i == 0 && r.Replays < replays {
			m.l.t.Errorf("%d replays, want %d: %+v", r.Replays, replays, r)
		}
		if i > 0 && r.Replays+r.Lost+r.Cut > 0 {
			m.l.t.Errorf("the other target was disturbed: %+v", r)
		}
		m.l.t.Logf("%+v", r)
	}
}

// all reports whether a target has n sessions with nothing to be replayed.
func all(r control.RelayTarget, n int) error {
	if r.State != control.RelayUp || r.Sessions != n || r.Waiting != 0 || r.Replaying != 0 {
		return fmt.Errorf("%+v", r)
	}
	return nil
}

// TestReplayFRR and TestReplayGoBGP: a pmbmpd is killed again and again while a real
// router's neighbour announces and withdraws. The router does not notice, and in
// the end the pmbmpd has heard what one has that was never killed, and what the
// router says.
func TestReplayFRR(t *testing.T) {
	rig.Require(t, rig.FRRPart, rig.PmbmpdPart)
	replayed(t, startFRR)
}

func TestReplayGoBGP(t *testing.T) {
	rig.Require(t, rig.GoBGPPart, rig.PmbmpdPart)
	replayed(t, startGoBGP)
}

func replayed(t *testing.T, start func(context.Context, rig.RouterOptions) (rig.Router, error)) {
	t.Parallel()
	l := newLab(t).consume(1)
	dies, stays := l.witness("dies", false), l.witness("stays", false)
	m := l.relaying([]string{dies.Addr(), stays.Addr()})
	router, talk := l.talkative(start, m)
	talk.everything()
	talk.until("both hear the router", func() error {
		dies.listen()
		stays.listen()
		if n := min(len(dies.last), len(stays.last)); n < 500 {
			return fmt.Errorf("%d routes", n)
		}
		return nil
	})
	sessions := m.sessions()

	const kills = 4
	target := func(what string, cond func(control.RelayTarget) error) {
		t.Helper()
		talk.until(what, func() error { return cond(m.status().Relay[0]) })
	}
	for i := range kills {
		before := m.status().Relay[0]
		l.must(dies.Kill())
		target("the loss", func(r control.RelayTarget) error {
			if r.Lost == before.Lost {
				return fmt.Errorf("%+v", r)
			}
			return nil
		})
		dies.rise()
		target("a replay", func(r control.RelayTarget) error {
			if r.Replays == before.Replays {
				return fmt.Errorf("%+v", r)
			}
			if i == 1 {
				return nil // is killed as soon as it begins
			}
			return all(r, 1)
		})
	}
	talk.announce(talk.prefixes[10:300]...)
	l.must(talk.s.Withdraw(talk.prefixes[300:350]...))
	l.untilWithin(time.Minute, "one that was killed hears what one does that was not", func() error {
		want, err := router.Table(l.within(10 * time.Second))
		if err != nil {
			return err
		}
		if err := dies.equal(stays); err != nil {
			return err
		}
		if only, missing := want.Diff(dies.postPolicy()); len(only)+len(missing) > 0 || len(want) == 0 {
			return fmt.Errorf("of %d routes it lacks %d %.2v and has %d more %.2v", len(want), len(only), only, len(missing), missing)
		}
		return nil
	})
	dies.tail(stays)
	m.undisturbed(sessions, kills)
	l.until("Kafka says the same", func() error {
		got, err := l.postPolicy()
		if err != nil {
			return err
		}
		if only, missing := stays.postPolicy().Diff(got); len(only)+len(missing) > 0 {
			return fmt.Errorf("Kafka lacks %d %.2v and has %d more %.2v", len(only), only, len(missing), missing)
		}
		return nil
	})
}

// TestLongReplay: the same with several routers, of which one has all that a table
// keeps, and with pmacct's own table, which it dumps. It is killed at any time, also
// in the middle of a replay.
func TestLongReplay(t *testing.T) {
	long(t)
	rig.Require(t, rig.PmbmpdPart)
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv("BMPHA_SEED"); s != "" {
		_, err := fmt.Sscan(s, &seed)
		if err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("BMPHA_SEED=%d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	l := newLab(t, with("BMPHA_HOLD_MEMORY=1GiB")).consume(1)
	dies, stays := l.witness("dies", true), l.witness("stays", true)
	m := l.relaying([]string{dies.Addr(), stays.Addr()})
	routers := map[string]*replay.Router{}
	add := func(stream replay.Stream, rate float64) {
		source := netip.AddrFrom4([4]byte{127, 3, 2, byte(len(routers) + 1)})
		routers[source.String()] = l.router(replay.Config{Stream: stream, Source: source, Rate: rate}, m)
	}
	for i := range 3 {
		churn := replay.DefaultChurn
		churn.PeerFlap *= 5
		add(l.stream(replay.Synthetic{
			Seed: seed + uint64(i), Name: fmt.Sprint("r", i), Prefixes: 2000, IPv6: 0.3, Routes: 1 + 2*i, PostPolicy: true, Churn: churn,
		}), 1000)
	}
	add(newVariety(seed), 1000)
	const kills = 6
	target := func(what string, cond func(control.RelayTarget) error) {
		t.Helper()
		l.untilWithin(2*time.Minute, what, func() error { return cond(m.status().Relay[0]) })
	}
	said := func(n uint64) {
		t.Helper()
		from := routers["127.3.2.1"].Counters().Messages
		l.until("more messages", func() error {
			if now := routers["127.3.2.1"].Counters().Messages; now-from < n {
				return fmt.Errorf("%d", now-from)
			}
			return nil
		})
	}
	said(20_000)
	target("all sessions", func(r control.RelayTarget) error { return all(r, len(routers)) })
	sessions := m.sessions()
	inside := 0
	for i := range kills {
		before := m.status().Relay[0]
		if before.Replaying > 0 {
			inside++
		}
		l.must(dies.Kill())
		said(rng.Uint64N(3000))
		dies.rise()
		target("a replay", func(r control.RelayTarget) error {
			if r.Replays == before.Replays || r.Replaying == 0 && i%2 == 1 {
				return fmt.Errorf("%+v", r)
			}
			return nil
		})
		if i%2 == 1 {
			said(rng.Uint64N(150)) // and is killed
			continue
		}
		target("the end of all replays", func(r control.RelayTarget) error { return all(r, len(routers)) })
		said(rng.Uint64N(3000))
	}
	t.Logf("killed %d times, %d of them in the middle of a replay", kills, inside)
	said(3000)
	for _, r := range routers {
		r.Pause(true)
	}
	l.untilWithin(3*time.Minute, "one that was killed hears what one does that was not", func() error { return dies.equal(stays) })
	dies.tail(stays)
	want := map[replay.Key]string{}
	for _, r := range routers {
		maps.Copy(want, r.Table())
	}
	if d := replay.Compare(want, dies.table.Routes()); !d.Empty() {
		t.Errorf("what the routers say and what one that was killed has heard: %s", d)
	}
	m.undisturbed(sessions, kills/2)

	mine, slot, err := dies.Dump(l.within(2*time.Minute), time.Now(), len(routers))
	l.must(err)
	theirs, other, err := stays.Dump(l.within(2*time.Minute), slot.Add(-time.Second), len(routers))
	l.must(err)
	if slot != other {
		t.Errorf("dumps of %s and %s", slot, other)
	}
	a, b := routesDumped(t, mine), routesDumped(t, theirs)
	t.Logf("%d routes in the dump of one that was killed, %d in that of the other, %d at the routers", len(a), len(b), len(want))
	if len(a) != len(want) || !slices.Equal(a, b) {
		for _, line := range a {
			if _, ok := slices.BinarySearch(b, line); !ok {
				t.Errorf("only one that was killed dumps %s", line)
				break
			}
		}
		for _, line := range b {
			if _, ok := slices.BinarySearch(a, line); !ok {
				t.Errorf("one that was killed does not dump %s", line)
				break
			}
		}
		t.Error("the dumps are not equal")
	}
	l.untilWithin(time.Minute, "the table in Kafka", func() error {
		if d := replay.Compare(want, l.tally.routes()); !d.Empty() {
			return fmt.Errorf("%s", d)
		}
		return nil
	})
}

// routesDumped returns the routes of a table dump, in order.
func routesDumped(t *testing.T, dump []byte) (routes []string) {
	t.Helper()
	for line := range bytes.Lines(dump) {
		var all map[string]any
		if err := json.Unmarshal(line, &all); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		if all["ip_prefix"] == nil {
			continue
		}
		delete(all, "seq")
		text, err := json.Marshal(all)
		if err != nil {
			t.Fatal(err)
		}
		routes = append(routes, string(text))
	}
	slices.Sort(routes)
	return routes
}

// A variety is the stream of a router with what a replay.Synthetic lacks: several
// paths of a prefix, labels, VPNs, an Adj-RIB-Out and a Loc-RIB, and peers that go
// and come. pmacct 1.7.7 knows a peer by its address alone, so no two share one.
type variety struct {
	rng  *rand.Rand
	n    int // messages
	down [3]bool
	todo [][]byte
}

func newVariety(seed uint64) *variety {
	return &variety{rng: rand.New(rand.NewPCG(seed, 2)), todo: [][]byte{bmp.AppendInitiation(nil, "variety", "variety")}, down: [3]bool{true, true, true}}
}

const (
	pathsPeer  = iota // unicast with path identifiers
	labelsPeer        // labelled unicast and VPNs
	localRIB
)

func (v *variety) header(peer int, flags uint8) []byte {
	v.n++
	at := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC).Add(time.Duration(v.n) * 100 * time.Microsecond)
	addr := netip.AddrFrom4([4]byte{10, 254, 0, byte(peer + 1)})
	if peer == localRIB {
		return bmp.AppendPeerHeader(nil, bmp.PeerLocRIB, 0, 0, netip.Addr{}, 65000, addr, at)
	}
	return bmp.AppendPeerHeader(nil, bmp.PeerGlobal, flags, 0, addr, uint32(65001+peer), addr, at)
}

func (v *variety) Next(dst []byte) ([]byte, error) {
	for {
		if len(v.todo) > 0 {
			dst = append(dst, v.todo[0]...)
			v.todo = v.todo[1:]
			return dst, nil
		}
		v.more()
	}
}

func (v *variety) more() {
	say := func(msg []byte) { v.todo = append(v.todo, msg) }
	peer := v.rng.IntN(3)
	if v.down[peer] {
		v.down[peer] = false
		local := netip.MustParseAddr("192.0.2.254")
		open := func(as uint32) []byte {
			caps := bgp.AppendCapAS4(nil, as)
			if peer == pathsPeer {
				caps = bgp.AppendCapAddPath(bgp.AppendCapAddPath(caps, 1, 1, 3), 2, 1, 3)
			}
			return bgp.AppendOpen(nil, as, 90, local, caps)
		}
		say(bmp.AppendPeerUp(nil, v.header(peer, 0), local, 179, uint16(40000+v.n%1000), open(65000), open(uint32(65001+peer)), nil))
		return
	}
	if peer != localRIB && v.rng.IntN(5000) == 0 {
		v.down[peer] = true
		say(bmp.AppendPeerDown(nil, v.header(peer, 0), bmp.DownRemote, nil))
		return
	}
	f := bgp.IPv4Unicast
	if v.rng.IntN(2) == 0 {
		f.AFI = bgp.AFIIPv6
	}
	if peer == labelsPeer {
		f.SAFI = [...]uint8{bgp.SAFILabelled, bgp.SAFIVPN}[v.rng.IntN(2)]
	}
	var flags uint8
	if peer != localRIB {
		flags = [...]uint8{0, bmp.FlagL, bmp.FlagO}[v.rng.IntN(3)]
	}
	const space = 500
	// pmacct keeps the old label of a route of which nothing else changes, so that
	// its table depends on what it heard before. Here labels go with AS paths.
	last := v.rng.Uint32N(20)
	var routes []byte
	first := v.rng.IntN(space)
	for i := range 1 + v.rng.IntN(10) {
		i = (first + i) % space
		p := netip.PrefixFrom(netip.AddrFrom4([4]byte{20, byte(i >> 8), byte(i), 0}), 24)
		if f.AFI == bgp.AFIIPv6 {
			p = netip.PrefixFrom(netip.AddrFrom16([16]byte{0x20, 1, byte(i >> 8), byte(i)}), 48)
		}
		switch {
		case f.SAFI == bgp.SAFIVPN:
			routes = bgp.AppendVPN(routes, 16+last, 65000<<32|uint64(i%3), p)
		case f.SAFI == bgp.SAFILabelled:
			routes = bgp.AppendLabelled(routes, 16+last, p)
		case peer == pathsPeer:
			routes = bgp.AppendPrefix(bgp.AppendPathID(routes, 1+v.rng.Uint32N(3)), p)
		default:
			routes = bgp.AppendPrefix(routes, p)
		}
	}
	var update []byte
	switch {
	case v.rng.IntN(10) < 7:
		attrs := bgp.AppendASPath(bgp.AppendOrigin(nil, 0), uint32(65001+peer), 64500+last)
		hop := netip.MustParseAddr("192.0.2.1")
		if f.AFI == bgp.AFIIPv6 {
			hop = netip.MustParseAddr("2001:db8::1")
		}
		if f == bgp.IPv4Unicast {
			update = bgp.AppendUpdate(nil, nil, bgp.AppendMED(bgp.AppendNextHop(attrs, hop), v.rng.Uint32N(100)), routes)
		} else {
			update = bgp.AppendUpdate(nil, nil, bgp.AppendMPReach(attrs, f.AFI, f.SAFI, hop, routes), nil)
		}
	case f == bgp.IPv4Unicast:
		update = bgp.AppendUpdate(nil, routes, nil, nil)
	default:
		update = bgp.AppendUpdate(nil, nil, bgp.AppendMPUnreach(nil, f.AFI, f.SAFI, routes), nil)
	}
	say(bmp.AppendRouteMonitoring(nil, v.header(peer, flags), update))
}

// TestReplayRefused: a pmbmpd has no room for a third router, before and after it is
// killed. That disturbs nobody, and when there is room the router is replayed.
func TestReplayRefused(t *testing.T) {
	rig.Require(t, rig.PmbmpdPart)
	t.Parallel()
	l := newLab(t).consume(1)
	w := l.witness("full", false, "bmp_daemon_max_peers: 2")
	m := l.relaying([]string{w.Addr()})
	routers := map[string]*replay.Router{}
	for i := range 3 {
		source := netip.AddrFrom4([4]byte{127, 3, 3, byte(i + 1)})
		routers[source.String()] = l.router(replay.Config{
			Stream: l.stream(replay.Synthetic{Seed: uint64(i), Name: fmt.Sprint("r", i), Prefixes: 100, Churn: replay.DefaultChurn}), Source: source, Rate: 200,
		}, m)
	}
	// hears returns the routers that it hears in its present life.
	hears := func() []string {
		w.listen()
		has := map[string]bool{}
		for _, r := range w.last {
			has[r.Router] = true
		}
		return slices.Sorted(maps.Keys(has))
	}
	full := func() error {
		r := m.status().Relay[0]
		if n := len(hears()); n != 2 || r.Sessions != 2 || r.Waiting != 1 || r.Replaying != 0 {
			return fmt.Errorf("%d routers are heard, %+v", n, r)
		}
		return nil
	}
	l.until("two of three routers", full)
	l.more(2000)
	sessions := m.sessions()
	l.must(w.Kill())
	l.until("the loss", func() error {
		if r := m.status().Relay[0]; r.Waiting != 3 {
			return fmt.Errorf("%+v", r)
		}
		return nil
	})
	w.rise()
	l.untilWithin(time.Minute, "two of three routers again", full)
	l.more(2000)
	m.undisturbed(sessions, 2)
	l.until("two of three routers as before", full) // the third may just be trying

	// One of the two leaves.
	leaves := hears()[0]
	l.stop(routers[leaves])
	delete(routers, leaves)
	l.untilWithin(2*time.Minute, "the others", func() error {
		if r := m.status().Relay[0]; r.Sessions != 2 || r.Waiting != 0 || r.Replaying != 0 {
			return fmt.Errorf("%+v", r)
		}
		return nil
	})
	want := map[replay.Key]string{}
	for _, r := range routers {
		r.Pause(true)
	}
	for _, r := range routers {
		maps.Copy(want, r.Table())
	}
	l.until("their tables", func() error {
		w.listen()
		got := w.table.Routes()
		maps.DeleteFunc(got, func(k replay.Key, _ string) bool { return k.Router == leaves })
		if d := replay.Compare(want, got); !d.Empty() {
			return fmt.Errorf("%s", d)
		}
		return nil
	})
	if r := m.status().Relay[0]; r.Resets != 0 {
		t.Errorf("%+v", r)
	}
}

// TestReplaySlow: a pmbmpd is killed twice in a row and then comes back and does not
// read, for longer than its buffer lasts. Neither the router nor another pmbmpd
// waits for it, its memory is bounded, and in the end it has everything.
func TestReplaySlow(t *testing.T) {
	rig.Require(t, rig.PmbmpdPart)
	t.Parallel()
	const buffer = 1 << 20
	l := newLab(t).consume(1)
	dies, stays := l.witness("dies", false, "bmp_daemon_pipe_size: 131072"), l.witness("stays", false)
	m := l.relaying([]string{dies.Addr(), stays.Addr()}, fmt.Sprintf("BMPHA_RELAY_BUFFER=%d", buffer))
	r := l.router(replay.Config{
		Stream: l.stream(replay.Synthetic{Prefixes: 2000, Churn: replay.DefaultChurn}), Source: netip.MustParseAddr("127.3.4.1"), Rate: 2000,
	}, m)
	most := uint64(0)
	target := func(what string, cond func(control.RelayTarget) error) {
		t.Helper()
		l.untilWithin(2*time.Minute, what, func() error {
			now := m.status().Relay[0]
			most = max(most, now.Buffered)
			return cond(now)
		})
	}
	target("the session", func(r control.RelayTarget) error { return all(r, 1) })
	l.more(10_000)
	sessions := m.sessions()
	lost := func() {
		t.Helper()
		before := m.status().Relay[0]
		l.must(dies.Kill())
		target("the loss", func(r control.RelayTarget) error {
			if r.Lost == before.Lost {
				return fmt.Errorf("%+v", r)
			}
			return nil
		})
		dies.rise()
	}
	lost()
	target("a replay", func(r control.RelayTarget) error {
		if r.Replays == 0 {
			return fmt.Errorf("%+v", r)
		}
		return nil
	})
	lost()
	target("a replay after the second time", func(r control.RelayTarget) error {
		if r.Replays < 2 {
			return fmt.Errorf("%+v", r)
		}
		return nil
	})
	l.must(dies.Pause())
	target("a replay that does not get on, until the buffer is full", func(r control.RelayTarget) error {
		if r.Replays < 2 || r.Cut == 0 {
			return fmt.Errorf("%+v", r)
		}
		return nil
	})
	l.more(5000)
	l.must(dies.Resume())
	target("a replay to its end", func(r control.RelayTarget) error { return all(r, 1) })
	r.Pause(true)
	target("one that was killed hears what one does that was not", func(control.RelayTarget) error { return dies.equal(stays) })
	if d := replay.Compare(r.Table(), dies.table.Routes()); !d.Empty() {
		t.Errorf("what the router says and what one that was killed has heard: %s", d)
	}
	m.undisturbed(sessions, 3)
	if limit := uint64(buffer + 128<<10); most > limit {
		t.Errorf("%d bytes waited for it, want at most %d", most, limit)
	}
	t.Logf("%d bytes waited for it at most", most)
}
