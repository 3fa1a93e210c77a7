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
		if total.Fired[f] == 0 {
			t.Errorf("%q never happened", f)
		}
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
	}{
		{LiveBeforeHeld, 20, nil},
		{PopsOnFailure, 60, nil},
		{IgnoresLease, 40, nil},
		{WindowOnly, 200, []Fault{KafkaOutage, CutActiveFromKafka, KillActive, Maintenance}},
		{StandbyWaits, 60, []Fault{KafkaOutage, Burst}},
		{ErrorsMeanAlone, 200, nil},
	} {
		t.Run(tt.mistake.String(), func(t *testing.T) {
			for seed := range tt.seeds {
				if res := Run(Options{Seed: seed, Defect: tt.mistake, Only: tt.only}); len(res.Violations) > 0 {
					t.Logf("found by seed %d: %s", seed, res.Violations[0])
					return
				}
			}
			t.Errorf("not found in %d seeds", tt.seeds)
		})
	}
}
