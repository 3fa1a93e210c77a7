package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/bmpha/bmpha/pkg/control"
	"github.com/bmpha/bmpha/pkg/record"
	"github.com/bmpha/bmpha/pkg/replay"
	"github.com/bmpha/bmpha/pkg/rig"
)

const (
	takeoverRate = 2000            // messages per second
	backFor      = 3 * time.Second // a collector has been back for at least this long before the other is killed
)

// An arrival is one numbered record at the consumer.
type arrival struct {
	at       time.Time
	instance uint64 // the run of the process that sent it
	again    bool   // the number had come before
}

// A watcher is the consumer: it follows who sends which numbers.
type watcher struct {
	mu       sync.Mutex
	arrivals []arrival
	seen     []bool // by number
	distinct int
	strange  int // records that are no numbered updates and no events
}

var prefixKey = []byte(`"ip_prefix": "`)

func (w *watcher) take(r rig.Record) {
	now := time.Now()
	i := bytes.Index(r.Value, prefixKey)
	if i < 0 {
		return // a session's or a peer's event
	}
	text := r.Value[i+len(prefixKey):]
	text = text[:max(0, bytes.IndexByte(text, '"'))]
	n, ok := replay.Number(string(text))
	h, err := record.ParseHeader(r.Header(record.HeaderName))
	w.mu.Lock()
	defer w.mu.Unlock()
	if !ok || err != nil {
		w.strange++
		return
	}
	if need := int(n) + 1 - len(w.seen); need > 0 {
		w.seen = append(w.seen, make([]bool, need)...)
	}
	w.arrivals = append(w.arrivals, arrival{at: now, instance: h.Instance, again: w.seen[n]})
	if !w.seen[n] {
		w.seen[n] = true
		w.distinct++
	}
}

// last returns the newest arrival, and how many there are.
func (w *watcher) last() (arrival, int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := len(w.arrivals)
	if n == 0 {
		return arrival{}, 0
	}
	return w.arrivals[n-1], n
}

// missing returns how many of the numbers below n have not come.
func (w *watcher) missing(n uint64) uint64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return n - min(n, uint64(w.distinct))
}

// A kill is one crash of the active collector, by positions in the arrivals.
type kill struct {
	at   time.Time
	from int    // arrivals before the kill
	old  uint64 // who sent until then
}

// takeover kills the active one of two collectors again and again.
func (r *run) takeover(ctx context.Context) (tables []*table, err error) {
	t := &table{Title: "5. Takeover after kill -9 of the active collector", Columns: []string{
		"", "min", "median", "max"}}
	tables = []*table{t}
	k, err := rig.StartKafka(ctx, rig.KafkaOptions{Topics: map[string]int{"bmp": 1}})
	if err != nil {
		return tables, err
	}
	defer k.Close()
	kafka, redis := "Apache Kafka "+rig.KafkaVersion, "redis-server"
	if k.Embedded() {
		kafka = "embedded Kafka"
	}
	if r.redis.Embedded() {
		redis = "embedded Redis"
	}
	t.note("two bmpha, default timers (heartbeat 1 s, expiry 2 s), %s, %s; one router, %d messages of one route a second to both", redis, kafka, takeoverRate)
	t.note("%d kills at random moments; the killed one is started again after the takeover, gets the router's whole table, and is back for at least %v before the next kill", r.kills, backFor)
	t.note("every route is numbered and counted at a consumer of the topic; times are when records reach it")

	var daemons []*daemon
	defer func() {
		for _, d := range daemons {
			err = errors.Join(err, d.close())
		}
	}()
	for i, role := range []func(*control.Status) bool{isActive, isStandby} {
		d, err := r.startBmpha(ctx, setup{process: string(rune('a' + i)), cluster: "takeover", brokers: k.Brokers(), topic: "bmp"})
		if err != nil {
			return tables, err
		}
		daemons = append(daemons, d)
		if err := d.awaitStatus(ctx, "in its role", role); err != nil {
			return tables, err
		}
	}
	w := &watcher{}
	consumer, err := rig.ConsumeEach(ctx, k.Brokers(), "bmp", w.take)
	if err != nil {
		return tables, err
	}
	defer consumer.Close()
	stream, err := replay.Synthetic{Seed: 42, Name: "bench", Peers: 4, Numbered: true, Start: time.Now(), Step: time.Second / takeoverRate}.Stream()
	if err != nil {
		return tables, err
	}
	router, err := replay.NewRouter(replay.Config{
		Stream: stream, To: []string{daemons[0].addr, daemons[1].addr}, Source: routerAddr(0), Rate: takeoverRate,
	})
	if err != nil {
		return tables, err
	}
	router.Start()
	defer func() { err = errors.Join(err, router.Stop(context.WithoutCancel(ctx), replay.Abort)) }()

	var kills []kill
	var heldMessages, heldAge []float64
	active := 0
	for i := range r.kills {
		if err := sleep(ctx, backFor+time.Duration(rand.Int64N(int64(time.Second)))); err != nil {
			return tables, err
		}
		s, err := daemons[1-active].control.Status(ctx)
		if err != nil {
			return tables, err
		}
		heldMessages = append(heldMessages, float64(s.Hold.Messages))
		heldAge = append(heldAge, float64(s.Hold.OldestAge))

		a, n := w.last()
		kills = append(kills, kill{at: time.Now(), from: n, old: a.instance})
		if err := daemons[active].process.Kill(); err != nil {
			return tables, err
		}
		if err := w.awaitSender(ctx, a.instance); err != nil {
			return tables, fmt.Errorf("kill %d: %w", i+1, err)
		}
		if err := daemons[active].process.Restart(ctx); err != nil {
			return tables, err
		}
		err = daemons[active].awaitStatus(ctx, "a standby with a session", func(s *control.Status) bool {
			return isStandby(s) && s.Sessions.Now == 1
		})
		if err != nil {
			return tables, err
		}
		fmt.Fprintf(os.Stderr, "takeover %d of %d\n", i+1, r.kills)
		active = 1 - active
	}
	if err := sleep(ctx, backFor); err != nil {
		return tables, err
	}
	router.Pause(true)
	sent := router.Counters().Announced
	wait, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	lost := uint64(0)
	_ = rig.WaitFor(wait, func() error { // in the end the count speaks for itself
		if lost = w.missing(sent); lost > 0 {
			return errors.New("records are missing")
		}
		return nil
	})
	w.mu.Lock()
	defer w.mu.Unlock()

	var gaps, dark, repeated, seconds []float64
	for i, k := range kills {
		end := len(w.arrivals)
		if i+1 < len(kills) {
			end = kills[i+1].from
		}
		last, first, again := k.at, time.Time{}, 0
		for _, a := range w.arrivals[max(0, k.from-1):end] {
			switch {
			case a.instance == k.old:
				last = a.at
			case first.IsZero():
				first = a.at
			}
			if a.again && a.instance != k.old {
				again++
			}
		}
		gaps = append(gaps, first.Sub(last).Seconds())
		dark = append(dark, first.Sub(k.at).Seconds())
		repeated = append(repeated, float64(again))
		seconds = append(seconds, float64(again)/takeoverRate)
	}
	spread := func(what string, x []float64) {
		if len(x) > 0 {
			t.row(what, slices.Min(x), median(x), slices.Max(x))
		}
	}
	spread("time without a sender, s (last record of the old to first of the new)", gaps)
	spread("from the kill to the first record of the new, s", dark)
	spread("repeated for each kill, records", repeated)
	spread("repeated for each kill, s of traffic", seconds)
	spread("held by the standby before the kill, messages", heldMessages)
	spread("held by the standby before the kill, age of the oldest, s", heldAge)
	total := 0
	for _, a := range w.arrivals {
		if a.again {
			total++
		}
	}
	t.result("%d routes sent, %d distinct in Kafka, lost: %d (target: 0), repeated in all: %d", sent, w.distinct, lost, total)
	t.result("repeated at most %s s of traffic for a kill (target: 1.5)", number(slices.Max(seconds)))
	r.promise(lost == 0, "takeover: %d of %d records lost", lost, sent)
	r.promise(w.strange == 0, "takeover: %d records that nobody sent", w.strange)
	return tables, nil
}

// awaitSender waits for a record of another sender than old.
func (w *watcher) awaitSender(ctx context.Context, old uint64) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	return rig.WaitFor(ctx, func() error {
		if a, n := w.last(); n == 0 || a.instance == old {
			return errors.New("nobody has taken over")
		}
		return nil
	})
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
