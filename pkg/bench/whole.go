package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/bmpha/bmpha/pkg/rig"
)

// A sample is one run of one daemon.
type sample struct {
	wall    time.Duration // from the first byte to the last record at the broker
	cpu     time.Duration // of the daemon
	peak    int64         // its most resident memory
	records uint64        // at the broker
	other   float64       // share of the machine that was used by what is no part of the run
}

// A contender is a daemon that takes its turns.
type contender struct {
	start   func(ctx context.Context, turn int, to counter) (*daemon, error)
	samples []sample
	kind    string
}

func (r *run) contenders(routers int) []*contender {
	ours := func(noHeader bool) func(context.Context, int, counter) (*daemon, error) {
		return func(ctx context.Context, turn int, to counter) (*daemon, error) {
			d, err := r.startBmpha(ctx, setup{
				process: "a", cluster: fmt.Sprintf("whole-%v-%d", noHeader, turn), brokers: to.address(), topic: "bmp", noHeader: noHeader,
			})
			if err != nil {
				return nil, err
			}
			return d, d.awaitStatus(ctx, "active", isActive)
		}
	}
	list := []*contender{{start: ours(false)}, {start: ours(true)}}
	if _, ok := part(rig.PmbmpdPart); ok {
		list = append(list, &contender{start: func(ctx context.Context, _ int, to counter) (*daemon, error) {
			return startPmbmpd(ctx, to.address(), "bmp", routers)
		}})
	}
	return list
}

// wholeColumns are the columns of both tables of whole collectors.
var wholeColumns = []string{"routers", "daemon", "records/s", "CPU s/1M records", "each run", "records/CPU s", "peak MB", "others' CPU"}

// whole measures whole collectors against the discarding broker.
func (r *run) whole(ctx context.Context) ([]*table, error) {
	b, err := startDiscarder()
	if err != nil {
		return nil, err
	}
	defer b.close()
	t := &table{Title: "3. Whole collector into Kafka, beside pmbmpd", Columns: wholeColumns}
	t.note("discarding broker in a process of its own: acknowledges at once, so an upper bound for both daemons")
	return []*table{t}, r.race(ctx, t, b, r.messages, r.repeats, []int{1, 50})
}

// real does the same once against Apache Kafka.
func (r *run) real(ctx context.Context) ([]*table, error) {
	t := &table{Title: "3b. The same into Apache Kafka", Columns: wholeColumns}
	p, ok := part(rig.KafkaPart)
	if !ok {
		t.note("not measured: %s", p.Missing)
		return []*table{t}, nil
	}
	k, err := rig.StartKafkaServer(ctx, rig.KafkaOptions{Heap: 512, Topics: map[string]int{"bmp": 1}})
	if err != nil {
		return nil, err
	}
	defer k.Close()
	b, err := newRealCounter(k, "bmp")
	if err != nil {
		return nil, err
	}
	defer b.client.Close()
	t.note("Apache Kafka %s on the same machine: one broker, one partition, no replicas; it shares the cores with the daemons", p.Version)
	return []*table{t}, r.race(ctx, t, b, r.messages/4, 1, []int{1, 50})
}

// race lets the daemons take turns and fills in the table.
func (r *run) race(ctx context.Context, t *table, to counter, messages, repeats int, fleets []int) error {
	if p, ok := part(rig.PmbmpdPart); ok {
		t.note("pmbmpd %s from %s, without a librdkafka configuration file (with one it is a third slower)", p.Version, p.Path)
	} else {
		t.note("pmbmpd is not installed: no comparison")
	}
	t.note("%d runs of each, taking turns, each a fresh process that got a tenth more before, to warm up; medians", repeats)
	t.note("CPU is user and system time of the daemon's process, all threads; records are counted at the broker")
	for _, routers := range fleets {
		l, err := newLoad(routers, messages)
		if err != nil {
			return err
		}
		t.note("%d router(s): %d messages, %.1f MB of BMP, %d records", routers, l.rest.messages, float64(l.rest.bytes)/1e6, l.rest.records)
		list := r.contenders(routers)
		for turn := range repeats {
			for _, c := range list {
				d, err := c.start(ctx, turn, to)
				if err != nil {
					return err
				}
				c.kind = d.kind
				s, err := r.measure(ctx, d, to, l)
				if closeErr := d.close(); err == nil {
					err = closeErr
				}
				if err != nil {
					return fmt.Errorf("%s with %d routers: %w", d.kind, routers, err)
				}
				fmt.Fprintf(os.Stderr, "%s, %d routers, turn %d: %.2f s, CPU %.2f s, %d of %d records\n",
					d.kind, routers, turn+1, s.wall.Seconds(), s.cpu.Seconds(), s.records, l.rest.records)
				c.samples = append(c.samples, s)
			}
		}
		r.compare(t, routers, l, list)
	}
	return nil
}

// compare adds the rows of one number of routers.
func (r *run) compare(t *table, routers int, l *load, list []*contender) {
	perCPU := make([]float64, len(list))
	whole := make([]bool, len(list))
	for i, c := range list {
		var rate, cost, peak, other []float64
		var each []string
		whole[i] = true
		for _, s := range c.samples {
			n := float64(s.records)
			rate = append(rate, n/s.wall.Seconds())
			cost = append(cost, s.cpu.Seconds()*1e6/n)
			peak = append(peak, float64(s.peak)/1e6)
			other = append(other, 100*s.other)
			each = append(each, number(s.cpu.Seconds()*1e6/n))
			if s.records != l.rest.records {
				whole[i] = false
				t.result("%s with %d router(s): %d records at the broker, %d were due", c.kind, routers, s.records, l.rest.records)
				r.promise(c.kind == "pmbmpd", "%s with %d routers: %d of %d records", c.kind, routers, s.records, l.rest.records)
			}
		}
		perCPU[i] = 1e6 / median(cost)
		t.row(float64(routers), c.kind, median(rate), median(cost), strings.Join(each, " "), perCPU[i], median(peak),
			fmt.Sprintf("%.0f%%", median(other)))
	}
	for i := range list[:len(list)-1] {
		if last := len(list) - 1; list[last].kind == "pmbmpd" {
			t.result("%d router(s): %s makes %.1f times pmbmpd's records per CPU second (target: 3)", routers, list[i].kind, perCPU[i]/perCPU[last])
		}
	}
}

// measure has routers send a load to the daemon, until all of it is at the
// broker.
func (r *run) measure(ctx context.Context, d *daemon, to counter, l *load) (s sample, err error) {
	base, err := to.count()
	if err != nil {
		return s, err
	}
	f, err := connect(ctx, &l.warm, d)
	if err != nil {
		return s, err
	}
	defer f.close()
	if n, _, err := arrive(ctx, to, base, l.warm.records); err != nil || n != l.warm.records {
		return s, errors.Join(err, fmt.Errorf("warm up: %d records at the broker, %d were due", n, l.warm.records))
	}
	if _, err := quiet(ctx, d); err != nil {
		return s, err
	}
	err = r.profile(d, fmt.Sprintf("%s %s %d routers", d.kind, to.name(), len(f.conns)), 3, func() (err error) {
		s, err = send(ctx, f, d, to, &l.rest)
		return err
	})
	return s, err
}

// send writes a flow and waits for its records. What the daemon uses after the
// last of them has arrived is not counted.
func send(ctx context.Context, f *feeder, d *daemon, to counter, p *flow) (s sample, err error) {
	base, err := to.count()
	if err != nil {
		return s, err
	}
	before, err := d.process.Usage()
	if err != nil {
		return s, err
	}
	machine, err := watchMachine(to)
	if err != nil {
		return s, err
	}
	begin := time.Now()
	sent := make(chan error, 1)
	go func() { sent <- f.send(p) }()
	var end time.Time
	if s.records, end, err = arrive(ctx, to, base, p.records); err != nil {
		return s, err
	}
	after, err := d.process.Usage()
	if err != nil {
		return s, err
	}
	s.wall, s.cpu, s.peak = end.Sub(begin), after.CPU-before.CPU, after.PeakRSS
	if s.other, err = machine.others(s.cpu); err != nil {
		return s, err
	}
	if s.records < p.records {
		f.close() // it may have stopped reading
		<-sent
		return s, nil
	}
	return s, <-sent
}

// patience is how long nothing may arrive at the broker before a run counts as
// over.
const patience = 5 * time.Second

// arrive waits until want records more than base have arrived, and says when. If
// nothing comes any more, it returns with what there is.
func arrive(ctx context.Context, to counter, base, want uint64) (records uint64, at time.Time, err error) {
	last, moved := uint64(0), time.Now()
	tick := time.NewTicker(to.every())
	defer tick.Stop()
	for {
		n, err := to.count()
		if err != nil {
			return 0, moved, err
		}
		if n-base != last {
			last, moved = n-base, time.Now()
		}
		if last >= want || time.Since(moved) > patience {
			return last, moved, nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return last, moved, ctx.Err()
		}
	}
}

// quiet waits until the daemon does next to nothing, and returns what it has used
// by then.
func quiet(ctx context.Context, d *daemon) (u rig.Usage, err error) {
	const step = 100 * time.Millisecond
	tick := time.NewTicker(step)
	defer tick.Stop()
	if u, err = d.process.Usage(); err != nil {
		return u, err
	}
	for range 50 {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return u, ctx.Err()
		}
		before := u.CPU
		if u, err = d.process.Usage(); err != nil || u.CPU-before <= step/10 {
			return u, err
		}
	}
	return u, nil
}

// A realCounter counts in a topic of Apache Kafka.
type realCounter struct {
	kafka  *rig.KafkaServer
	topic  string
	client *kadm.Client
}

func newRealCounter(k *rig.KafkaServer, topic string) (*realCounter, error) {
	client, err := kgo.NewClient(k.Client()...)
	if err != nil {
		return nil, fmt.Errorf("client of kafka: %w", err)
	}
	return &realCounter{kafka: k, topic: topic, client: kadm.NewClient(client)}, nil
}

func (c *realCounter) address() string      { return c.kafka.Brokers() }
func (c *realCounter) name() string         { return "kafka" }
func (c *realCounter) every() time.Duration { return 20 * time.Millisecond }
func (c *realCounter) pid() int             { return c.kafka.PID() }

func (c *realCounter) count() (n uint64, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	ends, err := c.client.ListEndOffsets(ctx, c.topic)
	if err == nil {
		err = ends.Error()
	}
	if err != nil {
		return 0, fmt.Errorf("count the records of %s: %w", c.topic, err)
	}
	ends.Each(func(o kadm.ListedOffset) { n += uint64(o.Offset) })
	return n, nil
}
