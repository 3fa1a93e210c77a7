package collector

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pires/go-proxyproto"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/bmpha/bmpha/pkg/bmp"
	"github.com/bmpha/bmpha/pkg/control"
	"github.com/bmpha/bmpha/pkg/election"
	"github.com/bmpha/bmpha/pkg/intake"
	"github.com/bmpha/bmpha/pkg/record"
	"github.com/bmpha/bmpha/pkg/relay"
	"github.com/bmpha/bmpha/pkg/replay"
	"github.com/bmpha/bmpha/pkg/rig"
	"github.com/bmpha/bmpha/pkg/spool"
	"github.com/bmpha/bmpha/pkg/tail"
)

// dial connects to a collector and ends with the test.
func dial(t *testing.T, m *member) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", m.addr())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// identities returns the routers that the collector has a session with.
func (m *member) identities() (list []string) {
	for _, r := range m.Status().Routers {
		if r.Session != nil {
			list = append(list, fmt.Sprintf("%s:%d", r.Identity, r.Session.Port))
		}
	}
	return list
}

// TestProxyHeader: behind a load balancer a router is known by what the header
// says, and nobody connects without one.
func TestProxyHeader(t *testing.T) {
	l := newLab(t)
	m := l.start("a", func(o *Options) {
		o.Proxy = true
		o.Allow = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("2001:db8::/32")}
	})
	header := func(version byte, from string) []byte {
		a := net.TCPAddrFromAddrPort(netip.MustParseAddrPort(from))
		b, err := proxyproto.HeaderProxyFromAddrs(version, a, &net.TCPAddr{IP: a.IP, Port: 1790}).Format()
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	for i, tt := range []struct {
		name string
		send []byte
		want string // router, or "" if the session is refused
	}{
		{"v1", header(1, "192.0.2.1:1111"), "192.0.2.1:1111"},
		{"v1 IPv6", header(1, "[2001:db8::1]:2222"), "2001:db8::1:2222"},
		{"v2", header(2, "192.0.2.2:3333"), "192.0.2.2:3333"},
		{"v2 IPv6", header(2, "[2001:db8::2]:4444"), "2001:db8::2:4444"},
		{"not allowed", header(2, "198.51.100.1:5555"), ""},
		{"none", nil, ""},
		{"cut short", []byte("PROXY TCP4 192.0.2.9"), ""},
		{"not one", bytes.Repeat([]byte("PROXY"), 100), ""},
		{"the balancer's own check", []byte("PROXY UNKNOWN\r\n"), ""}, // its address is not allowed
	} {
		conn := dial(t, m)
		msg := hello(fmt.Sprint("r", i))
		if _, err := conn.Write(append(tt.send, msg...)); err != nil {
			t.Fatal(err)
		}
		if tt.want == "" {
			conn.SetReadDeadline(time.Now().Add(time.Minute))
			if _, err := conn.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("%s: session not refused: %v", tt.name, err)
			}
			continue
		}
		l.until(tt.name, func() error {
			if got := m.identities(); !strings.Contains(fmt.Sprint(got), tt.want) {
				return fmt.Errorf("sessions %v, want %s", got, tt.want)
			}
			return nil
		})
	}
	if n := len(m.identities()); n != 4 {
		t.Errorf("%d sessions: %v", n, m.identities())
	}
}

// A station is a relay target that keeps what each session said.
type station struct {
	t    *testing.T
	addr string

	mu   sync.Mutex
	l    net.Listener
	open []net.Conn
	said map[string]*bytes.Buffer // by the router that the PROXY header names
}

func newStation(t *testing.T) *station {
	s := &station{t: t, said: map[string]*bytes.Buffer{}}
	s.listen()
	t.Cleanup(s.shut)
	return s
}

func (s *station) listen() {
	s.t.Helper()
	var l net.Listener
	ctx, cancel := context.WithTimeout(s.t.Context(), time.Minute)
	defer cancel()
	addr := s.addr
	if addr == "" {
		// Not one from which somebody connects while nobody listens.
		port, err := rig.FreePort("")
		if err != nil {
			s.t.Fatal(err)
		}
		addr = fmt.Sprintf("127.0.0.1:%d", port)
	}
	if err := rig.WaitFor(ctx, func() (err error) { l, err = net.Listen("tcp", addr); return err }); err != nil {
		s.t.Fatal(err)
	}
	s.mu.Lock()
	s.l, s.addr = l, l.Addr().String()
	s.mu.Unlock()
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			s.mu.Lock()
			s.open = append(s.open, conn)
			s.mu.Unlock()
			go s.serve(conn)
		}
	}()
}

func (s *station) serve(conn net.Conn) {
	defer conn.Close()
	r := bufio.NewReader(conn)
	h, err := proxyproto.Read(r)
	if err != nil {
		return
	}
	from := h.SourceAddr.(*net.TCPAddr).IP.String()
	buf := make([]byte, 64<<10)
	for {
		n, err := r.Read(buf)
		s.mu.Lock()
		if s.said[from] == nil {
			s.said[from] = new(bytes.Buffer)
		}
		s.said[from].Write(buf[:n])
		s.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// shut ends the station as a crash would.
func (s *station) shut() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.l.Close()
	for _, c := range s.open {
		if tcp, ok := c.(*net.TCPConn); ok {
			tcp.SetLinger(0)
		}
		c.Close()
	}
	s.open = nil
}

func (s *station) from(router string) []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	if b := s.said[router]; b != nil {
		return bytes.Clone(b.Bytes())
	}
	return nil
}

// inFront makes a collector pass sessions on.
func inFront(targets ...string) func(*Options) {
	return func(o *Options) {
		o.Relay = &relay.Options{Targets: targets, Proxy: "v1", Buffer: 1 << 20, Parallel: 2, Resync: true, Log: o.Log}
		o.RelayPatience = 300 * time.Millisecond
	}
}

// TestRelay: a target gets every byte, from the active one and from the standby,
// also what is not BMP; that makes a session opaque, not shorter.
func TestRelay(t *testing.T) {
	l := newLab(t)
	sa, sb := newStation(t), newStation(t)
	a := l.start("a", inFront(sa.addr))
	l.role(a, "active")
	b := l.start("b", inFront(sb.addr))
	l.role(b, "standby")
	r := l.router(synthetic(t, replay.Synthetic{Prefixes: 300}), 0, a, b)
	l.until("the whole stream", func() error {
		if x, y := sa.from("127.0.0.1"), sb.from("127.0.0.1"); len(x) < 1000 || !bytes.Equal(x, y) {
			return fmt.Errorf("%d and %d bytes", len(x), len(y))
		}
		return nil
	})
	l.same(r)

	// Garbage in the middle of a session, and from its beginning.
	for i, bad := range [][]byte{
		append(hello("odd"), "this is not BMP, for 100 bytes or so ......................................"...),
		[]byte("GET / HTTP/1.1\r\nHost: example.net\r\n\r\n"),
	} {
		from := fmt.Sprintf("127.0.0.%d", 10+i)
		conn := speak(t, from, a, bad)
		more := bytes.Repeat([]byte{0xff, 0, 3}, 5000)
		if _, err := conn.Write(more); err != nil {
			t.Fatal(err)
		}
		l.until("what is not BMP", func() error {
			if got, want := sa.from(from), append(bytes.Clone(bad), more...); !bytes.Equal(got, want) {
				return fmt.Errorf("%d bytes, want %d", len(got), len(want))
			}
			for _, cr := range a.Status().Routers {
				if strings.HasPrefix(cr.Identity, from) && cr.Opaque && cr.Session != nil {
					return nil
				}
			}
			return errors.New("no opaque session")
		})
	}
}

// TestRelayTargetRestarts: the router's session starts over once the target is
// back, and what the router then says again is flagged.
func TestRelayTargetRestarts(t *testing.T) {
	l := newLab(t)
	s := newStation(t)
	m := l.start("a", inFront(s.addr))
	l.role(m, "active")
	r := l.router(synthetic(t, replay.Synthetic{Prefixes: 200}), 0, m)
	l.atLeast(200)
	l.same(r)
	for sessions := uint64(2); l.restarts(s, m, sessions) > 0; sessions++ {
		// A machine that stood still in between made the router look quiet, and then it
		// is news.
		if sessions > 4 {
			t.Error("what is said again is not flagged, again and again")
			break
		}
	}
	l.same(r)
}

// restarts has the station of m, which hears one router, go and come back, so that the
// router has that many sessions. It returns how many of the routes that are said again
// are not flagged.
func (l *lab) restarts(s *station, m *member, sessions uint64) (news int) {
	t := l.t
	t.Helper()
	before := len(l.sub.Records())
	s.shut()
	l.until("the target is down", func() error {
		if st := m.Status(); len(st.Relay) != 1 || st.Relay[0].State != control.RelayDown || st.Unfit == "" {
			return fmt.Errorf("%+v, unfit %q", st.Relay, st.Unfit)
		}
		return nil
	})
	if st := m.Status(); st.Routers[0].Sessions != sessions-1 {
		t.Errorf("%d sessions while the target is down", st.Routers[0].Sessions)
	}
	s.mu.Lock()
	clear(s.said)
	s.mu.Unlock()
	s.listen()
	l.until("the whole stream again", func() error {
		if b := s.from("127.0.0.1"); len(b) < 1000 || bmp.Type(b) != bmp.TypeInitiation {
			return fmt.Errorf("%d bytes: %.20x", len(b), b)
		}
		if n := m.Status().Routers[0].Sessions; n != sessions {
			return fmt.Errorf("%d sessions", n)
		}
		if n := uint64(len(l.sub.Records())); n < uint64(before)/(sessions-1)*sessions {
			return fmt.Errorf("%d records more than %d", n, before)
		}
		return nil
	})
	again := 0
	for _, rec := range l.sub.Records()[before:] {
		h, err := record.ParseHeader(rec.Header(record.HeaderName))
		if err != nil {
			t.Fatal(err)
		}
		if h.Flags&record.FlagRoute != 0 {
			again++
			if h.Flags&record.FlagReplayed == 0 {
				t.Logf("said again and not flagged: %+v %s", h, rec.Value)
				news++
			}
		}
	}
	if again < 200 {
		t.Errorf("%d routes again", again)
	}
	return news
}

// TestRelayGone: a collector that has lost its pmacct gives way to one that has
// its own, and only then.
func TestRelayGone(t *testing.T) {
	l := newLab(t)
	sa, sb := newStation(t), newStation(t)
	a := l.start("a", inFront(sa.addr), patient)
	l.role(a, "active")
	b := l.start("b", inFront(sb.addr), patient)
	l.role(b, "standby")
	r := l.router(numbered(t), 500, a, b)
	l.atLeast(200)
	sa.shut()
	l.role(b, "active")
	l.role(a, "standby")
	sb.shut()
	l.until("b says why", func() error {
		if st := b.Status(); st.Unfit == "" || !strings.HasSuffix(st.Reason, "nobody is better off") {
			return fmt.Errorf("%s (%s), unfit %q", st.Role, st.Reason, st.Unfit)
		}
		return nil
	})
	sa.listen()
	l.role(a, "active")
	l.expectAll(r)
}

// behindPmacct makes a collector take records instead of sessions.
func behindPmacct(o *Options) {
	o.NoDecode, o.Header = true, true
	o.Route = func(a netip.Addr) string { return strings.ReplaceAll(a.String(), ".", "_") }
	o.Intake = &intake.Options{Listen: []string{"127.0.0.1:0"}}
	o.IntakePatience = 500 * time.Millisecond
	o.Listen = nil
}

// producer connects a producer to a collector.
func (l *lab) producer(m *member, opts ...kgo.Opt) *kgo.Client {
	l.t.Helper()
	c, err := kgo.NewClient(append([]kgo.Opt{kgo.SeedBrokers(m.IntakeAddresses()...), kgo.ClientID("pmacct")}, opts...)...)
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(c.Close)
	return c
}

func say(router, event, text string) []byte {
	return fmt.Appendf(nil, `{"seq": 1, "bmp_router": %q, "event_type": %q, "text": %q}`, router, event, text)
}

// TestIntake: what a producer sends reaches Kafka as it is.
func TestIntake(t *testing.T) {
	l := newLab(t)
	m := l.start("a", behindPmacct)
	l.role(m, "active")
	p := l.producer(m)
	at := time.UnixMilli(1_700_000_000_123)
	sent := []*kgo.Record{
		{Topic: labTopic, Key: []byte("192_0_2_1"), Value: say("192.0.2.1", "log_init", ""), Timestamp: at},
		{Topic: labTopic, Value: say("192.0.2.1", "log", "no key"), Headers: []kgo.RecordHeader{{Key: "a", Value: []byte("1")}, {Key: "b"}}},
		{Topic: labTopic, Key: []byte{}, Value: say("192.0.2.1", "log", "empty key")},
		{Topic: labTopic, Key: []byte("k"), Value: nil},
		{Topic: labTopic, Value: []byte{0, 0, 0, 0, 7, 1, 2, 3}},
		{Topic: labTopic, Key: []byte("198_51_100_7"), Value: say("2001:db8::1", "dump_init", "")},
	}
	if err := p.ProduceSync(t.Context(), sent...).FirstErr(); err != nil {
		t.Fatal(err)
	}
	l.atLeastRecords(len(sent))
	var got []rig.Record
	for _, w := range sent {
		for _, r := range l.sub.Records() {
			if bytes.Equal(r.Value, w.Value) && (r.Value == nil) == (w.Value == nil) {
				got = append(got, r)
				if (r.Key == nil) != (w.Key == nil) || !bytes.Equal(r.Key, w.Key) {
					t.Errorf("key %q (null %t) of %s", r.Key, r.Key == nil, r.Value)
				}
				if !w.Timestamp.IsZero() && !r.Timestamp.Equal(w.Timestamp) {
					t.Errorf("timestamp %s, want %s", r.Timestamp, w.Timestamp)
				}
				if n := len(r.Headers); n != len(w.Headers)+1 || r.Headers[n-1].Key != record.HeaderName {
					t.Errorf("headers %v of %s", r.Headers, r.Value)
				}
			}
		}
	}
	if len(got) != len(sent) {
		t.Fatalf("%d records, want %d", len(got), len(sent))
	}
	for _, r := range got[1:3] {
		if r.Partition != got[0].Partition {
			t.Errorf("a router's records are in partitions %d and %d", got[0].Partition, r.Partition)
		}
	}
	heard := map[string]bool{}
	for _, r := range m.Status().Routers {
		heard[r.Identity] = r.Heard && r.Source == control.SourcePmacct
	}
	for _, want := range []string{"192.0.2.1", "2001:db8::1", "key/k", "producer/pmacct"} {
		if !heard[want] {
			t.Errorf("%s is not heard: %v", want, heard)
		}
	}
}

func (l *lab) atLeastRecords(n int) {
	l.t.Helper()
	l.until("records", func() error {
		if got := len(l.sub.Records()); got < n {
			return fmt.Errorf("%d records, want %d", got, n)
		}
		return nil
	})
}

// TestIntakePair: two producers say the same to two collectors; once in quiet
// operation, and whoever loses its pmacct gives way without losing anything.
func TestIntakePair(t *testing.T) {
	l := newLab(t)
	a := l.start("a", behindPmacct, patient)
	l.role(a, "active")
	b := l.start("b", behindPmacct, patient)
	l.role(b, "standby")
	pa, pb := l.producer(a), l.producer(b)
	n := 0
	both := func(count int, to ...*kgo.Client) {
		for range count {
			n++
			for _, p := range to {
				rec := &kgo.Record{Topic: labTopic, Value: say("192.0.2.1", "log", fmt.Sprint("n", n))}
				if err := p.ProduceSync(t.Context(), rec).FirstErr(); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	both(50, pa, pb)
	l.atLeastRecords(50)
	if got := len(l.sub.Records()); got != 50 {
		t.Errorf("%d records, want 50", got)
	}
	if st := b.Status(); st.Sink.Handed != 0 || len(st.Routers) != 1 || !st.Routers[0].Heard {
		t.Errorf("standby handed over %d, routers %+v", st.Sink.Handed, st.Routers)
	}
	pa.Close()
	both(20, pb) // before anyone has noticed
	l.role(b, "active")
	both(20, pb)
	l.until("all of it", func() error {
		seen := map[string]bool{}
		for _, r := range l.sub.Records() {
			seen[string(r.Value)] = true
		}
		if len(seen) != n {
			return fmt.Errorf("%d of %d", len(seen), n)
		}
		return nil
	})
	l.until("a no longer hears", func() error {
		if st := a.Status(); st.Routers[0].Heard || st.Unfit == "" || st.Intake.Lost.IsZero() {
			return fmt.Errorf("%+v, unfit %q", st.Routers[0], st.Unfit)
		}
		return nil
	})
	// log_close: what pmacct no longer hears is not heard here.
	if err := pb.ProduceSync(t.Context(), &kgo.Record{Topic: labTopic, Value: say("192.0.2.1", "log_close", "")}).FirstErr(); err != nil {
		t.Fatal(err)
	}
	l.until("closed", func() error {
		if b.Status().Routers[0].Heard {
			return errors.New("heard")
		}
		return nil
	})
}

// TestFiles: lines of followed files reach Kafka; how far they were read is
// remembered once they are there, so that a restart repeats little and loses
// nothing.
func TestFiles(t *testing.T) {
	l := newLab(t)
	dir := t.TempDir()
	follow := func(o *Options) {
		behindPmacct(o)
		o.Intake = nil
		o.Files = &tail.Options{
			Patterns: []string{dir + "/bmp-*.json"}, Positions: dir + "/positions", Poll: 20 * time.Millisecond,
		}
	}
	file := filepath.Join(dir, "bmp-1.json")
	n := 0
	write := func(count int) {
		f, err := os.OpenFile(file, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		for range count {
			n++
			fmt.Fprintf(f, "%s\n", say("192.0.2.1", "log", fmt.Sprint("n", n)))
		}
	}
	all := func() {
		t.Helper()
		l.until("all lines", func() error {
			seen := map[string]bool{}
			for _, r := range l.sub.Records() {
				seen[string(r.Value)] = true
				if string(r.Key) != "192.0.2.1" {
					return fmt.Errorf("key %q", r.Key)
				}
			}
			if len(seen) != n {
				return fmt.Errorf("%d of %d", len(seen), n)
			}
			return nil
		})
	}
	write(100)
	m := l.start("a", follow)
	all()
	l.until("positions", func() error {
		b, err := os.ReadFile(dir + "/positions")
		if err == nil && !bytes.Contains(b, []byte("bmp-1.json")) {
			err = fmt.Errorf("%s", b)
		}
		return err
	})
	if err := m.stop(); err != nil {
		t.Fatal(err)
	}
	write(50)
	m = l.start("a", follow)
	all()
	if got := len(l.sub.Records()); got != n {
		t.Errorf("%d records of %d lines", got, n)
	}
	if err := os.Rename(file, file+".1"); err != nil {
		t.Fatal(err)
	}
	write(30)
	all()
	if st := m.Status(); st.Intake == nil || len(st.Intake.Files) != 1 || st.Intake.Files[0].Lines != 80 {
		t.Errorf("%+v", st.Intake)
	}
}

// onDisk gives a collector little memory and a spool.
func onDisk(dir string) func(*Options) {
	return func(o *Options) {
		o.Memory = 1 << 20
		o.Spool = &spool.Options{Dir: dir, MaxBytes: 256 << 20, SegmentBytes: 1 << 20, Log: o.Log}
	}
}

// TestSpool: while Kafka is away and memory is full, the router goes on, and
// everything reaches Kafka in order when it is back. The same on a standby, which
// drops nothing.
func TestSpool(t *testing.T) {
	l := newLab(t)
	dirs := []string{t.TempDir(), t.TempDir()}
	a := l.start("a", onDisk(dirs[0]), patient)
	l.role(a, "active")
	b := l.start("b", onDisk(dirs[1]), patient)
	l.role(b, "standby")
	r := l.router(numbered(t), 10_000, a, b)
	l.atLeast(100)
	if err := l.kafka.Stop(); err != nil {
		t.Fatal(err)
	}
	for _, m := range []*member{a, b} {
		l.until("spool of "+m.o.Process, func() error {
			if st := m.Status(); st.Spool.Messages < 20_000 || st.Routers[0].Paused {
				return fmt.Errorf("%+v, paused %t", *st.Spool, st.Routers[0].Paused)
			}
			return nil
		})
	}
	if err := l.kafka.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	l.expectAll(r)
	for _, m := range []*member{a, b} {
		l.until("empty spool of "+m.o.Process, func() error {
			if st := m.Status(); st.Spool.Messages > 0 || st.Hold.Dropped["full"] > 0 {
				return fmt.Errorf("%+v, %d dropped", *st.Spool, st.Hold.Dropped["full"])
			}
			return nil
		})
	}
	if n := b.Status().Sink.Handed; n > 0 && a.Status().Role == election.Active.String() {
		t.Errorf("the standby handed over %d records", n)
	}
}

// TestSpoolIsTakenOver: what a process leaves on disk is sent by the next one,
// before what the router says now, and can be decoded.
func TestSpoolIsTakenOver(t *testing.T) {
	l := newLab(t)
	dir := t.TempDir()
	little := func(o *Options) { o.StopTimeout = 500 * time.Millisecond }
	m := l.start("a", onDisk(dir), patient, little)
	l.role(m, "active")
	r := l.router(numbered(t), 10_000, m)
	l.atLeast(100)
	if err := l.kafka.Stop(); err != nil {
		t.Fatal(err)
	}
	l.until("spool", func() error {
		if st := m.Status(); st.Spool.Messages < 10_000 {
			return fmt.Errorf("%+v", *st.Spool)
		}
		return nil
	})
	r.Pause(true)
	if err := m.stop(); err == nil || !strings.Contains(err.Error(), "stopped with") {
		t.Errorf("stop while Kafka is away: %v", err)
	}
	left := m.Status().Spool.Messages
	if left < 5_000 {
		t.Fatalf("%d messages left on disk", left)
	}
	if err := l.kafka.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	next := l.start("a", onDisk(dir), patient)
	l.role(next, "active")
	l.until("what was left", func() error {
		st := next.Status()
		if st.Spool.Recovered < left || st.Spool.Messages > 0 || st.Hold.Messages > 0 {
			return fmt.Errorf("%+v, %d held", *st.Spool, st.Hold.Messages)
		}
		if n := uint64(len(l.numbers())); n < left {
			return fmt.Errorf("%d numbers, want %d at least", n, left)
		}
		return nil
	})
}

// TestPressure: an intake whose log fills while Kafka is away holds back the
// relay, and with it the routers, before it holds back pmacct.
func TestPressure(t *testing.T) {
	l := newLab(t)
	s := newStation(t)
	m := l.start("a", func(o *Options) {
		listen := o.Listen
		behindPmacct(o)
		inFront(s.addr)(o)
		o.Listen, o.Memory = listen, 8<<20
		o.Relay.Buffer = 64 << 10
	}, patient)
	l.role(m, "active")
	p := l.producer(m)
	if err := l.kafka.Stop(); err != nil {
		t.Fatal(err)
	}
	value := say("127.0.0.1", "log", strings.Repeat("x", 10_000))
	for i := 0; !m.Status().Relay[0].Paused; i++ {
		if i > 2000 {
			t.Fatal("20 MB in 8 MiB, and the relay is not paused")
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := p.ProduceSync(ctx, &kgo.Record{Topic: labTopic, Value: value}).FirstErr(); err != nil {
			t.Fatalf("the producer was held back first: %v", err)
		}
	}
	// The router is made to wait now, and goes on when Kafka is back.
	conn := speak(t, "127.0.0.1", m, hello("r"))
	chunk := bytes.Repeat(hello("r"), 1000)
	written := make(chan error, 1)
	total := 0
	go func() {
		for range 400 {
			n, err := conn.Write(chunk)
			total += n
			if err != nil {
				written <- err
				return
			}
		}
		written <- nil
	}()
	l.until("the router waits", func() error {
		if st := m.Status(); st.Relay[0].Buffered < 60<<10 {
			return fmt.Errorf("%+v", st.Relay[0])
		}
		return nil
	})
	if err := l.kafka.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-written; err != nil {
		t.Fatal(err)
	}
	l.until("all that the router said", func() error {
		if n := len(s.from("127.0.0.1")); n != total+len(hello("r")) {
			return fmt.Errorf("%d bytes of %d", n, total)
		}
		return nil
	})
}
