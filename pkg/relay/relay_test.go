package relay

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pires/go-proxyproto"

	"github.com/bmpha/bmpha/pkg/rig"
)

var (
	router4 = netip.MustParseAddrPort("192.0.2.1:40001")
	router6 = netip.MustParseAddrPort("[2001:db8::1]:40001")
	local4  = netip.MustParseAddrPort("198.51.100.1:1790")
	local6  = netip.MustParseAddrPort("[2001:db8::ffff]:1790")
)

// A station is a target that keeps what it is told.
type station struct {
	t  *testing.T
	ln net.Listener

	mu   sync.Mutex
	got  []*heard
	deaf chan struct{} // not nil: it reads nothing until this is closed
}

// heard is one connection.
type heard struct {
	conn  net.Conn
	mu    sync.Mutex
	bytes bytes.Buffer
	over  bool
}

func (h *heard) state() (b []byte, over bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return bytes.Clone(h.bytes.Bytes()), h.over
}

func newStation(t *testing.T, deaf chan struct{}) *station {
	port, err := rig.FreePort("") // nobody connects from it while the station is away
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		t.Fatal(err)
	}
	s := &station{t: t, ln: ln, deaf: deaf}
	go s.run()
	t.Cleanup(func() {
		s.close()
	})
	return s
}

func (s *station) run() {
	for {
		c, err := s.ln.Accept()
		if err != nil {
			return
		}
		h := &heard{conn: c}
		s.mu.Lock()
		s.got = append(s.got, h)
		s.mu.Unlock()
		go func() {
			if s.deaf != nil {
				<-s.deaf
			}
			b := make([]byte, 64<<10)
			for {
				n, err := c.Read(b)
				h.mu.Lock()
				h.bytes.Write(b[:n])
				h.over = err != nil
				h.mu.Unlock()
				if err != nil {
					c.Close()
					return
				}
			}
		}()
	}
}

func (s *station) address() string { return s.ln.Addr().String() }

func (s *station) heard() []*heard {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]*heard(nil), s.got...)
}

// first returns what the first connection has said, and whether it is over. A station
// may learn of it later than the relay.
func (s *station) first() (b []byte, over bool) {
	if all := s.heard(); len(all) > 0 {
		return all[0].state()
	}
	return nil, false
}

func (s *station) close() {
	s.ln.Close()
	for _, h := range s.heard() {
		h.conn.Close()
	}
}

func start(t *testing.T, o Options) *Relay {
	if o.Proxy == "" {
		o.Proxy = "none"
	}
	if o.Buffer == 0 {
		o.Buffer = 64 << 20
	}
	if o.Parallel == 0 {
		o.Parallel = 1
	}
	o.Log = slog.New(slog.DiscardHandler)
	r := New(o)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
		defer cancel()
		_ = r.Close(ctx) // what is left over is a test's to judge
	})
	return r
}

func wait(t *testing.T, cond func() error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := rig.WaitFor(ctx, cond); err != nil {
		t.Fatal(err)
	}
}

func until(t *testing.T, what string, cond func() bool) {
	t.Helper()
	wait(t, func() error {
		if !cond() {
			return errors.New("not yet: " + what)
		}
		return nil
	})
}

func random(n int, seed uint64) []byte {
	b := make([]byte, n)
	src := rand.NewChaCha8([32]byte{byte(seed)})
	_, _ = src.Read(b)
	return b
}

// Whatever is written, in whatever pieces, arrives as it was, at every target, and
// the connection ends behind it.
func TestBytesArriveUnchanged(t *testing.T) {
	one, two := newStation(t, nil), newStation(t, nil)
	r := start(t, Options{Targets: []string{one.address(), two.address()}})
	rnd := rand.New(rand.NewPCG(1, 2))
	sent := make(map[string]bool)
	for i := range 4 {
		s := r.Open(uint64(i), router4, local4, nil)
		b := random(3<<20, uint64(i))
		sent[string(b)] = true
		for at := 0; at < len(b); {
			n := min(len(b)-at, 1+rnd.IntN([]int{10, 5000, 256 << 10}[rnd.IntN(3)]))
			piece := bytes.Clone(b[at : at+n])
			if !s.Write(piece) {
				t.Fatal("Write: false")
			}
			clear(piece) // it is the caller's again
			at += n
		}
		if i%2 == 0 {
			until(t, "drained", s.Drained)
		}
		s.Close()
		s.Close()
	}
	for _, st := range []*station{one, two} {
		until(t, "the whole of four sessions", func() bool {
			all := st.heard()
			for _, h := range all {
				b, over := h.state()
				if !over || !sent[string(b)] {
					return false
				}
			}
			return len(all) == 4
		})
	}
	until(t, "empty", func() bool {
		s := r.Status()[0]
		return s.State == Up && s.Buffered == 0 && s.Sessions == 0 && s.Bytes == 12<<20 && s.Lost == 0 && s.Cuts == 0 && len(r.targets[0].all()) == 0
	})
	until(t, "an empty budget", func() bool {
		b := r.targets[0].budget
		b.mu.Lock()
		defer b.mu.Unlock()
		return b.used == 0 && b.shared == 0 && len(b.members) == 0
	})
}

func TestProxyHeader(t *testing.T) {
	for _, c := range []struct {
		proxy         string
		router, local netip.AddrPort
		src, dst      string
	}{
		{"v1", router4, local4, "192.0.2.1:40001", "198.51.100.1:1790"},
		{"v1", router6, local6, "[2001:db8::1]:40001", "[2001:db8::ffff]:1790"},
		{"v2", router4, local4, "192.0.2.1:40001", "198.51.100.1:1790"},
		{"v2", router6, local6, "[2001:db8::1]:40001", "[2001:db8::ffff]:1790"},
		{"v1", netip.MustParseAddrPort("[::ffff:192.0.2.1]:40001"), local4, "192.0.2.1:40001", "198.51.100.1:1790"},
		{"v1", netip.MustParseAddrPort("[fe80::1%eth0]:1"), local6, "[fe80::1]:1", "[2001:db8::ffff]:1790"},
		{"v1", router4, local6, "192.0.2.1:40001", "0.0.0.0:1790"},
	} {
		t.Run(c.proxy+" "+c.router.String(), func(t *testing.T) {
			st := newStation(t, nil)
			r := start(t, Options{Targets: []string{st.address()}, Proxy: c.proxy})
			s := r.Open(1, c.router, c.local, nil)
			s.Write([]byte("bytes"))
			s.Close()
			until(t, "session", func() bool {
				all := st.heard()
				if len(all) != 1 {
					return false
				}
				_, over := all[0].state()
				return over
			})
			b, _ := st.heard()[0].state()
			in := bufio.NewReader(bytes.NewReader(b))
			h, err := proxyproto.Read(in)
			if err != nil {
				t.Fatal(err)
			}
			if h.SourceAddr.String() != c.src || h.DestinationAddr.String() != c.dst || int(h.Version) != int(c.proxy[1]-'0') {
				t.Errorf("header %v -> %v, version %d", h.SourceAddr, h.DestinationAddr, h.Version)
			}
			if rest, _ := io.ReadAll(in); string(rest) != "bytes" {
				t.Errorf("behind the header: %q", rest)
			}
		})
	}
}

// A target that does not read is cut, and neither Write nor the other target nor
// another session notices.
func TestSlowTargetIsCut(t *testing.T) {
	hear := make(chan struct{})
	slow, good := newStation(t, hear), newStation(t, nil)
	defer close(hear)
	r := start(t, Options{Targets: []string{slow.address(), good.address()}, Buffer: 8 << 20})
	quiet := r.Open(1, router6, local6, nil)
	quiet.Write([]byte("quiet"))
	loud := r.Open(2, router4, local4, nil)
	b := random(32<<20, 1)
	begin := time.Now()
	for at := 0; at < len(b); at += 64 << 10 {
		until(t, "room at the good target", func() bool { return r.Status()[1].Buffered < 1<<20 })
		if !loud.Write(b[at : at+64<<10]) {
			t.Fatal("Write: false")
		}
	}
	t.Logf("32 MB in %v", time.Since(begin))
	until(t, "the cut", func() bool { return r.Status()[0].Cuts == 1 })
	until(t, "all of it at the good target", func() bool {
		for _, h := range good.heard() {
			if got, _ := h.state(); bytes.Equal(got, b) {
				return true
			}
		}
		return false
	})
	s := r.Status()
	if s[0].Sessions != 1 || s[0].Waiting != 1 || s[0].State != Resyncing || s[0].Buffered != 0 || s[1].State != Up || s[1].Sessions != 2 {
		t.Errorf("status %+v", s)
	}
	if loud.Drained() {
		t.Error("a session that was cut is said to be drained")
	}
	quiet.Close()
	loud.Close()
}

// One session fills what all share; another still has its share.
func TestShare(t *testing.T) {
	hear := make(chan struct{})
	defer close(hear)
	slow := newStation(t, hear)
	r := start(t, Options{Targets: []string{slow.address()}, Buffer: 4 << 20})
	one, two := r.Open(1, router4, local4, nil), r.Open(2, router6, local6, nil)
	// The station's kernel takes some, too, so pausing is what keeps it exact.
	r.Pause(true)
	done := make(chan bool)
	go func() { done <- one.Write(make([]byte, 8<<20)) }()
	until(t, "as much as one may have", func() bool { return r.Status()[0].Buffered == 3<<20 })
	if !two.Write(make([]byte, 1<<20)) {
		t.Error("the other's share")
	}
	if got := r.Status()[0].Buffered; got != 4<<20 {
		t.Errorf("buffered %d", got)
	}
	one.Abort()
	if <-done {
		t.Error("Write after Abort: true")
	}
	if one.Write([]byte("x")) {
		t.Error("later Write after Abort: true")
	}
	one.Close()
	two.Close()
}

// While paused nothing is sent and Write waits when the buffer is full; then all
// goes on, and nothing is lost.
func TestPause(t *testing.T) {
	st := newStation(t, nil)
	r := start(t, Options{Targets: []string{st.address()}, Buffer: 1 << 20})
	s := r.Open(1, router4, local4, nil)
	s.Write([]byte("before"))
	until(t, "drained", s.Drained)
	until(t, "heard", func() bool { got, _ := st.first(); return string(got) == "before" })
	r.Pause(true)
	b := random(4<<20, 3)
	done := make(chan bool)
	go func() { done <- s.Write(b) }()
	until(t, "full", func() bool { return r.Status()[0].Buffered == 1<<20 })
	select {
	case <-done:
		t.Fatal("Write did not wait")
	default:
	}
	if got, _ := st.first(); string(got) != "before" {
		t.Errorf("%d bytes were sent while paused", len(got))
	}
	r.Pause(false)
	if !<-done {
		t.Error("Write: false")
	}
	until(t, "all", func() bool { got, _ := st.first(); return bytes.Equal(got, append([]byte("before"), b...)) })
	until(t, "drained", s.Drained)
	s.Close()
	if st := r.Status()[0]; st.Cuts != 0 {
		t.Errorf("status %+v", st)
	}
}

// With Wait a router goes no faster than the first target, as long as that takes
// anything; one that takes nothing for that long is cut.
func TestWait(t *testing.T) {
	hear := make(chan struct{})
	slow := newStation(t, hear)
	r := start(t, Options{Targets: []string{slow.address()}, Buffer: 1 << 20, Wait: time.Minute})
	s := r.Open(1, router4, local4, nil)
	b := random(24<<20, 7)
	done := make(chan bool)
	go func() { done <- s.Write(b) }()
	until(t, "full", func() bool { return r.Status()[0].Buffered == 1<<20 })
	close(hear)
	if !<-done {
		t.Error("Write: false")
	}
	until(t, "all", func() bool { got, _ := slow.first(); return bytes.Equal(got, b) })
	if st := r.Status()[0]; st.Cuts != 0 {
		t.Errorf("status %+v", st)
	}
	s.Close()

	over := make(chan struct{})
	defer close(over)
	never := newStation(t, over)
	r = start(t, Options{Targets: []string{never.address()}, Buffer: 1 << 20, Wait: 50 * time.Millisecond})
	s = r.Open(1, router4, local4, nil)
	s.Write(b)
	if st := r.Status()[0]; st.Cuts != 1 {
		t.Errorf("status %+v", st)
	}
	s.Close()
}

// A pause ends a write to a target that does not read, without losing its place.
func TestPauseInsideWrite(t *testing.T) {
	hear := make(chan struct{})
	st := newStation(t, hear)
	r := start(t, Options{Targets: []string{st.address()}})
	s := r.Open(1, router4, local4, nil)
	b := random(20<<20, 4)
	s.Write(b)
	until(t, "a start", func() bool { return r.Status()[0].Bytes > 0 })
	r.Pause(true)
	r.Pause(false)
	r.Pause(true)
	close(hear)
	r.Pause(false)
	s.Close()
	until(t, "all", func() bool { got, over := st.first(); return over && bytes.Equal(got, b) })
}

// A target that comes back gets its sessions from their beginning, and the spare
// connection that found it is the first one's.
func TestResync(t *testing.T) {
	st := newStation(t, nil)
	address := st.address()
	r := start(t, Options{Targets: []string{address}, Resync: true, Proxy: "v1"})
	reset := make(chan int, 10)
	open := func(i int, a string) *Stream {
		s := r.Open(uint64(i), netip.MustParseAddrPort(a), local4, func() { reset <- i })
		s.Write([]byte("session"))
		return s
	}
	streams := []*Stream{open(0, "192.0.2.1:1"), open(1, "192.0.2.2:1")}
	until(t, "both", func() bool { return streams[0].Drained() && streams[1].Drained() })
	if _, gone := r.Gone(time.Now()); gone {
		t.Error("gone while it is there")
	}
	st.close()
	until(t, "down", func() bool { s := r.Status()[0]; return s.State == Down && s.Waiting == 2 && s.Sessions == 0 })
	if since, gone := r.Gone(time.Now()); !gone || since.IsZero() {
		t.Error("not gone")
	}
	select {
	case <-reset:
		t.Fatal("reset while the target is down")
	default:
	}
	ln, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	again := &station{t: t, ln: ln}
	go again.run()
	defer again.close()
	for n := range 2 {
		i := <-reset
		streams[i].Close()
		streams[i] = open(2+i, []string{"192.0.2.1:2", "192.0.2.2:2"}[i])
		if n == 0 {
			select {
			case <-reset:
				t.Error("two resets at a time")
			default:
			}
		}
	}
	until(t, "up", func() bool { s := r.Status()[0]; return s.State == Up && s.Sessions == 2 && s.Resets == 2 })
	until(t, "a header on each connection", func() bool {
		for _, h := range again.heard() {
			if b, _ := h.state(); !bytes.HasPrefix(b, []byte("PROXY TCP4 192.0.2.")) {
				return false
			}
		}
		return true
	})
	for _, s := range streams {
		s.Close()
	}
}

// A spare connection that nobody needed says a header before it ends.
func TestSpareSaysHeader(t *testing.T) {
	st := newStation(t, nil)
	refuse := true
	var mu sync.Mutex
	r := start(t, Options{Targets: []string{st.address()}, Resync: true, Proxy: "v1", Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
		mu.Lock()
		defer mu.Unlock()
		if refuse {
			refuse = false
			return nil, errors.New("refused")
		}
		return new(net.Dialer).DialContext(ctx, network, address)
	}})
	s := r.Open(1, router4, local4, nil)
	until(t, "spare", func() bool { return r.Status()[0].State == Resyncing })
	if err := r.Close(t.Context()); err != nil {
		t.Error(err)
	}
	until(t, "its end", func() bool {
		b, over := st.first()
		return over && bytes.HasPrefix(b, []byte("PROXY TCP4 192.0.2.1 "))
	})
	s.Close()
	if r.Open(2, router4, local4, nil).Write([]byte("x")) {
		t.Error("a stream that was opened after Close")
	}
}

// A dead target is tried with growing pauses, which a fake clock makes short.
func TestProbesBackOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var tries []time.Time
		var mu sync.Mutex
		r := start(t, Options{Targets: []string{"x:1"}, Resync: true, Dial: func(context.Context, string, string) (net.Conn, error) {
			mu.Lock()
			defer mu.Unlock()
			tries = append(tries, time.Now())
			return nil, errors.New("refused")
		}})
		s := r.Open(1, router4, local4, func() { t.Error("reset") })
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		mu.Lock()
		n, last := len(tries), tries[len(tries)-1].Sub(tries[len(tries)-2])
		mu.Unlock()
		if n < 150 || n > 300 || last < 2*time.Second || last > 4*time.Second {
			t.Errorf("%d tries, the last two %v apart", n, last)
		}
		s.Close()
		_ = r.Close(t.Context())
	})
}

// An older session of the same router is told to its end before a newer begins.
func TestSessionsOfOneRouterInOrder(t *testing.T) {
	hear := make(chan struct{})
	st := newStation(t, hear)
	r := start(t, Options{Targets: []string{st.address()}})
	first := r.Open(1, router4, local4, nil)
	first.Write(random(8<<20, 1))
	until(t, "connected", func() bool { return r.Status()[0].Sessions == 1 })
	first.Close()
	second := r.Open(2, router4, local4, nil)
	second.Write([]byte("second"))
	if n := len(st.heard()); n > 1 {
		t.Errorf("%d connections at once", n)
	}
	close(hear)
	until(t, "second", second.Drained)
	until(t, "the first session", func() bool { b, over := st.first(); return over && len(b) == 8<<20 })
	second.Close()
}

// Close delivers what is buffered, or says that it did not.
func TestClose(t *testing.T) {
	hear := make(chan struct{})
	st := newStation(t, hear)
	r := start(t, Options{Targets: []string{st.address()}})
	s := r.Open(1, router4, local4, nil)
	s.Write(random(20<<20, 1))
	until(t, "connected", func() bool { return r.Status()[0].Sessions == 1 })
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if err := r.Close(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Close with a deaf target: %v", err)
	}
	close(hear)
}

func BenchmarkWrite(b *testing.B) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer ln.Close()
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				buf := make([]byte, 1<<20)
				for {
					if _, err := c.Read(buf); err != nil {
						return
					}
				}
			}()
		}
	}()
	const message = 145
	for _, bench := range []struct {
		name string
		size int
	}{{"64KiB", 64 << 10}, {"1message", message}} {
		b.Run(bench.name, func(b *testing.B) {
			r := New(Options{Targets: []string{ln.Addr().String()}, Proxy: "none", Buffer: 64 << 20, Parallel: 1, Log: slog.New(slog.DiscardHandler)})
			s := r.Open(1, router4, local4, nil)
			chunk := random(bench.size, 1)
			write := func() {
				// A writer that is faster than the loopback must not be cut.
				if t := r.targets[0]; t.budget.taken() > 8<<20 {
					b.StopTimer()
					for !s.Drained() {
						time.Sleep(100 * time.Microsecond)
					}
					b.StartTimer()
				}
				s.Write(chunk)
			}
			for range 16 << 20 / bench.size {
				write() // once through all chunks
			}
			b.ReportAllocs()
			b.ResetTimer()
			for range b.N {
				write()
			}
			b.StopTimer()
			if s := r.Status()[0]; s.Cuts+s.Lost > 0 {
				b.Fatalf("status %+v", s)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/(float64(bench.size)/message), "ns/msg")
			s.Close()
			if err := r.Close(context.Background()); err != nil {
				b.Fatal(err)
			}
		})
	}
}

func BenchmarkDrained(b *testing.B) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer ln.Close()
	r := New(Options{Targets: []string{ln.Addr().String()}, Proxy: "none", Buffer: 1 << 20, Parallel: 1, Log: slog.New(slog.DiscardHandler)})
	s := r.Open(1, router4, local4, nil)
	for !s.Drained() {
		time.Sleep(time.Millisecond)
	}
	b.ReportAllocs()
	for b.Loop() {
		if !s.Drained() {
			b.Fatal("not drained")
		}
	}
	s.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
	defer cancel()
	_ = r.Close(ctx)
}
