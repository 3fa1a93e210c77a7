package cluster

import (
	"encoding/json"
	"fmt"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/bmpha/bmpha/pkg/election"
	"github.com/bmpha/bmpha/pkg/rig"
)

// TestWords: what is said arrives, in Redis and directly.
func TestWords(t *testing.T) {
	self := &Self{
		Instance: 0x1f, Version: "v", Host: "h", PID: 7, Role: "active", Mode: "auto", Reason: "because", Since: 5, Token: 9,
		Unfit: "log full", Ready: true, Strayed: true,
		Routers: map[string]election.RouterState{
			"all":  {Hears: true, Sends: true, Mark: 1, Dumped: 2, Whole: true, Behind: 3, Keeps: true, Lags: true},
			"none": {Mark: -1},
		},
	}
	m, err := ParseWords("a", self.Words(100, 101, 102))
	if err != nil {
		t.Fatal(err)
	}
	if m.Name != "a" || m.Instance != 0x1f || m.Value != 101 || m.Own != 100 || m.Beat != 102 || m.Token != 9 ||
		!m.Active || !m.Ready || !m.Strayed || !m.Unfit || m.Old || m.Native || m.Why != "log full" {
		t.Errorf("%+v", m)
	}
	if !maps.Equal(m.Routers, self.Routers) {
		t.Errorf("routers %+v, want %+v", m.Routers, self.Routers)
	}
	for _, bad := range []string{
		"", "{", `{"v":0}`, `{"v":2,"instance":"zz"}`, `{"v":2,"instance":"1","token":-1}`,
		`{"v":2,"instance":"1","routers":{"x":"y"}}`, strings.Repeat("[", maxEntry+1),
	} {
		if m, err := ParseWords("a", []byte(bad)); err == nil {
			t.Errorf("%.50q is taken for %+v", bad, m)
		}
	}
	m, err = ParseWords("a", []byte(`{"v":2,"instance":"1","value":18446744073709551615,"token":18446744073709551615,"routers":{"x":[1,-1,0,-5]}}`))
	if err != nil || m.Value != 0 || m.Token != 0 || m.Routers["x"].Behind != 0 {
		t.Errorf("%+v, %v", m, err)
	}
}

// TestEarlierVersion: members of version 1 and 2 understand each other.
func TestEarlierVersion(t *testing.T) {
	m, err := ParseWords("a", []byte(`{"v":1,"instance":"1","role":"active","routers":{"x":[3,77,0],"y":[1]}}`))
	if err != nil || !m.Old || m.Ready || m.Routers["x"] != (election.RouterState{Hears: true, Sends: true, Mark: 77}) || !m.Routers["y"].Hears {
		t.Errorf("%+v, %v", m, err)
	}
	var old struct { // as version 1 reads
		V       int                 `json:"v"`
		Routers map[string][3]int64 `json:"routers"`
	}
	self := Self{Routers: map[string]election.RouterState{"x": {Hears: true, Sends: true, Mark: 77, Dumped: 5, Whole: true, Behind: 9}}}
	if err := json.Unmarshal(self.encode(1, 2), &old); err != nil || old.V < 1 {
		t.Fatal(err)
	}
	if got := old.Routers["x"]; got[0]&(flagHears|flagSends) != flagHears|flagSends || got[1] != 77 || got[2] != 5 {
		t.Errorf("version 1 reads %v", got)
	}
}

// TestToken: each round tells what the counter is, and a claim is above all that
// any round has shown.
func TestToken(t *testing.T) {
	eachRedis(t, rig.RedisOptions{}, func(t *testing.T, r rig.Redis) {
		a, b := client(t, r, "a"), client(t, r, "b")
		if got, _ := round(t, a, &Self{Instance: 1}, 100); got.Token != 0 {
			t.Errorf("token %d before the first claim", got.Token)
		}
		n, err := a.Claim(t.Context(), 0)
		if err != nil {
			t.Fatal(err)
		}
		if got, _ := round(t, b, &Self{Instance: 2}, 200); got.Token != n {
			t.Errorf("token %d, want %d", got.Token, n)
		}
		rdb := r.Client()
		defer rdb.Close()
		round(t, a, &Self{Instance: 1, Token: n + 1<<52}, 100)
		round(t, b, &Self{Instance: 2}, 200)
		if got, err := b.Claim(t.Context(), 0); err != nil || got <= n+1<<52 {
			t.Errorf("claim %d although a member has %d: %v", got, n+1<<52, err)
		}
		for _, bad := range []string{"x", "-1", "9223372036854775807"} {
			rdb.Set(t.Context(), "bmpha:lab+3:token", bad, 0)
			if got, _ := round(t, b, &Self{Instance: 2}, 200); got.Token != 0 {
				t.Errorf("a counter of %q is taken for %d", bad, got.Token)
			}
		}
		rdb.Del(t.Context(), "bmpha:lab+3:token")
		rdb.HSet(t.Context(), "bmpha:lab+3:token", "f", 1)
		if got, _ := round(t, b, &Self{Instance: 2}, 200); got.Token != 0 {
			t.Errorf("a counter that is none is taken for %d", got.Token)
		}
	})
}

// TestStrayToken: whatever number somebody writes where tokens are, those that are
// claimed afterwards rise, and all members are understood, by earlier versions too.
func TestStrayToken(t *testing.T) {
	strays := []uint64{
		1, 1 << 40, 1 << 52, nonsense - 3, nonsense - 2, nonsense - 1, nonsense, nonsense + 1,
		maxToken - 2, maxToken - 1, maxToken, maxToken + 1, 9e18, 1<<63 - 2, 1<<63 - 1, 1 << 63, 1<<64 - 1,
	}
	eachRedis(t, rig.RedisOptions{}, func(t *testing.T, r rig.Redis) {
		rdb := r.Client()
		defer rdb.Close()
		keys := NewKeys("lab", 3)
		for name, put := range map[string]func(t *testing.T, stray uint64){
			"counter": func(t *testing.T, stray uint64) { rdb.Set(t.Context(), keys.Token(), stray, 0) },
			"entry": func(t *testing.T, stray uint64) {
				at, err := rdb.Time(t.Context()).Result()
				if err != nil {
					t.Fatal(err)
				}
				rdb.HSet(t.Context(), keys.Members(), "z", (&Self{Instance: 9, Token: stray}).Words(50, 50, at.UnixMicro()))
				rdb.Set(t.Context(), keys.Timestamp("z"), 50, time.Minute)
			},
		} {
			for _, stray := range strays {
				t.Run(fmt.Sprintf("%s/%d", name, stray), func(t *testing.T) {
					rdb.FlushAll(t.Context())
					a, b := client(t, r, "a"), client(t, r, "b")
					selves := map[*Client]*Self{a: {Instance: 1, Token: 0}, b: {Instance: 2, Token: 0}}
					sees := func(c *Client, name string) {
						t.Helper()
						got, _ := round(t, c, selves[c], selves[c].Instance*100)
						if m, ok := find(got, name); !ok || m.Native || m.Gone {
							t.Fatalf("seen as %+v", m)
						}
					}
					round(t, b, selves[b], 200)
					put(t, stray)
					last := uint64(0)
					for range 3 {
						for _, c := range []*Client{a, b} {
							sees(a, "b")
							sees(b, "a")
							if name == "entry" {
								sees(c, "z")
							}
							n, err := c.Claim(t.Context(), selves[c].Token)
							if err != nil || n <= last || n >= maxToken {
								t.Fatalf("claimed %d after %d: %v", n, last, err)
							}
							last, selves[c].Token = n, n
						}
					}
					if stray >= nonsense && last >= nonsense {
						t.Errorf("%d is believed: token %d", stray, last)
					}
				})
			}
		}
	})
}

// TestBeat: how long ago members have spoken.
func TestBeat(t *testing.T) {
	eachRedis(t, rig.RedisOptions{}, func(t *testing.T, r rig.Redis) {
		a, b := client(t, r, "a"), client(t, r, "b")
		got, _ := round(t, a, &Self{Instance: 1}, 100)
		for _, age := range []time.Duration{0, time.Second, -time.Second} {
			if err := a.Publish(t.Context(), &Self{Instance: 1}, 100, got.RedisTime-age.Microseconds()); err != nil {
				t.Fatal(err)
			}
			at, _ := round(t, b, &Self{Instance: 2}, 200)
			m, ok := find(at, "a")
			if want := max(1, at.RedisTime-got.RedisTime+age.Microseconds()); !ok || m.Beat != want {
				t.Errorf("spoke %d µs ago, want %d", m.Beat, want)
			}
		}
		if err := a.Leave(t.Context(), &Self{Instance: 1}, 100, got.RedisTime); err != nil {
			t.Fatal(err)
		}
		at, _ := round(t, b, &Self{Instance: 2}, 200)
		if m, _ := find(at, "a"); m.Beat != 0 || !m.Gone {
			t.Errorf("one that has left: %+v", m)
		}
	})
}

// TestStaleReplica: a Redis that knows less than before is told from one that goes
// on, whatever is missing.
func TestStaleReplica(t *testing.T) {
	eachRedis(t, rig.RedisOptions{}, func(t *testing.T, r rig.Redis) {
		rdb := r.Client()
		defer rdb.Close()
		ctx := t.Context()
		members := "bmpha:lab+3:members"
		for _, tt := range []struct {
			name string
			do   func(entry string)
			want bool
		}{
			{"nothing", func(string) {}, false},
			{"our entry is missing", func(string) { rdb.HDel(ctx, members, "a") }, true},
			{"our entry is of long before", func(entry string) { rdb.HSet(ctx, members, "a", entry) }, true},
			{"the counter is of before", func(string) { rdb.Decr(ctx, "bmpha:lab+3:token") }, true},
			{"the counter is missing", func(string) { rdb.Del(ctx, "bmpha:lab+3:token") }, true},
			{"the counter has gone on", func(string) { rdb.Incr(ctx, "bmpha:lab+3:token") }, false},
		} {
			a := client(t, r, "a")
			self := &Self{Instance: 1}
			got, _ := round(t, a, self, 100)
			if _, err := a.Claim(ctx, got.Token); err != nil {
				t.Fatal(err)
			}
			got, _ = round(t, a, self, 100)
			if got.Unknown {
				t.Fatalf("%s: unknown before", tt.name)
			}
			tt.do(string(self.encode(100, got.RedisTime-10*a.opts.Deadline.Microseconds())))
			if got, _ = round(t, a, self, 100); got.Unknown != tt.want {
				t.Errorf("%s: unknown %v, want %v", tt.name, got.Unknown, tt.want)
			}
			if got, _ = round(t, a, self, 100); got.Unknown {
				t.Errorf("%s: unknown for ever", tt.name)
			}
		}
	})
}

func FuzzWords(f *testing.F) {
	f.Add([]byte(`{"v":1,"instance":"1f","timestamp":5,"routers":{"192.0.2.1":[3,77]}}`))
	f.Add([]byte(`{"v":2,"instance":"1","value":7,"ready":true,"strayed":true,"token":3,"routers":{"x":[31,-1,0,9]}}`))
	f.Fuzz(func(t *testing.T, words []byte) {
		m, err := ParseWords("m", words)
		if err != nil {
			return
		}
		if m.Token >= nonsense || m.Value > election.ForcedStandby {
			t.Errorf("token %d, value %d", m.Token, m.Value)
		}
		self := Self{Instance: m.Instance, Role: m.Role, Token: m.Token, Ready: m.Ready, Strayed: m.Strayed, Unfit: m.Why, Routers: m.Routers}
		again, err := ParseWords("m", self.Words(m.Own, m.Value, m.Member.Beat))
		if err != nil || !maps.Equal(again.Routers, m.Routers) || again.Value != m.Value || again.Ready != m.Ready || again.Active != m.Active {
			t.Errorf("%q does not survive: %s", words, fmt.Sprint(err, again))
		}
	})
}
