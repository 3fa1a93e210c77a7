package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/bmpha/bmpha/pkg/control"
	"github.com/bmpha/bmpha/pkg/rig"
)

// A daemon is a collector under test, in a process of its own.
type daemon struct {
	kind    string
	addr    string // routers connect here
	process *rig.Process
	close   func() error

	// Of bmpha only.
	control *control.Client
	http    string
}

// A setup says how a bmpha is to run. The rest is its default.
type setup struct {
	process, cluster string
	brokers, topic   string
	noHeader         bool
}

// startBmpha runs the binary as an operator would and waits until it answers.
func (r *run) startBmpha(ctx context.Context, s setup) (*daemon, error) {
	var ports [2]int
	for i := range ports {
		var err error
		if ports[i], err = rig.FreePort(""); err != nil {
			return nil, fmt.Errorf("start bmpha: %w", err)
		}
	}
	dir := filepath.Join(r.dir, s.cluster+"-"+s.process)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("start bmpha: %w", err)
	}
	socket := filepath.Join(dir, "bmpha.sock")
	d := &daemon{
		kind: "bmpha", addr: net.JoinHostPort("127.0.0.1", strconv.Itoa(ports[0])),
		http: net.JoinHostPort("127.0.0.1", strconv.Itoa(ports[1])), control: control.NewClient(socket),
	}
	if s.noHeader {
		d.kind = "bmpha, output.header: false"
	}
	text := fmt.Sprintf(`process: %s
cluster: {name: %s}
listen: {address: "%s"}
redis: {address: "%s"}
kafka: {brokers: "%s", topic: "%s", dead_letter: "%s"}
output: {header: %v}
control: {socket: "%s", http: "%s"}
`, s.process, s.cluster, d.addr, r.redis.Addr(), s.brokers, s.topic, filepath.Join(dir, "dead-letter.jsonl"),
		!s.noHeader, socket, d.http)
	return d, r.launch(ctx, d, "bmpha "+s.process, dir, text)
}

// launch starts d in dir with a configuration, and waits until it answers.
func (r *run) launch(ctx context.Context, d *daemon, name, dir, text string) error {
	config := filepath.Join(dir, "bmpha.yaml")
	err := os.WriteFile(config, []byte(text), 0o600)
	if err != nil {
		return fmt.Errorf("start %s: %w", name, err)
	}
	d.process, err = rig.Start(ctx, rig.Command{
		Name: name, Path: r.bmpha, Args: []string{"run", "-c", config}, Log: filepath.Join(dir, "log"),
		Ready: func() error { _, err := d.control.Status(ctx); return err },
	})
	if err != nil {
		return err
	}
	d.close = func() error {
		d.control.Close()
		return d.process.Close()
	}
	return nil
}

// awaitStatus waits until ok holds of the daemon's status.
func (d *daemon) awaitStatus(ctx context.Context, what string, ok func(*control.Status) bool) error {
	return d.awaitStatusEvery(ctx, 50*time.Millisecond, what, ok)
}

// awaitStatusEvery is awaitStatus that asks less often: each time costs the daemon
// half a millisecond.
func (d *daemon) awaitStatusEvery(ctx context.Context, every time.Duration, what string, ok func(*control.Status) bool) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	tick := time.NewTicker(every)
	defer tick.Stop()
	seen := "no status"
	for {
		s, err := d.control.Status(ctx)
		switch {
		case err == nil && ok(s):
			return nil
		case err == nil:
			seen = fmt.Sprintf("%s, %s, %d messages held", s.Role, s.Reason, s.Hold.Messages)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("%s at %s is not %s: %s (%w)", d.kind, d.addr, what, seen, err)
		}
	}
}

func isActive(s *control.Status) bool  { return s.Role == control.RoleActive }
func isStandby(s *control.Status) bool { return s.Role == control.RoleStandby }

// startPmbmpd runs pmacct's collector with the same topic, for that many routers:
// it takes 2 MB for each that it is prepared for, and is for 10 by default. It is
// given no librdkafka configuration file: with one it parses it anew for every
// record and takes a third more time.
func startPmbmpd(ctx context.Context, brokers, topic string, routers int) (*daemon, error) {
	p, err := rig.StartPmbmpd(ctx, rig.PmbmpdOptions{
		Kafka: brokers, Topic: topic, Config: []string{fmt.Sprintf("bmp_daemon_max_peers: %d", max(10, routers))},
	})
	if err != nil {
		return nil, err
	}
	return &daemon{kind: "pmbmpd", addr: p.Addr(), process: p.Process, close: p.Close}, nil
}

// part returns what is known of an installed real part, and whether it is there.
func part(name string) (rig.Part, bool) {
	for _, p := range rig.Parts() {
		if p.Name == name {
			return p, p.Missing == ""
		}
	}
	return rig.Part{Name: name}, false
}

// profile takes a CPU profile of a bmpha while measure runs, if asked for.
func (r *run) profile(d *daemon, name string, seconds int, measure func() error) error {
	if r.profiles == "" || d.http == "" {
		return measure()
	}
	if err := os.MkdirAll(r.profiles, 0o755); err != nil {
		return fmt.Errorf("profile: %w", err)
	}
	got := make(chan error, 1)
	go func() {
		got <- func() error {
			resp, err := http.Get(fmt.Sprintf("http://%s/debug/pprof/profile?seconds=%d", d.http, seconds))
			if err != nil {
				return err
			}
			defer resp.Body.Close()
			if resp.StatusCode != http.StatusOK {
				return fmt.Errorf("profile: %s", resp.Status)
			}
			f, err := os.Create(filepath.Join(r.profiles, strings.ReplaceAll(name, " ", "-")+".pprof"))
			if err != nil {
				return err
			}
			defer f.Close()
			_, err = io.Copy(f, resp.Body)
			return err
		}()
	}()
	if err := measure(); err != nil {
		return err
	}
	return <-got
}
