package relay

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/bmpha/bmpha/pkg/bgp"
	"github.com/bmpha/bmpha/pkg/bmp"
	"github.com/bmpha/bmpha/pkg/table"
)

// A speaker makes up the messages of a router. The seconds of each message are its
// number, so that whoever hears a route knows how old it is.
type speaker struct {
	rng     *rand.Rand
	addPath bool
	space   int // prefixes
	number  uint32
	port    uint16
	id      [peers]byte // last byte of the BGP identifiers
}

const peers = 4

func (s *speaker) header(peer int, kind bmp.RIB) []byte {
	s.number++
	at := time.Unix(int64(s.number), 0)
	id := netip.AddrFrom4([4]byte{10, 9, byte(peer), s.id[peer]})
	if kind == bmp.LocRIB {
		return bmp.AppendPeerHeader(nil, bmp.PeerLocRIB, bmp.FlagF, 1<<48|uint64(peer), netip.Addr{}, 65000, id, at)
	}
	addr := netip.AddrFrom4([4]byte{10, 0, 0, byte(1 + peer)})
	if peer%2 == 1 {
		addr = netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, 15: byte(1 + peer)})
	}
	flags := [...]byte{0, bmp.FlagL, bmp.FlagO, bmp.FlagO | bmp.FlagL}[kind]
	return bmp.AppendPeerHeader(nil, bmp.PeerGlobal, flags, 0, addr, uint32(65001+peer), id, at)
}

func (s *speaker) peerUp(peer int, kind bmp.RIB) []byte {
	var caps []byte
	if s.addPath {
		caps = bgp.AppendCapAddPath(bgp.AppendCapAddPath(nil, 1, 1, 3), 2, 1, 3)
	}
	local, remote := netip.MustParseAddr("10.0.0.254"), netip.AddrFrom4([4]byte{10, 9, byte(peer), s.id[peer]})
	return bmp.AppendPeerUp(nil, s.header(peer, kind), local, 179, s.port,
		bgp.AppendOpen(nil, 65000, 90, local, bgp.AppendCapAS4(slices.Clip(caps), 65000)),
		bgp.AppendOpen(nil, uint32(65001+peer), 90, remote, bgp.AppendCapAS4(slices.Clip(caps), uint32(65001+peer))), nil)
}

func (s *speaker) endOfRIB(peer int, kind bmp.RIB, f bgp.Family) []byte {
	return bmp.AppendRouteMonitoring(nil, s.header(peer, kind), bgp.AppendEndOfRIB(nil, f.AFI, f.SAFI))
}

// nlri returns up to n different routes of a family, in any order.
func (s *speaker) nlri(f bgp.Family, n int, label uint32) (b []byte) {
	from := s.rng.IntN(s.space)
	stride := 7
	if s.space%stride == 0 {
		stride = 1
	}
	for i := range min(n, s.space) {
		i = (from + i*stride) % s.space
		p := netip.PrefixFrom(netip.AddrFrom4([4]byte{20, byte(i >> 8), byte(i), 0}), 24)
		if f.AFI == bgp.AFIIPv6 {
			p = netip.PrefixFrom(netip.AddrFrom16([16]byte{0x20, 1, byte(i >> 8), byte(i)}), 48)
		}
		switch {
		case f.SAFI == bgp.SAFIVPN:
			b = append(b, bgp.AppendVPN(nil, label, 1<<48|uint64(i%3), p)...)
		case f.SAFI == bgp.SAFILabelled:
			b = append(b, bgp.AppendLabelled(nil, label, p)...)
		case s.addPath:
			b = append(b, bgp.AppendPrefix(bgp.AppendPathID(nil, uint32(i%2)), p)...)
		default:
			b = append(b, bgp.AppendPrefix(nil, p)...)
		}
	}
	return b
}

func (s *speaker) announce(peer int, kind bmp.RIB, f bgp.Family, n int) []byte {
	attrs := bgp.AppendASPath(bgp.AppendOrigin(nil, 0), 65001, uint32(s.rng.IntN(3)))
	hop := netip.MustParseAddr("192.0.2.1")
	routes := s.nlri(f, n, 16+s.rng.Uint32N(2))
	var update []byte
	if f == bgp.IPv4Unicast && s.rng.IntN(2) == 0 {
		update = bgp.AppendUpdate(nil, nil, bgp.AppendNextHop(attrs, hop), routes)
	} else {
		update = bgp.AppendUpdate(nil, nil, bgp.AppendLocalPref(bgp.AppendMPReach(attrs, f.AFI, f.SAFI, hop, routes), 100), nil)
	}
	return bmp.AppendRouteMonitoring(nil, s.header(peer, kind), update)
}

func (s *speaker) withdraw(peer int, kind bmp.RIB, f bgp.Family, n int) []byte {
	routes := s.nlri(f, n, 0x80000)
	update := bgp.AppendUpdate(nil, routes, nil, nil)
	if f != bgp.IPv4Unicast {
		update = bgp.AppendUpdate(nil, nil, bgp.AppendMPUnreach(nil, f.AFI, f.SAFI, routes), nil)
	}
	return bmp.AppendRouteMonitoring(nil, s.header(peer, kind), update)
}

// message returns what the router says next.
func (s *speaker) message() []byte {
	peer, kind := s.rng.IntN(peers), bmp.RIB(s.rng.IntN(5))
	f := bgp.Families[s.rng.IntN(len(bgp.Families))]
	switch op := s.rng.IntN(1000); {
	case op < 600:
		return s.announce(peer, kind, f, 1+s.rng.IntN(40))
	case op < 900:
		return s.withdraw(peer, kind, f, 1+s.rng.IntN(40))
	case op < 940:
		return s.endOfRIB(peer, kind, f)
	case op < 960:
		return s.peerUp(peer, kind)
	case op < 970:
		s.port++ // another BGP session, without a Peer Down
		if s.rng.IntN(3) == 0 {
			s.id[peer]++
		}
		return s.peerUp(peer, kind)
	case op < 975:
		return bmp.AppendPeerDown(nil, s.header(peer, kind), bmp.DownRemote, nil)
	case op < 980:
		return bmp.AppendInitiation(nil, "a router", fmt.Sprint("r", s.number))
	case op < 990:
		return bmp.AppendStats(nil, s.header(peer, kind), bmp.AppendStat{Type: 0, Value: 1})
	case op < 995:
		return bmp.AppendRouteMonitoring(nil, s.header(peer, kind), bgp.AppendEndOfRIB(nil, 25, 70))
	}
	s.number++
	return bmp.AppendHeader(nil, 99)[:0:0] // nothing
}

// A moody station takes connections through net.Pipe, dies and comes back.
type moody struct {
	mu    sync.Mutex
	up    bool
	conns []net.Conn // open ones
	heard []*bytes.Buffer
	pace  time.Duration // it waits for so long before each read
	most  int           // bytes of a read
}

func (m *moody) dial(context.Context, string, string) (net.Conn, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.up {
		return nil, errors.New("refused")
	}
	ours, theirs := net.Pipe()
	b := new(bytes.Buffer)
	m.conns, m.heard = append(m.conns, theirs), append(m.heard, b)
	go func() {
		defer theirs.Close()
		for {
			m.mu.Lock()
			pace, most := m.pace, m.most
			m.mu.Unlock()
			if pace > 0 {
				time.Sleep(pace)
			}
			piece := make([]byte, most)
			n, err := theirs.Read(piece)
			m.mu.Lock()
			b.Write(piece[:n])
			m.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	return ours, nil
}

func (m *moody) set(up bool, pace time.Duration, most int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.up, m.pace, m.most = up, pace, most
	if !up {
		for _, c := range m.conns {
			c.Close()
		}
		m.conns = nil
	}
}

// said returns what each connection said that said anything.
func (m *moody) said() (all [][]byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, b := range m.heard {
		if b.Len() > 0 {
			all = append(all, bytes.Clone(b.Bytes()))
		}
	}
	return all
}

// A place names a route in a connection.
type place struct {
	peer   table.PeerID
	bgpID  [4]byte
	kind   bmp.RIB
	family bgp.Family
	rd     [8]byte
	prefix netip.Prefix
	path   uint32
}

func placeOf(r *table.Route) place {
	return place{r.RIB.Peer, r.RIB.BGPID, r.RIB.Kind, r.Family, r.RD, r.Prefix.Masked(), r.PathID}
}

// fold makes a table of what a connection said, and checks that it is BMP from its
// first byte and that no route is older than, or the same as, the one before it.
func fold(t *testing.T, b []byte) (*table.Table, []byte) {
	t.Helper()
	tab := table.NewTable(table.NewStore(), table.Options{})
	newest := make(map[place]uint32)
	for first := true; len(b) > 0; first = false {
		n, err := bmp.Next(b, 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		if n == 0 {
			break
		}
		msg := b[:n]
		if first && bmp.Type(msg) != bmp.TypeInitiation {
			t.Fatalf("begins with a message of type %d", bmp.Type(msg))
		}
		if err := tab.Apply(msg, 1, func(c *table.Change) {
			if c.Kind != table.Announced && c.Kind != table.Withdrawn {
				return
			}
			at := placeOf(&c.Route)
			if c.Sec <= newest[at] {
				t.Errorf("%v of message %d after message %d", at, c.Sec, newest[at])
			}
			newest[at] = c.Sec
		}); err != nil && err != table.ErrNoPeerUp { // the router says such things
			t.Fatal(err)
		}
		b = b[n:]
	}
	for tab.Tidy(1000, nil) {
	}
	return tab, b
}

// contents lists what a table has: routes, peers, and of RIBs for which that
// counts which dumps are over.
func contents(tab *table.Table, counts func(*table.RIB) bool) (all []string) {
	full := make(map[string]bool)
	var w table.Walk
	for tab.Walk(&w, 1000, func(r *table.Route) {
		if !r.Stale {
			full[fmt.Sprint(r.RIB.Peer, r.RIB.BGPID, r.RIB.Kind, r.Family)] = true
			all = append(all, fmt.Sprintf("%v %x %x %d.%d %x %v %v", placeOf(r), r.Attrs, r.Labels, r.Sec, r.Usec, r.Flags, r.TwoOctet, r.Classic))
		}
	}) {
	}
	for _, p := range tab.Peers() {
		if !p.Up {
			continue
		}
		all = append(all, fmt.Sprintf("up %v %x", p.ID, p.PeerUps[0])) // how it is decoded
		for _, r := range p.RIBs {
			for _, f := range r.Families {
				if at := fmt.Sprint(r.RIB.Peer, r.RIB.BGPID, r.RIB.Kind, f.Family); full[at] && counts(r.RIB) {
					all = append(all, fmt.Sprint("dump over: ", at, " ", f.State >= table.EndOfRIB))
				}
			}
		}
	}
	slices.Sort(all)
	return all
}

// TestReplayModel: a router goes on at random while targets die and come back.
// Whatever each connection was told is BMP that never steps back, and in the end
// each target has the router's table, by a session that was never reset.
func TestReplayModel(t *testing.T) {
	seeds := 8
	if os.Getenv("BMPHA_LONG") != "" {
		seeds = 500
	}
	var total Target
	for seed := range seeds {
		synctest.Test(t, func(t *testing.T) { testReplay(t, uint64(seed), &total) })
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
	t.Logf("%d replays, %d cut, %d lost", total.Replays, total.Cuts, total.Lost)
	if total.Replays == 0 || total.Cuts == 0 || total.Lost == 0 || total.Resets != 0 {
		t.Errorf("%+v", total)
	}
}

func testReplay(t *testing.T, seed uint64, total *Target) {
	rng := rand.New(rand.NewPCG(seed, 7))
	targets := map[string]*moody{"a:1": {most: 1000}, "b:1": {most: 1000, up: true}}
	r := start(t, Options{
		Targets: []string{"a:1", "b:1"}, Buffer: 64 << 10, Parallel: 2, Resync: true, Replay: true,
		Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
			return targets[address].dial(ctx, network, address)
		},
	})
	r.step = 1 + rng.IntN(30)
	if seed%5 == 0 {
		r.o.Wait = time.Second
	}
	var chaos sync.WaitGroup
	for _, m := range targets {
		rng := rand.New(rand.NewPCG(seed, rng.Uint64()))
		chaos.Go(func() {
			for range 8 {
				time.Sleep(time.Duration(rng.IntN(5000)) * time.Millisecond)
				pace := time.Duration(0)
				if rng.IntN(2) == 0 {
					pace = time.Duration(rng.IntN(200)) * time.Millisecond
				}
				m.set(rng.IntN(3) > 0, pace, 1+rng.IntN(4000))
			}
			m.set(false, 0, 0)
			m.set(true, 0, 1000)
		})
	}

	sp := &speaker{rng: rng, addPath: seed%3 == 1, space: 5 + rng.IntN(100)}
	tab := table.NewTable(table.NewStore(), table.Options{Withdrawn: seed%2 == 0})
	if seed%4 == 0 { // what was known before the session is stale in it
		for peer := range peers {
			_ = tab.Apply(sp.peerUp(peer, 0), 1, nil)
			_ = tab.Apply(sp.announce(peer, 0, bgp.IPv4Unicast, sp.space), 1, nil)
			_ = tab.Apply(sp.peerUp(peer, bmp.LocRIB), 1, nil)
			_ = tab.Apply(sp.announce(peer, bmp.LocRIB, bgp.IPv4Unicast, sp.space), 1, nil)
		}
	}
	s := r.Open(1, router4, local4, func() { t.Error("reset") })
	stream := bmp.AppendInitiation(nil, "a router", "r")
	for peer := range peers {
		stream = append(append(stream, sp.peerUp(peer, 0)...), sp.peerUp(peer, bmp.LocRIB)...)
	}
	now := int64(1)
	opened := false
	quiet := seed%7 == 3 // dumps are taken to be over, which no message says
	var buf []byte
	// read does what the collector does with what it has read.
	read := func(n int) {
		s.Join(buf)
		s.Write(stream[:n])
		buf = append(buf, stream[:n]...)
		stream = stream[n:]
		if !opened {
			if opened = rng.IntN(3) == 0; !opened {
				return
			}
			tab.Open(now)
			s.Table(tab)
		}
		for {
			n, err := bmp.Next(buf, 1<<20)
			if err != nil {
				t.Fatal(err)
			}
			if n == 0 {
				break
			}
			now++
			if err := s.Apply(buf[:n], now, nil); err != nil && err != table.ErrNoPeerUp {
				t.Fatal(err)
			}
			buf = buf[n:]
			if rng.IntN(10) == 0 {
				tab.Tidy(1+rng.IntN(50), nil)
			}
			if quiet && rng.IntN(100) == 0 {
				tab.Settle(now)
			}
		}
	}
	done := make(chan struct{})
	go func() { chaos.Wait(); close(done) }()
	ended := false
	for !ended {
		select {
		case <-done:
			ended = true
		default:
		}
		for len(stream) < 3000 {
			stream = append(stream, sp.message()...)
		}
		read(1 + rng.IntN(3000))
		time.Sleep(time.Duration(rng.IntN(50)) * time.Millisecond)
	}
	time.Sleep(4 * time.Minute) // longer than any wait of the pacer
	read(len(stream))           // a whole number of messages: one more for those that join
	stream = append(stream, sp.announce(0, 0, bgp.IPv4Unicast, 1)...)
	read(len(stream))
	time.Sleep(time.Minute)
	synctest.Wait()
	for tab.Tidy(1000, nil) {
	}
	// What a peer had under an identifier before may be over without being said to.
	counts := func(r *table.RIB) bool { return !quiet && r.BGPID[3] == sp.id[r.BGPID[2]] }
	want := contents(tab, counts)
	for i, st := range r.Status() {
		if st.Sessions != 1 || st.Waiting != 0 || st.Buffered != 0 || st.Replaying != 0 || st.State != Up {
			t.Errorf("seed %d: %+v", seed, st)
		}
		total.Replays += st.Replays
		total.Cuts += st.Cuts
		total.Lost += st.Lost
		total.Resets += st.Resets
		var got []string
		for _, b := range targets[st.Address].said() {
			final, rest := fold(t, b)
			got = contents(final, counts)
			if b = rest; len(b) > 0 {
				got = append(got, fmt.Sprint(len(b), " bytes of a message"))
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("seed %d target %d: %d differ from %d", seed, i, len(got), len(want))
			diff(t, got, want)
		}
		if l := s.links[i].Load(); l.framed || l.replay != nil {
			t.Error("not joined")
		}
	}
	s.Close()
	if err := r.Close(t.Context()); err != nil {
		t.Error(err)
	}
	for _, m := range targets {
		m.set(false, 0, 1)
	}
}

func diff(t *testing.T, got, want []string) {
	shown := 0
	for _, g := range got {
		if _, ok := slices.BinarySearch(want, g); !ok && shown < 5 {
			shown++
			t.Logf("got  %.300s", g)
		}
	}
	for _, w := range want {
		if _, ok := slices.BinarySearch(got, w); !ok && shown < 10 {
			shown++
			t.Logf("want %.300s", w)
		}
	}
}

// A session without a table is reset, one that has not said whether it has one is
// waited for, and one whose table is given up in the middle of a replay is lost.
func TestReplayNeedsTable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &moody{most: 10, pace: time.Second}
		r := start(t, Options{Targets: []string{"a:1"}, Resync: true, Replay: true, Dial: m.dial})
		var resets atomic.Int32
		s := r.Open(1, router4, local4, func() { resets.Add(1) })
		synctest.Wait()
		m.set(true, time.Second, 10)
		time.Sleep(tableWithin / 2)
		if st := r.Status()[0]; resets.Load() != 0 || st.Replays != 0 || st.Waiting != 1 {
			t.Errorf("%d resets, %+v", resets.Load(), st)
		}
		tab := table.NewTable(table.NewStore(), table.Options{})
		sp := &speaker{rng: rand.New(rand.NewPCG(1, 1)), space: 100}
		s.Table(tab)
		for _, msg := range [][]byte{bmp.AppendInitiation(nil, "a router", "r"), sp.peerUp(0, 0), sp.announce(0, 0, bgp.IPv4Unicast, 50)} {
			if err := s.Apply(msg, 1, nil); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(5 * time.Second)
		if st := r.Status()[0]; resets.Load() != 0 || st.Replays != 1 {
			t.Errorf("%d resets, %+v", resets.Load(), st)
		}
		s.Table(nil)
		time.Sleep(10 * time.Second)
		if st := r.Status()[0]; resets.Load() != 1 || st.Resets != 1 || st.Replays != 1 || st.Lost != 2 {
			t.Errorf("%d resets, %+v", resets.Load(), st)
		}
		s.Close()
		_ = r.Close(t.Context())
		m.set(false, 0, 1)
		time.Sleep(2 * time.Second) // the station's last turn
	})
}

// A target that a session was cut for may have much of it left to read. It is not
// replayed before that is done: of two connections of a router a target reads now
// one, now the other, and would take what is old for news.
func TestReplayWaitsForWhatWasCut(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	r := start(t, Options{Targets: []string{ln.Addr().String()}, Buffer: 1 << 20, Resync: true, Replay: true})
	s := r.Open(1, router4, local4, func() { t.Error("reset") })
	defer s.Close()
	first, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	_, dump, _ := fullTable(100, 0)
	tab := table.NewTable(table.NewStore(), table.Options{})
	s.Table(tab)
	for _, m := range dump {
		if err := s.Apply(m, 1, nil); err != nil {
			t.Fatal(err)
		}
	}
	b := random(64<<10, 1)
	until(t, "the cut", func() bool { s.Write(b); return r.Status()[0].Cuts == 1 })
	second, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	until(t, "the replay", func() bool { return r.Status()[0].Replays == 1 })
	_ = second.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
	if n, err := second.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("replayed while the target has not read what was cut: %d bytes, %v", n, err)
	}
	if _, err := io.Copy(io.Discard, first); err != nil {
		t.Errorf("what was cut does not end in order: %v", err)
	}
	_ = first.Close()
	_ = second.SetReadDeadline(time.Time{})
	msg := make([]byte, len(dump[0]))
	if _, err := io.ReadFull(second, msg); err != nil || !bytes.Equal(msg, dump[0]) {
		t.Errorf("the replay begins with %x, %v", msg, err)
	}
	if st := r.Status()[0]; st.Replays != 1 || st.Cuts != 1 {
		t.Errorf("%+v", st)
	}
}
