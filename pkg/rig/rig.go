// Package rig starts the servers and routers that bmpha is tried against: Redis,
// Kafka, FRR, GoBGP and pmacct's own collector. End-to-end tests, benchmarks and
// the demo share it.
//
// What it promises:
//
//   - Everything listens on a loopback address and a free port, and keeps that
//     port through Restart. Ports are taken from below the range that outgoing
//     connections use, so nobody takes one while its server is down.
//   - Whatever is returned is ready: starting waits on a condition (a ping, a
//     metadata answer, a listening port), never for a fixed time. A process that
//     ends before it is ready fails the start with the end of its log.
//   - A process ends with its parent, also when the parent is killed.
//   - Redis and Kafka come as the real server and as an embedded one behind one
//     interface. The embedded ones need nothing installed; the demo uses only
//     these.
//
// Parts tells what is installed; Require skips a test whose parts are missing,
// or fails it where nothing may be missing.
package rig

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"strconv"
	"sync"
	"time"
)

// A Server is something that rig has started. The methods are safe for
// concurrent use; each waits until what it asks for is so.
type Server interface {
	// Stop ends the server as an operator would. Restart brings it back.
	Stop() error
	// Kill ends the server as a crash would.
	Kill() error
	// Pause makes the server hang: connections stay, new ones are taken by the
	// kernel, nothing is answered. Stop, Kill and Restart end the pause.
	Pause() error
	// Resume ends a Pause.
	Resume() error
	// Restart starts the server again at the same address, after stopping it
	// when it still runs.
	Restart(ctx context.Context) error
	// Close ends the server for good and removes what it kept on disk, unless
	// the caller named the folder.
	Close() error
}

// TB is the part of testing.TB that rig uses; stating it here keeps package
// testing out of programs that only use the embedded parts.
type TB interface {
	Helper()
	Skipf(format string, args ...any)
	Fatalf(format string, args ...any)
}

// portsFrom and portsTo bound the ports that FreePort gives. Linux takes ports
// for outgoing connections from 32768 on; below that a port that is closed for a
// while stays free.
const (
	portsFrom = 20000
	portsTo   = 32000
)

var given struct {
	sync.Mutex
	ports map[int]bool
}

// FreePort returns a TCP port that nothing on host listens on (a literal
// address; "" is 127.0.0.1). It gives no port twice within a process; between
// processes only chance keeps ports apart.
func FreePort(host string) (int, error) {
	if host == "" {
		host = loopback
	}
	given.Lock()
	defer given.Unlock()
	if given.ports == nil {
		given.ports = make(map[int]bool)
	}
	for range 200 {
		p := portsFrom + rand.IntN(portsTo-portsFrom)
		if given.ports[p] {
			continue
		}
		ln, err := net.Listen("tcp", net.JoinHostPort(host, strconv.Itoa(p)))
		if err != nil {
			continue
		}
		ln.Close()
		given.ports[p] = true
		return p, nil
	}
	return 0, fmt.Errorf("no free port on %s between %d and %d", host, portsFrom, portsTo)
}

// loopback is where servers listen unless told otherwise.
const loopback = "127.0.0.1"

// freeAddr returns a free host:port on 127.0.0.1.
func freeAddr() (string, error) {
	p, err := FreePort(loopback)
	if err != nil {
		return "", err
	}
	return net.JoinHostPort(loopback, strconv.Itoa(p)), nil
}

// WaitFor calls cond every few milliseconds until it returns nil, and returns
// its last error when ctx ends first.
func WaitFor(ctx context.Context, cond func() error) error {
	return waitEvery(ctx, 5*time.Millisecond, cond)
}

func waitEvery(ctx context.Context, every time.Duration, cond func() error) error {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		err := cond()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return errors.Join(context.Cause(ctx), err)
		case <-tick.C:
		}
	}
}

// dialable returns a condition for WaitFor: something listens at addr.
func dialable(addr string) func() error {
	return func() error {
		c, err := net.DialTimeout("tcp", addr, time.Second)
		if err != nil {
			return err
		}
		return c.Close()
	}
}

// A folder is where a server keeps its files.
type folder struct {
	path string
	own  bool // made here, so removed at Close
}

// makeFolder uses dir, or makes a new one under the system's folder for
// temporary files when dir is "".
func makeFolder(dir, name string) (folder, error) {
	if dir != "" {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return folder{}, fmt.Errorf("folder for %s: %w", name, err)
		}
		return folder{path: dir}, nil
	}
	tmp, err := os.MkdirTemp("", "bmpha-"+name+"-")
	if err != nil {
		return folder{}, fmt.Errorf("folder for %s: %w", name, err)
	}
	return folder{path: tmp, own: true}, nil
}

func (f folder) remove() error {
	if !f.own {
		return nil
	}
	return os.RemoveAll(f.path)
}
