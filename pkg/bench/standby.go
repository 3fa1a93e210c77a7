package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/bmpha/bmpha/pkg/cluster"
	"github.com/bmpha/bmpha/pkg/control"
)

// standby measures a collector that holds.
func (r *run) standby(ctx context.Context) ([]*table, error) {
	t := &table{Title: "4. A standby", Columns: []string{
		"sender", "messages", "MB received", "CPU µs/message", "of it to let go", "most held, MB", "held bytes/received byte", "resident growth/received byte"}}
	b, err := startDiscarder()
	if err != nil {
		return []*table{t}, err
	}
	defer b.close()
	got, command, err := r.goBench(ctx, "hold", "^BenchmarkHeldPerByte$", "1000000x")
	if err != nil {
		return []*table{t}, err
	}
	t.note("1 router, the stream of section 3 as fast as it is read, discarding broker; %d run(s) of each, medians", r.repeats)
	t.note("without marks: the sender is a native pmacct by its key in Redis, so the standby keeps everything for its window of 15 s")
	t.note("with marks: another bmpha gets the same stream at the same time and sends it")
	l, err := newLoad(1, r.messages)
	if err != nil {
		return []*table{t}, err
	}
	for _, pair := range []bool{false, true} {
		var cpu, letGo, most, held, rss, active []float64
		for turn := range r.repeats {
			s, err := r.hold(ctx, b, l, pair, turn)
			if err != nil {
				return []*table{t}, err
			}
			n, bytes := float64(l.rest.messages), float64(l.rest.bytes)
			cpu = append(cpu, s.cpu.Seconds()*1e6/n)
			letGo = append(letGo, s.letGo.Seconds()*1e6/n)
			active = append(active, s.active.Seconds()*1e6/n)
			most = append(most, float64(s.most)/1e6)
			held = append(held, float64(s.most)/bytes)
			rss = append(rss, float64(s.grown)/bytes)
		}
		sender := "native, no marks"
		if pair {
			sender = "bmpha, marks"
		}
		t.row(sender, float64(l.rest.messages), float64(l.rest.bytes)/1e6, median(cpu), median(letGo), median(most), median(held), median(rss))
		if pair {
			t.result("the active one used %s µs a message on the same stream, %.0f times as much as its standby",
				number(median(active)), median(active)/median(cpu))
		}
	}
	t.result("memory accounted for, with bookkeeping, in full chunks: %s bytes for each byte of messages of 130 bytes (%s)",
		number(median(got["HeldPerByte"]["held-B/received-B"])), command)
	return []*table{t}, nil
}

// A holding is what one run of a standby has shown.
type holding struct {
	cpu    time.Duration // for receiving, holding and letting go
	letGo  time.Duration // of it after everything had been received
	active time.Duration // of the collector that sends meanwhile
	most   uint64        // bytes of messages held at once
	grown  int64         // resident memory then, above what it was before
}

func (r *run) hold(ctx context.Context, b *discarder, l *load, pair bool, turn int) (h holding, err error) {
	name := fmt.Sprintf("standby-%v-%d", pair, turn)
	daemons := make([]*daemon, 0, 2)
	defer func() {
		for _, d := range daemons {
			err = errors.Join(err, d.close())
		}
	}()
	start := func(process, role string, ok func(*control.Status) bool) error {
		d, err := r.startBmpha(ctx, setup{process: process, cluster: name, brokers: b.address(), topic: "bmp"})
		if err != nil {
			return err
		}
		daemons = append(daemons, d)
		return d.awaitStatus(ctx, role, ok)
	}
	if pair {
		err = start("a", "active", isActive)
	} else {
		var leave func()
		if leave, err = r.nativeMember(ctx, name); err == nil {
			defer leave()
		}
	}
	if err != nil {
		return h, err
	}
	if err := start("b", "standby", isStandby); err != nil {
		return h, err
	}
	standby := daemons[len(daemons)-1]

	total := uint64(0)
	// let sends p and returns when the standby has let go of everything.
	let := func(p *flow, send func(*flow) error) error {
		before, err := standby.process.Usage()
		if err != nil {
			return err
		}
		h = holding{}
		sent := make(chan error, 1)
		go func() { sent <- send(p) }()
		total += uint64(p.bytes)
		err = standby.awaitStatus(ctx, "through the stream", func(s *control.Status) bool {
			if u, err := standby.process.Usage(); err == nil && s.Hold.Bytes > h.most {
				h.most, h.grown = s.Hold.Bytes, u.RSS-before.RSS
			}
			return s.MessageBytes == total
		})
		if err = errors.Join(err, <-sent); err != nil {
			return err
		}
		received, err := standby.process.Usage()
		if err != nil {
			return err
		}
		// What it uses from now on includes its idling until the window has passed.
		err = standby.awaitStatusEvery(ctx, 500*time.Millisecond, "empty", func(s *control.Status) bool { return s.Hold.Messages < 10 })
		if err != nil {
			return err
		}
		after, err := standby.process.Usage()
		h.cpu, h.letGo = after.CPU-before.CPU, after.CPU-received.CPU
		return err
	}
	// The session stays until the end: without one a sender's mark stands still.
	var f *feeder
	err = let(&l.warm, func(p *flow) (err error) {
		f, err = connect(ctx, p, daemons...)
		return err
	})
	if f != nil {
		defer f.close()
	}
	if err != nil {
		return h, fmt.Errorf("warm up: %w", err)
	}
	before, err := quiet(ctx, daemons[0])
	if err != nil {
		return h, err
	}
	if err := let(&l.rest, f.send); err != nil {
		return h, err
	}
	if pair {
		after, err := daemons[0].process.Usage()
		if err != nil {
			return h, err
		}
		h.active = after.CPU - before.CPU
	}
	return h, nil
}

// nativeMember puts a pmacct into a cluster, by the key that one writes: the oldest
// timestamp of all, renewed every second.
func (r *run) nativeMember(ctx context.Context, name string) (leave func(), err error) {
	cl := r.redis.Client()
	key := cluster.NewKeys(name, 0).Timestamp("pmacct")
	beat := func() error { return cl.Set(ctx, key, "1600000000000000", 3*time.Second).Err() }
	if err := beat(); err != nil {
		cl.Close()
		return nil, fmt.Errorf("write a native member: %w", err)
	}
	ctx, cancel := context.WithCancel(ctx)
	var done sync.WaitGroup
	done.Go(func() {
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				_ = beat() // the next one may do
			}
		}
	})
	return func() {
		cancel()
		done.Wait()
		cl.Close()
	}, nil
}
