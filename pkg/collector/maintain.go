package collector

import (
	"context"
	"fmt"
	"time"

	"github.com/bmpha/bmpha/pkg/cluster"
	"github.com/bmpha/bmpha/pkg/control"
	"github.com/bmpha/bmpha/pkg/election"
)

// Regenerate takes a new timestamp, as signal 34 asks for: another member takes
// over if there is one.
func (c *Collector) Regenerate(ctx context.Context) error {
	return c.co.do(ctx, c.co.e.Renew)
}

// Force sets the mode, as signals 35, 36 and 37 ask for.
func (c *Collector) Force(ctx context.Context, m election.Mode) error {
	return c.co.do(ctx, func(now int64) { c.co.e.Force(now, m) })
}

// Maintain does what an operator asks for and waits until it is seen to have
// happened. See control.Backend.
func (c *Collector) Maintain(ctx context.Context, q control.MaintainRequest) (control.MaintainResult, error) {
	begin := time.Now()
	before := c.co.snapshot()
	res := control.MaintainResult{Mode: q.Mode, From: c.activeMember(&before)}
	if q.Mode == control.ModeHandover || q.Mode == control.ModeStandby {
		if c.noHeir(&before) != "" { // who came after the last round is not known yet
			c.co.client.Scan(ctx)
			if s, ok := c.co.refresh(ctx); ok {
				before, res.From = s, c.activeMember(&s)
			}
		}
		if why := c.noHeir(&before); why != "" && !q.Force && !(before.down && q.Mode == control.ModeHandover) {
			return res, &control.Refused{Reason: why + "; --force does it all the same"}
		}
	}
	var err error
	var done func(*snapshot) bool
	switch q.Mode {
	case control.ModeHandover:
		if before.down { // --force cannot help: a new timestamp is read from Redis' clock
			return res, &control.Refused{Reason: "Redis is unavailable, so no other member can be asked to take over; 'maintenance standby --force' makes this one stop"}
		}
		if before.mode == election.ForceActive {
			return res, &control.Refused{Reason: "this collector is forced to be active; 'maintenance auto' ends that"}
		}
		err = c.Regenerate(ctx)
		done = func(s *snapshot) bool {
			if s.timestamp == before.timestamp {
				return false
			}
			to := c.activeMember(s)
			return to != "" && (to != c.o.Process || c.noHeir(s) != "")
		}
	case control.ModeStandby:
		err = c.Force(ctx, election.ForceStandby)
		done = func(s *snapshot) bool {
			to := c.activeMember(s)
			return s.role == election.Standby && s.mode == election.ForceStandby && (to != "" || c.noHeir(s) != "" && !before.held)
		}
	case control.ModeActive:
		err = c.Force(ctx, election.ForceActive)
		done = func(s *snapshot) bool { return s.role == election.Active && s.mode == election.ForceActive }
	case control.ModeAuto:
		err = c.Force(ctx, election.Auto)
		done = func(s *snapshot) bool {
			return s.mode == election.Auto && c.activeMember(s) != "" && s.lastGood > before.lastGood || s.down
		}
	}
	if err != nil {
		return res, err
	}
	after, ok := c.co.await(ctx, done)
	res.Role, res.Forced, res.Token = after.role.String(), forced(after.mode.String()), after.token
	res.To, res.Took = c.activeMember(&after), control.Seconds(time.Since(begin).Seconds())
	if !ok {
		return res, &control.TimedOut{Reason: fmt.Sprintf("begun, but not seen to happen within %s: this collector is %s (%s)",
			time.Since(begin).Round(time.Millisecond), after.role, after.reason)}
	}
	return res, nil
}

// activeMember names who is active as far as this collector knows, "" if no one
// is.
func (c *Collector) activeMember(s *snapshot) string {
	if s.role == election.Active {
		return c.o.Process
	}
	if s.view == nil {
		return ""
	}
	var native *cluster.Member
	for i := range s.view.Members {
		m := &s.view.Members[i]
		switch {
		case m.Gone || m.Name == c.o.Process:
		case m.Role == election.Active.String():
			return m.Name
		case m.Native && (native == nil || m.Value < native.Value):
			native = m // tells no role: the oldest is it
		}
	}
	if native != nil {
		return native.Name
	}
	return ""
}

// noHeir says why nobody would take over, "" if someone would.
func (c *Collector) noHeir(s *snapshot) string {
	if s.down {
		return "Redis is unavailable, so no other member can be asked to take over"
	}
	if s.view == nil {
		return "no election round yet"
	}
	others := 0
	for i := range s.view.Members {
		m := &s.view.Members[i]
		if m.Gone || m.Name == c.o.Process {
			continue
		}
		if m.Value != election.ForcedStandby {
			return ""
		}
		others++
	}
	if others > 0 {
		return "all other members are forced to be standby"
	}
	return "no other member is alive"
}

// snapshot returns what is known now, with what links have brought since the last
// round.
func (co *coordinator) snapshot() snapshot {
	co.mu.Lock()
	s := co.seen
	co.mu.Unlock()
	s.view = co.c.past.overlay(s.view, co.c.clock.now())
	return s
}

// refresh asks Redis anew and returns what is known then; false if ctx has ended
// before. A Redis that counts as unavailable is not waited for.
func (co *coordinator) refresh(ctx context.Context) (snapshot, bool) {
	return co.inquire(ctx, func(s *snapshot, asked int64) bool { return s.down || s.lastGood >= asked })
}

// retry asks Redis once more, though it counts as unavailable, and waits until the
// answer, if there was one, has been followed by all routers; false if ctx has ended
// before.
func (co *coordinator) retry(ctx context.Context) bool {
	_, ok := co.inquire(ctx, func(s *snapshot, asked int64) bool { return s.tried >= asked })
	return ok && co.do(ctx, func(int64) {}) == nil // after a turn of the loop
}

// inquire makes a round due and waits until enough is known of it, which was asked for
// at that time, or ctx ends.
func (co *coordinator) inquire(ctx context.Context, enough func(s *snapshot, asked int64) bool) (snapshot, bool) {
	var asked int64
	if co.do(ctx, func(now int64) {
		asked = now
		co.ask(now)
	}) != nil {
		return snapshot{}, false
	}
	return co.await(ctx, func(s *snapshot) bool { return enough(s, asked) })
}

// lost reports whether nothing is known of who else sends: Redis counts as
// unavailable, and links do not tell either.
func (co *coordinator) lost() bool {
	s := co.snapshot()
	return s.lost()
}

// await waits until done holds for what is known of the election, or ctx ends.
func (co *coordinator) await(ctx context.Context, done func(*snapshot) bool) (snapshot, bool) {
	for {
		co.mu.Lock()
		changed := co.changed
		co.mu.Unlock()
		s := co.snapshot()
		if done(&s) {
			return s, true
		}
		select {
		case <-ctx.Done():
			return s, false
		case <-changed:
		}
	}
}
