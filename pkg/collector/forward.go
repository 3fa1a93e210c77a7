package collector

import (
	"errors"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"github.com/bmpha/bmpha/pkg/gate"
	"github.com/bmpha/bmpha/pkg/record"
	"github.com/bmpha/bmpha/pkg/sink"
)

const (
	batchRecords = 500       // records that a worker encodes at a time
	batchBytes   = 256 << 10 // and bytes, whichever comes first
	pollWait     = 100 * time.Millisecond

	// After a failure a router's stream rests before it is tried again.
	backoffLeast = 50 * time.Millisecond
	backoffMost  = 5 * time.Second
)

// A forwarder moves records from the gates to the sink. Routers with something
// to do wait in a run queue; each is with one worker at a time, so that its
// order is kept.
type forwarder struct {
	c      *Collector
	lease  atomic.Int64 // nothing is handed over from then on
	closed atomic.Bool
	turned atomic.Int64 // when the poller last came round

	mu      sync.Mutex
	ready   *sync.Cond
	queue   []*router
	waiting []*router // for room in the sink

	inFlight atomic.Int64
	window   int64
	batches  sync.Pool

	progress atomic.Int64 // when something was last acknowledged, or handed over while nothing was in flight
	firstAck atomic.Int64 // when the first record after the last takeover was acknowledged
}

func (f *forwarder) init(c *Collector) {
	f.c = c
	f.ready = sync.NewCond(&f.mu)
	f.window = int64(c.o.Sink.Stats().Window)
	if f.window == 0 {
		f.window = math.MaxInt64
	}
	f.batches.New = func() any { return new(record.Batch) }
	f.turned.Store(c.clock.now())
}

// wake puts r into the run queue if its stream may have something to do. The
// caller holds the router's lock.
func (f *forwarder) wake(r *router) {
	if r.stream.Wanted() {
		f.push(r)
	}
}

func (f *forwarder) push(r *router) {
	f.mu.Lock()
	if !r.queued && !f.closed.Load() {
		r.queued = true
		f.queue = append(f.queue, r)
		f.ready.Signal()
	}
	f.mu.Unlock()
}

// wait parks r until the sink has room.
func (f *forwarder) wait(r *router) {
	f.mu.Lock()
	if !r.queued {
		r.queued = true
		f.waiting = append(f.waiting, r)
	}
	f.mu.Unlock()
}

// room moves those that wait for room to the run queue.
func (f *forwarder) room() {
	f.mu.Lock()
	if len(f.waiting) > 0 {
		f.queue = append(f.queue, f.waiting...)
		clear(f.waiting)
		f.waiting = f.waiting[:0]
		f.ready.Broadcast()
	}
	f.mu.Unlock()
}

func (f *forwarder) pop() *router {
	f.mu.Lock()
	defer f.mu.Unlock()
	for len(f.queue) == 0 {
		if f.closed.Load() {
			return nil
		}
		f.ready.Wait()
	}
	r := f.queue[0]
	f.queue[0] = nil
	f.queue = f.queue[1:]
	r.queued = false
	return r
}

// close ends the workers and the poller.
func (f *forwarder) close() {
	f.mu.Lock()
	f.closed.Store(true)
	f.ready.Broadcast()
	f.mu.Unlock()
	for _, r := range f.c.routers.all() {
		r.wakeAll()
	}
}

// work is one worker.
func (f *forwarder) work() {
	for {
		r := f.pop()
		if r == nil {
			return
		}
		r.mu.Lock()
		f.step(r)
		r.mu.Unlock()
	}
}

// step encodes and hands over one batch of r, whose lock is held.
func (f *forwarder) step(r *router) {
	if r.out == nil {
		if f.c.clock.now() < r.restTill {
			return // a timer will wake us
		}
		if pos, ok := r.stream.Start(); ok {
			if err := f.c.o.Sink.Reset(r.id, pos); err != nil {
				f.fail(r, err, 0)
				r.stream.Report(0, 0, true)
				return
			}
		}
		if f.inFlight.Load() >= f.window {
			f.wait(r)
			return
		}
		if !f.mayHand() || !r.stream.Begin() {
			return
		}
		b := f.batches.Get().(*record.Batch)
		b.Reset()
		r.mu.Unlock()
		r.stream.Fill(b, batchRecords, batchBytes, f.c.clock.wall.Load())
		r.mu.Lock()
		pos, ok := r.stream.End(b.Len())
		if !ok || b.Len() == 0 {
			f.batches.Put(b)
			r.cond.Broadcast()
			f.wake(r)
			return
		}
		r.out, r.outFrom, r.outPos = b, 0, pos
	}
	if r.stream.State() != gate.Sending {
		f.discard(r)
		return
	}
	if !f.mayHand() {
		return // the next round of the election will wake us
	}
	n, err := f.c.o.Sink.Hand(r.id, r.outPos, r.out, r.outFrom)
	if f.inFlight.Load() == 0 {
		f.progress.Store(f.c.clock.now())
	}
	r.stream.Handed(n)
	f.account(r)
	r.outFrom += n
	r.outPos += uint64(n)
	switch {
	case errors.Is(err, sink.ErrStopped), errors.Is(err, sink.ErrClosed):
		f.discard(r) // the report of the failure is on its way, or we are at the end
	case err != nil:
		f.fail(r, err, r.stream.Outstanding())
		r.stream.Report(0, r.stream.Outstanding(), true)
	case r.outFrom == r.out.Len():
		f.discard(r)
		f.push(r)
	default:
		f.wait(r)
	}
}

// mayHand reports whether the lease lasts. A process that was paused finds out
// here, before anything is handed over.
func (f *forwarder) mayHand() bool { return f.c.clock.now() < f.lease.Load() }

// discard gives back the encoded batch of r.
func (f *forwarder) discard(r *router) {
	if r.out != nil {
		f.batches.Put(r.out)
		r.out = nil
	}
}

// account follows a change of what is in flight for r.
func (f *forwarder) account(r *router) {
	n := r.stream.Outstanding()
	f.inFlight.Add(int64(n) - int64(r.inFlight))
	r.inFlight = n
}

// poll collects reports.
func (f *forwarder) poll() {
	var reports []sink.Report
	for !f.closed.Load() {
		reports = f.c.o.Sink.Poll(pollWait, reports[:0])
		now := f.c.clock.now()
		f.turned.Store(now)
		for i := range reports {
			if reports[i].Stream == dumpStream {
				f.c.dumps.report(&reports[i], now)
				continue
			}
			if r := f.c.routers.get(reports[i].Stream); r != nil {
				r.mu.Lock()
				f.report(r, &reports[i], now)
				r.mu.Unlock()
			}
		}
		f.room()
	}
}

// report follows one report. The router's lock is held.
func (f *forwarder) report(r *router, rep *sink.Report, now int64) {
	if rep.Err == nil {
		if f.firstAck.Load() == 0 {
			f.firstAck.Store(now)
		}
		f.progress.Store(now)
		r.backoff = 0
	}
	// That a batch was refused for one record in it is the sink's way of finding
	// the record: it goes on at once. What was taken back waits for the joiner.
	refused := errors.Is(rep.Err, sink.ErrBatchRefused) || errors.Is(rep.Err, sink.ErrRecalled)
	if rep.Err != nil && !refused {
		f.fail(r, rep.Err, uint64(rep.Outstanding))
	}
	r.stream.Report(rep.Acked, uint64(rep.Outstanding), rep.Err != nil)
	if rep.Err == nil && uint64(rep.Outstanding) < r.inFlight {
		f.c.past.acknowledged(r, now)
	}
	f.account(r)
	if r.stream.State() != gate.Sending {
		f.discard(r)
	}
	if r.atRest() {
		f.c.co.kick() // others wait for this
	}
	if r.stream.Awaits() {
		f.c.join.kick()
	}
	r.cond.Broadcast()
	if rep.Err == nil || refused {
		f.wake(r)
	}
}

// fail lets a stream rest for a while after a failure.
func (f *forwarder) fail(r *router, err error, outstanding uint64) {
	f.discard(r)
	r.facts.lastError = err.Error()
	if r.noise.Allow() {
		r.log.Error("sending stopped, will go back to the first record without acknowledgement",
			"error", err, "outstanding", outstanding)
	}
	now := f.c.clock.now()
	if now < r.restTill {
		return // several reports of one failure
	}
	r.backoff = min(max(2*r.backoff, backoffLeast), backoffMost)
	r.restTill = now + micros(r.backoff)
	time.AfterFunc(r.backoff+time.Millisecond, func() {
		r.mu.Lock()
		f.wake(r)
		r.mu.Unlock()
	})
}
