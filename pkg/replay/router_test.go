package replay

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// A station is a collector for tests: it keeps the bytes of each session.
type station struct {
	t        testing.TB
	listener net.Listener
	all      sync.WaitGroup

	mu       sync.Mutex
	changed  chan struct{}
	sessions []*stationSession
}

type stationSession struct {
	conn   net.Conn
	from   netip.Addr
	data   []byte
	ended  bool
	broken bool // by a reset
}

func newStation(t testing.TB) *station {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &station{t: t, listener: l, changed: make(chan struct{})}
	s.all.Go(s.accept)
	t.Cleanup(s.close)
	return s
}

func (s *station) address() string { return s.listener.Addr().String() }

func (s *station) close() {
	s.listener.Close()
	s.mu.Lock()
	for _, ss := range s.sessions {
		ss.conn.Close()
	}
	s.mu.Unlock()
	s.all.Wait()
}

func (s *station) accept() {
	for {
		conn, err := s.listener.Accept()
		if err != nil {
			return
		}
		ss := &stationSession{conn: conn, from: conn.RemoteAddr().(*net.TCPAddr).AddrPort().Addr()}
		s.mu.Lock()
		s.sessions = append(s.sessions, ss)
		s.notify()
		s.mu.Unlock()
		s.all.Go(func() { s.read(ss) })
	}
}

func (s *station) read(ss *stationSession) {
	buf := make([]byte, 64<<10)
	for {
		n, err := ss.conn.Read(buf)
		s.mu.Lock()
		ss.data = append(ss.data, buf[:n]...)
		if err != nil {
			ss.ended, ss.broken = true, !errors.Is(err, io.EOF)
		}
		s.notify()
		s.mu.Unlock()
		if err != nil {
			ss.conn.Close()
			return
		}
	}
}

func (s *station) notify() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// await waits until f, called with the sessions so far, is content.
func (s *station) await(what string, f func([]*stationSession) bool) {
	s.t.Helper()
	late := time.After(time.Minute)
	for {
		s.mu.Lock()
		ok, changed := f(s.sessions), s.changed
		s.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-changed:
		case <-late:
			s.t.Fatalf("waited in vain for %s", what)
		}
	}
}

// table returns what the last session tells.
func (s *station) table(router string) map[Key]string {
	s.t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	return tableOf(s.t, s.sessions[len(s.sessions)-1].data).text(router)
}

func newTestRouter(t testing.TB, cfg Config) *Router {
	t.Helper()
	r, err := NewRouter(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Stop(context.Background(), Abort) })
	return r
}

func testContext(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func waitFor(t testing.TB, r *Router) {
	t.Helper()
	if err := r.Wait(testContext(t)); err != nil {
		t.Fatal(err)
	}
}

func stop(t testing.TB, r *Router) {
	t.Helper()
	if err := r.Stop(testContext(t), Terminate); err != nil {
		t.Fatal(err)
	}
}

// Every collector gets every message once, in order, with a Termination at the
// end, and the sum of it is the router's table.
func TestRouterFeedsAll(t *testing.T) {
	a, b := newStation(t), newStation(t)
	spec := Synthetic{Seed: 3, Prefixes: 2000, IPv6: 0.3, Routes: 3, PostPolicy: true, Churn: DefaultChurn}
	const n = 30000
	want := collect(t, synthetic(t, spec), n)
	source := netip.MustParseAddr("127.0.3.1")
	r := newTestRouter(t, Config{Stream: Limit(synthetic(t, spec), n), To: []string{a.address(), b.address()}, Source: source})
	r.Start()
	waitFor(t, r)
	table := r.Table()
	stop(t, r)
	want = append(want, 3, 0, 0, 0, 12, 5, 0, 1, 0, 2, 0, 0)
	for name, s := range map[string]*station{"a": a, "b": b} {
		s.await("the end of the session", func(ss []*stationSession) bool { return len(ss) == 1 && ss[0].ended })
		got := s.sessions[0]
		// A dump of a table that was empty, and nothing but the stream after it.
		if string(got.data) != string(want) {
			t.Errorf("%s: %d bytes %s, want %d bytes %s", name, len(got.data), kinds(t, got.data), len(want), kinds(t, want))
		}
		if got.broken || got.from != source {
			t.Errorf("%s: from %v, broken %v", name, got.from, got.broken)
		}
		if d := Compare(table, s.table(source.String())); !d.Empty() || d.Equal == 0 {
			t.Errorf("%s: %s", name, d)
		}
	}
	c := r.Counters()
	if c.Messages != n || !c.Ended || c.Routes != len(table) || c.Opaque != 0 {
		t.Errorf("counters %+v", c)
	}
	for _, cc := range c.Collectors {
		if cc.Sessions != 1 || cc.Messages != n+1 || cc.Bytes != uint64(len(want)) || cc.Redumped != 0 || cc.Overflows != 0 || cc.Connected {
			t.Errorf("counters %+v", cc)
		}
	}
}

// A session that is cut, or closed by the collector, begins anew with all that
// the router knows, and goes on with the stream.
func TestRouterBeginsAnew(t *testing.T) {
	for _, test := range []struct {
		name string
		end  func(r *Router, s *station)
	}{
		{"cut", func(r *Router, s *station) {
			if !r.Cut(s.address(), 100*time.Millisecond) || r.Cut("elsewhere:1", 0) {
				t.Error("Cut found the wrong collectors")
			}
		}},
		{"closed by the collector", func(_ *Router, s *station) {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.sessions[0].conn.Close()
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			a, b := newStation(t), newStation(t)
			churn := DefaultChurn
			churn.PeerFlap = 0.001
			s := synthetic(t, Synthetic{Seed: 5, Prefixes: 3000, IPv6: 0.3, Routes: 2, Churn: churn})
			r := newTestRouter(t, Config{Stream: Limit(s, 40000), To: []string{a.address(), b.address()}, Rate: 30000})
			r.Start()
			b.await("a part of the stream", func(ss []*stationSession) bool { return len(ss) > 0 && len(ss[0].data) > 1<<20 })
			test.end(r, b)
			b.await("a new session", func(ss []*stationSession) bool { return len(ss) == 2 && len(ss[1].data) > 1<<20 })
			waitFor(t, r)
			table := r.Table()
			stop(t, r)
			for _, s := range []*station{a, b} {
				s.await("the end", func(ss []*stationSession) bool { return ss[len(ss)-1].ended })
				if d := Compare(table, s.table("127.0.0.1")); !d.Empty() || d.Equal == 0 {
					t.Error(d)
				}
			}
			if k := kinds(t, b.sessions[1].data); !strings.HasPrefix(k, "1x4 ") || strings.Count(k, "x4") != 1 || !strings.HasSuffix(k, " 1x5") {
				t.Errorf("second session: %.40s ... want one Initiation first and a Termination last", k)
			}
			cc := r.Counters().Collectors[1]
			if len(a.sessions) != 1 || cc.Sessions != 2 || cc.Redumped == 0 || cc.LastError == "" && test.name != "cut" {
				t.Errorf("%d sessions of a, counters of b %+v", len(a.sessions), cc)
			}
		})
	}
}

// A collector that is not there yet is tried again, and the stream waits for the
// others no longer than it should.
func TestRouterCollectorComesLater(t *testing.T) {
	a := newStation(t)
	b := newStation(t)
	var mu sync.Mutex
	there := false
	s := synthetic(t, Synthetic{Prefixes: 500})
	r := newTestRouter(t, Config{Stream: s, To: []string{a.address(), b.address()}, Patience: time.Millisecond,
		Dial: func(ctx context.Context, address string) (net.Conn, error) {
			mu.Lock()
			defer mu.Unlock()
			if address == b.address() && !there {
				return nil, errors.New("nobody there")
			}
			return new(net.Dialer).DialContext(ctx, "tcp", address)
		}})
	r.Start()
	waitFor(t, r)
	c := r.Counters().Collectors[1]
	if c.Failures == 0 || !strings.Contains(c.LastError, "nobody there") {
		t.Errorf("counters %+v", c)
	}
	mu.Lock()
	there = true
	mu.Unlock()
	b.await("a session", func(ss []*stationSession) bool { return len(ss) == 1 && len(ss[0].data) > 0 })
	stop(t, r)
	b.await("the end", func(ss []*stationSession) bool { return ss[0].ended })
	if d := Compare(r.Table(), b.table("127.0.0.1")); !d.Empty() || d.Equal != 2000 {
		t.Error(d)
	}
}

// A collector that does not read loses its session; the other one gets all.
func TestRouterDeafCollector(t *testing.T) {
	// The queue holds what comes in three seconds, so that the other one may be held up.
	for _, rate := range []float64{0, 6000} {
		a := newStation(t)
		var mu sync.Mutex
		var deaf []net.Conn
		dial := func(ctx context.Context, address string) (net.Conn, error) {
			if address == a.address() {
				return new(net.Dialer).DialContext(ctx, "tcp", address)
			}
			here, there := net.Pipe()
			mu.Lock()
			defer mu.Unlock()
			deaf = append(deaf, there)
			return here, nil
		}
		const n = 30000 // twice what the queue holds
		s := Limit(synthetic(t, Synthetic{Numbered: true}), n)
		r := newTestRouter(t, Config{Stream: s, To: []string{a.address(), "deaf"}, Rate: rate, Dial: dial,
			Queue: 2 << 20, Stall: 3 * time.Second, Stateless: true})
		r.Start()
		a.await("the whole stream", func(ss []*stationSession) bool {
			return len(ss) > 0 && len(ss[0].data) > (n-1)*110
		})
		c := r.Counters().Collectors
		if c[0].Overflows != 0 || c[0].Sessions != 1 || c[1].Overflows == 0 {
			t.Errorf("rate %v: counters %+v", rate, c)
		}
		if err := r.Stop(testContext(t), Abort); err != nil {
			t.Error(err)
		}
		for _, conn := range deaf {
			conn.Close()
		}
	}
}

// Abort is seen as a reset, and a Terminate that takes too long becomes one.
func TestRouterStop(t *testing.T) {
	a := newStation(t)
	r := newTestRouter(t, Config{Stream: synthetic(t, Synthetic{}), To: []string{a.address()}})
	r.Start()
	waitFor(t, r)
	if err := r.Stop(testContext(t), Abort); err != nil {
		t.Fatal(err)
	}
	a.await("a reset", func(ss []*stationSession) bool { return ss[0].ended && ss[0].broken })

	here, there := net.Pipe() // nobody reads, so nothing can be written
	defer there.Close()
	r = newTestRouter(t, Config{Stream: synthetic(t, Synthetic{}), To: []string{"pipe"},
		Dial: func(context.Context, string) (net.Conn, error) { return here, nil }})
	r.Start()
	for {
		r.mu.Lock()
		connected, changed := r.collectors[0].session != nil, r.changed
		r.mu.Unlock()
		if connected {
			break
		}
		<-changed
	}
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if err := r.Stop(ctx, Terminate); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	// Stopped before it was started, and twice.
	r = newTestRouter(t, Config{Stream: synthetic(t, Synthetic{}), To: []string{a.address()}})
	for range 2 {
		if err := r.Stop(testContext(t), Terminate); err != nil {
			t.Error(err)
		}
	}
	r.Start()
}

func TestRouterRefuses(t *testing.T) {
	s := synthetic(t, Synthetic{})
	for _, cfg := range []Config{{To: []string{"a:1"}}, {Stream: s}, {Stream: s, To: []string{"a:1"}, Rate: -1}} {
		if _, err := NewRouter(cfg); err == nil {
			t.Errorf("%+v was accepted", cfg)
		}
	}
}

// On a virtual clock: the rate holds, a pause pauses, and what was paused is not
// made up for.
func TestRouterRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		here, there := net.Pipe()
		go io.Copy(io.Discard, there)
		r, err := NewRouter(Config{Stream: synthetic(t, Synthetic{Numbered: true}), To: []string{"pipe"}, Rate: 2000,
			Dial: func(context.Context, string) (net.Conn, error) { return here, nil }})
		if err != nil {
			t.Fatal(err)
		}
		r.Start()
		check := func(what string, after time.Duration, want uint64) {
			t.Helper()
			time.Sleep(after) // of the virtual clock
			synctest.Wait()
			if got := r.Counters().Messages; got < want-2 || got > want+2 {
				t.Errorf("%s: %d messages, want %d", what, got, want)
			}
		}
		check("after a second", time.Second, 2000)
		check("after ten", 9*time.Second, 20000)
		r.Pause(true)
		check("paused", time.Minute, 20000)
		r.Pause(false)
		check("going on", time.Second, 22000+200) // and the 100 ms that may be made up for
		if err := r.Stop(t.Context(), Terminate); err != nil {
			t.Error(err)
		}
		there.Close()
	})
}

func TestRunAndFleet(t *testing.T) {
	a, b := newStation(t), newStation(t)
	capture := filepath.Join(t.TempDir(), "r.bmp")
	if err := os.WriteFile(capture, collect(t, synthetic(t, Synthetic{Prefixes: 100}), 1000), 0o600); err != nil {
		t.Fatal(err)
	}
	var last Progress
	err := Run(testContext(t), Options{Files: []string{capture}, Loop: true, To: []string{a.address(), b.address()}, Routers: 3, Count: 2000},
		func(p Progress) { last = p })
	if err != nil {
		t.Fatal(err)
	}
	if !last.Done || last.Routers != 3 || last.Messages != 6000 || last.Routes != 1200 || len(last.Collectors) != 2 || last.Collectors[1].Sessions != 3 {
		t.Errorf("progress %+v", last)
	}
	b.await("all sessions", func(ss []*stationSession) bool {
		return len(ss) == 3 && ss[0].ended && ss[1].ended && ss[2].ended
	})
	from := make(map[string]bool)
	for _, s := range b.sessions {
		from[s.from.String()] = true
	}
	if !from["127.0.1.1"] || !from["127.0.1.2"] || !from["127.0.1.3"] {
		t.Errorf("sources %v", from)
	}

	// Time is up, or the user has had enough: neither is an error.
	err = Run(testContext(t), Options{Synthetic: Synthetic{Numbered: true}, To: []string{a.address()}, Rate: 1000, Duration: 30 * time.Millisecond}, nil)
	if err != nil {
		t.Error(err)
	}
	for _, o := range []Options{
		{To: []string{"127.0.0.1:1"}, Timeout: time.Millisecond, Every: time.Millisecond},
		{To: []string{a.address()}, Files: []string{capture + ".none"}},
		{To: []string{a.address()}, Files: []string{"router_test.go"}},
		{To: []string{a.address()}, Routers: -1},
		{},
	} {
		if err := Run(testContext(t), o, nil); err == nil {
			t.Errorf("%+v: no error", o)
		} else {
			t.Log(err)
		}
	}
}

func benchmarkRouter(b *testing.B, stream func(n int) Stream, stateless bool) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			io.Copy(io.Discard, conn)
			conn.Close()
		}
	}()
	r, err := NewRouter(Config{Stream: stream(b.N), To: []string{l.Addr().String()}, Stateless: stateless})
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	b.ResetTimer()
	r.Start()
	if err := r.Wait(context.Background()); err != nil {
		b.Fatal(err)
	}
	b.StopTimer()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "msg/s")
	if err := r.Stop(context.Background(), Terminate); err != nil {
		b.Fatal(err)
	}
}

func BenchmarkRouterCapture(b *testing.B) {
	data := Big(200000, 42, true)
	benchmarkRouter(b, func(n int) Stream {
		c, err := NewCapture(data, true)
		if err != nil {
			b.Fatal(err)
		}
		return Limit(c, uint64(n))
	}, true)
}

func BenchmarkRouterSynthetic(b *testing.B) {
	benchmarkRouter(b, func(n int) Stream {
		return Limit(synthetic(b, Synthetic{Prefixes: 50000, IPv6: 0.3, Routes: 2, Churn: DefaultChurn}), uint64(n))
	}, false)
}
