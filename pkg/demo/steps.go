package demo

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/bmpha/bmpha/pkg/control"
	"github.com/bmpha/bmpha/pkg/replay"
)

const (
	// pollEvery is how often the collectors are asked how they are.
	pollEvery = 100 * time.Millisecond
	// caughtUp is how far Kafka may be behind the routers when a step ends.
	caughtUp = time.Second
)

// play walks through the steps.
func (s *scene) play(ctx context.Context) error {
	a, b, c := s.members[0], s.members[1], s.members[2]
	frr := s.routers[0]
	steps := []struct {
		name string
		do   func(context.Context) error
	}{
		{"quiet", s.quiet},
		{"maintenance on A", func(ctx context.Context) error { return s.maintenance(ctx, a, b) }},
		{"kill -9 of B", func(ctx context.Context) error { return s.kill(ctx, b, c) }},
		{"B comes back", func(ctx context.Context) error { return s.comeBack(ctx, b) }},
		{"Redis away", func(ctx context.Context) error { return s.redisAway(ctx, c) }},
		{"session " + frr.name + "–C cut", func(ctx context.Context) error { return s.cut(ctx, frr, c) }},
		{"Kafka away", s.kafkaAway},
		{"C stops, comes back", func(ctx context.Context) error { return s.stop(ctx, c) }},
	}
	s.mu.Lock()
	for _, st := range steps {
		s.names = append(s.names, st.name)
	}
	s.names = append(s.names, "at rest")
	s.mu.Unlock()
	for i, st := range steps {
		if err := s.step(ctx, i, st.do); err != nil {
			return fmt.Errorf("%s: %w", st.name, err)
		}
	}
	return s.step(ctx, len(steps), s.rest)
}

// step does one step and lets it last until Kafka has caught up and people have
// seen something.
func (s *scene) step(ctx context.Context, i int, do func(context.Context) error) error {
	begin := time.Now()
	s.mu.Lock()
	s.current = i
	s.who.begin()
	clear(s.others)
	name, last := s.names[i], i == len(s.names)-1
	s.mu.Unlock()
	s.tell("— %d of %d: %s", i+1, len(s.names), name)
	err := do(ctx)
	if err == nil && !last {
		// What follows upon an outage is to be seen as well.
		err = s.wait(ctx, max(s.o.Look-time.Since(begin), s.o.Look/3))
	}
	if err == nil {
		// What does not come is counted in the end.
		if late := s.until(ctx, "Kafka catches up", s.caughtUp); late != nil {
			if ctx.Err() != nil {
				err = context.Cause(ctx)
			} else {
				s.tell("! %v", late)
			}
		}
	}
	s.mu.Lock()
	s.actives = append(s.actives, s.activeText())
	s.finished = last && err == nil
	s.mu.Unlock()
	return err
}

// activeText says who was active in this step. The lock is held.
func (s *scene) activeText() string {
	text := s.who.String()
	for _, other := range slices.Sorted(maps.Keys(s.others)) {
		// A collector that hands over is seen to send once more at most.
		if s.others[other] > 1 {
			text += ", " + other
		}
	}
	return text
}

func (s *scene) caughtUp(view) error {
	if s.ledger.missing > 0 {
		if d := s.ledger.behind(time.Now()); d > caughtUp {
			return fmt.Errorf("a record sent %s ago is not there", d.Round(100*time.Millisecond))
		}
	}
	return nil
}

// until waits until cond holds for what the collectors say. cond is called with
// the lock held.
func (s *scene) until(ctx context.Context, what string, cond func(view) error) error {
	patience := time.NewTimer(s.o.Patience)
	defer patience.Stop()
	for {
		s.mu.Lock()
		err, changed := cond(s.view), s.changed
		broken := s.broken
		s.mu.Unlock()
		if broken != nil {
			return broken
		}
		if err == nil {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-patience.C:
			return fmt.Errorf("waited %s until %s: %w", s.o.Patience, what, err)
		}
	}
}

// role waits for a role.
func (s *scene) role(ctx context.Context, m *member, want string) error {
	return s.until(ctx, m.name+" is "+want, func(v view) error {
		switch role := v.role(m.name); {
		case role == "":
			return fmt.Errorf("%s does not answer", m.name)
		case role != want:
			return fmt.Errorf("%s is %s (%s)", m.name, role, v.status[m.name].Reason)
		}
		return nil
	})
}

// only waits until m is the only active one and the others that run are standby.
func (s *scene) only(ctx context.Context, m *member) error {
	return s.until(ctx, "only "+m.name+" is active", func(v view) error {
		if active := v.active(s.members); active != m.name || s.who.current != m.name {
			return fmt.Errorf("active: %q", active)
		}
		return nil
	})
}

// quiet: the first sends, the others hold, and everything arrives once.
func (s *scene) quiet(ctx context.Context) error {
	err := s.until(ctx, "every collector hears both routers", func(v view) error {
		for _, m := range s.members {
			if err := s.hears(v, m); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	if err := s.only(ctx, s.members[0]); err != nil {
		return err
	}
	s.tell("A is active and sends; B and C hold what A has not yet delivered")
	return nil
}

// hears says whether a collector hears all routers.
func (s *scene) hears(v view, m *member) error {
	st := v.status[m.name]
	if st == nil {
		return fmt.Errorf("%s does not answer", m.name)
	}
	for _, r := range s.routers {
		if !slices.ContainsFunc(st.Routers, func(c control.Router) bool {
			return c.Address == r.addr.String() && c.Session != nil
		}) {
			return fmt.Errorf("%s does not hear %s", m.name, r.name)
		}
	}
	return nil
}

// maintenance: what `bmpha maintenance` does.
func (s *scene) maintenance(ctx context.Context, m, heir *member) error {
	s.tell("%s maintenance --socket %s", s.o.Command, m.socket)
	res, err := m.client.Maintain(ctx, control.MaintainRequest{
		Mode: control.ModeHandover, Timeout: control.Seconds(s.o.Patience.Seconds()),
	})
	if err != nil {
		return err
	}
	s.tell("%s is active; it took over from %s in %s", res.To, res.From, res.Took.Duration().Round(time.Millisecond))
	return s.only(ctx, heir)
}

// kill: a crash of the active one.
func (s *scene) kill(ctx context.Context, m, heir *member) error {
	s.tell("kill -9 %d", m.proc.PID())
	begin := time.Now()
	if err := m.proc.Kill(); err != nil {
		return err
	}
	if err := s.only(ctx, heir); err != nil {
		return err
	}
	s.tell("%s is active, %s after the kill", heir.name, since(begin))
	return nil
}

func since(t time.Time) time.Duration { return time.Since(t).Round(10 * time.Millisecond) }

// comeBack: a collector is started again, joins as the youngest and hears the
// routers again.
func (s *scene) comeBack(ctx context.Context, m *member) error {
	if err := m.start(ctx, s.o); err != nil {
		return err
	}
	s.tell("%s runs again (process %d)", m.name, m.proc.PID())
	if err := s.role(ctx, m, control.RoleStandby); err != nil {
		return err
	}
	if err := s.until(ctx, m.name+" hears the routers", func(v view) error { return s.hears(v, m) }); err != nil {
		return err
	}
	s.tell("%s is standby; the routers have sent it their tables", m.name)
	return nil
}

// redisAway: all become active, and afterwards the same one as before remains.
func (s *scene) redisAway(ctx context.Context, leader *member) error {
	if err := s.redis.Stop(); err != nil {
		return err
	}
	s.set(&s.redisUp, false)
	s.tell("Redis is stopped")
	err := s.until(ctx, "all are active", func(v view) error {
		if active := v.active(s.members); len(strings.Split(active, "+")) != len(s.members) {
			return fmt.Errorf("active: %q", active)
		}
		return nil
	})
	if err != nil {
		return err
	}
	s.tell("all are active, as without Redis nobody knows of the others: repeated rather than lost")
	if err := s.wait(ctx, s.o.Look); err != nil {
		return err
	}
	if err := s.redis.Restart(ctx); err != nil {
		return err
	}
	s.set(&s.redisUp, true)
	s.tell("Redis is back, empty")
	if err := s.only(ctx, leader); err != nil {
		return err
	}
	s.tell("%s is active, as before", leader.name)
	return nil
}

// wait lets people look on for a while.
func (s *scene) wait(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (s *scene) set(up *bool, to bool) {
	s.mu.Lock()
	*up = to
	s.mu.Unlock()
}

// sender waits until the named collectors, and no other, send what a router says.
func (s *scene) sender(ctx context.Context, r *router, is func(names []string) bool) (string, error) {
	var names []string
	err := s.until(ctx, "another sends what "+r.name+" says", func(v view) error {
		if names = v.senders(s.members, r); !is(names) {
			return fmt.Errorf("it is %s", strings.Join(names, "+"))
		}
		return nil
	})
	return strings.Join(names, "+"), err
}

// senders names the collectors that send what a router says.
func (v view) senders(members []*member, r *router) (names []string) {
	for _, m := range members {
		st := v.status[m.name]
		if st != nil && slices.ContainsFunc(st.Routers, func(c control.Router) bool {
			return c.Address == r.addr.String() && c.Sending
		}) {
			names = append(names, m.name)
		}
	}
	return names
}

// cut: the active one loses one router; a standby that hears it takes that router
// over, and gives it back.
func (s *scene) cut(ctx context.Context, r *router, leader *member) error {
	// It stays away until another was seen to send.
	if !r.Cut(leader.addr, time.Hour) {
		return fmt.Errorf("%s has no session to %s", r.name, leader.name)
	}
	begin := time.Now()
	s.tell("the session from %s to %s is cut; %s stays active for the other router", r.name, leader.name, leader.name)
	other, err := s.sender(ctx, r, func(names []string) bool { return len(names) == 1 && names[0] != leader.name })
	if err != nil {
		return err
	}
	s.tell("%s sends what %s says, %s after the cut", other, r.name, since(begin))
	if err := s.wait(ctx, s.o.Look/2); err != nil {
		return err
	}
	r.Cut(leader.addr, 0)
	if _, err := s.sender(ctx, r, func(names []string) bool { return len(names) == 1 && names[0] == leader.name }); err != nil {
		return err
	}
	s.tell("the session is back, %s sends what %s says", leader.name, r.name)
	return nil
}

// kafkaAway: the collectors keep what they cannot deliver.
func (s *scene) kafkaAway(ctx context.Context) error {
	s.mu.Lock()
	s.gaps.away = append(s.gaps.away, span{from: time.Now()})
	s.kafkaUp = false
	s.mu.Unlock()
	if err := s.kafka.Away(ctx, true); err != nil {
		return err
	}
	s.tell("Kafka is away")
	if err := s.wait(ctx, s.o.Look); err != nil {
		return err
	}
	if err := s.kafka.Away(ctx, false); err != nil {
		return err
	}
	back := time.Now()
	s.mu.Lock()
	s.gaps.away[len(s.gaps.away)-1].to = back
	s.kafkaUp = true
	waiting := s.ledger.missing
	s.mu.Unlock()
	s.tell("Kafka is back; %d records wait for it", waiting)
	err := s.until(ctx, "Kafka has what was sent before", func(view) error {
		if s.ledger.behind(back) > 0 {
			return fmt.Errorf("%d records are missing", s.ledger.missing)
		}
		return nil
	})
	if err != nil {
		return err
	}
	s.tell("all delivered, %s after Kafka came back", since(back))
	return nil
}

// stop: an upgrade, say.
func (s *scene) stop(ctx context.Context, m *member) error {
	pid, begin := m.proc.PID(), time.Now()
	s.tell("kill -TERM %d", pid)
	if err := m.proc.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	heir := ""
	err := s.until(ctx, "another is active", func(v view) error {
		if heir = v.active(s.members); heir == "" || heir == m.name {
			return fmt.Errorf("active: %q", heir)
		}
		return nil
	})
	if err != nil {
		return err
	}
	s.tell("%s is active, %s after the signal", heir, since(begin))
	select {
	case <-m.proc.Done():
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(s.o.Patience):
		return fmt.Errorf("%s (process %d) does not end", m.name, pid)
	}
	if code := m.proc.ExitCode(); code != 0 {
		return fmt.Errorf("%s ended with exit code %d", m.name, code)
	}
	s.tell("%s has ended, exit code 0", m.name)
	return s.comeBack(ctx, m)
}

// rest: the routers fall silent, and Kafka must have everything.
func (s *scene) rest(ctx context.Context) error {
	for _, r := range s.routers {
		r.Pause(true)
	}
	s.tell("the routers are quiet; comparing their tables with the one in Kafka")
	err := s.until(ctx, "Kafka has everything", func(view) error {
		if n := s.ledger.missing; n > 0 {
			return fmt.Errorf("%d records are missing", n)
		}
		return nil
	})
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err != nil {
		s.tell("! %v", err)
	}
	limit, cancel := context.WithTimeout(ctx, s.o.Patience)
	defer cancel()
	if err := s.sub.CatchUp(limit); err != nil {
		return err
	}
	err = s.until(ctx, "the tables are equal", func(view) error {
		if d := s.compare(); !d.Empty() {
			return errors.New(d.String())
		}
		return nil
	})
	if err != nil && ctx.Err() == nil {
		s.tell("! the tables differ")
		return nil // the report says it
	}
	return err
}

// compare compares the tables. The lock is held; the routers rest, so that theirs
// does not wait for it.
func (s *scene) compare() replay.Diff {
	routes := make(map[replay.Key]string)
	for _, r := range s.routers {
		for k, v := range r.Table() {
			routes[k] = v
		}
	}
	return replay.Compare(routes, s.table.Routes())
}

// startPoll begins to ask all collectors again and again.
func (s *scene) startPoll() {
	ctx, cancel := context.WithCancel(context.Background())
	var loop sync.WaitGroup
	loop.Go(func() { s.poll(ctx) })
	s.stopPoll = func() {
		cancel()
		loop.Wait()
	}
}

func (s *scene) poll(ctx context.Context) {
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		s.look(ctx)
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (s *scene) look(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	members := s.members
	answers := make([]*control.Status, len(members))
	var all sync.WaitGroup
	for i, m := range members {
		all.Go(func() {
			if st, err := m.client.Status(ctx); err == nil {
				answers[i] = st
			}
		})
	}
	all.Wait()
	v := view{at: time.Now(), status: make(map[string]*control.Status)}
	for i, m := range members {
		if answers[i] != nil {
			v.status[m.name] = answers[i]
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.view = v
	active := v.active(members)
	s.who.observe(active)
	for _, r := range s.routers {
		for _, name := range v.senders(members, r) {
			if active != "" && !strings.Contains(active, name) {
				s.others[name+" for "+r.name]++
			}
		}
	}
	s.samples = append(s.samples, s.sample(v))
	close(s.changed)
	s.changed = make(chan struct{})
}
