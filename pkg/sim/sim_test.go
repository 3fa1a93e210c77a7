package sim

import (
	"flag"
	"fmt"
	"maps"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

var (
	seeds   = flag.Uint64("sim.seeds", 300, "simulated runs")
	first   = flag.Uint64("sim.first", 0, "the first of them")
	minutes = flag.Int64("sim.minutes", 1, "minutes of faults in each run")
)

// TestMain spends memory on speed: a run is small and makes much garbage.
func TestMain(m *testing.M) {
	debug.SetGCPercent(800)
	m.Run()
}

// few is a number of runs, less under -short (and the race detector, which has
// nothing to find here: there are no goroutines).
func few(n uint64) uint64 {
	if testing.Short() {
		return max(1, n/8)
	}
	return n
}

// TestSeeds runs many clusters. BMPHA_SEED=n runs one, with a trace under -v.
func TestSeeds(t *testing.T) {
	if s := os.Getenv("BMPHA_SEED"); s != "" {
		seed, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		opt := Options{Seed: seed, Faults: *minutes * 60 * sec}
		if testing.Verbose() {
			opt.Trace = os.Stdout
			if os.Getenv("BMPHA_PLANNED") != "" {
				opt = planned(seed)
				opt.Trace = os.Stdout
			}
			for _, tt := range mistakes {
				if tt.mistake.String() == os.Getenv("BMPHA_MISTAKE") {
					opt = tt.options(seed)
					opt.Trace = os.Stdout
					if os.Getenv("BMPHA_SOUND") != "" {
						opt.Defect = Sound
					}
				}
			}
			if v, err := strconv.ParseUint(os.Getenv("BMPHA_WORD"), 10, 32); err == nil {
				opt.follow = uint32(v)
			}
		}
		for _, v := range Run(opt).Violations {
			t.Error(v)
		}
		return
	}
	began, used := time.Now(), cpu()
	total, leftOut := runs(t, *seeds, func(seed uint64) Options {
		return Options{Seed: *first + seed, Faults: *minutes * 60 * sec}
	})
	wall := time.Since(began)
	t.Logf("%d runs, %.1f virtual hours, %d faults, %d takeovers, %d changes of routers, %d entries received, %d records in Kafka, %d of them repeats, %.0f s, %.1f ms of a core for each run, %d steps back, at most %.1f s without one sender though nothing had happened",
		*seeds, float64(total.Simulated)/3600e6, total.Faults, total.Takeovers, total.Changes, total.Received, total.Records, total.Repeated,
		wall.Seconds(), float64((cpu()-used).Microseconds())/1e3/float64(*seeds), total.Steps, float64(total.Gap)/1e6)
	summary(t, &total)
	if *seeds < 300 {
		return
	}
	for _, f := range Faults() {
		if f == FenceFails && *minutes < 10 {
			continue // once in some hours
		}
		if total.Fired[f] == 0 && !f.rare() {
			t.Errorf("%q never happened", f)
		}
	}
	if leftOut < *seeds/20 {
		t.Errorf("routes were left out in %d of %d runs only", leftOut, *seeds)
	}
}

// cpu is the time of processors that the process has used.
func cpu() time.Duration {
	var u syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// summary says how often each fault happened and what was excused.
func summary(t *testing.T, total *Result) {
	if testing.Verbose() {
		for _, f := range Faults() {
			t.Logf("%9d %s", total.Fired[f], f)
		}
	}
	for _, why := range slices.Sorted(maps.Keys(total.Excused)) {
		t.Logf("excused %d times: %s", total.Excused[why], why)
	}
}

// runs simulates seeds on all processors. It returns the sum of the results, and
// in how many of them routes were left out.
func runs(t *testing.T, seeds uint64, options func(seed uint64) Options) (total Result, leftOut uint64) {
	var mu sync.Mutex
	var wg sync.WaitGroup
	var next, done atomic.Uint64
	failed := make(map[uint64]string)
	began := time.Now()
	said := began
	total.Excused = make(map[string]int)
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			for seed := next.Add(1) - 1; seed < seeds; seed = next.Add(1) - 1 {
				res := Run(options(seed))
				mu.Lock()
				if len(res.Violations) > 0 {
					failed[res.Seed] = res.Violations[0]
					fmt.Fprintf(os.Stderr, "seed %d: %s\n", res.Seed, res.Violations[0])
				}
				if res.Fired[RedumpLeftOut] > 0 {
					leftOut++
				}
				total.add(&res)
				if n := done.Add(1); time.Since(said) > 20*time.Second {
					said = time.Now()
					fmt.Fprintf(os.Stderr, "%d of %d runs after %.0f s, %d with a violation\n", n, seeds, time.Since(began).Seconds(), len(failed))
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	for _, seed := range slices.Sorted(maps.Keys(failed)) {
		t.Errorf("seed %d: %s", seed, failed[seed])
	}
	return total, leftOut
}

func (r *Result) add(o *Result) {
	for f, n := range o.Fired {
		r.Fired[f] += n
	}
	r.Simulated += o.Simulated
	r.Faults += o.Faults
	r.Takeovers += o.Takeovers
	r.Changes += o.Changes
	r.Received += o.Received
	r.Records += o.Records
	r.Repeated += o.Repeated
	r.Steps += o.Steps
	r.Gap = max(r.Gap, o.Gap)
	for why, n := range o.Excused {
		r.Excused[why] += n
	}
}

// TestSeedsAreRuns: a seed always gives the same run.
func TestSeedsAreRuns(t *testing.T) {
	for seed := range uint64(5) {
		var a, b strings.Builder
		Run(Options{Seed: seed, Trace: &a})
		Run(Options{Seed: seed, Trace: &b})
		if a.String() != b.String() {
			t.Errorf("seed %d gave two different runs", seed)
		}
	}
}

// TestQuiet: without faults each change is in Kafka exactly once, but for what
// sessions dump when they open.
func TestQuiet(t *testing.T) {
	for seed := range few(32) {
		res := Run(Options{Seed: seed, Count: -1})
		for _, v := range res.Violations {
			t.Errorf("seed %d: %s", seed, v)
		}
		if res.lateRepeats > 0 {
			t.Errorf("seed %d: %d changes repeated without a fault", seed, res.lateRepeats)
		}
	}
}

// TestEachFaultAlone: a single fault is never an excuse.
func TestEachFaultAlone(t *testing.T) {
	for _, f := range Faults() {
		if f.observed() {
			continue
		}
		t.Run(f.String(), func(t *testing.T) {
			for seed := range few(8) {
				res := Run(Options{Seed: seed, Only: []Fault{f}, Count: 1, Faults: 30 * sec})
				for _, v := range res.Violations {
					t.Errorf("seed %d: %s", seed, v)
				}
			}
		})
	}
}

// TestPlanned: planned changes repeat nothing.
func TestPlanned(t *testing.T) {
	runs(t, few(64), planned)
}

func planned(seed uint64) Options {
	return Options{Seed: seed, Only: []Fault{Maintenance, LeaveActive, LeaveStandby}, Count: 6, Faults: 120 * sec}
}

// replaced are faults after which a sender is replaced that has not ended well, and
// nothing keeps its successor from fencing it.
var replaced = []Fault{StopActive, StopActive, StopAtHandOver, StopAtHandOver, KillActive, PowerLoss, RestartActive, SessionFlaps, Burst}

// TestFencing: who is fenced says nothing more (I16).
func TestFencing(t *testing.T) {
	total, _ := runs(t, few(64), func(seed uint64) Options {
		return Options{Seed: seed, Fence: true, Only: replaced, Count: 12}
	})
	for _, f := range []Fault{Fences, ProducerFenced, CommitNotAllowed} {
		if total.Fired[f] == 0 {
			t.Errorf("%q never happened", f)
		}
	}
}

// hidden are planned changes while transactions of somebody else are open.
var hidden = []Fault{ForeignTransaction, ForeignTransaction, Maintenance, LeaveActive}

// TestHidden: what a transaction of somebody else hides is repeated with a mark, if it
// is repeated.
func TestHidden(t *testing.T) {
	total, _ := runs(t, few(64), func(seed uint64) Options {
		return Options{Seed: seed, Fence: true, Only: hidden, Count: 6, Faults: 120 * sec}
	})
	for _, f := range []Fault{SeamBehind, ReadBackFails, SeamLeftOut} {
		if total.Fired[f] == 0 {
			t.Errorf("%q never happened", f)
		}
	}
}

// TestSilence: what a sender cannot hear is not lost (I1). With a single silence
// nothing is excused; with several, what was to come behind one.
func TestSilence(t *testing.T) {
	total, _ := runs(t, few(200), func(seed uint64) Options {
		opt := Options{Seed: seed, Only: []Fault{SilentWay}, Count: 1, Faults: 120 * sec}
		if seed%4 == 3 {
			opt.Only, opt.Count = []Fault{SilentWay, SilentWay, KillActive, Maintenance, StopActive, LeaveActive}, 16
		}
		return opt
	})
	for f := SilenceNoticed; f <= SilenceEndsSession; f++ {
		if total.Fired[f] == 0 {
			t.Errorf("%q never happened", f)
		}
	}
	summary(t, &total)
}

// TestFound repeats runs that have found something, in which what happens together is
// rare.
func TestFound(t *testing.T) {
	for _, tt := range []struct {
		what string
		opt  Options
	}{
		{"who was without Kafka repeats what others held for long", Options{Seed: 6798, Faults: 600 * sec}},
		{"a dump is left out as another was made before, by a clock that is ahead", Options{Seed: 72, Only: []Fault{CutActiveFromKafka, KillActive, StopActive, Burst}, Count: 20}},
	} {
		for _, v := range Run(tt.opt).Violations {
			t.Errorf("%s: seed %d: %s", tt.what, tt.opt.Seed, v)
		}
	}
}

// TestLag shows a limit of the design. A low-water mark vouches for what the
// sender received, and the margin for the sessions being that equal. A sender
// that is behind by more, and then stops, takes with it what the others have
// forgotten on its word.
func TestLag(t *testing.T) {
	lost := 0
	n := few(100)
	for seed := range n {
		res := Run(Options{Seed: seed, Lag: true, Only: []Fault{SlowSession, SlowSession, KillActive, Maintenance}, Count: 8})
		if len(res.Violations) > 0 {
			lost++
		}
	}
	t.Logf("%d of %d runs with a slow session and a change of the sender lost something", lost, n)
	if lost == 0 {
		t.Error("nothing was lost: the limit is gone, and with it the excuse in checkLoss")
	}
}

// mistakes are those of which each must be found within so many seeds.
var mistakes = []mistake{
	{LiveBeforeHeld, 40, nil, 0},
	{PopsOnFailure, 60, nil, 0},
	{IgnoresLease, 40, nil, 0},
	{WindowOnly, 200, []Fault{KafkaOutage, CutActiveFromKafka, KillActive, Maintenance}, 0},
	{StandbyWaits, 60, []Fault{KafkaOutage, Burst}, 0},
	{ErrorsMeanAlone, 200, []Fault{RedisErrors}, 12},
	{GroundIgnored, 40, reopening, 12},
	{OthersUnseen, 200, []Fault{SessionFlaps, SessionFlaps, SessionFlaps, Maintenance, CutRouterFromActive}, 12},
	{AlwaysWhole, 400, []Fault{RestartActive, RouterRestarts, SessionFlaps, SessionFlaps, SessionFlaps}, 30},
	{UnendedIsWhole, 600, []Fault{RestartActive, RouterRestarts, SessionFlaps, SessionFlaps, SessionFlaps}, 30},
	{NoSweep, 20, reopening, 12},
	{LeaseUnseen, 1000, []Fault{StopActive, StopActive, SessionFlaps, SessionFlaps, SlowSession}, 12},
	{LossUntold, 600, pressing, 20},
	{GoneIsOldest, 100, []Fault{KillActive, PowerLoss}, 2},
	{TiesBothActive, 60, []Fault{EqualTimestamps}, 1},
	{LostAtPromotion, 20, nil, 0},
	{WindowTooShort, 60, nil, 0},
	{Timestamps, 40, []Fault{Maintenance}, 4},
	{SeenSets, 300, []Fault{KillActive, StopActive, RestartActive, CutActiveFromKafka}, 20},
	{Unfenced, 60, replaced, 12},
	{Unconfirmed, 200, replaced, 24},
	{VisibleGoal, 60, hidden, 10},
	{FenceUnsaid, 300, []Fault{CoordinatorAway, StopUntilRead}, 24},
	{SilenceIsWhole, 600, []Fault{SilentWay, Maintenance}, 24},
	{SilenceUnheard, 60, []Fault{SilentWay}, 1},
	{BurstUnawaited, 600, []Fault{SilentWay, SilentWay, Maintenance, KillActive}, 14},
	{Unasked, 100, []Fault{HostCutOff}, 10},
	{Unrecalled, 100, []Fault{HostCutOff}, 10},
	{MarkWithinDump, 1000, []Fault{SlowSession, SlowSession, CutRouterFromActive, CutRouterFromActive, ForceStandbyActive, RestartActive, Maintenance}, 30},
}

// A mistake is one to build in, and the faults that show it.
type mistake struct {
	mistake Defect
	seeds   uint64
	only    []Fault
	count   int
}

func (m *mistake) options(seed uint64) Options {
	return Options{Seed: seed, Defect: m.mistake, Diff: m.mistake >= GroundIgnored && m.mistake <= LossUntold || m.mistake == SilenceIsWhole, Fence: m.mistake >= Unfenced && m.mistake <= FenceUnsaid, Behind: m.mistake == Unasked || m.mistake == Unrecalled, Only: m.only, Count: m.count}
}

// TestMistakesAreFound builds known mistakes into the shell. Each must be found
// within so many seeds.
func TestMistakesAreFound(t *testing.T) {
	for _, tt := range mistakes {
		t.Run(tt.mistake.String(), func(t *testing.T) {
			t.Parallel()
			for seed := range tt.seeds {
				opt := tt.options(seed)
				if res := Run(opt); len(res.Violations) > 0 {
					opt.Defect = Sound
					sound := Run(opt)
					if (opt.Behind || tt.mistake == SilenceIsWhole) && len(sound.Violations) > 0 {
						continue // it shows nothing: excuses are not given, or all ways are silent at a time
					}
					if len(sound.Violations) > 0 {
						t.Errorf("seed %d, without the mistake: %s", seed, sound.Violations[0])
						return
					}
					t.Logf("found by seed %d: %s", seed, res.Violations[0])
					return
				}
			}
			t.Errorf("not found in %d seeds", tt.seeds)
		})
	}
}

// reopening are the faults around a table that a router sends again; pressing are
// those by which a message gets lost before it is in the log.
var (
	reopening = []Fault{
		SessionFlaps, SessionFlaps, SessionFlaps, SessionFlaps, SessionTwice, CutRouterFromActive, CutRouterFromAll,
		RouterRestarts, PeerFlaps, RestartAll, RestartActive, StopActive, StopActive, KillActive, Maintenance,
		LeaveActive, ForceActiveStandby, CutActiveFromRedis, KafkaOutage, KafkaFailsWritten, Burst,
	}
	pressing = []Fault{Burst, KafkaOutage, SessionTwice, SessionTwice, SessionTwice}
)

// TestRedump: routers that end and open sessions again and again, while senders
// change.
func TestRedump(t *testing.T) {
	n := few(min(*seeds, 2000))
	total, leftOut := runs(t, n, func(seed uint64) Options {
		opt := Options{Seed: *first + seed, Diff: true, Only: reopening, Count: 12}
		if opt.Seed%4 == 3 {
			opt.Only, opt.Count = pressing, 20
		}
		return opt
	})
	t.Logf("%d runs, in %d of them routes were left out", n, leftOut)
	for f := AbortedWhileFull; f <= RedumpGone; f++ {
		t.Logf("%8d %s", total.Fired[f], f)
		if total.Fired[f] == 0 && n >= 300 {
			t.Errorf("%q never happened", f)
		}
	}
	if leftOut < n/2 {
		t.Errorf("routes were left out in %d of %d runs only", leftOut, n)
	}
}

// TestWays: silent ways, whose words come in bursts when they heal, and changes of the
// sender before that.
func TestWays(t *testing.T) {
	total, _ := runs(t, few(min(*seeds, 1000)), func(seed uint64) Options {
		return Options{Seed: seed, Only: []Fault{SilentWay, SilentWay, Maintenance, KillActive, Burst}, Count: 14}
	})
	summary(t, &total)
}

// TestCutOff: hosts that reach neither Redis nor Kafka come back while another sends,
// and what they had handed over does not come behind what that one has said.
func TestCutOff(t *testing.T) {
	n := few(min(*seeds, 1000))
	total, _ := runs(t, n, func(seed uint64) Options {
		return Options{Seed: seed, Only: []Fault{HostCutOff, Burst}, Count: 10}
	})
	summary(t, &total)
	if n >= 100 && total.Fired[Recalled] == 0 {
		t.Errorf("%q never happened", Recalled)
	}
	if late := uint64(total.Excused[behind]); late > n/100+1 {
		t.Errorf("in %d of %d runs of two senders the one behind spoke last", late, n)
	}
}
