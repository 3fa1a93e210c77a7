package relay

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"
)

// A target is one station with all that waits for it.
type target struct {
	relay   *Relay
	address string
	log     *slog.Logger
	noise   *rate.Limiter // for log lines that sessions cause
	budget  *budget
	kick    chan struct{} // of capacity 1: the pacer has news
	bytes   atomic.Uint64
	tookAt  atomic.Int64 // when it took something last, in ns of time.Since(relay.born)
	probes  sync.WaitGroup

	mu          sync.Mutex // a link's lock may be held when it is taken, not the other way round
	pacer       *pacer
	links       map[uint64]*link
	lastKey     uint64
	spare       *wire
	spareHeader []byte // of a router that waits, see pacer
	over        bool   // no new spare
	cuts        uint64
	losses      uint64
	resets      uint64
	replays     uint64
	lastError   string
}

func newTarget(r *Relay, address string) *target {
	t := &target{
		relay: r, address: address, log: r.o.Log.With("target", address),
		noise:  rate.NewLimiter(rate.Every(10*time.Second), 5),
		budget: newBudget(r.o.Buffer), kick: make(chan struct{}, 1),
		pacer: newPacer(r.o.Parallel, r.o.Resync), links: make(map[uint64]*link),
	}
	if r.o.Replay {
		t.pacer.most = replayMost
	}
	return t
}

func (t *target) notify() {
	select {
	case t.kick <- struct{}{}:
	default:
	}
}

func (t *target) all() []*link {
	t.mu.Lock()
	defer t.mu.Unlock()
	all := make([]*link, 0, len(t.links))
	for _, l := range t.links {
		all = append(all, l)
	}
	return all
}

// open makes a link of a session; the caller runs it. It is a new one, or, to be
// replayed, takes the place of one that was lost.
func (t *target) open(s *Stream, header []byte, lost *link) *link {
	l := &link{target: t, stream: s, header: header, wake: make(chan struct{}, 1), done: make(chan struct{}), patience: finishWithin}
	if lost != nil {
		l.before, l.patience = append(l.before, lost), cutWithin+time.Second
		l.replay, l.framed, l.walking = s.table.Replay(), true, true
	}
	l.queue.budget = t.budget
	t.budget.join(&l.queue.account)
	t.mu.Lock()
	defer t.mu.Unlock()
	if lost != nil {
		t.replays++
		t.pacer.closed(time.Now(), lost.key)
	}
	t.lastKey++
	l.key = t.lastKey
	for _, other := range t.links {
		if other.stream.router.Addr() == s.router.Addr() && other.stream.closed.Load() {
			l.before = append(l.before, other)
		}
	}
	t.links[l.key] = l
	if len(t.links) == 1 {
		t.tookAt.Store(int64(time.Since(t.relay.born))) // had nothing to take
	}
	t.pacer.opened(time.Now(), l.key, s.router.Addr())
	t.notify()
	return l
}

// took counts what the target has taken.
func (t *target) took(n int) {
	t.bytes.Add(uint64(n))
	if n > 0 {
		t.tookAt.Store(int64(time.Since(t.relay.born)))
	}
}

// wait returns for how long a Write with a full buffer may wait for the target
// from now on, unless it takes something meanwhile. Only the first is waited for.
func (t *target) wait() time.Duration {
	if t != t.relay.targets[0] {
		return 0
	}
	return time.Duration(t.tookAt.Load()) + t.relay.o.Wait - time.Since(t.relay.born)
}

// forget drops a link that has come to its end. A lost one stays until its session
// ends, too, or is replayed.
func (t *target) forget(l *link) {
	if !l.stream.closed.Load() && !l.replaced.Load() {
		return
	}
	t.mu.Lock()
	_, known := t.links[l.key]
	delete(t.links, l.key)
	t.mu.Unlock()
	if known {
		t.budget.leave(&l.queue.account)
	}
}

// ended follows the end of a session.
func (t *target) ended(l *link) {
	t.mu.Lock()
	t.pacer.closed(time.Now(), l.key)
	t.mu.Unlock()
	t.notify()
	l.release()
}

func (t *target) connected(l *link) {
	t.mu.Lock()
	t.pacer.up(time.Now(), l.key)
	t.mu.Unlock()
	t.notify()
}

// lost follows the end of a connection that was not to end.
func (t *target) lost(l *link, err error) {
	t.mu.Lock()
	t.pacer.lost(time.Now(), l.key)
	if err == errFull {
		t.cuts++
	} else {
		t.losses++
	}
	t.lastError = err.Error()
	if l.header != nil {
		t.spareHeader = l.header
	}
	t.mu.Unlock()
	t.notify()
	if t.noise.Allow() {
		t.log.Warn("relay target has lost a session", "session", l.stream.id, "router", l.stream.router.Addr(), "error", err)
	}
}

// connect returns a connection to the target. The caller must say the header
// before it closes it.
func (t *target) connect() (*wire, error) {
	t.mu.Lock()
	w := t.spare
	if w != nil {
		t.spare = nil
		t.pacer.spareTaken()
	}
	t.mu.Unlock()
	if w != nil {
		w.onEnd(nil)
		return w, nil
	}
	return t.dial()
}

func (t *target) dial() (*wire, error) {
	ctx, cancel := context.WithTimeout(t.relay.ctx, dialWithin)
	defer cancel()
	conn, err := t.relay.o.Dial(ctx, "tcp", t.address)
	if err != nil {
		return nil, err
	}
	return newWire(conn), nil
}

// probe makes the spare connection.
func (t *target) probe() {
	w, err := t.dial()
	t.mu.Lock()
	t.pacer.probed(time.Now(), err == nil)
	if err != nil {
		t.lastError = err.Error()
	}
	over := t.over
	if err == nil && !over {
		t.spare = w
	}
	t.mu.Unlock()
	t.notify()
	switch {
	case err != nil:
	case over:
		t.leave(w)
	default:
		w.onEnd(func(err error) { t.spareEnded(w, err) })
	}
}

func (t *target) spareEnded(w *wire, err error) {
	t.mu.Lock()
	ours := t.spare == w
	if ours {
		t.spare = nil
		t.lastError = err.Error()
		t.pacer.spareLost(time.Now())
	}
	t.mu.Unlock()
	if ours {
		w.conn.Close()
		t.notify()
	}
}

// leave closes a spare that nobody has used.
func (t *target) leave(w *wire) {
	t.mu.Lock()
	header := t.spareHeader
	t.mu.Unlock()
	_ = w.conn.SetWriteDeadline(time.Now().Add(time.Second))
	_, _ = w.conn.Write(header) // no matter if it is lost
	w.conn.Close()
	<-w.over
}

// run does what the pacer says.
func (t *target) run() {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	state := Idle
	for {
		t.poll()
		now := time.Now()
		t.mu.Lock()
		reset, probe, next := t.pacer.step(now)
		links := make([]*link, 0, len(reset))
		for _, key := range reset {
			links = append(links, t.links[key])
		}
		was, waiting, lastError := state, t.pacer.without(), t.lastError
		state = t.pacer.state()
		t.mu.Unlock()
		if state != was {
			t.say(state, was, waiting, lastError)
		}
		if probe {
			t.probes.Go(t.probe)
		}
		for _, l := range links {
			t.again(l)
		}
		wait := time.Hour
		if !next.IsZero() {
			wait = max(time.Until(next), time.Millisecond)
		}
		timer.Reset(wait)
		select {
		case <-t.kick:
		case <-timer.C:
		case <-t.relay.ctx.Done():
			t.mu.Lock()
			t.over = true
			w := t.spare
			t.spare = nil
			t.mu.Unlock()
			if w != nil {
				t.leave(w)
			}
			t.probes.Wait()
			return
		}
	}
}

// again lets a session that was lost start over.
func (t *target) again(l *link) {
	s := l.stream
	what := "session starts over for a relay target"
	switch s.again(l) {
	case notYet:
		t.mu.Lock()
		t.pacer.postponed(time.Now(), l.key)
		t.mu.Unlock()
		t.notify()
		return
	case replayed:
		what = "session is replayed for a relay target"
	case toReset:
		t.mu.Lock()
		t.resets++
		t.mu.Unlock()
		s.reset()
	}
	if t.noise.Allow() {
		t.log.Info(what, "session", s.id, "router", s.router.Addr())
	}
}

func (t *target) say(state, was State, waiting int, lastError string) {
	switch {
	case state == Down:
		t.log.Error("relay target is down", "error", lastError, "waiting", waiting)
	case state == Up || state == Resyncing && was != Up:
		if t.noise.Allow() {
			t.log.Info("relay target is up", "waiting", waiting)
		}
	}
}

// poll tells the pacer which sessions are drained.
func (t *target) poll() {
	t.mu.Lock()
	var links []*link
	for _, key := range t.pacer.watched() {
		links = append(links, t.links[key])
	}
	t.mu.Unlock()
	for _, l := range links {
		yes := l.drained()
		t.mu.Lock()
		t.pacer.drained(time.Now(), l.key, yes)
		t.mu.Unlock()
	}
}

func (t *target) pause(on bool) {
	t.mu.Lock()
	t.pacer.paused = on
	t.mu.Unlock()
	t.notify()
	var deadline time.Time
	if on {
		deadline = time.Unix(1, 0) // ends a write that waits
	}
	for _, l := range t.all() {
		l.mu.Lock()
		if l.wire != nil {
			_ = l.wire.conn.SetWriteDeadline(deadline) // fails when it is closed
		}
		l.mu.Unlock()
		l.notify()
	}
}

func (t *target) status() Target {
	var buffered int64
	replaying := 0
	for _, l := range t.all() {
		l.mu.Lock()
		buffered += l.queue.size + int64(len(l.step))
		if l.walking && !l.dead {
			replaying++
		}
		l.mu.Unlock()
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	return Target{
		Address: t.address, State: t.pacer.state(), Since: t.pacer.since, Sessions: t.pacer.connected,
		Waiting: t.pacer.without(), Buffered: buffered, Bytes: t.bytes.Load(),
		Cuts: t.cuts, Lost: t.losses, Resets: t.resets, Replays: t.replays, Replaying: replaying, LastError: t.lastError,
	}
}
