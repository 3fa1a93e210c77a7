package sim

import (
	"flag"
	"os"
	"strconv"
	"strings"
	"testing"
)

var (
	seeds   = flag.Uint64("sim.seeds", 300, "simulated runs")
	minutes = flag.Int64("sim.minutes", 1, "minutes of faults in each run")
)

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
		}
		for _, v := range Run(opt).Violations {
			t.Error(v)
		}
		return
	}
	var total Result
	excused := make(map[string]int)
	leftOut := uint64(0) // runs in which routes were
	for seed := range *seeds {
		res := Run(Options{Seed: seed, Faults: *minutes * 60 * sec})
		for _, v := range res.Violations[:min(len(res.Violations), 1)] {
			t.Errorf("seed %d: %s", seed, v)
		}
		for _, e := range res.excuses {
			t.Logf("seed %d: excused: %s", seed, e)
		}
		for why, n := range res.Excused {
			excused[why] += n
		}
		if res.Fired[RedumpLeftOut] > 0 {
			leftOut++
		}
		total.add(&res)
	}
	t.Logf("%d runs, %.1f simulated hours, %d faults, %d takeovers, %d changes of routers, %d entries received, %d records in Kafka, %d of them repeats",
		*seeds, float64(total.Simulated)/3600e6, total.Faults, total.Takeovers, total.Changes, total.Received, total.Records, total.Repeated)
	for why, n := range excused {
		t.Logf("excused %d times: %s", n, why)
	}
	if testing.Verbose() {
		for _, f := range Faults() {
			t.Logf("%8d %s", total.Fired[f], f)
		}
	}
	if *seeds < 300 {
		return
	}
	for _, f := range Faults() {
		if total.Fired[f] == 0 && !f.rare() {
			t.Errorf("%q never happened", f)
		}
	}
	if leftOut < *seeds/20 {
		t.Errorf("routes were left out in %d of %d runs only", leftOut, *seeds)
	}
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

// TestLag shows a limit of the design. A low-water mark vouches for what the
// sender received, and the margin for the sessions being that equal. A sender
// that is behind by more, and then stops, takes with it what the others have
// forgotten on its word.
func TestLag(t *testing.T) {
	lost := 0
	runs := few(100)
	for seed := range runs {
		res := Run(Options{Seed: seed, Lag: true, Only: []Fault{SlowSession, SlowSession, KillActive, Maintenance}, Count: 8})
		if len(res.Violations) > 0 {
			lost++
		}
	}
	t.Logf("%d of %d runs with a slow session and a change of the sender lost something", lost, runs)
	if lost == 0 {
		t.Error("nothing was lost: the limit is gone, and with it the excuse in checkLoss")
	}
}

// TestMistakesAreFound builds known mistakes into the shell. Each must be found
// within so many seeds.
func TestMistakesAreFound(t *testing.T) {
	for _, tt := range []struct {
		mistake Defect
		seeds   uint64
		only    []Fault
		count   int
	}{
		{LiveBeforeHeld, 20, nil, 0},
		{PopsOnFailure, 60, nil, 0},
		{IgnoresLease, 40, nil, 0},
		{WindowOnly, 200, []Fault{KafkaOutage, CutActiveFromKafka, KillActive, Maintenance}, 0},
		{StandbyWaits, 60, []Fault{KafkaOutage, Burst}, 0},
		{ErrorsMeanAlone, 200, nil, 0},
		{GroundIgnored, 40, reopening, 12},
		{OthersUnseen, 100, []Fault{SessionFlaps, SessionFlaps, SessionFlaps, Maintenance, CutRouterFromActive}, 12},
		{AlwaysWhole, 100, []Fault{SessionFlaps, SessionFlaps, SessionFlaps, CutRouterFromActive}, 12},
		{UnendedIsWhole, 100, []Fault{RestartActive, RouterRestarts, SessionFlaps, SessionFlaps, SessionFlaps}, 30},
		{NoSweep, 20, reopening, 12},
		{LeaseUnseen, 300, []Fault{StopActive, StopActive, SessionFlaps, SessionFlaps, SlowSession}, 12},
		{LossUntold, 200, pressing, 20},
	} {
		t.Run(tt.mistake.String(), func(t *testing.T) {
			for seed := range tt.seeds {
				if res := Run(Options{Seed: seed, Defect: tt.mistake, Diff: tt.mistake >= GroundIgnored, Only: tt.only, Count: tt.count}); len(res.Violations) > 0 {
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
	var total Result
	excused := make(map[string]int)
	leftOut := uint64(0)
	runs := few(*seeds)
	for seed := range runs {
		opt := Options{Seed: seed, Diff: true, Only: reopening, Count: 12}
		if seed%4 == 3 {
			opt.Only, opt.Count = pressing, 20
		}
		res := Run(opt)
		for _, v := range res.Violations[:min(len(res.Violations), 1)] {
			t.Errorf("seed %d: %s", seed, v)
		}
		for why, n := range res.Excused {
			excused[why] += n
		}
		if res.Fired[RedumpLeftOut] > 0 {
			leftOut++
		}
		total.add(&res)
	}
	t.Logf("%d runs, in %d of them routes were left out", runs, leftOut)
	for f := AbortedWhileFull; f <= RedumpGone; f++ {
		t.Logf("%8d %s", total.Fired[f], f)
		if total.Fired[f] == 0 && runs >= 300 {
			t.Errorf("%q never happened", f)
		}
	}
	for why, n := range excused {
		t.Logf("excused %d times: %s", n, why)
	}
	if leftOut < runs/2 {
		t.Errorf("routes were left out in %d of %d runs only", leftOut, runs)
	}
}
