package cluster

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/bmpha/bmpha/pkg/election"
	"github.com/bmpha/bmpha/pkg/rig"
)

// eachRedis runs a test against the embedded Redis, and the real one where it is
// installed.
func eachRedis(t *testing.T, o rig.RedisOptions, test func(t *testing.T, r rig.Redis)) {
	t.Run("embedded", func(t *testing.T) {
		r, err := rig.StartEmbeddedRedis(o)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		test(t, r)
	})
	t.Run("real", func(t *testing.T) {
		rig.Require(t, rig.RedisServerPart)
		r, err := rig.StartRedisServer(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		test(t, r)
	})
}

// deadline is that of clients that are to fail, see hurried; others have more time than
// any busy machine needs.
const deadline = 500 * time.Millisecond

func hurried(o *Options) { o.Deadline = deadline }

// hangs is longer than a call with a deadline takes, also where the machine stands still
// for a while, and shorter than what go-redis would wait and try again by itself.
const hangs = deadline + 5*time.Second

func client(t *testing.T, r interface{ Addr() string }, process string, change ...func(*Options)) *Client {
	t.Helper()
	o := Options{
		Address: r.Addr(), Keys: NewKeys("lab", 3), Process: process,
		Expiry: 5 * time.Second, Deadline: 20 * time.Second, Keep: 15 * time.Second, Scan: true,
	}
	if p, ok := r.(place); ok {
		p.set(&o)
	}
	for _, f := range change {
		f(&o)
	}
	c := New(o)
	t.Cleanup(func() { c.Close() })
	return c
}

func clock() func() int64 {
	start := time.Now()
	return func() int64 { return time.Since(start).Microseconds() + 1 }
}

func round(t *testing.T, c *Client, self *Self, value uint64) (election.Round, *View) {
	t.Helper()
	r, v, err := c.Round(t.Context(), self, value, value, clock())
	if err != nil {
		t.Fatal(err)
	}
	return r, v
}

func find(r election.Round, name string) (election.Member, bool) {
	for _, m := range r.Members {
		if m.Name == name {
			return m, true
		}
	}
	return election.Member{}, false
}

func TestMembersSeeEachOther(t *testing.T) {
	everyRedis(t, func(t *testing.T, r place) {
		a, b := client(t, r, "a"), client(t, r, "b")
		states := map[string]election.RouterState{
			"192.0.2.1": {Hears: true, Sends: true, Mark: 1234, Dumped: 1795197840},
			"192.0.2.2": {Hears: true, Mark: -1},
		}
		if got, _ := round(t, a, &Self{Instance: 1}, 0); len(got.Members) != 0 || got.Wrote != 0 {
			t.Fatalf("a look left something behind: %+v", got)
		}
		got, _ := round(t, a, &Self{Instance: 1, Token: 7, Routers: states}, 100)
		if me, ok := find(got, "a"); !ok || me.Value != 100 || got.Wrote != 100 {
			t.Fatalf("a does not see itself: %+v", got)
		}
		if d := time.Since(time.UnixMicro(got.RedisTime)).Abs(); d > time.Minute {
			t.Errorf("Redis' clock is %v off", d)
		}
		got, _ = round(t, b, &Self{Instance: 2}, 200)
		m, ok := find(got, "a")
		if !ok || m.Value != 100 || m.Token != 7 || m.Native || m.Gone {
			t.Fatalf("b sees a as %+v", m)
		}
		for id, want := range states {
			if m.Routers[id] != want {
				t.Errorf("b sees router %s of a as %+v, want %+v", id, m.Routers[id], want)
			}
		}
		if m.TTL <= 0 || m.TTL > (5*time.Second).Microseconds() {
			t.Errorf("a expires in %d µs", m.TTL)
		}
	})
}

// TestKeysAreNative: what pmacct's own high availability reads and writes.
func TestKeysAreNative(t *testing.T) {
	everyRedis(t, func(t *testing.T, r place) {
		rdb := r.Client()
		defer rdb.Close()
		ctx := t.Context()
		rdb.Set(ctx, "lab+3+loc_A+ha_daemon_startup_time", "1795227271039386", 10*time.Second)
		rdb.Set(ctx, "lab+33+loc_A+ha_daemon_startup_time", "1", 10*time.Second) // another cluster
		c := client(t, r, "a")
		got, _ := round(t, c, &Self{Instance: 1}, 1795227271039387)
		m, ok := find(got, "loc_A")
		if !ok || !m.Native || m.Value != 1795227271039386 {
			t.Errorf("native member seen as %+v (%v)", m, ok)
		}
		if len(got.Members) != 2 {
			t.Errorf("members %+v, want two", got.Members)
		}
		if v := rdb.Get(ctx, "lab+3+a+ha_daemon_startup_time").Val(); v != "1795227271039387" {
			t.Errorf("own key holds %q", v)
		}
		if ttl := rdb.PTTL(ctx, "lab+3+a+ha_daemon_startup_time").Val(); ttl <= 0 || ttl > 5*time.Second {
			t.Errorf("own key expires in %v", ttl)
		}
	})
}

// TestOtherPeoplesKeys: nothing under our pattern can stop a round.
func TestOtherPeoplesKeys(t *testing.T) {
	everyRedis(t, func(t *testing.T, r place) {
		rdb := r.Client()
		defer rdb.Close()
		ctx := t.Context()
		key := func(p string) string { return "lab+3+" + p + suffix }
		rdb.HSet(ctx, key("hash"), "f", "v")
		rdb.Set(ctx, key("text"), "not a number", 0)
		rdb.Set(ctx, key("zero"), "0", 0)
		rdb.Set(ctx, key("negative"), "-5", 0)
		rdb.Set(ctx, key("huge"), strings.Repeat("9", 400), 0)
		rdb.Set(ctx, key("forever"), 5, 0) // a native member's would expire
		for i := range 400 {
			rdb.Set(ctx, key(fmt.Sprintf("n%d", i)), 1000+i, 5*time.Second)
		}
		rdb.HSet(ctx, "bmpha:lab+3:members", "junk", "{", "old", `{"v":0}`, "name", `{"v":1,"instance":"zz"}`, "deep", strings.Repeat("[", 100000))
		c := client(t, r, "a")
		got, _ := round(t, c, &Self{Instance: 1}, 5)
		native := 0
		for _, m := range got.Members {
			if m.Native {
				native++
			}
		}
		if native != 400 || len(got.Members) != 401 {
			t.Errorf("%d native of %d members, want 400 of 401", native, len(got.Members))
		}
		if c.Skipped() < 10 {
			t.Errorf("skipped %d values, want all 10", c.Skipped())
		}
	})
	t.Run("an entry that we do not understand counts by its timestamp", func(t *testing.T) {
		r, err := rig.StartEmbeddedRedis(rig.RedisOptions{})
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		rdb := r.Client()
		defer rdb.Close()
		rdb.HSet(t.Context(), "bmpha:lab+3:members", "strange", "?")
		rdb.Set(t.Context(), "lab+3+strange"+suffix, 7, 5*time.Second)
		got, _ := round(t, client(t, r, "a"), &Self{Instance: 1}, 9)
		if m, ok := find(got, "strange"); !ok || m.Value != 7 {
			t.Errorf("seen as %+v (%v)", m, ok)
		}
	})
	t.Run("the members hash is of another type", func(t *testing.T) {
		r, err := rig.StartEmbeddedRedis(rig.RedisOptions{})
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		rdb := r.Client()
		defer rdb.Close()
		rdb.Set(t.Context(), "bmpha:lab+3:members", "x", 0)
		if _, _, err := client(t, r, "a").Round(t.Context(), &Self{}, 1, 1, clock()); err == nil || !strings.Contains(err.Error(), "WRONGTYPE") {
			t.Errorf("error %v", err)
		}
	})
}

// TestGoneMember: the last low-water marks of a dead member are still known.
func TestGoneMember(t *testing.T) {
	everyRedis(t, func(t *testing.T, r place) {
		short := func(o *Options) { o.Expiry = 30 * time.Millisecond }
		a, b := client(t, r, "a", short), client(t, r, "b")
		self := &Self{Instance: 1, Routers: map[string]election.RouterState{"r": {Hears: true, Sends: true, Mark: 42}}}
		round(t, a, self, 100)
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		err := rig.WaitFor(ctx, func() error {
			got, _ := round(t, b, &Self{Instance: 2}, 200)
			m, ok := find(got, "a")
			if !ok || m.Routers["r"].Mark != 42 {
				return fmt.Errorf("a is %+v (%v)", m, ok)
			}
			if !m.Gone {
				return fmt.Errorf("a still lives")
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	})
}

// TestSameName: two processes of one name. The older keeps it.
func TestSameName(t *testing.T) {
	everyRedis(t, func(t *testing.T, r place) {
		first, second := client(t, r, "a"), client(t, r, "a")
		round(t, first, &Self{Instance: 9}, 100)
		got, _ := round(t, second, &Self{Instance: 1}, 200)
		if !got.Shadowed || got.Wrote != 0 {
			t.Errorf("the second is not told: %+v", got)
		}
		if m, ok := find(got, "a"); !ok || m.Instance != 9 {
			t.Errorf("the second sees %+v", m)
		}
		got, _ = round(t, first, &Self{Instance: 9}, 100)
		if got.Shadowed || got.Wrote != 100 {
			t.Errorf("the first lost its name: %+v", got)
		}
	})
}

func TestClaim(t *testing.T) {
	everyRedis(t, func(t *testing.T, r place) {
		c := client(t, r, "a")
		last := uint64(0)
		for range 3 {
			n, err := c.Claim(t.Context(), last)
			if err != nil || n <= last {
				t.Fatalf("claim %d after %d: %v", n, last, err)
			}
			last = n
		}
		rdb := r.Client()
		defer rdb.Close()
		rdb.FlushAll(t.Context())
		// A Redis that forgot, and a collector that never knew.
		n, err := c.Claim(t.Context(), 0)
		if err != nil || n <= last {
			t.Errorf("claim of a Redis that forgot: %d after %d, %v", n, last, err)
		}
		if again, err := c.Claim(t.Context(), n+1000); err != nil || again <= n+1000 {
			t.Errorf("claim by one that has seen %d: %d %v", n+1000, again, err)
		}
		rdb.Set(t.Context(), "bmpha:lab+3:token", "not a number", 0)
		if again, err := c.Claim(t.Context(), n); err != nil || again <= n {
			t.Errorf("claim of a counter that is none: %d after %d, %v", again, n, err)
		}
	})
}

func TestLeave(t *testing.T) {
	everyRedis(t, func(t *testing.T, r place) {
		a, b := client(t, r, "a"), client(t, r, "b")
		round(t, a, &Self{Instance: 1}, 100)
		_, v := round(t, a, &Self{Instance: 1}, 100)
		last := &Self{Instance: 1, Routers: map[string]election.RouterState{"r": {Mark: 77}}}
		if err := a.Leave(t.Context(), last, 100, v.RedisTime); err != nil {
			t.Fatal(err)
		}
		rdb := r.Client()
		defer rdb.Close()
		key := "lab+3+a" + suffix
		if v, ttl := rdb.Get(t.Context(), key).Val(), rdb.PTTL(t.Context(), key).Val(); v != "9223372036854775807" || ttl > 0 {
			t.Errorf("left behind %q with expiry %v", v, ttl)
		}
		got, _ := round(t, b, &Self{Instance: 2}, 200)
		if m, ok := find(got, "a"); !ok || !m.Gone || m.Routers["r"].Mark != 77 {
			t.Errorf("after a left b sees it as %+v (%v)", m, ok)
		}
		again, _ := round(t, client(t, r, "a"), &Self{Instance: 3}, 300)
		if m, ok := find(again, "a"); again.Shadowed || !ok || m.Gone {
			t.Errorf("a is back and sees itself as %+v (%v), shadowed %v", m, ok, again.Shadowed)
		}
	})
}

// TestFailuresAreFast: a Redis that refuses, hangs or answers errors ends a round
// with an error that names it, within the deadline.
func TestFailuresAreFast(t *testing.T) {
	try := func(t *testing.T, c *Client, addr string) {
		t.Helper()
		begin := time.Now()
		_, _, err := c.Round(t.Context(), &Self{Instance: 1}, 1, 1, clock())
		if err == nil || !strings.Contains(err.Error(), addr) {
			t.Errorf("error %v does not name %s", err, addr)
		}
		if d := time.Since(begin); d > hangs {
			t.Errorf("took %v, deadline is %v", d, deadline)
		}
	}
	eachRedis(t, rig.RedisOptions{}, func(t *testing.T, r rig.Redis) {
		c := client(t, r, "a", hurried)
		until(t, "a round succeeds", c, &Self{Instance: 1}, 1, succeeds)
		if err := r.Pause(); err != nil {
			t.Fatal(err)
		}
		try(t, c, r.Addr())
		if err := r.Resume(); err != nil {
			t.Fatal(err)
		}
		if err := r.Stop(); err != nil {
			t.Fatal(err)
		}
		try(t, c, r.Addr())
		if err := r.Restart(t.Context()); err != nil {
			t.Fatal(err)
		}
		until(t, "it comes back", c, &Self{Instance: 1}, 1, succeeds)
	})
	eachRedis(t, rig.RedisOptions{Password: "sesame"}, func(t *testing.T, r rig.Redis) {
		try(t, client(t, r, "a"), r.Addr())
		wrong := client(t, r, "a", func(o *Options) { o.Password = "mustard" })
		_, _, err := wrong.Round(t.Context(), &Self{}, 1, 1, clock())
		if err == nil || strings.Contains(err.Error(), "mustard") {
			t.Errorf("wrong password: %v", err)
		}
		right := client(t, r, "a", func(o *Options) { o.Password = "sesame" })
		round(t, right, &Self{Instance: 1}, 1)
	})
}

func TestAnnounce(t *testing.T) {
	everyRedis(t, func(t *testing.T, r place) {
		a, b := client(t, r, "a"), client(t, r, "b")
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		heard := make(chan struct{}, 100)
		watching, stop := context.WithCancel(ctx)
		done := make(chan struct{})
		go func() {
			defer close(done)
			b.Watch(watching, func() { heard <- struct{}{} })
		}()
		err := rig.WaitFor(ctx, func() error { // the subscription needs a moment
			if err := a.Announce(ctx); err != nil {
				return err
			}
			select {
			case <-heard:
				return nil
			default:
				return fmt.Errorf("not heard")
			}
		})
		if err != nil {
			t.Error(err)
		}
		stop()
		<-done
	})
}

func FuzzEntry(f *testing.F) {
	f.Add(`{"v":1,"instance":"1f","timestamp":5,"routers":{"192.0.2.1":[3,77]}}`)
	f.Add(`{"v":2,"instance":"1","routers":{"x":[9223372036854775807,-1]},"new":{}}`)
	f.Fuzz(func(t *testing.T, s string) {
		e, instance, err := parseEntry("m", s)
		if err != nil {
			return
		}
		self := Self{Instance: instance, Routers: e.routers()}
		again, same, err := parseEntry("m", string(self.encode(e.Time, e.Beat)))
		if err != nil || same != instance || len(again.Routers) != len(e.Routers) {
			t.Errorf("%q does not survive: %v", s, err)
		}
	})
}

// TestNativeInOurName: a native member has the name that a bmpha had, as when one
// collector is replaced by the other, or has the name of one that runs.
func TestNativeInOurName(t *testing.T) {
	const older = 1600000000000000
	seen := func(t *testing.T, r place, before func(a *Client)) {
		t.Helper()
		short := func(o *Options) { o.Expiry = 30 * time.Millisecond }
		rdb := r.Client()
		defer rdb.Close()
		a := client(t, r, "a", short)
		self := &Self{Instance: 1, Routers: map[string]election.RouterState{"r": {Hears: true, Sends: true, Mark: 42}}}
		round(t, a, self, older+5)
		before(a)
		if err := rdb.Set(t.Context(), "lab+3+a"+suffix, older, 10*time.Second).Err(); err != nil {
			t.Fatal(err)
		}
		b := client(t, r, "b", short)
		got, _ := round(t, b, &Self{Instance: 2}, older+9)
		var native, gone bool
		for _, m := range got.Members {
			if m.Name == "a" {
				native = native || m.Native && m.Value == older && m.TTL > 0 && !m.Gone
				gone = gone || m.Gone && m.Routers["r"].Mark == 42
			}
		}
		if !native || !gone {
			t.Errorf("seen as native: %v, last words: %v, in %+v", native, gone, got.Members)
		}
	}
	t.Run("that has left", func(t *testing.T) {
		everyRedis(t, func(t *testing.T, r place) {
			seen(t, r, func(a *Client) {
				self := &Self{Instance: 1, Routers: map[string]election.RouterState{"r": {Mark: 42}}}
				if err := a.Leave(t.Context(), self, older+5, time.Now().UnixMicro()); err != nil {
					t.Fatal(err)
				}
			})
		})
	})
	t.Run("that was killed", func(t *testing.T) {
		everyRedis(t, func(t *testing.T, r place) {
			seen(t, r, func(*Client) {
				rdb := r.Client()
				defer rdb.Close()
				ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
				defer cancel()
				if err := rig.WaitFor(ctx, func() error {
					if n := rdb.Exists(ctx, "lab+3+a"+suffix).Val(); n != 0 {
						return fmt.Errorf("its key is still there")
					}
					return nil
				}); err != nil {
					t.Fatal(err)
				}
			})
		})
	})
	t.Run("long ago", func(t *testing.T) {
		r, err := rig.StartEmbeddedRedis(rig.RedisOptions{})
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		rdb := r.Client()
		defer rdb.Close()
		gone := Self{Instance: 1, Left: true}
		rdb.HSet(t.Context(), "bmpha:lab+3:members", "a", gone.encode(older, time.Now().Add(-20*time.Second).UnixMicro()))
		rdb.Set(t.Context(), "lab+3+a"+suffix, older, 10*time.Second)
		got, _ := round(t, client(t, r, "b"), &Self{Instance: 2}, older+9)
		if m, ok := find(got, "a"); !ok || !m.Native || m.Value != older {
			t.Errorf("seen as %+v (%v)", m, ok)
		}
	})
	t.Run("that runs", func(t *testing.T) {
		everyRedis(t, func(t *testing.T, r place) {
			rdb := r.Client()
			defer rdb.Close()
			a := client(t, r, "a")
			self := &Self{Instance: 1}
			for _, value := range []uint64{older + 5, election.ForcedActive, older + 7, election.ForcedStandby, older + 7} {
				if got, _, err := a.Round(t.Context(), self, older+7, value, clock()); err != nil || got.Shadowed {
					t.Fatalf("alone: %+v, %v", got, err)
				}
			}
			rdb.Set(t.Context(), "lab+3+a"+suffix, older+6, 10*time.Second)
			got, _ := round(t, a, self, older+7)
			if !got.Shadowed || got.Wrote != 0 {
				t.Errorf("%+v, want shadowed and nothing written", got)
			}
			if v := rdb.Get(t.Context(), "lab+3+a"+suffix).Val(); v != fmt.Sprint(older+6) {
				t.Errorf("the native one's key holds %s", v)
			}
			rdb.Del(t.Context(), "lab+3+a"+suffix) // as when it has expired
			if got, _ = round(t, a, self, older+7); got.Shadowed || got.Wrote != older+7 {
				t.Errorf("after it: %+v", got)
			}
		})
	})
}
