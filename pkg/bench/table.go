package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/bmpha/bmpha/pkg/bgp"
	"github.com/bmpha/bmpha/pkg/bmp"
	store "github.com/bmpha/bmpha/pkg/table"
)

// table measures the table of a router with ten full tables: what it takes, and
// what its work costs those who wait.
func (r *run) table(ctx context.Context) ([]*table, error) {
	const peers = 10
	prefixes, sets := 1_000_000, 200_000
	if r.quick {
		prefixes, sets = prefixes/10, sets/10
	}
	t := &table{Title: "9. The table of a router", Columns: []string{"what", "figure", "unit", "target", ""}}
	tables := []*table{t}
	t.note("%d peers of %s prefixes, 80 %% IPv4, lengths as in the Internet, in random order; %s attribute sets for each peer, none shared", peers, number(float64(prefixes)), number(float64(sets)))
	t.note("%d CPUs; one goroutine for each role; latencies are those of single calls and include whatever else ran on the machine", runtime.GOMAXPROCS(0))
	t.note("updates are messages of one known route with attributes that are known, too, one after the other; medians of %d times %s, with how much of that the thread had of a CPU", turns, number(updates))

	busy, total0, err := machineCPU()
	if err != nil {
		return nil, err
	}
	self := selfCPU()
	defer func() {
		if b, all, err := machineCPU(); err == nil {
			t.result("others used %.0f %% of the machine meanwhile; where that is much, times are theirs, too", 100*max(0, (b-busy-(selfCPU()-self)).Seconds()/(all-total0).Seconds()))
		}
	}()
	before := resident()
	s := store.NewStore()
	tab := store.NewTable(s, store.Options{})
	w := newTableWorld(prefixes, sets)
	var spent time.Duration
	for p := range peers {
		if err := ctx.Err(); err != nil {
			return tables, err
		}
		took, err := w.load(tab, p)
		if err != nil {
			return tables, err
		}
		spent += took
	}
	total := float64(tab.Routes())
	if want := peers * prefixes; int(total) != want {
		return tables, fmt.Errorf("%v routes, want %d", total, want)
	}
	debug.FreeOSMemory()
	after := resident()
	t.judge("resident with all routes", float64(after)/1e6, "MB", 1500)
	t.row("of that the benchmark's own", float64(before+w.bytes())/1e6, "MB", "", "")
	t.row("routes", float64(tab.Bytes())/total, "bytes/route", "", "")
	t.row("attribute sets", float64(s.AttributeSets()), "", "", "")
	t.row("all, from the system", float64(s.Bytes())/total, "bytes/route", "", "")
	t.row("load, in random order, several routes a message", float64(spent.Nanoseconds())/total, "ns/route", "", "")

	for _, o := range []order{anyRoute, churned, dumped} {
		wall, cpu, allocs, err := w.timeUpdates(tab, peers, o)
		if err != nil {
			return tables, err
		}
		t.judge("update, "+o.String(), wall, "ns", 1000)
		t.row("    of that CPU", cpu, "ns", "", "")
		t.judge("    allocations", float64(int(allocs*1000))/1000, "", 0)
		r.promise(allocs < 0.01, "no allocation for a known prefix (%v)", allocs)
	}

	// A collector's hot path goes on through collections.
	batch := w.updates(rand.New(rand.NewPCG(1, 2)), updates, peers, anyRoute)
	var tail, worsts, stops []float64
	for range rounds {
		pauses := gcPauses()
		hot := startHot(tab, batch)
		runtime.GC()
		p99, worst := hot.stop()
		tail, worsts, stops = append(tail, p99), append(worsts, worst/1000), append(stops, gcPauses().since(pauses)*1000)
	}
	t.row(fmt.Sprintf("update while the garbage collector runs, 99.9 %%, median of %d runs", rounds), median(tail), "µs", "", "")
	t.judge("update while the garbage collector runs, worst, median of runs", median(worsts), "ms", 5)
	t.row("    worst of all runs", slices.Max(worsts), "ms", "", "")
	t.judge("stop-the-world pause, worst of all runs", slices.Max(stops), "ms", 5)

	// A walk beside updates.
	for _, sorted := range []bool{false, true} {
		hot := startHot(tab, batch)
		start := time.Now()
		walk := store.Walk{ByPrefix: sorted}
		seen, bytes := 0, 0
		for more := true; more && seen < 1_000_000; {
			more = tab.Walk(&walk, 500, func(rt *store.Route) { seen++; bytes += len(rt.Attrs) })
		}
		took := time.Since(start)
		p99, worst := hot.stop()
		name := "walk, by RIB"
		if sorted {
			name = "walk, by prefix"
		}
		t.judge(name+", beside updates", took.Seconds()*1e6/float64(seen), "s/1 M routes", 1)
		t.row("    updates meanwhile", float64(len(hot.took))/took.Seconds(), "1/s", "", "")
		t.row("    one of them, 99.9 %", p99, "µs", "", "")
		t.row("    one of them, worst", worst/1000, "ms", "", "")
		r.promise(len(hot.took) > 100, "updates go on beside a walk (%d)", len(hot.took))
	}

	// A looking glass.
	for _, q := range []struct {
		name string
		m    store.Match
	}{{"lookup, exact", store.Exact}, {"lookup, longest match", store.Longest}, {"lookup, all shorter", store.Shorter}} {
		rng := rand.New(rand.NewPCG(3, 4))
		found := 0
		start := time.Now()
		const n = 2000
		for range n {
			tab.Lookup(w.prefixes[rng.IntN(len(w.prefixes))], q.m, store.Walk{}, func(*store.Route) bool { found++; return true })
		}
		t.row(fmt.Sprintf("%s, %.1f routes of %d peers", q.name, float64(found)/n, peers), time.Since(start).Seconds()*1e6/n, "µs", "", "")
	}
	start := time.Now()
	found := 0
	tab.Lookup(netip.MustParsePrefix("93.0.0.0/8"), store.Longer, store.Walk{}, func(*store.Route) bool { found++; return true })
	t.row(fmt.Sprintf("lookup, all longer: %s routes", number(float64(found))), time.Since(start).Seconds()*1e3, "ms", "", "")

	// A peer with all its routes goes; another router's updates go on.
	other := store.NewTable(s, store.Options{})
	if err := other.Apply(w.peerUp(0), 0, nil); err != nil {
		return tables, err
	}
	rng := rand.New(rand.NewPCG(5, 6))
	var otherBatch [][]byte
	for range 10_000 {
		otherBatch = append(otherBatch, w.update(rng, 0, anyRoute))
	}
	var downs, tidies, owns []float64
	tail, worsts = nil, nil
	for peer := 0; peer < peers; peer += 2 {
		worstOwn := time.Duration(0)
		hot := startHot(other, otherBatch)
		start = time.Now()
		if err := tab.Apply(w.peerDown(peer), 2, nil); err != nil {
			return tables, err
		}
		downs = append(downs, time.Since(start).Seconds()*1e6)
		gone := 0
		for more := true; more; {
			at := time.Now()
			more = tab.Tidy(500, func(*store.Change) { gone++ })
			worstOwn = max(worstOwn, time.Since(at))
		}
		tidies, owns = append(tidies, time.Since(start).Seconds()*1e3), append(owns, worstOwn.Seconds()*1e3)
		p99, worst := hot.stop()
		tail, worsts = append(tail, p99), append(worsts, worst/1000)
		if gone != prefixes {
			return tables, fmt.Errorf("%d routes were reported gone, want %d", gone, prefixes)
		}
	}
	t.row(fmt.Sprintf("Peer Down of one full table, the message, median of %d", len(downs)), median(downs), "µs", "", "")
	t.row("    its routes reported and released", median(tidies), "ms", "", "")
	t.row("    other router's update meanwhile, 99.9 %", median(tail), "µs", "", "")
	t.judge("    other router's update meanwhile, worst", median(worsts), "ms", 10)
	t.row("    worst of all", slices.Max(worsts), "ms", "", "")
	t.judge("    this router's wait for one step, worst", median(owns), "ms", 10)

	// The rest is given up.
	left, used := tab.Routes(), s.InUse()
	start = time.Now()
	for tab.Close(1000) {
	}
	t.row("Close of the rest, without reports", float64(time.Since(start).Nanoseconds())/float64(left), "ns/route", "", "")
	t.row("    in use of the store, of what was before", 100*float64(s.InUse())/float64(used), "%", "", "")
	runtime.KeepAlive(tab)

	// The same routes, without attributes.
	s = store.NewStore()
	tab = store.NewTable(s, store.Options{Hashes: true})
	for p := range peers {
		if _, err := w.load(tab, p); err != nil {
			return tables, err
		}
	}
	t.row("hashes alone: all, from the system", float64(s.Bytes())/1e6, "MB", "", "")
	t.row("    the same", float64(s.Bytes())/total, "bytes/route", "", "")
	wall, cpu, _, err := w.timeUpdates(tab, peers, anyRoute)
	if err != nil {
		return tables, err
	}
	t.row("    update, "+anyRoute.String(), wall, "ns", "", "")
	t.row("    of that CPU", cpu, "ns", "", "")
	return tables, nil
}

const (
	updates = 100_000 // of a batch
	turns   = 15      // of a batch
	rounds  = 9       // of what happens beside updates
)

// judge prints a figure, its target, and whether it is met.
func (t *table) judge(what string, figure float64, unit string, most float64) {
	verdict := "met"
	if figure > most {
		verdict = "MISSED"
		t.result("target missed: %s: %s %s, want at most %s", strings.TrimSpace(what), number(figure), unit, number(most))
	}
	t.row(what, figure, unit, number(most), verdict)
}

// An order is which routes a batch of updates is of.
type order int

const (
	anyRoute order = iota
	churned
	dumped
)

func (o order) String() string {
	return [...]string{"any of all routes, the worst case", "9 of 10 in 1 % of prefixes and sets", "in the order of a dump"}[o]
}

// timeUpdates returns what an update of a batch takes, in ns.
func (w *tableWorld) timeUpdates(tab *store.Table, peers int, o order) (wall, cpu, allocs float64, err error) {
	batch := w.updates(rand.New(rand.NewPCG(1, 2)), updates, peers, o)
	each := func(*store.Change) {}
	var walls, cpus []float64
	for turn := range turns + 1 {
		var m0, m1 runtime.MemStats
		runtime.ReadMemStats(&m0)
		wall, thread, err := timed(func() error {
			for _, m := range batch {
				if err := tab.Apply(m, 1, each); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return 0, 0, 0, err
		}
		runtime.ReadMemStats(&m1)
		if turn == 0 {
			continue // brings back sets that the batch before had dropped
		}
		allocs += float64(m1.Mallocs-m0.Mallocs) / (turns * updates)
		walls, cpus = append(walls, float64(wall.Nanoseconds())/updates), append(cpus, float64(thread.Nanoseconds())/updates)
	}
	return median(walls), median(cpus), allocs, nil
}

// timed returns how long f took, and the CPU time of its thread.
func timed(f func() error) (wall, cpu time.Duration, err error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var before, after syscall.Rusage
	const thread = 1 // RUSAGE_THREAD
	if err := syscall.Getrusage(thread, &before); err != nil {
		return 0, 0, fmt.Errorf("ask for CPU time: %w", err)
	}
	start := time.Now()
	err = f()
	wall = time.Since(start)
	if e := syscall.Getrusage(thread, &after); e != nil && err == nil {
		err = fmt.Errorf("ask for CPU time: %w", e)
	}
	used := func(u *syscall.Rusage) time.Duration { return time.Duration(u.Utime.Nano() + u.Stime.Nano()) }
	return wall, used(&after) - used(&before), err
}

// resident returns the resident memory of this process in bytes.
func resident() int64 {
	b, _ := os.ReadFile("/proc/self/status")
	for line := range strings.Lines(string(b)) {
		var kb int64
		if _, err := fmt.Sscanf(line, "VmRSS: %d kB", &kb); err == nil {
			return kb << 10
		}
	}
	return 0
}

// pauses is a histogram of stop-the-world pauses.
type pauses struct{ h *metrics.Float64Histogram }

func gcPauses() pauses {
	s := []metrics.Sample{{Name: "/sched/pauses/total/gc:seconds"}}
	metrics.Read(s)
	if s[0].Value.Kind() != metrics.KindFloat64Histogram {
		return pauses{&metrics.Float64Histogram{}}
	}
	h := s[0].Value.Float64Histogram()
	return pauses{&metrics.Float64Histogram{Counts: slices.Clone(h.Counts), Buckets: slices.Clone(h.Buckets)}}
}

// since returns the longest pause after those in old, as the upper end of its
// bucket, in seconds.
func (p pauses) since(old pauses) float64 {
	for i := len(p.h.Counts) - 1; i >= 0; i-- {
		if i < len(old.h.Counts) && p.h.Counts[i] > old.h.Counts[i] {
			return p.h.Buckets[i+1]
		}
	}
	return 0
}

// A hot applies updates to a table one after the other and times each.
type hot struct {
	quit atomic.Bool
	wg   sync.WaitGroup
	took []time.Duration
}

// hotTimes is room for the times of one hot after the other.
var hotTimes []time.Duration

func startHot(tab *store.Table, batch [][]byte) *hot {
	if hotTimes == nil {
		hotTimes = make([]time.Duration, 20_000_000)
	}
	h := &hot{took: hotTimes[:0]}
	h.wg.Go(func() {
		for i := 0; !h.quit.Load() && len(h.took) < cap(h.took); i++ {
			at := time.Now()
			_ = tab.Apply(batch[i%len(batch)], 1, nil) // tested elsewhere
			h.took = append(h.took, time.Since(at))
		}
	})
	return h
}

// stop returns the 99.9th percentile and the worst time of one update, in µs.
func (h *hot) stop() (p999, worst float64) {
	h.quit.Store(true)
	h.wg.Wait()
	slices.Sort(h.took)
	n := len(h.took)
	return h.took[n*999/1000].Seconds() * 1e6, h.took[n-1].Seconds() * 1e6
}

// A tableWorld makes full tables.
type tableWorld struct {
	prefixes []netip.Prefix
	sets     [][]byte // attributes of one peer, without its first AS number
	rng      *rand.Rand
}

// Shares of prefix lengths in the Internet's tables, in percent, roughly.
var (
	lengths4 = map[int]int{24: 60, 23: 10, 22: 12, 21: 5, 20: 5, 19: 3, 18: 2, 17: 1, 16: 2}
	lengths6 = map[int]int{48: 50, 32: 12, 44: 8, 40: 10, 36: 6, 46: 5, 29: 4, 33: 5}
)

func newTableWorld(prefixes, sets int) *tableWorld {
	w := &tableWorld{rng: rand.New(rand.NewPCG(7, 8))}
	pick := func(m map[int]int) int {
		n := w.rng.IntN(100)
		for _, bits := range slices.Sorted(mapKeys(m)) {
			if n -= m[bits]; n < 0 {
				return bits
			}
		}
		return 24
	}
	known := make(map[netip.Prefix]bool, prefixes)
	for len(w.prefixes) < prefixes {
		var p netip.Prefix
		if len(w.prefixes) < prefixes*4/5 {
			var a [4]byte
			binary.BigEndian.PutUint32(a[:], 1<<24+w.rng.Uint32N(222<<24))
			p = netip.PrefixFrom(netip.AddrFrom4(a), pick(lengths4)).Masked()
		} else {
			a := [16]byte{0: 0x20 + byte(w.rng.IntN(16)), 1: byte(w.rng.IntN(32))}
			binary.BigEndian.PutUint32(a[2:], w.rng.Uint32())
			p = netip.PrefixFrom(netip.AddrFrom16(a), pick(lengths6)).Masked()
		}
		if !known[p] {
			known[p] = true
			w.prefixes = append(w.prefixes, p)
		}
	}
	for range sets {
		path := make([]uint32, 2+w.rng.IntN(5))
		for i := range path {
			path[i] = 1000 + w.rng.Uint32N(400000)
		}
		b := bgp.AppendASPath(bgp.AppendOrigin(nil, uint8(w.rng.IntN(3))), append([]uint32{0}, path...)...)
		if w.rng.IntN(2) == 0 {
			b = bgp.AppendMED(b, w.rng.Uint32N(1000))
		}
		comms := make([]uint32, w.rng.IntN(9))
		for i := range comms {
			comms[i] = w.rng.Uint32()
		}
		if len(comms) > 0 {
			b = bgp.AppendCommunities(b, comms...)
		}
		if w.rng.IntN(5) == 0 {
			b = bgp.AppendLargeCommunities(b, [3]uint32{w.rng.Uint32(), 1, 2}, [3]uint32{w.rng.Uint32(), 3, 4})
		}
		w.sets = append(w.sets, b)
	}
	return w
}

func mapKeys(m map[int]int) func(func(int) bool) {
	return func(yield func(int) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}

// bytes returns roughly what w takes.
func (w *tableWorld) bytes() int64 {
	n := int64(len(w.prefixes)) * 32
	for _, s := range w.sets {
		n += int64(cap(s)) + 24
	}
	return n
}

func (w *tableWorld) header(peer int) []byte {
	addr := netip.AddrFrom4([4]byte{10, 0, 0, byte(1 + peer)})
	return bmp.AppendPeerHeader(nil, 0, 0, 0, addr, uint32(65000+peer), addr, time.Unix(1e9, 0))
}

func (w *tableWorld) peerUp(peer int) []byte {
	local := netip.MustParseAddr("10.0.0.254")
	open := func(as uint32) []byte { return bgp.AppendOpen(nil, as, 90, local, bgp.AppendCapAS4(nil, as)) }
	return bmp.AppendPeerUp(nil, w.header(peer), local, 179, 1000, open(64000), open(uint32(65000+peer)), nil)
}

func (w *tableWorld) peerDown(peer int) []byte {
	return bmp.AppendPeerDown(nil, w.header(peer), bmp.DownRemote, nil)
}

// message announces routes of one family with set number n of a peer.
func (w *tableWorld) message(peer, n int, v6 bool, nlri []byte) []byte {
	set := slices.Clone(w.sets[n])
	binary.BigEndian.PutUint32(set[bgpPathAt:], uint32(65000+peer))
	var update []byte
	if v6 {
		hop := netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, 15: byte(peer)})
		update = bgp.AppendUpdate(nil, nil, bgp.AppendMPReach(set, 2, 1, hop, nlri), nil)
	} else {
		update = bgp.AppendUpdate(nil, nil, bgp.AppendNextHop(set, netip.AddrFrom4([4]byte{192, 0, 2, byte(peer)})), nlri)
	}
	return bmp.AppendRouteMonitoring(nil, w.header(peer), update)
}

// bgpPathAt is where the first AS number is in attributes that begin with ORIGIN
// and AS_PATH.
const bgpPathAt = 4 + 3 + 2

// load announces all prefixes of a peer, in random order, with each set for about
// equally many of one family, and returns the time that the table took.
func (w *tableWorld) load(tab *store.Table, peer int) (spent time.Duration, err error) {
	order := w.rng.Perm(len(w.prefixes))
	at := [2]int{}
	families := [2][]int{}
	for _, i := range order {
		f := 0
		if w.prefixes[i].Addr().Is6() {
			f = 1
		}
		families[f] = append(families[f], i)
	}
	apply := func(m []byte) {
		start := time.Now()
		if e := tab.Apply(m, 1, nil); e != nil {
			err = e
		}
		spent += time.Since(start)
	}
	apply(w.peerUp(peer))
	each := float64(len(order)) / float64(len(w.sets))
	v4 := len(w.sets) * 4 / 5
	for n := range w.sets {
		f := 0
		if n >= v4 {
			f = 1
		}
		many := int(float64(at[f])+each*(0.5+w.rng.Float64())) - at[f]
		if n == v4-1 || n == len(w.sets)-1 {
			many = len(families[f])
		}
		for many > 0 && at[f] < len(families[f]) {
			end := min(at[f]+min(many, 50), len(families[f]))
			var nlri []byte
			for _, i := range families[f][at[f]:end] {
				nlri = bgp.AppendPrefix(nlri, w.prefixes[i])
			}
			apply(w.message(peer, n, f == 1, nlri))
			many -= end - at[f]
			at[f] = end
		}
	}
	apply(bmp.AppendRouteMonitoring(nil, w.header(peer), bgp.AppendEndOfRIB(nil, 1, 1)))
	return spent, err
}

func (w *tableWorld) update(rng *rand.Rand, peer int, o order) []byte {
	p, set := w.prefixes[rng.IntN(len(w.prefixes))], rng.IntN(len(w.sets))
	if o == churned && rng.IntN(10) > 0 {
		p, set = w.prefixes[100*rng.IntN(len(w.prefixes)/100)], 100*rng.IntN(len(w.sets)/100)
	}
	return w.message(peer, set, p.Addr().Is6(), bgp.AppendPrefix(nil, p))
}

// updates returns n updates of known prefixes, in one piece of memory as they lie
// in the buffer of a connection. In churn, nine of ten are of 1 % of the prefixes,
// and as many attribute sets; in a dump prefixes are those of one peer in order.
func (w *tableWorld) updates(rng *rand.Rand, n, peers int, o order) (msgs [][]byte) {
	var ends []int
	var all []byte
	var sorted []netip.Prefix
	if o == dumped {
		sorted = slices.SortedFunc(slices.Values(w.prefixes), netip.Prefix.Compare)[len(w.prefixes)/3:]
	}
	for i := range n {
		if o == dumped {
			p := sorted[i%len(sorted)]
			all = append(all, w.message(1, rng.IntN(len(w.sets)), p.Addr().Is6(), bgp.AppendPrefix(nil, p))...)
		} else {
			all = append(all, w.update(rng, rng.IntN(peers), o)...)
		}
		ends = append(ends, len(all))
	}
	at := 0
	for _, end := range ends {
		msgs = append(msgs, all[at:end])
		at = end
	}
	return msgs
}
