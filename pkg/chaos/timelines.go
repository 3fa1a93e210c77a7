package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/bmpha/bmpha/pkg/control"
	"github.com/bmpha/bmpha/pkg/replay"
	"github.com/bmpha/bmpha/pkg/rig"
)

// A timeline is one story that a pair lives through, and what a pair of pmacct
// with its own high availability made of it.
type timeline struct {
	name, title string
	rate        int           // messages a second
	warm, after time.Duration // of undisturbed traffic before it and after it
	act         func(context.Context, *trial) error
	native      native
}

// A native is what was measured of pmacct before, see nativeNote. Its figures are
// text: they are not of this run.
type native struct{ Lost, Repeated, Order, Memory string }

const nativeNote = "pmacct: measured before, not by this run: pmacct master with its high availability, default queue of 15 s, redis-server 7.0.15, kfake as the broker, one run of each, 2 cores; written down on 2026-11-21"

var timelines = []timeline{
	{
		name: "kill", title: "active killed (-9)", rate: 2000, warm: 6 * time.Second, after: 10 * time.Second,
		act:    func(_ context.Context, t *trial) error { return t.active.Kill() },
		native: native{"0", "25,578", "1 step back, 30,055", ""},
	}, {
		name: "handover", title: "planned handover (signal 34)", rate: 2000, warm: 6 * time.Second, after: 10 * time.Second,
		act:    func(_ context.Context, t *trial) error { return t.active.Signal(signalHandover) },
		native: native{"0", "29,014", "1 step back, 29,013", ""},
	}, {
		name: "pause", title: "active SIGSTOP 8 s, then CONT", rate: 2000, warm: 6 * time.Second, after: 10 * time.Second,
		act: func(ctx context.Context, t *trial) error {
			return errors.Join(t.active.Pause(), t.pass(ctx, 8*time.Second), t.active.Resume())
		},
		native: native{"0", "44,063", "185 writer changes", ""},
	}, {
		name: "forced", title: "standby forced active (signal 35)", rate: 2000, warm: 6 * time.Second, after: 20 * time.Second,
		act:    func(_ context.Context, t *trial) error { return t.standby.Signal(signalActive) },
		native: native{"0", "56,978", "3,432 writer changes", ""},
	}, {
		name: "redis-killed", title: "Redis killed", rate: 2000, warm: 6 * time.Second, after: 15 * time.Second,
		act:    func(_ context.Context, t *trial) error { return t.redis.Kill() },
		native: native{"0", "34,494", "5,194 writer changes", ""},
	}, {
		name: "redis-frozen", title: "Redis frozen 30 s, active killed 1 s later", rate: 1000, warm: 6 * time.Second, after: 10 * time.Second,
		act: func(ctx context.Context, t *trial) error {
			return errors.Join(t.redis.Pause(), t.pass(ctx, time.Second), t.active.Kill(), t.pass(ctx, 29*time.Second), t.redis.Resume())
		},
		native: native{"16,509", "0", "", ""},
	}, {
		name: "kafka-down", title: "Kafka down 22 s, active killed meanwhile", rate: 1000, warm: 6 * time.Second, after: 15 * time.Second,
		act: func(ctx context.Context, t *trial) error {
			return errors.Join(t.kafka.Away(ctx, true), t.pass(ctx, 10*time.Second), t.active.Kill(), t.pass(ctx, 12*time.Second), t.kafka.Away(ctx, false))
		},
		native: native{"4,522", "0", "", ""},
	}, {
		name: "memory", title: "standby at 5,000 messages/s for 2 min", rate: 5000, warm: 5 * time.Second,
		act:    func(ctx context.Context, t *trial) error { return t.pass(ctx, 2*time.Minute) },
		native: native{"0", "", "", "41 67 93 131 168"},
	}, {
		name: "keys", title: "60 short-lived keys of the pattern", rate: 1000, warm: 5 * time.Second, after: 5 * time.Second,
		act:    func(ctx context.Context, t *trial) error { return t.blink(ctx, 60, 15*time.Second) },
		native: native{"all", "", "both crash", ""},
	},
}

// The signals of pmacct.
const (
	signalHandover = syscall.Signal(34)
	signalActive   = syscall.Signal(35)
)

// A trial is one timeline as it runs.
type trial struct {
	*world
	*timeline
	scale           float64
	active, standby *member
	router          *replay.Router
	reader          *reader
	memory          *memory
}

// An outcome is what came of a timeline.
type outcome struct {
	Name   string `json:"name"`
	Title  string `json:"title"`
	Rate   int    `json:"rate"`
	Sent   uint64 `json:"sent"`
	Lost   uint64 `json:"lost"`
	Seen   tally  `json:"seen"`
	Memory []int  `json:"standby_memory_mb"` // in equal steps of time
	Native native `json:"native"`
	// Failed is what must not be, but for losses.
	Failed []string `json:"failed,omitempty"`
}

// pass lets time go by, in the scale of the run.
func (t *trial) pass(ctx context.Context, d time.Duration) error {
	return sleep(ctx, time.Duration(float64(d)*t.scale))
}

// blink writes keys that look like members which have just started and live for
// 2 ms, for as long as d.
func (t *trial) blink(ctx context.Context, keys int, d time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, time.Duration(float64(d)*t.scale))
	defer cancel()
	client := t.redis.Client()
	defer client.Close()
	for ctx.Err() == nil {
		_, err := client.Pipelined(ctx, func(p redis.Pipeliner) error {
			for i := range keys {
				p.Set(ctx, fmt.Sprintf("%s+0+ghost%d+ha_daemon_startup_time", t.cluster, i), strconv.FormatInt(time.Now().UnixMicro(), 10), 2*time.Millisecond)
			}
			return nil
		})
		if err != nil && ctx.Err() == nil {
			return fmt.Errorf("write short-lived keys: %w", err)
		}
	}
	return nil
}

// runTimelines is the command.
func runTimelines(ctx context.Context, args []string, out io.Writer) error {
	var o options
	f := flag.NewFlagSet("timelines", flag.ContinueOnError)
	o.flags(f)
	only := f.String("only", "", "run only these `timelines`, such as kill,pause")
	scale := f.Float64("scale", 1, "multiply all times by this `factor`; below 1 for looking")
	if err := f.Parse(args); err != nil {
		return err
	}
	if f.NArg() > 0 {
		return fmt.Errorf("unexpected argument %q", f.Arg(0))
	}
	if !(*scale > 0 && *scale <= 100) {
		return fmt.Errorf("-scale %v: want more than 0 and at most 100", *scale)
	}
	chosen, err := choose(*only)
	if err != nil {
		return err
	}
	if err := o.check(); err != nil {
		return err
	}
	if err := requireParts(rig.RedisServerPart, rig.KafkaPart); err != nil {
		return err
	}
	report := timelinesReport{heading: newHeading("timelines", args, &o), Scale: *scale}
	report.heading.write(out)
	kafka, err := rig.StartKafkaServer(ctx, rig.KafkaOptions{})
	if err != nil {
		return err
	}
	defer kafka.Close()
	for i := range chosen {
		fmt.Fprintf(os.Stderr, "timeline %d of %d: %s\n", i+1, len(chosen), chosen[i].title)
		one, err := live(ctx, &o, kafka, &chosen[i], *scale)
		if err != nil {
			return fmt.Errorf("timeline %s: %w", chosen[i].name, err)
		}
		report.Outcomes = append(report.Outcomes, *one)
	}
	report.write(out)
	if err := save(o.json, &report); err != nil {
		return err
	}
	return report.verdict()
}

func choose(names string) ([]timeline, error) {
	if names == "" {
		return timelines, nil
	}
	var chosen []timeline
	for name := range strings.SplitSeq(names, ",") {
		i := slices.IndexFunc(timelines, func(t timeline) bool { return t.name == name })
		if i < 0 {
			var known []string
			for _, t := range timelines {
				known = append(known, t.name)
			}
			return nil, fmt.Errorf("no timeline %q, want some of %s", name, strings.Join(known, ", "))
		}
		chosen = append(chosen, timelines[i])
	}
	return chosen, nil
}

// live runs one timeline with a pair and a Redis of its own.
func live(ctx context.Context, o *options, kafka *rig.KafkaServer, tl *timeline, scale float64) (res *outcome, err error) {
	t := &trial{timeline: tl, scale: scale, world: &world{o: o, cluster: "timeline-" + tl.name, kafka: kafka}}
	if t.dir, err = os.MkdirTemp("", "bmpha-"); err != nil {
		return nil, fmt.Errorf("make a folder: %w", err)
	}
	defer os.RemoveAll(t.dir)
	if t.redis, err = rig.StartRedisServer(ctx, rig.RedisOptions{}); err != nil {
		return nil, err
	}
	defer t.redis.Close()
	if err := kafka.CreateTopic(ctx, t.cluster, 1); err != nil {
		return nil, err
	}
	defer func() {
		if o.keep != "" {
			err = errors.Join(err, t.logs(o.keep))
		}
		err = errors.Join(err, t.close())
	}()
	for _, part := range []struct {
		to   **member
		name string
		role string
	}{{&t.active, "a", control.RoleActive}, {&t.standby, "b", control.RoleStandby}} {
		if *part.to, err = t.start(ctx, part.name, false); err != nil {
			return nil, err
		}
		if err := (*part.to).role(ctx, part.role); err != nil {
			return nil, err
		}
	}
	t.reader = newReader(numberOf)
	consumer, err := rig.ConsumeEach(ctx, kafka.Brokers(), t.cluster, t.reader.take, committed)
	if err != nil {
		return nil, err
	}
	defer consumer.Close()
	stream, err := replay.Synthetic{Name: "timeline", Numbered: true, Start: time.Now(), Step: time.Second / time.Duration(tl.rate)}.Stream()
	if err != nil {
		return nil, err
	}
	t.router, err = replay.NewRouter(replay.Config{Stream: stream, To: []string{t.active.listen, t.standby.listen}, Source: routerAddr(0), Rate: float64(tl.rate)})
	if err != nil {
		return nil, err
	}
	t.router.Start()
	defer func() { err = errors.Join(err, t.router.Stop(context.WithoutCancel(ctx), replay.Abort)) }()
	return t.run(ctx)
}

func (t *trial) run(ctx context.Context) (*outcome, error) {
	res := &outcome{Name: t.name, Title: t.title, Rate: t.rate, Native: t.native}
	address := routerAddr(0).String()
	// Both have the router, and all that it said before is in Kafka.
	wait, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if err := rig.WaitFor(wait, func() error {
		for _, c := range t.router.Counters().Collectors {
			if !c.Connected {
				return fmt.Errorf("the router has no session to %s: %s", c.Address, c.LastError)
			}
		}
		if n := t.reader.distinct(address); n < t.rate {
			return fmt.Errorf("%d records in Kafka", n)
		}
		return nil
	}); err != nil {
		return nil, err
	}
	if err := t.pass(ctx, t.warm); err != nil {
		return nil, err
	}
	if s, err := t.active.status(ctx); err != nil || s.Role != control.RoleActive {
		return nil, fmt.Errorf("undisturbed, and not active any more: %w", err)
	}
	t.memory = watchMemory(t.standby)
	begun := new(tally)
	t.reader.begin(begun)
	if err := t.act(ctx, t); err != nil {
		return nil, err
	}
	if err := t.pass(ctx, t.after); err != nil {
		return nil, err
	}
	t.router.Pause(true)
	res.Memory = t.memory.end()
	res.Sent = t.router.Counters().Announced
	settle(ctx, t.reader, func() bool { return uint64(t.reader.distinct(address)) >= res.Sent })
	res.Lost = res.Sent - min(res.Sent, uint64(t.reader.distinct(address)))
	res.Seen = t.reader.look(begun)
	for _, m := range t.members {
		if line := m.crashed(); line != "" {
			res.Failed = append(res.Failed, fmt.Sprintf("collector %s: %s", m.name, line))
		}
	}
	if !t.standby.Alive() {
		res.Failed = append(res.Failed, "collector b has ended")
	}
	res.Failed = append(res.Failed, t.reader.faults()...)
	return res, nil
}

// Nothing more is expected when nothing has come for stillFor.
const (
	stillFor  = 2 * time.Second
	stillMost = 40 * time.Second
)

// settle waits until done says so and nothing has come for a while, or nothing
// comes for long.
func settle(ctx context.Context, r *reader, done func() bool) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	began := time.Now()
	_ = rig.WaitFor(ctx, func() error { // the count speaks for itself
		_, at := r.total()
		if still := time.Since(later(at, began)); still < stillFor || still < stillMost && !done() {
			return errors.New("records are coming")
		}
		return nil
	})
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// A memory is the resident memory of a process over time.
type memory struct {
	stop chan struct{}
	done sync.WaitGroup
	mb   []int // each second
}

func watchMemory(m *member) *memory {
	w := &memory{stop: make(chan struct{})}
	w.done.Go(func() {
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for {
			if u, err := m.Usage(); err == nil {
				w.mb = append(w.mb, int(u.RSS>>20))
			}
			select {
			case <-w.stop:
				return
			case <-tick.C:
			}
		}
	})
	return w
}

// end returns five values, in equal steps of time, or fewer of a short run.
func (w *memory) end() []int {
	close(w.stop)
	w.done.Wait()
	const steps = 5
	if len(w.mb) <= steps {
		return w.mb
	}
	var five []int
	for i := range steps {
		five = append(five, w.mb[i*(len(w.mb)-1)/(steps-1)])
	}
	return five
}

// A timelinesReport is what runTimelines found.
type timelinesReport struct {
	heading
	Scale    float64   `json:"scale"`
	Outcomes []outcome `json:"timelines"`
}

func (r *timelinesReport) write(w io.Writer) {
	fmt.Fprintf(w, "\nThe nine timelines: a pair of collectors, one router with a session to each, numbered routes, one partition.\n")
	fmt.Fprintf(w, "  repeated: records of numbers that had come; flagged are those that the header marks (replayed), two senders those of which one is marked as sent while two might send\n")
	fmt.Fprintf(w, "  late: what a paused process had given to the Kafka library; a consumer tells it by the token\n")
	fmt.Fprintf(w, "  without a sender: the longest time between two records, by their timestamps, and at the consumer; MB: the standby's memory in equal steps of time\n")
	fmt.Fprintf(w, "  %s\n", nativeNote)
	if r.Scale != 1 {
		fmt.Fprintf(w, "  all times were multiplied by %v: not to be compared with pmacct's\n", r.Scale)
	}
	t := grid{columns: []string{
		"timeline", "msg/s", "sent", "lost", "repeated: flagged", "two senders", "unflagged", "late", "steps back", "furthest", "writer changes",
		"s without a sender", "a record", "standby MB", "| pmacct: lost", "repeated", "order", "standby MB",
	}}
	for _, o := range r.Outcomes {
		s := &o.Seen
		t.row(o.Title, count(o.Rate), count(o.Sent), count(o.Lost), count(s.Replayed), count(s.Shared), count(s.Plain), count(s.Late), count(s.Backs), count(s.Far),
			count(s.Writers), s.Gap.String(), s.Quiet.String(), strings.Trim(fmt.Sprint(o.Memory), "[]"),
			"| "+o.Native.Lost, o.Native.Repeated, o.Native.Order, o.Native.Memory)
	}
	t.write(w)
	for _, o := range r.Outcomes {
		for _, f := range o.Failed {
			fmt.Fprintf(w, "  => %s: %s\n", o.Name, f)
		}
	}
}

// verdict is an error if anything was lost, too much came again without a flag, or
// anything went wrong.
func (r *timelinesReport) verdict() error {
	var errs []error
	for _, o := range r.Outcomes {
		if o.Lost > 0 {
			errs = append(errs, fmt.Errorf("%s: %d of %d records lost", o.Name, o.Lost, o.Sent))
		}
		if most := unflaggedMost(o.Rate, o.Seen.Records); o.Seen.Plain > most {
			errs = append(errs, fmt.Errorf("%s: %d of %d records repeated without a flag; %d are let pass", o.Name, o.Seen.Plain, o.Seen.Records, most))
		}
		for _, f := range o.Failed {
			errs = append(errs, fmt.Errorf("%s: %s", o.Name, f))
		}
	}
	return errors.Join(errs...)
}
