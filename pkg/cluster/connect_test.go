package cluster

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"go.uber.org/goleak"

	"github.com/bmpha/bmpha/pkg/election"
	"github.com/bmpha/bmpha/pkg/rig"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(runner{m}) }

// runner ends what tests have shared.
type runner struct{ *testing.M }

func (r runner) Run() int {
	code := r.M.Run()
	for _, end := range shared.ends {
		if err := end(); err != nil {
			fmt.Println(err)
			code = max(code, 1)
		}
	}
	// go-redis ends its own goroutines a little after Close.
	for tries := 0; code == 0 && tries < 20 && goleak.Find() != nil; tries++ {
	}
	return code
}

// shared is what takes long to start.
var shared struct {
	sync.Mutex
	sentinel *rig.RedisSentinel
	cluster  *rig.RedisCluster
	ends     []func() error
}

func startSentinel(t *testing.T) *rig.RedisSentinel {
	t.Helper()
	rig.Require(t, rig.RedisServerPart)
	shared.Lock()
	defer shared.Unlock()
	if shared.sentinel == nil {
		s, err := rig.StartRedisSentinel(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		shared.sentinel, shared.ends = s, append(shared.ends, s.Close)
	}
	return shared.sentinel
}

func startCluster(t *testing.T) *rig.RedisCluster {
	t.Helper()
	rig.Require(t, rig.RedisServerPart)
	shared.Lock()
	defer shared.Unlock()
	if shared.cluster == nil {
		s, err := rig.StartRedisCluster(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		shared.cluster, shared.ends = s, append(shared.ends, s.Close)
	}
	return shared.cluster
}

// A place is where Redis is, of whatever kind.
type place struct {
	set    func(*Options)
	client func() redis.UniversalClient
}

func (p place) Addr() string                  { return "" }
func (p place) Client() redis.UniversalClient { return p.client() }

// everyRedis runs a test against each kind of Redis, empty.
func everyRedis(t *testing.T, test func(t *testing.T, r place)) {
	eachRedis(t, rig.RedisOptions{}, func(t *testing.T, r rig.Redis) {
		test(t, place{
			set:    func(o *Options) { o.Address = r.Addr() },
			client: func() redis.UniversalClient { return r.Client() },
		})
	})
	t.Run("sentinel", func(t *testing.T) {
		s := startSentinel(t)
		rdb := s.Client()
		defer rdb.Close()
		if err := rdb.FlushAll(t.Context()).Err(); err != nil {
			t.Fatal(err)
		}
		test(t, place{
			set:    func(o *Options) { o.Sentinel = Sentinel{Master: s.Name(), Addresses: s.Addrs()} },
			client: func() redis.UniversalClient { return s.Client() },
		})
	})
	t.Run("cluster", func(t *testing.T) {
		s := startCluster(t)
		rdb := s.Client()
		defer rdb.Close()
		if err := rdb.ForEachMaster(t.Context(), func(ctx context.Context, c *redis.Client) error { return c.FlushAll(ctx).Err() }); err != nil {
			t.Fatal(err)
		}
		test(t, place{
			set:    func(o *Options) { o.Cluster = s.Addrs() },
			client: func() redis.UniversalClient { return s.Client() },
		})
	})
}

// attempt is one round of a hurried client, which may fail.
func attempt(t *testing.T, c *Client, self *Self, value uint64) (election.Round, error) {
	t.Helper()
	begin := time.Now()
	r, _, err := c.Round(t.Context(), self, value, value, clock())
	if d := time.Since(begin); d > hangs {
		t.Errorf("a round took %v, deadline is %v", d, deadline)
	}
	if err != nil && !strings.Contains(err.Error(), c.opts.Where()) {
		t.Errorf("error %v does not say where", err)
	}
	return r, err
}

// until repeats rounds until one is as wanted.
func until(t *testing.T, what string, c *Client, self *Self, value uint64, ok func(election.Round, error) bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	if err := rig.WaitFor(ctx, func() error {
		if r, err := attempt(t, c, self, value); !ok(r, err) {
			return fmt.Errorf("%s: %+v, %w", what, r.Members, err)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

func succeeds(_ election.Round, err error) bool { return err == nil }

// The master is gone: rounds fail until the sentinels have promoted its replica, and
// then go on. Tokens rise across it.
func TestSentinelFailover(t *testing.T) {
	for how, lose := range map[string]func(*rig.Process) error{
		"killed":       (*rig.Process).Kill,
		"stands still": (*rig.Process).Pause,
	} {
		t.Run(how, func(t *testing.T) { failover(t, startSentinel(t), lose) })
	}
}

func failover(t *testing.T, s *rig.RedisSentinel, lose func(*rig.Process) error) {
	at := place{set: func(o *Options) { o.Sentinel = Sentinel{Master: s.Name(), Addresses: s.Addrs()} }}
	a, b := client(t, at, "a", hurried), client(t, at, "b", hurried)
	selfA, selfB := &Self{Instance: 1}, &Self{Instance: 2}
	first, err := client(t, at, "a").Claim(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	selfA.Token = first
	until(t, "a round succeeds", a, selfA, 100, succeeds)
	until(t, "b sees a", b, selfB, 200, func(r election.Round, err error) bool {
		m, ok := find(r, "a")
		return err == nil && ok && m.Token == first
	})
	master, old, err := s.Master(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	lost := time.Now()
	if err := lose(master); err != nil {
		t.Fatal(err)
	}
	until(t, "rounds fail", a, selfA, 100, func(_ election.Round, err error) bool { return err != nil })
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	if err := rig.WaitFor(ctx, func() error {
		_, now, err := s.Master(ctx)
		if err == nil && now == old {
			err = fmt.Errorf("the master is still %s", now)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	until(t, "rounds go on", a, selfA, 100, succeeds)
	t.Logf("rounds went on %v after that", time.Since(lost))
	until(t, "b sees a again", b, selfB, 200, func(r election.Round, err error) bool {
		m, ok := find(r, "a")
		return err == nil && ok && !m.Gone
	})
	// A sentinel that is late still sends new connections to the old master.
	var second uint64
	if err := rig.WaitFor(ctx, func() error {
		second, err = b.Claim(ctx, 0)
		return err
	}); err != nil || second <= first {
		t.Errorf("token %d after %d, %v", second, first, err)
	}
	if err := master.Restart(t.Context()); err != nil { // for other tests
		t.Fatal(err)
	}
	if err := s.Settled(t.Context()); err != nil {
		t.Fatal(err)
	}
	until(t, "rounds go on", a, selfA, 100, succeeds)
}

// One sentinel that stands still keeps nobody from finding the master.
func TestSentinelStandsStill(t *testing.T) {
	s := startSentinel(t)
	for i := range s.Addrs() {
		p := s.Sentinel(i)
		if err := p.Pause(); err != nil {
			t.Fatal(err)
		}
		at := place{set: func(o *Options) { o.Sentinel = Sentinel{Master: s.Name(), Addresses: s.Addrs()} }}
		c := client(t, at, "a", hurried)
		until(t, "a round succeeds", c, &Self{Instance: 1}, 100, succeeds)
		if err := p.Resume(); err != nil {
			t.Fatal(err)
		}
	}
}

// The node that has the members is killed and comes back without them.
func TestClusterNodeRestarts(t *testing.T) {
	s := startCluster(t)
	at := place{set: func(o *Options) { o.Cluster = s.Addrs() }}
	a, b := client(t, at, "a", hurried), client(t, at, "b", hurried)
	selfA, selfB := &Self{Instance: 1}, &Self{Instance: 2}
	until(t, "a round succeeds", a, selfA, 100, succeeds)
	until(t, "a round succeeds", b, selfB, 200, succeeds)
	node, err := s.Node(t.Context(), NewKeys("lab", 3).Members())
	if err != nil {
		t.Fatal(err)
	}
	if err := node.Kill(); err != nil {
		t.Fatal(err)
	}
	if _, err := attempt(t, a, selfA, 100); err == nil {
		t.Error("a round without the members")
	}
	if err := node.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := s.Settled(t.Context()); err != nil {
		t.Fatal(err)
	}
	until(t, "a is back", a, selfA, 100, succeeds)
	until(t, "b sees a", b, selfB, 200, func(r election.Round, err error) bool {
		m, ok := find(r, "a")
		return err == nil && ok && !m.Gone
	})
}
