package collector

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/bmpha/bmpha/pkg/bmp"
	"github.com/bmpha/bmpha/pkg/cluster"
	"github.com/bmpha/bmpha/pkg/gate"
	"github.com/bmpha/bmpha/pkg/hold"
	"github.com/bmpha/bmpha/pkg/intake"
	"github.com/bmpha/bmpha/pkg/pmacct"
	"github.com/bmpha/bmpha/pkg/record"
	"github.com/bmpha/bmpha/pkg/sink"
	"github.com/bmpha/bmpha/pkg/spool"
)

// still makes a collector that does not run: its routers and logs are there, and
// nothing happens by itself.
func still(t *testing.T, change ...func(*Options)) *Collector {
	t.Helper()
	log := slog.New(slog.NewTextHandler(testWriter{t}, nil))
	out, err := sink.NewFile(filepath.Join(t.TempDir(), "out"))
	if err != nil {
		t.Fatal(err)
	}
	enc, err := pmacct.NewEncoder(pmacct.Options{Zone: time.UTC})
	if err != nil {
		t.Fatal(err)
	}
	o := Options{
		Process: "still", Cluster: "lab", MaxSessions: 10, MaxMessage: 1 << 20, Memory: 64 << 20,
		Window: 15 * time.Second, Margin: time.Second, Heartbeat: time.Second, Expiry: 2 * time.Second,
		Redis: cluster.Options{Address: "127.0.0.1:1"}, Encoder: enc, Sink: out, Log: log,
		Topic: func(netip.Addr, uint16) string { return labTopic },
		Key:   func(a netip.Addr, _ uint16) []byte { return []byte(a.String()) },
		Route: func(a netip.Addr) string { return a.String() },
	}
	for _, f := range change {
		f(&o)
	}
	c, err := New(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.closeListeners()
		if err := c.closeBesides(); err != nil {
			t.Error(err)
		}
		c.co.client.Close()
		out.Close(0)
	})
	return c
}

func spooling(dir string, memory, disk int64) func(*Options) {
	return func(o *Options) {
		o.Memory = memory
		o.Spool = &spool.Options{Dir: dir, MaxBytes: disk, SegmentBytes: disk / 16, Log: o.Log}
	}
}

var someRouter = netip.MustParseAddr("192.0.2.1")

// numberedEntry is a record of a producer with a number in it.
func numberedEntry(n int) []byte {
	value := append(binary.BigEndian.AppendUint32(nil, uint32(n)), make([]byte, 1000)...)
	return intake.AppendEntry(nil, &intake.Record{Topic: []byte(labTopic), Value: value})
}

// drain sends what is in the log of r, and what comes from disk meanwhile, to
// nobody, until it has count records or there are no more. It returns the numbers
// of the records. The caller holds the router's lock.
func drain(t *testing.T, c *Collector, r *router, count int) (numbers []int) {
	t.Helper()
	r.stream.SetWanted(true, 1, false)
	r.stream.Start()
	for len(numbers) < count {
		for c.fetch(r) {
		}
		if !r.stream.Begin() {
			break
		}
		var b record.Batch
		r.stream.Fill(&b, 100, 1<<20, 0)
		pos, ok := r.stream.End(b.Len())
		if !ok {
			t.Fatal("stopped")
		}
		for _, rec := range b.Recs {
			numbers = append(numbers, int(binary.BigEndian.Uint32(b.Data[rec.ValueOff:])))
		}
		r.stream.Handed(b.Len())
		r.stream.Report(pos+uint64(b.Len()), 0, false)
	}
	for c.fetch(r) {
	}
	return numbers
}

// crash returns a copy of a spool as it would be without its process.
func crash(t *testing.T, dir string) string {
	t.Helper()
	left := t.TempDir()
	if err := os.CopyFS(left, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	return left
}

// TestSpoolIsTakenOverHalfway: when the process ends while it reads the spool back,
// the next one finds no opening of the session any more, and sends the rest all
// the same, without going back to the beginning.
func TestSpoolIsTakenOverHalfway(t *testing.T) {
	const n = 4000
	dir := t.TempDir()
	c := still(t, spooling(dir, 1<<20, 64<<20))
	r := c.router(someRouter.String(), someRouter, true)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.stream.SetCovered(false)
	opened := openedBody(netip.AddrPortFrom(someRouter, 0))
	if !c.put(r, hold.Opened, 1, c.clock.now(), opened[:]) {
		t.Fatal("no room")
	}
	for i := range n {
		if !c.put(r, hold.Message, 1, c.clock.now(), numberedEntry(i)) {
			t.Fatal("no room")
		}
	}
	sent := drain(t, c, r, n/2)
	if err := r.spool.queue.Flush(); err != nil {
		t.Fatal(err)
	}

	next := still(t, spooling(crash(t, dir), 64<<20, 64<<20))
	nr := next.router(someRouter.String(), someRouter, true)
	nr.mu.Lock()
	defer nr.mu.Unlock()
	rest := drain(t, next, nr, n)
	if len(rest) == 0 || rest[0] > len(sent) || rest[0] == 0 || rest[len(rest)-1] != n-1 || len(rest) != n-rest[0] {
		t.Fatalf("%d records sent before, %d after", len(sent), len(rest))
	}
	if nr.stream.Counters().Errors > 0 || nr.spool.open {
		t.Errorf("%+v, open %t", nr.stream.Counters(), nr.spool.open)
	}
}

// TestSpoolOfMessagesIsTakenOverHalfway: the same for messages that are decoded:
// what is found begins with the opening and the Peer Ups, which are there once.
func TestSpoolOfMessagesIsTakenOverHalfway(t *testing.T) {
	const n = 40_000
	dir := t.TempDir()
	c := still(t, spooling(dir, 1<<20, 64<<20))
	r := c.router(someRouter.String(), someRouter, false)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.stream.SetCovered(false)
	opened := openedBody(netip.AddrPortFrom(someRouter, 0))
	c.put(r, hold.Opened, 1, c.clock.now(), opened[:])
	up := make([]byte, 200)
	up[0], up[5] = 3, bmp.TypePeerUp
	binary.BigEndian.PutUint32(up[1:], uint32(len(up)))
	r.spool.note(up)
	c.put(r, hold.Message, 1, c.clock.now(), up)
	stats := make([]byte, 100) // no records
	stats[0], stats[5] = 3, bmp.TypeStatisticsReport
	binary.BigEndian.PutUint32(stats[1:], uint32(len(stats)))
	for i := range n {
		binary.BigEndian.PutUint32(stats[90:], uint32(i))
		if !c.put(r, hold.Message, 1, c.clock.now(), stats) {
			t.Fatal("no room")
		}
	}
	// A standby: the log leaves at its old end.
	r.stream.SetCovered(true)
	for r.spool.acked < n/2 {
		if !r.stream.MakeRoom() {
			t.Fatal("no room is made")
		}
		for c.fetch(r) {
		}
	}
	oldest, _ := r.held.Oldest()
	first := int(binary.BigEndian.Uint32(oldest.Body[90:]))
	if err := r.spool.queue.Flush(); err != nil {
		t.Fatal(err)
	}

	next := still(t, spooling(crash(t, dir), 64<<20, 64<<20))
	nr := next.router(someRouter.String(), someRouter, false)
	nr.mu.Lock()
	defer nr.mu.Unlock()
	for next.fetch(nr) {
	}
	var kinds []hold.Kind
	ups, want := 0, -1
	cur := nr.held.Tail()
	nr.held.Sync(&cur)
	for {
		e, ok := cur.Next(nr.held.End())
		if !ok {
			break
		}
		if e.Kind != hold.Message || len(kinds) < 2 {
			kinds = append(kinds, e.Kind)
		}
		if e.Kind != hold.Message {
			continue
		}
		if bytes.Equal(e.Body, up) {
			ups++
			continue
		}
		i := int(binary.BigEndian.Uint32(e.Body[90:]))
		const most = (256<<10 + 2*preludeEvery) / 100 // a standby frees 256 KiB at a time
		if want >= 0 && i != want || want < 0 && (i > first || i < first-most) {
			t.Fatalf("number %d, want %d (the oldest was %d)", i, want, first)
		}
		want = i + 1
	}
	if fmt.Sprint(kinds) != fmt.Sprint([]hold.Kind{hold.Opened, hold.Message, hold.Closed}) || ups != 1 || want != n {
		t.Errorf("kinds %v, %d Peer Ups, up to %d of %d", kinds, ups, want, n)
	}
}

// TestSpoolIsUsedAgain: a router that was forgotten and comes back finds its place
// on disk as new, and what it puts there is deleted when acknowledged.
func TestSpoolIsUsedAgain(t *testing.T) {
	c := still(t, spooling(t.TempDir(), 1<<20, 64<<20))
	once := func() {
		r := c.router(someRouter.String(), someRouter, true)
		r.mu.Lock()
		defer r.mu.Unlock()
		r.stream.SetCovered(false)
		r.facts.runs = 1
		opened := openedBody(netip.AddrPortFrom(someRouter, 0))
		c.put(r, hold.Opened, 1, c.clock.now(), opened[:])
		for i := range 3000 {
			c.put(r, hold.Message, 1, c.clock.now(), numberedEntry(i))
		}
		if r.spool.len() == 0 {
			t.Fatal("nothing is on disk")
		}
		if n := len(drain(t, c, r, 3000)); n != 3000 {
			t.Fatalf("%d records", n)
		}
		c.put(r, hold.Closed, 1, c.clock.now(), nil)
		drain(t, c, r, 3000)
		if used, _ := c.spool.Used(); used != 0 {
			t.Fatalf("%d bytes are still on disk", used)
		}
		r.facts.closedAt = c.clock.now()
	}
	for range 2 {
		once()
		c.routers.mu.Lock()
		if !c.drop(c.routers.byIndex[pmacctPrefix+someRouter.String()]) {
			t.Error("not forgotten")
		}
		c.routers.mu.Unlock()
	}
}

// TestFullStandbyDropsTheOldest: where memory and disk are full, a standby has a
// run without gaps of what came last, also if the disk is full of others' entries.
func TestFullStandbyDropsTheOldest(t *testing.T) {
	full := func(others bool) {
		c := still(t, spooling(t.TempDir(), 1<<20, 4<<20))
		if others {
			q, err := c.spool.Queue("others")
			if err != nil {
				t.Fatal(err)
			}
			for _, size := range []int{100_000, 1000, 1} {
				for q.Append(&spool.Entry{Body: make([]byte, size)}) == nil {
				}
			}
		}
		r := c.router(someRouter.String(), someRouter, true)
		r.mu.Lock()
		defer r.mu.Unlock()
		r.stream.SetCovered(true)
		opened := openedBody(netip.AddrPortFrom(someRouter, 0))
		c.put(r, hold.Opened, 1, c.clock.now(), opened[:])
		const n = 20_000
		for i := range n {
			if !c.put(r, hold.Message, 1, c.clock.now(), numberedEntry(i)) {
				t.Fatal("a standby waits")
			}
		}
		numbers := drain(t, c, r, n)
		for i, k := range numbers {
			if k != numbers[0]+i {
				t.Fatalf("others %t: %d follows %d", others, k, numbers[i-1])
			}
		}
		if len(numbers) < 200 || numbers[len(numbers)-1] != n-1 {
			t.Errorf("others %t: %d records, the last is %d", others, len(numbers), numbers[len(numbers)-1])
		}
	}
	full(false)
	full(true)
}

// TestRecoveredSessionEnds: a session of an earlier process ends before the next
// entry of ours, not behind it, also if damage has hidden where it ends.
func TestRecoveredSessionEnds(t *testing.T) {
	c := still(t, spooling(t.TempDir(), 1<<20, 64<<20))
	r := c.router(someRouter.String(), someRouter, true)
	r.mu.Lock()
	defer r.mu.Unlock()
	opened := openedBody(netip.AddrPortFrom(someRouter, 0))
	c.toSpool(r, hold.Opened, 7, c.clock.now(), opened[:])
	c.toSpool(r, hold.Message, 7, c.clock.now(), numberedEntry(1))
	r.spool.open, r.spool.number = true, 6
	c.fetch(r)
	var got []string
	cur := r.held.Tail()
	r.held.Sync(&cur)
	for e, ok := cur.Next(r.held.End()); ok; e, ok = cur.Next(r.held.End()) {
		got = append(got, fmt.Sprint(e.Kind, " ", e.Session))
	}
	if want := []string{"2 6", "0 7", "1 7"}; fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("log %q, want %q", got, want)
	}
}

// TestRecoveredRouters: what an earlier process left is taken over whatever the
// limit of sessions is now, and an alias finds its address again.
func TestRecoveredRouters(t *testing.T) {
	dir := t.TempDir()
	s, err := spool.Open(spool.Options{Dir: dir, MaxBytes: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 10 {
		q, err := s.Queue(fmt.Sprint("pmacct/edge", i))
		if err != nil {
			t.Fatal(err)
		}
		q.Append(&spool.Entry{Kind: uint8(hold.Message), Body: numberedEntry(i)})
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	c := still(t, spooling(dir, 1<<20, 64<<20), func(o *Options) {
		o.MaxSessions = 1
		o.Alias = map[netip.Addr]string{someRouter: "edge3", netip.MustParseAddr("192.0.2.9"): "edge3"}
	})
	if n := len(c.routers.all()); n != 10 {
		t.Fatalf("%d routers", n)
	}
	if r := c.pmacctRouter(netip.MustParseAddr("192.0.2.9")); r == nil || r.addr != someRouter {
		t.Errorf("%+v", r)
	}
}

// TestAliasIsForgotten: a router with two addresses that was forgotten is new to
// records of both.
func TestAliasIsForgotten(t *testing.T) {
	other := netip.MustParseAddr("2001:db8::1")
	c := still(t, func(o *Options) { o.Alias = map[netip.Addr]string{someRouter: "edge", other: "edge"} })
	for _, a := range []netip.Addr{someRouter, other} {
		if c.pmacctRouter(a) == nil {
			t.Fatal("no router")
		}
	}
	r := c.pmacctRouter(other)
	r.facts.runs, r.facts.closedAt = 1, c.clock.now()
	c.routers.mu.Lock()
	if !c.drop(r) {
		t.Error("not forgotten")
	}
	c.routers.mu.Unlock()
	for _, a := range []netip.Addr{someRouter, other} {
		if again := c.pmacctRouter(a); again == nil || again.forgotten {
			t.Errorf("records of %s go to a router that is forgotten", a)
		}
	}
}

// TestPeerUpsAreBounded: what is remembered for the spool does not grow without
// end.
func TestPeerUpsAreBounded(t *testing.T) {
	c := still(t, spooling(t.TempDir(), 1<<20, 64<<20))
	r := c.router(someRouter.String(), someRouter, false)
	up := make([]byte, 1<<20)
	up[0], up[5] = 3, bmp.TypePeerUp
	binary.BigEndian.PutUint32(up[1:], uint32(len(up)))
	for i := range 100 {
		up[6+10+15] = byte(i) // address
		r.spool.note(up)
		r.spool.note(up)
	}
	sum := 0
	for _, b := range r.spool.peerUps {
		sum += len(b)
	}
	if sum > maxPrelude || sum != r.spool.upBytes || sum == 0 {
		t.Errorf("%d bytes, counted %d", sum, r.spool.upBytes)
	}
}

// TestMarkDoesNotPassWhatIsLost: what was lost with pmacct's producer is not
// vouched for as soon as the producer is back: another member has it.
func TestMarkDoesNotPassWhatIsLost(t *testing.T) {
	for _, decode := range []bool{false, true} {
		c := still(t, func(o *Options) {
			o.NoDecode, o.IntakePatience = !decode, time.Minute
			o.Heartbeat, o.Expiry = time.Minute, 2*time.Minute
			o.Intake = &intake.Options{Listen: []string{"127.0.0.1:0"}}
		})
		p, q := &c.supply, &intake.Producer{ID: 1}
		recs := []intake.Record{{Topic: []byte(labTopic), Value: say("192.0.2.1", "log", "x")}}
		p.Connected(q)
		if err := p.Take(t.Context(), q, recs); err != nil {
			t.Fatal(err)
		}
		r := c.pmacctRouter(someRouter)
		r.course.Begun = 1 // its dump is over
		mark := func() int64 {
			r.mu.Lock()
			defer r.mu.Unlock()
			drain(t, c, r, 1)
			m, ok := r.mark(c, c.clock.now())
			if !ok {
				t.Fatal("no mark")
			}
			return m
		}
		p.attend(c.clock.now())
		if mark() == 0 || p.unfit(c.clock.now()) != "" {
			t.Fatal("no mark, or unfit")
		}
		p.Disconnected(q, nil)
		lost := c.clock.now()
		p.attend(lost)
		p.Connected(&intake.Producer{ID: 2})
		if err := p.Take(t.Context(), &intake.Producer{ID: 2}, recs); err != nil {
			t.Fatal(err)
		}
		p.attend(c.clock.now())
		if m := mark(); m > lost {
			t.Errorf("decode %t: the mark is %d µs behind what was lost", decode, m-lost)
		}
		if p.unfit(c.clock.now()) == "" {
			t.Errorf("decode %t: fit again at once, nobody else takes over", decode)
		}
		later := c.clock.now() + micros(time.Hour)
		p.attend(later)
		if why := p.unfit(later); why != "" || r.Behind {
			t.Errorf("decode %t: behind %t for ever: %s", decode, r.Behind, why)
		}
	}
}

// TestEndIsNotLost: that pmacct hears a router no more is known in the log before
// it is in the table, also where memory and disk are full.
func TestEndIsNotLost(t *testing.T) {
	c := still(t, spooling(t.TempDir(), 1<<20, 1<<20), func(o *Options) {
		o.NoDecode, o.IntakePatience = true, time.Second
		o.Intake = &intake.Options{Listen: []string{"127.0.0.1:0"}}
	})
	p, q := &c.supply, &intake.Producer{ID: 1}
	ctx, cancel := context.WithCancel(t.Context())
	p.Connected(q)
	defer cancel()
	value := say("192.0.2.1", "log", string(bytes.Repeat([]byte("x"), 10_000)))
	stopWaking := make(chan struct{})
	woken := make(chan struct{})
	go func() { // as the coordinator does
		defer close(woken)
		for full := 0; ; {
			select {
			case <-stopWaking:
				return
			case <-time.After(10 * time.Millisecond):
				for _, r := range c.routers.all() {
					r.mu.Lock()
					if r.waits == 0 {
						full = 0
					} else if full++; full > 5 { // it has looked for room as often, in vain
						cancel()
					}
					r.mu.Unlock()
					r.wakeAll()
				}
			}
		}
	}()
	for p.Take(ctx, q, []intake.Record{{Topic: []byte(labTopic), Value: value}}) == nil {
	}
	close(stopWaking)
	<-woken
	r := c.pmacctRouter(someRouter)
	r.mu.Lock()
	for c.toSpool(r, hold.Message, r.feed, c.clock.now(), numberedEntry(0)) || c.toSpool(r, hold.Message, r.feed, c.clock.now(), nil) { // up to the last byte
	}
	r.mu.Unlock()
	p.Disconnected(q, nil)
	gone := c.clock.now() + micros(time.Hour)
	p.attend(gone)
	r.mu.Lock()
	if !r.heard {
		t.Error("not heard any more, and the log does not say so")
	}
	drain(t, c, r, 1<<20)
	r.mu.Unlock()
	p.attend(gone)
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.heard {
		t.Error("still heard")
	}
	drain(t, c, r, 1<<20)
	before, _ := r.stream.Mark(c.clock.now())
	if after, _ := r.stream.Mark(c.clock.now() + micros(time.Hour)); after != before {
		t.Error("the mark goes on although nothing is heard")
	}
	if r.stream.State() != gate.Sending {
		t.Error(r.stream.State())
	}
}

// TestIntakeOutlivesItsContext: the end of the context that a collector was made
// with is for Run to follow, in the order that loses nothing.
func TestIntakeOutlivesItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	log := slog.New(slog.NewTextHandler(testWriter{t}, nil))
	c := still(t, func(o *Options) { o.Log = log })
	c.o.Intake = &intake.Options{Listen: []string{"127.0.0.1:0"}}
	if err := c.besides(ctx); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { defer close(done); c.supply.broker.Serve() }()
	cancel()
	p, err := kgo.NewClient(kgo.SeedBrokers(c.IntakeAddresses()...))
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	within, stop := context.WithTimeout(t.Context(), time.Minute)
	defer stop()
	if err := p.ProduceSync(within, &kgo.Record{Topic: labTopic, Value: []byte("x")}).FirstErr(); err != nil {
		t.Error(err)
	}
	if err := c.supply.broker.Close(); err != nil {
		t.Error(err)
	}
	<-done
}

// TestTrouble: what is over soon is none.
func TestTrouble(t *testing.T) {
	const patience = 5
	var r trouble
	for _, test := range []struct {
		now       int64
		connected bool
		want      int64
	}{
		{1, true, 0},
		{2, false, 0}, {6, false, 0}, {6, true, 0}, // a broker restarts
		{10, false, 0}, {14, false, 0}, {15, false, 10}, {90, false, 10}, // away
		{91, true, 0}, // back
		{102, false, 0}, {107, false, 102},
	} {
		if got := r.step(test.now, !test.connected, patience); got != test.want {
			t.Errorf("at %d: %d, want %d", test.now, got, test.want)
		}
	}
}

// TestPulse: a collector that stood still vouches for nothing that came meanwhile
// before those who read it have woken up.
func TestPulse(t *testing.T) {
	const ms = int64(1000)
	var p pulse
	for _, test := range []struct{ now, want int64 }{
		{1000, 1000}, {1250, 1250}, {1500, 1500}, // beats
		{2900, 1500},               // it stood still
		{3000, 1500}, {3199, 1500}, // readers wake up
		{3201, 3201}, {3450, 3450},
		{6000, 3450}, {7000, 3450}, {8000, 6000}, {9000, 7000}, // again and again: one behind
		{9250, 7000}, {9301, 9301},
	} {
		if got := p.beat(test.now*ms, 500*ms); got != test.want*ms {
			t.Errorf("at %d: %d, want %d", test.now, got/ms, test.want)
		}
	}
}
