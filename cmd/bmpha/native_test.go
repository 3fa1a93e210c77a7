package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/bmpha/bmpha/pkg/control"
	"github.com/bmpha/bmpha/pkg/replay"
	"github.com/bmpha/bmpha/pkg/rig"
)

// These tests share a cluster with a scripted member that issues the very commands
// of pmacct's own high availability and makes its mistakes.

// nativeLatency is the longest that a native member needs to see what changed: a
// loop each second, and what a busy machine adds.
const nativeLatency = rig.NativePeriod + 500*time.Millisecond

// native starts a native member of the lab's cluster.
func (l *lab) native(o rig.NativeOptions) *rig.NativeMember {
	l.t.Helper()
	o.Cluster = l.name
	n, err := rig.StartNativeMember(l.within(30*time.Second), l.redis, o)
	l.must(err)
	l.t.Cleanup(func() { n.Close() })
	return n
}

// nativeView is the longest that a collector needs to see what has changed at a
// native member: it looks each second, and answers at once.
const nativeView = time.Second + 500*time.Millisecond

// nativeTakes waits until a native member is active because a collector was killed,
// and reports whether it has lived through that. It may rightly not: the key can
// expire between its KEYS and GET, see TestNativeReads. Then it is started again.
func (l *lab) nativeTakes(n *rig.NativeMember) bool {
	l.t.Helper()
	err := n.Await(l.within(30*time.Second), rig.NativeActive)
	if err == nil {
		return true
	}
	if n.State() != rig.NativeCrashed {
		l.t.Fatal(err)
	}
	l.t.Log(err)
	l.must(n.Restart(l.within(10 * time.Second)))
	l.nativeIs(n, rig.NativeActive)
	return false
}

func (l *lab) nativeIs(n *rig.NativeMember, want rig.NativeState) {
	l.t.Helper()
	l.judge(n.Await(l.within(30*time.Second), want))
}

// A watch looks at all members all the time.
type watch struct {
	stop context.CancelFunc
	done sync.WaitGroup
	both span // longest time with more than one active
	none span // longest time without one
}

// A span is a time, and how much of it is left without what the machine kept
// everybody waiting.
type span struct{ whole, judged time.Duration }

func (s *span) upTo(from, to time.Time) {
	whole := to.Sub(from)
	s.whole = max(s.whole, whole)
	if whole > s.judged {
		s.judged = max(s.judged, whole-machine.Lost(from, to))
	}
}

// watch begins to look. A member that does not answer is not active.
func (l *lab) watch(natives []*rig.NativeMember, members ...*member) *watch {
	ctx, cancel := context.WithCancel(l.t.Context())
	w := &watch{stop: cancel}
	l.t.Cleanup(cancel)
	w.done.Go(func() {
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		good, sole := time.Now(), time.Now() // when there was at least, and at most, one
		for {
			active := 0
			for _, n := range natives {
				if n.State() == rig.NativeActive {
					active++
				}
			}
			for _, m := range members {
				if s, err := m.client.Status(ctx); err == nil && s.Role == control.RoleActive {
					active++
				}
			}
			now := time.Now()
			if ctx.Err() != nil {
				return
			}
			if active > 0 {
				good = now
			}
			if active < 2 {
				sole = now
			}
			w.none.upTo(good, now)
			w.both.upTo(sole, now)
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
		}
	})
	return w
}

// check ends the watch: never longer than that more than one, or none, was active.
func (w *watch) check(t *testing.T, what string, both, none time.Duration) {
	t.Helper()
	w.stop()
	w.done.Wait()
	t.Logf("%s: at most %s with more than one active, %s without", what, w.both.whole.Round(time.Millisecond), w.none.whole.Round(time.Millisecond))
	if w.both.judged > both {
		t.Errorf("%s: for %s more than one was active, %s of them not the machine's, want at most %s", what, w.both.whole, w.both.judged, both)
	}
	if w.none.judged > none {
		t.Errorf("%s: for %s none was active, %s of them not the machine's, want at most %s", what, w.none.whole, w.none.judged, none)
	}
}

// blink is what a look at a moment of change may show wrongly: members are looked
// at one after the other.
const blink = 100 * time.Millisecond

// timestampKey returns what the key of a process holds and when it expires.
func (l *lab) timestampKey(process string) (value string, ttl time.Duration) {
	l.t.Helper()
	rdb := l.redis.Client()
	defer rdb.Close()
	key := l.name + "+0+" + process + "+ha_daemon_startup_time"
	value, err := rdb.Get(l.t.Context(), key).Result()
	l.must(err)
	ttl, err = rdb.PTTL(l.t.Context(), key).Result()
	l.must(err)
	return value, ttl
}

// span returns the smallest and the largest number that has come, and how many
// numbers have.
func (t *tally) span() (first, last uint64, count int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	numbers := slices.Collect(maps.Keys(t.numbers))
	if len(numbers) == 0 {
		return 0, 0, 0
	}
	return slices.Min(numbers), slices.Max(numbers), len(numbers)
}

// TestNative follows a bmpha and a native member through the life of their pair.
func TestNative(t *testing.T) {
	t.Parallel()
	l := newLab(t).consume(4)
	n := l.native(rig.NativeOptions{Process: "n"})
	l.nativeIs(n, rig.NativeActive)

	// bmpha joins: it is the younger, and sends nothing.
	a := l.start("a")
	a.role(control.RoleStandby)
	a.seen("the native member", func(s *control.Status) error {
		for _, m := range s.Members {
			if m.Name == "n" && m.Kind == control.KindNative && fmt.Sprint(m.Timestamp) == n.Value() {
				return nil
			}
		}
		return fmt.Errorf("members %+v", s.Members)
	})
	r := l.numbered(500, a)
	a.seen("what is held", func(s *control.Status) error {
		if s.Hold.Messages < 1000 {
			return fmt.Errorf("%d messages", s.Hold.Messages)
		}
		return nil
	})
	if s := a.status(); s.Role != control.RoleStandby || s.Sink.Handed != 0 || n.State() != rig.NativeActive {
		l.errorf("joined: %s, %d records handed over, the native member is %s", s.Role, s.Sink.Handed, n.State())
	}

	// The native one dies. Nothing tells what it sent, so all that is held goes out.
	w := l.watch([]*rig.NativeMember{n}, a)
	begin := time.Now()
	l.must(n.Kill())
	a.role(control.RoleActive)
	took := time.Since(begin)
	lost := machine.Lost(begin, time.Now())
	w.check(t, "the native one killed", 0, rig.NativeExpiry*time.Second+mostSilent)
	if took-lost > rig.NativeExpiry*time.Second+mostSilent {
		t.Errorf("takeover after %s, %s of them the machine's, want at most its expiry of %d s", took, lost, rig.NativeExpiry)
	}
	l.more(500)
	l.same(r)
	r.Pause(false)

	// It comes back as the youngest: nothing changes.
	w = l.watch([]*rig.NativeMember{n}, a)
	l.must(n.Restart(l.within(10 * time.Second)))
	l.nativeIs(n, rig.NativeStandby)
	l.more(500)
	w.check(t, "the native one back", 0, blink)

	// Maintenance, to the native one and back.
	w = l.watch([]*rig.NativeMember{n}, a)
	if o := l.command("maintenance", "--socket", a.socket); o.code != 0 || !strings.HasPrefix(o.out, "n is active; it took over from a in ") {
		l.errorf("maintenance: exit code %d, %q %q", o.code, o.out, o.errOut)
	}
	l.nativeIs(n, rig.NativeActive)
	a.role(control.RoleStandby)
	w.check(t, "maintenance", blink, nativeLatency)
	w = l.watch([]*rig.NativeMember{n}, a)
	if o := l.command("maintenance", "active", "--socket", a.socket); o.code != 0 || !strings.HasPrefix(o.out, "a is active; it took over from n in ") {
		l.errorf("maintenance active: exit code %d, %q %q", o.code, o.out, o.errOut)
	}
	l.nativeIs(n, rig.NativeStandby)
	w.check(t, "maintenance active", nativeLatency, blink)
	if o := l.command("maintenance", "auto", "--socket", a.socket); o.code != 0 {
		t.Errorf("maintenance auto: exit code %d, %q %q", o.code, o.out, o.errOut)
	}
	l.nativeIs(n, rig.NativeActive)
	w = l.watch([]*rig.NativeMember{n}, a)
	n.Regenerate() // its signal 34
	l.nativeIs(n, rig.NativeStandby)
	a.role(control.RoleActive)
	w.check(t, "signal 34 of the native one", blink, nativeView)

	// bmpha dies: the native one takes over when the key has expired.
	w = l.watch([]*rig.NativeMember{n}, a)
	l.must(a.Kill())
	lived := l.nativeTakes(n)
	if lived {
		w.check(t, "bmpha killed", 0, fastExpiry+nativeLatency)
	}

	// A stop in good order leaves a key behind that makes the native one come first
	// and does not vanish under its eyes.
	l.must(a.Restart(t.Context()))
	a.role(control.RoleStandby)
	n.Regenerate()
	a.role(control.RoleActive)
	l.nativeIs(n, rig.NativeStandby)
	w = l.watch([]*rig.NativeMember{n}, a)
	l.must(a.Stop())
	if code := a.ExitCode(); code != 0 {
		t.Errorf("stop: exit code %d", code)
	}
	l.nativeIs(n, rig.NativeActive)
	w.check(t, "bmpha stopped", blink, nativeLatency+mostSilent)
	if v, ttl := l.timestampKey("a"); v != "9223372036854775807" || ttl != -1 {
		t.Errorf("stopped: the key holds %s and expires in %d, want 9223372036854775807 and -1", v, ttl)
	}

	// The next start takes the key back.
	l.must(a.Restart(t.Context()))
	a.role(control.RoleStandby)
	if v, ttl := l.timestampKey("a"); len(v) != 16 || ttl <= 0 || ttl > fastExpiry {
		l.errorf("started: the key holds %s and expires in %s", v, ttl)
	}

	// The smaller timestamp wins, whoever has it.
	w = l.watch([]*rig.NativeMember{n}, a)
	n.Regenerate()
	a.role(control.RoleActive)
	n.SetValue("1600000000000000")
	l.nativeIs(n, rig.NativeActive)
	a.role(control.RoleStandby)
	w.check(t, "an older native one", 2*time.Second, nativeView)

	history, _ := n.History()
	for _, c := range history {
		if c.State == rig.NativeCrashed && lived {
			l.errorf("the native member crashed: %s", c.Why)
		}
	}
	l.tokensRise()
}

// TestMaintenanceLooks: a member that came after the last round with Redis is one to
// hand over to.
func TestMaintenanceLooks(t *testing.T) {
	t.Parallel()
	l := newLab(t, withTimers(2*time.Second, 6*time.Second))
	a := l.start("a")
	a.role(control.RoleActive)
	n := l.native(rig.NativeOptions{Process: "n"})
	l.nativeIs(n, rig.NativeStandby)
	if o := l.command("maintenance", "--socket", a.socket); o.code != 0 || !strings.HasPrefix(o.out, "n is active; it took over from a in ") {
		l.errorf("maintenance: exit code %d, %q %q", o.code, o.out, o.errOut)
	}
}

// TestNativeAndTwo: two bmpha and a native member. They take over in the order of
// their timestamps, and one that has left is no member.
func TestNativeAndTwo(t *testing.T) {
	t.Parallel()
	l := newLab(t).consume(4)
	ms := l.cluster("a", "b")
	a, b := ms[0], ms[1]
	n := l.native(rig.NativeOptions{Process: "n"})
	l.nativeIs(n, rig.NativeStandby)
	r := l.numbered(500, a, b)
	l.more(500)

	w := l.watch([]*rig.NativeMember{n}, a, b)
	l.must(a.Kill())
	b.role(control.RoleActive)
	l.more(500)
	w.check(t, "the oldest killed", 0, fastExpiry+mostSilent)
	if n.State() != rig.NativeStandby {
		l.errorf("the youngest is %s", n.State())
	}
	l.must(a.Restart(t.Context()))
	a.role(control.RoleStandby)

	w = l.watch([]*rig.NativeMember{n}, a, b)
	l.must(b.Stop())
	l.nativeIs(n, rig.NativeActive)
	w.check(t, "the older bmpha stopped", blink, nativeLatency+mostSilent)
	a.seen("who has left is no member", func(s *control.Status) error {
		for _, m := range s.Members {
			if m.Name == "b" {
				return fmt.Errorf("%+v", m)
			}
		}
		return nil
	})

	// The native one knows no margin and no marks: what was said since it became
	// active is still held, and sent.
	l.must(n.Stop())
	a.role(control.RoleActive)
	l.same(r)
	if o := l.command("maintenance", "--socket", a.socket); o.code != control.ExitRefused || !strings.Contains(o.errOut, "no other member is alive") {
		l.errorf("maintenance with no one but a value left behind: exit code %d, %q %q", o.code, o.out, o.errOut)
	}
	l.tokensRise()
}

// TestNativeWindow: what a native member has sent nobody says, so time tells. What
// came in longer ago than the window is not sent again.
func TestNativeWindow(t *testing.T) {
	t.Parallel()
	const rate, window = 500, 5
	l := newLab(t, with(fmt.Sprintf("BMPHA_HOLD_WINDOW=%ds", window))).consume(4)
	n := l.native(rig.NativeOptions{Process: "n"})
	a := l.start("a")
	a.role(control.RoleStandby)
	r := l.numbered(rate, a)
	a.seen("more than the window", func(s *control.Status) error {
		if len(s.Routers) == 0 || s.Routers[0].Messages < (window+2)*rate {
			return fmt.Errorf("%+v", s.Routers)
		}
		return nil
	})
	a.seen("no more held than the window", func(s *control.Status) error {
		if n := s.Hold.Messages; n < window*rate/2 || n > (window+1)*rate {
			return fmt.Errorf("%d messages held", n)
		}
		return nil
	})
	last := a.status().Routers[0].Messages // and some more until the kill
	begin := time.Now()
	l.must(n.Kill())
	a.role(control.RoleActive)
	lost := machine.Lost(begin, time.Now())
	l.more(rate)
	r.Pause(true)
	var said uint64
	for k := range r.Table() {
		if n, ok := replay.Number(k.Prefix); ok {
			said = max(said, n)
		}
	}
	var first, end uint64
	var count int
	l.until("the last of what was said", func() error {
		if first, end, count = l.tally.span(); end < said {
			return fmt.Errorf("number %d, want %d", end, said)
		}
		return nil
	})
	if count != int(end-first)+1 {
		t.Errorf("%d numbers from %d to %d", count, first, end)
	}
	if first == 0 || first > last+uint64(lost.Seconds()*rate) {
		l.errorf("begins with number %d, want not the first, and none that came after the kill (%d)", first, last)
	}
	t.Logf("from number %d to %d; %d had come before the kill", first, end, last)
}

// TestNativeReads: what a key that changes between KEYS and GET does to a native
// member. A stop in good order does nothing; kill -9 can, and that is the price of
// it.
func TestNativeReads(t *testing.T) {
	t.Parallel()
	for _, kill := range []bool{false, true} {
		t.Run(fmt.Sprintf("kill=%t", kill), func(t *testing.T) {
			t.Parallel()
			l := newLab(t).consume(1)
			a := l.start("a")
			a.role(control.RoleActive)
			rdb := l.redis.Client()
			defer rdb.Close()
			var end sync.Once
			var err error
			ended := make(chan struct{})
			n := l.native(rig.NativeOptions{Process: "n", Value: "9000000000000000", Listed: func(keys []string) {
				end.Do(func() {
					defer close(ended)
					// Its own key must not expire over what is done here.
					defer func() {
						ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
						defer cancel()
						own := l.name + "+0+n+ha_daemon_startup_time"
						err = errors.Join(err, rdb.Set(ctx, own, "9000000000000000", rig.NativeExpiry*time.Second).Err())
					}()
					if len(keys) != 2 {
						err = fmt.Errorf("keys %q", keys)
						return
					}
					if !kill {
						err = a.Stop()
						return
					}
					if err = a.Kill(); err != nil {
						return
					}
					ctx, cancel := context.WithTimeout(context.Background(), patience*10*time.Second)
					defer cancel()
					err = rig.WaitFor(ctx, func() error {
						if n, err := rdb.Exists(ctx, l.name+"+0+a+ha_daemon_startup_time").Result(); err != nil || n != 0 {
							return fmt.Errorf("%d keys, %v", n, err)
						}
						return nil
					})
				})
			}})
			<-ended
			l.must(err)
			want := rig.NativeActive
			if kill {
				want = rig.NativeCrashed
			}
			l.until("the native member", func() error {
				if s := n.State(); s != want {
					return fmt.Errorf("%s, want %s", s, want)
				}
				return nil
			})
		})
	}
}

// TestNativeSameName: a native member takes the name of a bmpha that has left, and
// then of one that runs, which stays out and says so.
func TestNativeSameName(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	a := l.start("a")
	a.role(control.RoleActive)
	b := l.start("b")
	b.role(control.RoleStandby)
	l.must(a.Stop())
	b.role(control.RoleActive)
	n := l.native(rig.NativeOptions{Process: "a", Value: "1600000000000000"})
	l.nativeIs(n, rig.NativeActive)
	b.role(control.RoleStandby)
	l.must(a.Restart(t.Context()))
	a.role(control.RoleStandby)
	a.problem("name_taken")
	l.must(b.Stop())
	if s := a.status(); s.Role != control.RoleStandby || n.State() != rig.NativeActive || n.Value() == "" {
		l.errorf("a is %s (%s), the native one %s", s.Role, s.Reason, n.State())
	}
	l.must(n.Kill())
	a.role(control.RoleActive)
}

// TestLongNative: bmpha and a native member end each other's time as active again
// and again, with the default timers.
func TestLongNative(t *testing.T) {
	long(t)
	l := newLab(t, withDefaultTimers).consume(4)
	n := l.native(rig.NativeOptions{Process: "n"})
	a := l.start("a")
	a.role(control.RoleStandby)
	r := l.numbered(trafficRate, a)
	for i := range 5 {
		w := l.watch([]*rig.NativeMember{n}, a)
		l.must(n.Kill())
		a.role(control.RoleActive)
		l.must(n.Restart(l.within(10 * time.Second)))
		l.nativeIs(n, rig.NativeStandby)
		w.check(t, fmt.Sprint("native one killed ", i), 0, rig.NativeExpiry*time.Second+mostSilent)
		l.more(trafficRate)
		l.same(r)
		r.Pause(false)
		n.Regenerate() // in case that a busy machine made it the older one
		a.role(control.RoleActive)
		l.nativeIs(n, rig.NativeStandby)
		w = l.watch([]*rig.NativeMember{n}, a)
		l.must(a.Kill())
		if l.nativeTakes(n) {
			w.check(t, fmt.Sprint("bmpha killed ", i), 0, slowExpiry+nativeLatency)
		}
		l.must(a.Restart(t.Context()))
		a.role(control.RoleStandby)
		a.seen("the whole table", func(s *control.Status) error {
			if len(s.Routers) == 0 || s.Routers[0].Messages < uint64(len(r.Table())) {
				return fmt.Errorf("%+v", s.Routers)
			}
			return nil
		})
	}
	l.tokensRise()
}
