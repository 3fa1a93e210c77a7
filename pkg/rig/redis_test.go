package rig

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// eachRedis runs a test against the real and the embedded kind.
func eachRedis(t *testing.T, o RedisOptions, test func(t *testing.T, r Redis)) {
	t.Run("real", func(t *testing.T) {
		Require(t, RedisServerPart)
		r, err := StartRedisServer(t.Context(), o)
		must(t, err)
		defer r.Close()
		test(t, r)
	})
	t.Run("embedded", func(t *testing.T) {
		r, err := StartEmbeddedRedis(o)
		must(t, err)
		defer r.Close()
		test(t, r)
	})
}

func TestRedisLife(t *testing.T) {
	eachRedis(t, RedisOptions{}, func(t *testing.T, r Redis) {
		ctx := within(t, 2*time.Minute)
		c := r.Client()
		defer c.Close()
		const life = 100 * time.Millisecond
		begin := time.Now()
		must(t, c.Set(ctx, "k", "v", life).Err())
		if v, err := c.Get(ctx, "k").Result(); (err != nil || v != "v") && time.Since(begin) < life {
			t.Errorf("get: %q, %v", v, err)
		}
		// Keys expire by themselves.
		must(t, WaitFor(ctx, func() error {
			if err := c.Get(ctx, "k").Err(); !errors.Is(err, redis.Nil) {
				return errors.New("key is still there")
			}
			return nil
		}))
		must(t, c.Set(ctx, "stays", "v", 0).Err())

		must(t, r.Pause())
		short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
		if err := c.Ping(short).Err(); err == nil {
			t.Error("a paused server answers")
		}
		cancel()
		must(t, r.Resume())
		must(t, WaitFor(ctx, func() error { return c.Ping(ctx).Err() }))

		for _, end := range []func() error{r.Stop, r.Kill} {
			must(t, end())
			if err := c.Ping(ctx).Err(); err == nil {
				t.Error("a stopped server answers")
			}
			addr := r.Addr()
			must(t, r.Restart(ctx))
			if r.Addr() != addr {
				t.Errorf("address %s after Restart, was %s", r.Addr(), addr)
			}
			must(t, WaitFor(ctx, func() error { return c.Ping(ctx).Err() }))
			if n, err := c.DBSize(ctx).Result(); err != nil || n != 0 {
				t.Errorf("%d keys after Restart, %v; want none", n, err)
			}
		}
		must(t, r.Restart(ctx)) // also while it runs
		must(t, WaitFor(ctx, func() error { return c.Ping(ctx).Err() }))
	})
}

func TestRedisCredentials(t *testing.T) {
	for name, o := range map[string]RedisOptions{
		"password": {Password: "secret"},
		"user":     {User: "bmpha", Password: "secret"},
		"tls":      {Password: "secret", TLS: true},
	} {
		t.Run(name, func(t *testing.T) {
			eachRedis(t, o, func(t *testing.T, r Redis) {
				ctx := within(t, 2*time.Minute)
				c := r.Client()
				defer c.Close()
				must(t, c.Ping(ctx).Err())
				good := c.Options()
				for _, bad := range []redis.Options{
					{Username: good.Username, Password: "wrong", TLSConfig: good.TLSConfig},
					{TLSConfig: good.TLSConfig},
				} {
					bad.Addr, bad.MaxRetries = r.Addr(), -1
					c := redis.NewClient(&bad)
					if err := c.Get(ctx, "k").Err(); err == nil || errors.Is(err, redis.Nil) {
						t.Errorf("let in with user %q password %q: %v", bad.Username, bad.Password, err)
					}
					c.Close()
				}
			})
		})
	}
}

func TestEmbeddedRedisFails(t *testing.T) {
	r, err := StartEmbeddedRedis(RedisOptions{})
	must(t, err)
	defer r.Close()
	c := r.Client()
	defer c.Close()
	r.Fail("LOADING Redis is loading the dataset in memory")
	if err := c.Get(t.Context(), "k").Err(); err == nil || errors.Is(err, redis.Nil) {
		t.Errorf("got %v, want the error", err)
	}
	r.Fail("")
	must(t, c.Set(t.Context(), "k", "v", 0).Err())
}
