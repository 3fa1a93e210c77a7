package rig

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
)

// redisNode is one redis-server of several.
type redisNode struct {
	*Process
	addr string
}

// startRedisNode starts a redis-server at addr without persistence.
func startRedisNode(ctx context.Context, dir, addr string, args ...string) (*redisNode, error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	own := filepath.Join(dir, port)
	if err := os.MkdirAll(own, 0o755); err != nil {
		return nil, err
	}
	// A configuration file comes first, if there is one.
	all := []string{"--bind", host, "--port", port, "--dir", own}
	if len(args) > 0 && strings.HasPrefix(args[0], "/") {
		all, args = append([]string{args[0]}, all...), args[1:]
	}
	n := &redisNode{addr: addr}
	n.Process, err = Start(ctx, Command{
		Name: "redis-server at " + addr, Path: "redis-server", Args: append(all, args...),
		Log: filepath.Join(own, "redis-server.log"),
		Ready: func() error {
			return redisDo(addr, func(ctx context.Context, c *redis.Client) error { return c.Ping(ctx).Err() })
		},
	})
	return n, err
}

// redisDo calls f with a client of addr.
func redisDo(addr string, f func(context.Context, *redis.Client) error) error {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	c := redis.NewClient(&redis.Options{Addr: addr, MaxRetries: -1, DialerRetries: 1})
	defer c.Close()
	return f(ctx, c)
}

// closeNodes closes them all and removes their folder.
func closeNodes(dir folder, nodes ...*redisNode) error {
	var mu sync.Mutex
	var errs []error
	var wg sync.WaitGroup
	for _, n := range nodes {
		wg.Go(func() {
			err := n.Close()
			mu.Lock()
			errs = append(errs, err)
			mu.Unlock()
		})
	}
	wg.Wait()
	return errors.Join(append(errs, dir.remove())...)
}

// A RedisSentinel is a Redis with one replica and three sentinels, which promote the
// replica when the master is gone for half a second. It is made of real servers.
type RedisSentinel struct {
	dir       folder
	servers   []*redisNode
	sentinels []*redisNode
}

// sentinelSet is the sentinels' name for the servers.
const sentinelSet = "bmpha"

// StartRedisSentinel starts them. All of them know each other when it returns, which
// takes some seconds.
func StartRedisSentinel(ctx context.Context) (*RedisSentinel, error) {
	s := &RedisSentinel{}
	if err := s.start(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("start redis with sentinels: %w", err), s.Close())
	}
	return s, nil
}

func (s *RedisSentinel) start(ctx context.Context) error {
	var err error
	if s.dir, err = makeFolder("", "sentinel"); err != nil {
		return err
	}
	var addrs []string
	for range 5 {
		addr, err := freeAddr()
		if err != nil {
			return err
		}
		addrs = append(addrs, addr)
	}
	host, port := hostPort(addrs[0])
	for i, addr := range addrs[:2] {
		args := []string{"--save", "", "--appendonly", "no", "--repl-diskless-sync-delay", "0", "--repl-ping-replica-period", "1"}
		if i > 0 {
			args = append(args, "--replicaof", host, strconv.Itoa(port))
		}
		n, err := startRedisNode(ctx, s.dir.path, addr, args...)
		if err != nil {
			return err
		}
		s.servers = append(s.servers, n)
	}
	if err := WaitFor(ctx, func() error { return s.replicates(addrs[1]) }); err != nil {
		return err
	}
	for i, addr := range addrs[2:] {
		conf := filepath.Join(s.dir.path, fmt.Sprintf("sentinel-%d.conf", i)) // they write into it
		text := fmt.Sprintf("sentinel monitor %[1]s %[2]s %[3]d 2\nsentinel down-after-milliseconds %[1]s 500\nsentinel failover-timeout %[1]s 5000\n",
			sentinelSet, host, port)
		if err := os.WriteFile(conf, []byte(text), 0o644); err != nil {
			return err
		}
		n, err := startRedisNode(ctx, s.dir.path, addr, conf, "--sentinel")
		if err != nil {
			return err
		}
		s.sentinels = append(s.sentinels, n)
	}
	return s.Settled(ctx)
}

func (s *RedisSentinel) replicates(addr string) error {
	return redisDo(addr, func(ctx context.Context, c *redis.Client) error {
		info, err := c.Info(ctx, "replication").Result()
		if err == nil && !strings.Contains(info, "master_link_status:up") {
			err = errors.New("the replica has not caught up")
		}
		return err
	})
}

// Settled waits until all sentinels know each other, the master and its replica.
func (s *RedisSentinel) Settled(ctx context.Context) error {
	return WaitFor(ctx, func() error {
		for _, n := range s.sentinels {
			c := redis.NewSentinelClient(&redis.Options{Addr: n.addr, MaxRetries: -1})
			m, err := c.Master(ctx, sentinelSet).Result()
			c.Close()
			if err != nil {
				return err
			}
			if m["num-slaves"] != "1" || m["num-other-sentinels"] != "2" || m["flags"] != "master" {
				return fmt.Errorf("sentinel at %s: %s replicas, %s others, flags %s", n.addr, m["num-slaves"], m["num-other-sentinels"], m["flags"])
			}
		}
		return nil
	})
}

// Name is what the sentinels call the servers.
func (s *RedisSentinel) Name() string { return sentinelSet }

// Addrs are where the sentinels listen.
func (s *RedisSentinel) Addrs() []string {
	var addrs []string
	for _, n := range s.sentinels {
		addrs = append(addrs, n.addr)
	}
	return addrs
}

// Sentinel returns the i-th of Addrs.
func (s *RedisSentinel) Sentinel(i int) *Process { return s.sentinels[i].Process }

// Master returns the server that the first sentinel takes for the master, and its
// address.
func (s *RedisSentinel) Master(ctx context.Context) (*Process, string, error) {
	c := redis.NewSentinelClient(&redis.Options{Addr: s.sentinels[0].addr, MaxRetries: -1})
	defer c.Close()
	at, err := c.GetMasterAddrByName(ctx, sentinelSet).Result()
	if err != nil || len(at) != 2 {
		return nil, "", fmt.Errorf("ask the sentinel for the master: %w", errOr(err, errors.New("no answer")))
	}
	addr := net.JoinHostPort(at[0], at[1])
	for _, n := range s.servers {
		if n.addr == addr {
			return n.Process, addr, nil
		}
	}
	return nil, "", fmt.Errorf("the sentinel's master %s is none of ours", addr)
}

// Client returns a client of whichever is the master.
func (s *RedisSentinel) Client() *redis.Client {
	return redis.NewFailoverClient(&redis.FailoverOptions{MasterName: sentinelSet, SentinelAddrs: s.Addrs(), MaxRetries: -1})
}

// Close ends all of them.
func (s *RedisSentinel) Close() error {
	return closeNodes(s.dir, append(s.sentinels, s.servers...)...)
}

// A RedisCluster is a Redis Cluster of three masters without replicas.
type RedisCluster struct {
	dir   folder
	nodes []*redisNode
}

// StartRedisCluster starts it. It is whole when it returns.
func StartRedisCluster(ctx context.Context) (*RedisCluster, error) {
	s := &RedisCluster{}
	if err := s.start(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("start redis cluster: %w", err), s.Close())
	}
	return s, nil
}

func (s *RedisCluster) start(ctx context.Context) error {
	var err error
	if s.dir, err = makeFolder("", "redis-cluster"); err != nil {
		return err
	}
	const nodes, slots = 3, 16384
	var firstBus int
	for i := range nodes {
		addr, err := freeAddr()
		if err != nil {
			return err
		}
		bus, err := FreePort("")
		if err != nil {
			return err
		}
		n, err := startRedisNode(ctx, s.dir.path, addr, "--save", "", "--appendonly", "no", "--cluster-enabled", "yes",
			"--cluster-port", strconv.Itoa(bus), "--cluster-node-timeout", "1000")
		if err != nil {
			return err
		}
		s.nodes = append(s.nodes, n)
		err = redisDo(addr, func(ctx context.Context, c *redis.Client) error {
			err := errors.Join(
				c.Do(ctx, "cluster", "set-config-epoch", i+1).Err(),
				c.ClusterAddSlotsRange(ctx, i*slots/nodes, (i+1)*slots/nodes-1).Err())
			if i > 0 {
				host, port := hostPort(s.nodes[0].addr)
				err = errors.Join(err, c.Do(ctx, "cluster", "meet", host, port, firstBus).Err())
			}
			return err
		})
		if err != nil {
			return err
		}
		if i == 0 {
			firstBus = bus
		}
	}
	return s.Settled(ctx)
}

// Settled waits until all nodes find the cluster whole.
func (s *RedisCluster) Settled(ctx context.Context) error {
	return WaitFor(ctx, func() error {
		for _, n := range s.nodes {
			err := redisDo(n.addr, func(ctx context.Context, c *redis.Client) error {
				info, err := c.ClusterInfo(ctx).Result()
				if err == nil && (!strings.Contains(info, "cluster_state:ok") || !strings.Contains(info, "cluster_known_nodes:3")) {
					err = fmt.Errorf("the node at %s does not find the cluster whole", n.addr)
				}
				return err
			})
			if err != nil {
				return err
			}
		}
		return nil
	})
}

// Addrs are where the nodes listen.
func (s *RedisCluster) Addrs() []string {
	var addrs []string
	for _, n := range s.nodes {
		addrs = append(addrs, n.addr)
	}
	return addrs
}

// Node returns the node that has key.
func (s *RedisCluster) Node(ctx context.Context, key string) (*Process, error) {
	c := s.Client()
	defer c.Close()
	m, err := c.MasterForKey(ctx, key)
	if err != nil {
		return nil, fmt.Errorf("find the node of %s: %w", key, err)
	}
	for _, n := range s.nodes {
		if n.addr == m.Options().Addr {
			return n.Process, nil
		}
	}
	return nil, fmt.Errorf("the node of %s, %s, is none of ours", key, m.Options().Addr)
}

// Client returns a client of the whole cluster.
func (s *RedisCluster) Client() *redis.ClusterClient {
	return redis.NewClusterClient(&redis.ClusterOptions{Addrs: s.Addrs()})
}

// Close ends all nodes.
func (s *RedisCluster) Close() error { return closeNodes(s.dir, s.nodes...) }
