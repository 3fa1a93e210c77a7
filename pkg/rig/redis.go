package rig

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"
)

// RedisOptions are what a Redis may be started with. The zero value is an open
// server without TLS.
type RedisOptions struct {
	Dir string // where it keeps log and certificate; "" is a temporary folder

	// Password is asked for when set. With User it is the password of that ACL
	// user and nobody else gets in; without, that of the default user.
	User, Password string

	// TLS makes the server speak TLS only, with the certificate that
	// Redis.Certificate names.
	TLS bool
}

// A Redis is a running Redis, real or embedded. It keeps nothing over a Restart.
type Redis interface {
	Server
	// Addr is host:port.
	Addr() string
	// Certificate names the files of the server's certificate when it speaks
	// TLS.
	Certificate() Certificate
	// Client returns a new client with the server's credentials, for tests to
	// look at keys. It tries each command once.
	Client() *redis.Client
	// Embedded says whether it runs inside this process.
	Embedded() bool
}

// StartRedis starts the real redis-server when it is installed and the embedded
// one otherwise.
func StartRedis(ctx context.Context, o RedisOptions) (Redis, error) {
	if installed(RedisServerPart) {
		return StartRedisServer(ctx, o)
	}
	return StartEmbeddedRedis(o)
}

// redisCommon is what both kinds share.
type redisCommon struct {
	o    RedisOptions
	dir  folder
	addr string
	cert Certificate
}

func newRedisCommon(o RedisOptions) (redisCommon, error) {
	c := redisCommon{o: o}
	var err error
	if c.dir, err = makeFolder(o.Dir, "redis"); err != nil {
		return c, err
	}
	if c.addr, err = freeAddr(); err != nil {
		return c, err
	}
	if o.TLS {
		c.cert, err = MakeCertificate(c.dir.path)
	}
	return c, err
}

func (c *redisCommon) Addr() string             { return c.addr }
func (c *redisCommon) Certificate() Certificate { return c.cert }

func (c *redisCommon) Client() *redis.Client {
	o := &redis.Options{
		Addr:       c.addr,
		Username:   c.o.User,
		Password:   c.o.Password,
		MaxRetries: -1, DialerRetries: 1,
		// Without an answer within this the server counts as hanging.
		DialTimeout: 5 * time.Second, ReadTimeout: 5 * time.Second, WriteTimeout: 5 * time.Second,
	}
	if c.o.TLS {
		pem, err := os.ReadFile(c.cert.CA)
		pool := x509.NewCertPool()
		if err == nil {
			pool.AppendCertsFromPEM(pem)
		}
		o.TLSConfig = &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
	}
	return redis.NewClient(o)
}

// ping returns a condition for WaitFor: the server answers.
func (c *redisCommon) ping() error {
	cl := c.Client()
	defer cl.Close()
	return cl.Ping(context.Background()).Err()
}

// A RedisServer is a real redis-server.
type RedisServer struct {
	*Process
	redisCommon
}

var _ Redis = (*RedisServer)(nil)

// StartRedisServer starts redis-server without persistence.
func StartRedisServer(ctx context.Context, o RedisOptions) (*RedisServer, error) {
	common, err := newRedisCommon(o)
	if err != nil {
		return nil, fmt.Errorf("start redis-server: %w", err)
	}
	s := &RedisServer{redisCommon: common}
	host, port, err := net.SplitHostPort(s.addr)
	if err != nil {
		return nil, fmt.Errorf("start redis-server: %w", err)
	}
	args := []string{"--bind", host, "--save", "", "--appendonly", "no", "--dir", s.dir.path}
	if o.TLS {
		args = append(args, "--port", "0", "--tls-port", port,
			"--tls-cert-file", s.cert.Cert, "--tls-key-file", s.cert.Key,
			"--tls-ca-cert-file", s.cert.CA, "--tls-auth-clients", "no")
	} else {
		args = append(args, "--port", port)
	}
	switch {
	case o.User != "":
		args = append(args, "--user", o.User, "on", ">"+o.Password, "~*", "&*", "+@all", "--user", "default", "off")
	case o.Password != "":
		args = append(args, "--requirepass", o.Password)
	}
	s.Process, err = Start(ctx, Command{
		Name: "redis-server", Path: "redis-server", Args: args,
		Log: filepath.Join(s.dir.path, "redis-server.log"), Ready: s.ping,
	})
	if err != nil {
		s.dir.remove()
		return nil, err
	}
	return s, nil
}

// Embedded is false.
func (s *RedisServer) Embedded() bool { return false }

// Close stops the server and removes its temporary folder.
func (s *RedisServer) Close() error {
	if err := s.Process.Close(); err != nil {
		return err
	}
	return s.dir.remove()
}

// An EmbeddedRedis is miniredis with keys that expire as time goes by.
type EmbeddedRedis struct {
	redisCommon
	door *door
	mini *miniredis.Miniredis
	wg   sync.WaitGroup
}

var _ Redis = (*EmbeddedRedis)(nil)

// StartEmbeddedRedis starts a Redis inside this process.
func StartEmbeddedRedis(o RedisOptions) (*EmbeddedRedis, error) {
	common, err := newRedisCommon(o)
	if err != nil {
		return nil, fmt.Errorf("start embedded redis: %w", err)
	}
	s := &EmbeddedRedis{redisCommon: common, mini: miniredis.NewMiniRedis()}
	if s.door, err = openDoor(s.addr); err != nil {
		return nil, fmt.Errorf("start embedded redis: %w", err)
	}
	var ln net.Listener = s.door
	if o.TLS {
		pair, err := tls.LoadX509KeyPair(s.cert.Cert, s.cert.Key)
		if err != nil {
			return nil, fmt.Errorf("start embedded redis: %w", err)
		}
		ln = tls.NewListener(ln, &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12})
	}
	// Dial is how miniredis starts without a listener of its own.
	c, err := s.mini.Dial()
	if err != nil {
		return nil, fmt.Errorf("start embedded redis: %w", err)
	}
	c.Close()
	s.mini.ClockTTL(true)
	switch {
	case o.User != "":
		s.mini.RequireUserAuth(o.User, o.Password)
	case o.Password != "":
		s.mini.RequireAuth(o.Password)
	}
	srv := s.mini.Server()
	s.wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			srv.ServeConn(c)
		}
	})
	return s, nil
}

// Embedded is true.
func (s *EmbeddedRedis) Embedded() bool { return true }

// Fail makes every command answer with the error msg, such as "LOADING Redis is
// loading the dataset in memory"; "" ends it.
func (s *EmbeddedRedis) Fail(msg string) { s.mini.SetError(msg) }

// Stop drops all connections and refuses new ones.
func (s *EmbeddedRedis) Stop() error { s.door.shut(); return nil }

// Kill is Stop: from outside, an embedded server ends the same way always.
func (s *EmbeddedRedis) Kill() error { return s.Stop() }

// Pause lets connections hang.
func (s *EmbeddedRedis) Pause() error { s.door.freeze(); return nil }

// Resume ends a Pause.
func (s *EmbeddedRedis) Resume() error { s.door.thaw(); return nil }

// Restart comes back empty at the same address.
func (s *EmbeddedRedis) Restart(context.Context) error {
	s.door.shut()
	s.mini.FlushAll()
	return s.door.open()
}

// Close ends the server.
func (s *EmbeddedRedis) Close() error {
	s.door.Close()
	s.wg.Wait()
	s.mini.Close()
	return s.dir.remove()
}

// hostPort splits an address that rig has made itself.
func hostPort(addr string) (string, int) {
	host, p, err := net.SplitHostPort(addr)
	if err != nil {
		panic(err) // rig's own addresses are host:port
	}
	port, err := strconv.Atoi(p)
	if err != nil {
		panic(err)
	}
	return host, port
}
