package rig

import (
	"bufio"
	"context"
	"math"
	"net"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

func TestParseLongLong(t *testing.T) {
	for s, want := range map[string]int64{
		"1795227271039386":           1795227271039386,
		"9223372036854775807":        math.MaxInt64,
		"9223372036854775808":        math.MaxInt64,
		"99999999999999999999999999": math.MaxInt64,
		"-9223372036854775808":       math.MinInt64,
		"-9223372036854775809":       math.MinInt64,
		"":                           0, "yesterday": 0, "-": 0, "WRONGTYPE Operation": 0,
		" \t+12x": 12, "-7": -7,
		"010": 8, "08": 0, "0": 0, "0x1F": 31, "0x": 0, "0xg": 0, "0X10 ": 16,
	} {
		if got := parseLongLong(s); got != want {
			t.Errorf("%q is %d, want %d", s, got, want)
		}
	}
}

// nativeMember starts a member of the cluster "lab" with id 3.
func nativeMember(t *testing.T, r Redis, o NativeOptions) *NativeMember {
	t.Helper()
	o.Cluster, o.ID = "lab", 3
	m, err := StartNativeMember(within(t, time.Minute), r, o)
	must(t, err)
	t.Cleanup(func() { m.Close() })
	return m
}

// TestNativeMember: the oldest is active; who ends is replaced when its key has
// expired; who comes back is the youngest; forced and renewed ones.
func TestNativeMember(t *testing.T) {
	t.Parallel()
	r, err := StartRedis(t.Context(), RedisOptions{})
	must(t, err)
	defer r.Close()
	ctx := within(t, 3*time.Minute)
	a := nativeMember(t, r, NativeOptions{Process: "a"})
	if s := a.State(); s != NativeActive {
		t.Fatalf("the only member is %s", s)
	}
	b := nativeMember(t, r, NativeOptions{Process: "b"})
	if s := b.State(); s != NativeStandby {
		t.Fatalf("the second member is %s", s)
	}
	// A key may expire just between KEYS and GET, and then a member crashes as it has
	// to.
	alone := func(m *NativeMember) {
		t.Helper()
		err := m.Await(ctx, NativeActive)
		if err != nil && m.State() == NativeCrashed {
			t.Log(err)
			must(t, m.Restart(ctx))
			err = m.Await(ctx, NativeActive)
		}
		must(t, err)
	}
	must(t, a.Kill())
	alone(b)
	must(t, a.Restart(ctx))
	must(t, a.Await(ctx, NativeStandby))
	must(t, b.Await(ctx, NativeActive))
	b.Regenerate()
	must(t, b.Await(ctx, NativeStandby))
	must(t, a.Await(ctx, NativeActive))
	b.Force(NativeActive)
	must(t, b.Await(ctx, NativeActive))
	if s := a.State(); s != NativeActive {
		t.Errorf("a is %s, and cannot know that b is forced", s)
	}
	b.Force("")
	must(t, b.Await(ctx, NativeStandby))
	// Equal values: both.
	b.SetValue(a.Value())
	must(t, b.Await(ctx, NativeActive))
	if s := a.State(); s != NativeActive {
		t.Errorf("with equal values a is %s", s)
	}
	// It stands still, and its key expires.
	b.SetValue("1")
	must(t, a.Await(ctx, NativeStandby))
	must(t, b.Pause())
	alone(a)
	must(t, b.Resume())
	must(t, a.Await(ctx, NativeStandby))
	history, _ := b.History()
	for i, c := range history[1:] {
		if !c.At.After(history[i].At) || c.State == history[i].State {
			t.Errorf("change %+v follows %+v", c, history[i])
		}
	}
}

// TestNativeMemberIsCareless: each mistake of the original.
func TestNativeMemberIsCareless(t *testing.T) {
	t.Parallel()
	key := func(process string) string { return "lab+3+" + process + "+ha_daemon_startup_time" }
	for name, c := range map[string]struct {
		before func(ctx context.Context, r *EmbeddedRedis, rdb *redis.Client) error
		vanish bool // between KEYS and GET
		want   NativeState
	}{
		"alone": {nil, false, NativeActive},
		"a word": {func(ctx context.Context, _ *EmbeddedRedis, rdb *redis.Client) error {
			return rdb.Set(ctx, key("x"), "yesterday", 0).Err()
		}, false, NativeStandby},
		"another type": {func(ctx context.Context, _ *EmbeddedRedis, rdb *redis.Client) error {
			return rdb.LPush(ctx, key("x"), "x").Err()
		}, false, NativeStandby},
		"the largest": {func(ctx context.Context, _ *EmbeddedRedis, rdb *redis.Client) error {
			return rdb.Set(ctx, key("x"), math.MaxInt64, 0).Err()
		}, false, NativeActive},
		"other cluster": {func(ctx context.Context, _ *EmbeddedRedis, rdb *redis.Client) error {
			return rdb.Set(ctx, "lab+33+x+ha_daemon_startup_time", 1, 0).Err()
		}, false, NativeActive},
		"vanished": {
			func(ctx context.Context, _ *EmbeddedRedis, rdb *redis.Client) error {
				return rdb.Set(ctx, key("x"), math.MaxInt64, 0).Err()
			},
			true, NativeCrashed,
		},
		"too many": {func(ctx context.Context, _ *EmbeddedRedis, rdb *redis.Client) error {
			for i := range nativeKeys {
				if err := rdb.Set(ctx, key(strconv.Itoa(i)), math.MaxInt64, 0).Err(); err != nil {
					return err
				}
			}
			return nil
		}, false, NativeCrashed},
		"errors": {func(_ context.Context, r *EmbeddedRedis, _ *redis.Client) error { r.Fail("LOADING"); return nil }, false, NativeActive},
		"away":   {func(_ context.Context, r *EmbeddedRedis, _ *redis.Client) error { return r.Stop() }, false, NativeActive},
	} {
		t.Run(name, func(t *testing.T) {
			r, err := StartEmbeddedRedis(RedisOptions{})
			must(t, err)
			defer r.Close()
			rdb := r.Client()
			defer rdb.Close()
			if c.before != nil {
				must(t, c.before(t.Context(), r, rdb))
			}
			o := NativeOptions{Process: "a"}
			if c.vanish {
				o.Listed = func([]string) {
					if err := rdb.Del(t.Context(), key("x")).Err(); err != nil {
						t.Error(err)
					}
				}
			}
			m := nativeMember(t, r, o)
			history, _ := m.History()
			if got := history[len(history)-1]; got.State != c.want {
				t.Errorf("%s (%s), want %s", got.State, got.Why, c.want)
			}
			if c.want == NativeCrashed {
				if err := m.Await(t.Context(), NativeActive); err == nil {
					t.Error("a crash is not told to who waits")
				}
			}
		})
	}
}

// TestNativeMemberCommands: what MONITOR shows.
func TestNativeMemberCommands(t *testing.T) {
	t.Parallel()
	Require(t, RedisServerPart)
	r, err := StartRedisServer(t.Context(), RedisOptions{})
	must(t, err)
	defer r.Close()
	rdb := r.Client()
	defer rdb.Close()
	must(t, rdb.Set(t.Context(), "lab+3+b+ha_daemon_startup_time", 99, 0).Err())
	monitor, err := net.Dial("tcp", r.Addr())
	must(t, err)
	defer monitor.Close()
	must(t, monitor.SetDeadline(time.Now().Add(time.Minute)))
	_, err = monitor.Write([]byte("MONITOR\r\n"))
	must(t, err)
	lines := bufio.NewScanner(monitor)
	if !lines.Scan() || lines.Text() != "+OK" {
		t.Fatalf("MONITOR: %q, %v", lines.Text(), lines.Err())
	}
	nativeMember(t, r, NativeOptions{Process: "a", Daemon: "nfacctd", Value: "42"})
	want := []string{
		`"SETEX" "lab+3+a+ha_daemon_startup_time" "3" "42"`,
		`"KEYS" "lab+3+*ha_daemon_startup_time"`,
		`"GET" "lab+3+a+ha_daemon_startup_time"`,
		`"GET" "lab+3+b+ha_daemon_startup_time"`,
		`"SETEX" "a+0+daemon_type" "3" "nfacctd"`,
		`"SETEX" "a+0+process+a+core" "3" "1"`,
	}
	var got []string
	for len(got) < len(want) && lines.Scan() {
		if _, command, ok := strings.Cut(lines.Text(), "] "); ok && command != `"hello" "2"` { // the client library's own
			got = append(got, command)
		}
	}
	must(t, lines.Err())
	slices.Sort(got[2:4]) // KEYS is in no order
	if !slices.Equal(got, want) {
		t.Errorf("commands\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}
