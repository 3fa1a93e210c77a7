package cluster

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"
)

// A Sentinel says who knows which server is the master.
type Sentinel struct {
	Master    string   // their name for the set of servers
	Addresses []string // host:port each
	Username  string   // towards the sentinels
	Password  string
}

// Where says where Redis is, for people.
func (o *Options) Where() string {
	switch {
	case len(o.Cluster) > 0:
		return "cluster " + strings.Join(o.Cluster, ", ")
	case len(o.Sentinel.Addresses) > 0:
		return fmt.Sprintf("master %s of sentinel %s", o.Sentinel.Master, strings.Join(o.Sentinel.Addresses, ", "))
	}
	return o.Address
}

// topologyInterval is how old the knowledge of which node of a Redis Cluster has
// what may become; a node that has taken over is found after that at the latest.
const topologyInterval = time.Second

// connect makes the client of go-redis. All three kinds do the same: each command
// has one key and is tried once, within the deadline; of a Redis Cluster it goes on
// to where its key has moved.
func connect(o *Options) redis.UniversalClient {
	const pool = 4 // connections
	switch {
	case len(o.Cluster) > 0:
		return redis.NewClusterClient(&redis.ClusterOptions{
			Addrs: o.Cluster, Username: o.Username, Password: o.Password, TLSConfig: o.TLS,
			Protocol: 2, DisableIdentity: true,
			MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
			DialTimeout:              o.Deadline, ReadTimeout: o.Deadline, WriteTimeout: o.Deadline,
			ContextTimeoutEnabled: true,
			MaxRedirects:          2, DialerRetries: 1,
			ClusterStateReloadInterval: topologyInterval,
			PoolSize:                   pool, MinIdleConns: 1,
		})
	case len(o.Sentinel.Addresses) > 0:
		return redis.NewFailoverClient(&redis.FailoverOptions{
			MasterName: o.Sentinel.Master, SentinelAddrs: o.Sentinel.Addresses,
			SentinelUsername: o.Sentinel.Username, SentinelPassword: o.Sentinel.Password,
			Username: o.Username, Password: o.Password, DB: o.Database, TLSConfig: o.TLS,
			Protocol: 2, DisableIdentity: true,
			DialTimeout: o.Deadline, ReadTimeout: o.Deadline, WriteTimeout: o.Deadline,
			ContextTimeoutEnabled: true,
			MaxRetries:            -1, DialerRetries: 1,
			PoolSize: pool, MinIdleConns: 1,
		})
	}
	return redis.NewClient(&redis.Options{
		Addr: o.Address, Username: o.Username, Password: o.Password, DB: o.Database, TLSConfig: o.TLS,
		Protocol: 2, DisableIdentity: true, // any Redis from 2.6 on
		MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
		DialTimeout:              o.Deadline, ReadTimeout: o.Deadline, WriteTimeout: o.Deadline,
		ContextTimeoutEnabled: true,
		MaxRetries:            -1, DialerRetries: 1, // a round fails fast; the election tries again
		PoolSize: pool, MinIdleConns: 1,
	})
}

// time asks the node that has the members for its clock: all that the clock is
// compared with lies there. After a failover that is another host's clock. If that is
// behind, entries seem to come from its future: by more than the expiry, they are
// left out until their members have spoken again, which takes a heartbeat.
func (c *Client) time(ctx context.Context) (time.Time, error) {
	nodes, ok := c.rdb.(*redis.ClusterClient)
	if !ok {
		return c.rdb.Time(ctx).Result()
	}
	node, err := nodes.MasterForKey(ctx, c.opts.Keys.Members())
	if err != nil {
		return time.Time{}, err
	}
	return node.Time(ctx).Result()
}

// relearn has the nodes of a Redis Cluster looked up again after err.
func (c *Client) relearn(err error) {
	if nodes, ok := c.rdb.(*redis.ClusterClient); ok && err != nil {
		nodes.ReloadState(context.Background()) // in the background
	}
}

// held returns the value that a GET has brought, "" if there is none or none that is
// a string. The error is of a Redis that could not say.
func held(get *redis.StringCmd) (string, error) {
	s, err := get.Result()
	if err == nil || errors.Is(err, redis.Nil) || redis.HasErrorPrefix(err, "WRONGTYPE") {
		return s, nil
	}
	return "", err
}

// isElsewhere reports whether Redis answered that it is not the one to ask now.
func isElsewhere(err error) bool {
	return slices.ContainsFunc([]string{"READONLY", "LOADING", "MASTERDOWN", "CLUSTERDOWN", "MOVED", "ASK", "TRYAGAIN"},
		func(prefix string) bool { return redis.HasErrorPrefix(err, prefix) })
}

// everyNode calls scan for each node that has keys.
func (c *Client) everyNode(ctx context.Context, scan func(redis.Cmdable) ([]string, error)) ([]string, error) {
	nodes, ok := c.rdb.(*redis.ClusterClient)
	if !ok {
		return scan(c.rdb)
	}
	var mu sync.Mutex
	var all []string
	err := nodes.ForEachMaster(ctx, func(_ context.Context, node *redis.Client) error {
		names, err := scan(node)
		mu.Lock()
		defer mu.Unlock()
		all = append(all, names...)
		return err
	})
	return all, err
}

// pipelined sends what queue queues. Each command has its own error then, also when
// Redis has refused the connection itself, such as for its password, of which
// go-redis tells the commands nothing.
func (c *Client) pipelined(ctx context.Context, queue func(redis.Pipeliner)) {
	cmds, err := c.rdb.Pipelined(ctx, func(p redis.Pipeliner) error {
		queue(p)
		return nil
	})
	if err == nil || slices.ContainsFunc(cmds, func(cmd redis.Cmder) bool { return cmd.Err() != nil }) {
		return
	}
	for _, cmd := range cmds {
		cmd.SetErr(err)
	}
}
