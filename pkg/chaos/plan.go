package main

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"time"
)

// hits says what a fault hurts while it lasts.
type hits int

const (
	nobody    hits = iota // for a moment only
	collector             // one of the collectors, or a way of it
	shared                // what all collectors need
)

// A kind of fault.
type kind struct {
	name     string
	what     string // in words
	hits     hits
	from, to time.Duration // how long it lasts: even on a logarithmic scale
	weight   int
	links    bool // only with direct links
}

// recovery is how much longer than a fault lasts nothing else may rely on what was
// hurt.
const recovery = 2 * time.Second

var kinds = []kind{
	{name: "kill", what: "kill -9 of a collector, started again", hits: collector, from: 500 * time.Millisecond, to: 6 * time.Second, weight: 12},
	{name: "pause", what: "SIGSTOP of a collector, then CONT", hits: collector, from: 100 * time.Millisecond, to: 30 * time.Second, weight: 12},
	{name: "stop", what: "SIGTERM of a collector, started again", hits: collector, from: 500 * time.Millisecond, to: 4 * time.Second, weight: 5},
	{name: "handover", what: "bmpha maintenance at the active one", hits: nobody, weight: 6},
	{name: "mute", what: "nothing that a collector sends gets out", hits: collector, from: 500 * time.Millisecond, to: 15 * time.Second, weight: 5},
	{name: "deaf", what: "nothing gets to a collector, of routers neither", hits: collector, from: 500 * time.Millisecond, to: 15 * time.Second, weight: 5},
	{name: "cut-off", what: "nothing passes to and from a collector", hits: collector, from: 500 * time.Millisecond, to: 15 * time.Second, weight: 4},
	{name: "redis-mute", what: "nothing of a collector gets to Redis", hits: collector, from: 300 * time.Millisecond, to: 15 * time.Second, weight: 4},
	{name: "redis-deaf", what: "nothing of Redis gets to a collector", hits: collector, from: 300 * time.Millisecond, to: 15 * time.Second, weight: 4},
	{name: "redis-refused", what: "Redis refuses a collector", hits: collector, from: 300 * time.Millisecond, to: 15 * time.Second, weight: 3},
	{name: "kafka-mute", what: "nothing of a collector gets to Kafka", hits: collector, from: 500 * time.Millisecond, to: 15 * time.Second, weight: 4},
	{name: "kafka-deaf", what: "nothing of Kafka gets to a collector", hits: collector, from: 500 * time.Millisecond, to: 15 * time.Second, weight: 4},
	{name: "kafka-refused", what: "Kafka refuses a collector", hits: collector, from: 500 * time.Millisecond, to: 15 * time.Second, weight: 3},
	{name: "link-mute", what: "nothing of a collector passes its direct link", hits: collector, from: 300 * time.Millisecond, to: 10 * time.Second, weight: 3, links: true},
	{name: "link-deaf", what: "nothing gets to a collector on its direct link", hits: collector, from: 300 * time.Millisecond, to: 10 * time.Second, weight: 3, links: true},
	{name: "slow-redis", what: "20 to 400 ms on the way to Redis, each way", hits: collector, from: time.Second, to: 10 * time.Second, weight: 4},
	{name: "slow-kafka", what: "20 to 400 ms on the way to Kafka, 300 kB/s", hits: collector, from: time.Second, to: 10 * time.Second, weight: 4},
	{name: "slow-session", what: "a router's session at 20 to 100 kB/s", hits: collector, from: 2 * time.Second, to: 15 * time.Second, weight: 5},
	{name: "stuck-session", what: "a router's session stands still", hits: collector, from: 500 * time.Millisecond, to: 10 * time.Second, weight: 4},
	{name: "reconnect", what: "a router loses one session, or all", hits: nobody, weight: 7},
	{name: "peer-flap", what: "a router's peer goes down and comes up", hits: nobody, weight: 4},
	{name: "redis-restart", what: "Redis restarted, empty", hits: shared, from: 100 * time.Millisecond, to: 300 * time.Millisecond, weight: 3},
	{name: "redis-down", what: "Redis killed, started again, empty", hits: shared, from: 500 * time.Millisecond, to: 10 * time.Second, weight: 3},
	{name: "redis-freeze", what: "Redis SIGSTOP, then CONT", hits: shared, from: 300 * time.Millisecond, to: 15 * time.Second, weight: 4},
	{name: "kafka-restart", what: "the broker stopped and started again", hits: shared, from: 4 * time.Second, to: 6 * time.Second, weight: 2},
	{name: "kafka-down", what: "the broker killed, started again", hits: shared, from: 4 * time.Second, to: 10 * time.Second, weight: 2},
	{name: "kafka-freeze", what: "the broker SIGSTOP, then CONT", hits: shared, from: 300 * time.Millisecond, to: 10 * time.Second, weight: 3},
}

// A fault is one entry of the schedule.
type fault struct {
	N     int     `json:"n"` // from 1
	At    seconds `json:"at_seconds"`
	Lasts seconds `json:"lasts_seconds"`
	Kind  string  `json:"kind"`
	// Active says that it is for the active collector, if that is free.
	Active bool `json:"for_the_active"`
	// Draw decides what is left to be decided when it comes.
	Draw uint64 `json:"draw"`

	hits hits
}

func (f *fault) end() seconds { return f.At + f.Lasts + seconds(recovery) }

// plan draws n faults over total. At no time are more than two of three collectors
// hurt, or more than one while Redis or Kafka is; so one collector always has all
// that it needs to hear, and mostly to send. The same arguments make the same plan.
func plan(seed uint64, total time.Duration, n int, of []kind) []fault {
	rng := rand.New(rand.NewPCG(seed, 0x6661756c74))
	var faults []fault
	weights := 0
	for _, k := range of {
		weights += k.weight
	}
	if weights == 0 || n == 0 {
		return nil
	}
	slot := total / time.Duration(n)
	for i := range n {
		f := fault{N: len(faults) + 1, At: seconds(time.Duration(i)*slot + time.Duration(rng.Int64N(int64(slot)))), Draw: rng.Uint64()}
		// Many do not fit beside what is going on.
		for range 100 {
			at := rng.IntN(weights)
			k := 0
			for at >= of[k].weight {
				at -= of[k].weight
				k++
			}
			f.Kind, f.hits, f.Lasts = of[k].name, of[k].hits, 0
			if of[k].to > 0 {
				low, high := math.Log(of[k].from.Seconds()), math.Log(of[k].to.Seconds())
				f.Lasts = seconds(math.Exp(low+(high-low)*rng.Float64()) * float64(time.Second))
			}
			f.Active = rng.IntN(3) < 2
			if fits(faults, &f) {
				faults = append(faults, f)
				break
			}
		}
	}
	return faults
}

// fits says whether f may be added to faults, which are in the order of time.
func fits(faults []fault, f *fault) bool {
	if f.hits == nobody {
		return true
	}
	collectors, all := 0, 0
	for i := range faults {
		if faults[i].end() <= f.At {
			continue
		}
		switch faults[i].hits {
		case collector:
			collectors++
		case shared:
			all++
		}
	}
	if f.hits == shared {
		return all == 0 && collectors <= 1
	}
	return collectors+all <= 1
}

// chooseKinds returns the kinds with these names, all for "". Without direct links
// those of Redis stand in for theirs, so that a seed makes the same schedule with
// links and without.
func chooseKinds(names string, links bool) ([]kind, error) {
	if names == "" {
		of := slices.Clone(kinds)
		for i := range of {
			if of[i].links && !links {
				of[i].name = strings.Replace(of[i].name, "link-", "redis-", 1)
			}
		}
		return of, nil
	}
	var of []kind
	for name := range strings.SplitSeq(names, ",") {
		i := slices.IndexFunc(kinds, func(k kind) bool { return k.name == name })
		if i < 0 {
			return nil, fmt.Errorf("no fault %q (-h lists them)", name)
		}
		if kinds[i].links && !links {
			return nil, fmt.Errorf("fault %s needs -link", name)
		}
		of = append(of, kinds[i])
	}
	return of, nil
}
