package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"time"

	"github.com/bmpha/bmpha/pkg/relay"
	"github.com/bmpha/bmpha/pkg/replay"
	"github.com/bmpha/bmpha/pkg/rig"
)

// relayEnv makes this program a relay between the two addresses in it, "listen
// target".
const relayEnv = "BMPHA_BENCH_RELAY"

// runRelay reads one session after the other as the collector does, and passes it
// on.
func runRelay() error {
	var listen, to string
	if _, err := fmt.Sscan(os.Getenv(relayEnv), &listen, &to); err != nil {
		return fmt.Errorf("%s: %w", relayEnv, err)
	}
	ln, err := net.Listen("tcp", listen)
	if err != nil {
		return fmt.Errorf("listen for routers: %w", err)
	}
	r := relay.New(relay.Options{
		// A router that is faster than the station would be cut, which is what the
		// relay is for, and no copy to measure.
		Wait:    10 * time.Second,
		Targets: []string{to}, Proxy: "v1", Buffer: 8 << 20, Parallel: 1,
		Log: slog.New(slog.NewTextHandler(os.Stderr, nil)),
	})
	b := make([]byte, 256<<10)
	for id := uint64(1); ; id++ {
		c, err := ln.Accept()
		if err != nil {
			return fmt.Errorf("accept a router: %w", err)
		}
		s := r.Open(id, c.RemoteAddr().(*net.TCPAddr).AddrPort(), c.LocalAddr().(*net.TCPAddr).AddrPort(), nil)
		for {
			n, err := c.Read(b)
			s.Write(b[:n])
			if err != nil {
				break
			}
		}
		s.Close()
		c.Close()
	}
}

// relaying is one run of a relay.
type relaying struct{ rate, cpu, cpuPerGB float64 }

// relay measures the way of a router's bytes to another station, beside a plain
// copy of the same bytes by socat.
func (r *run) relay(ctx context.Context) ([]*table, error) {
	t := &table{Title: "7. The relay", Columns: []string{"copier", "MB/s", "each run", "CPU s", "CPU s/GB"}}
	tables := []*table{t}
	stream := replay.Big(r.messages, 42, false)
	const copies = 10
	total := copies * len(stream)
	t.note("1 session of %d MB (%d times the stream of section 3) over the loopback to a station that reads and discards; %d run(s) of each in turn, medians",
		total/1_000_000, copies, r.repeats)
	t.note("the relay reads 256 KiB at a time, as the collector does, and writes it to one target with a PROXY v1 header; the router waits when 8 MiB do")
	names := []string{"relay", "socat"}
	if _, err := exec.LookPath("socat"); err != nil {
		names = names[:1]
		t.note("socat is not installed (apt-get install socat): nothing to compare with")
	}
	runs := make(map[string][]relaying)
	for range r.repeats {
		for _, name := range names {
			one, err := relayOnce(ctx, name, stream, copies)
			if err != nil {
				return tables, fmt.Errorf("%s: %w", name, err)
			}
			runs[name] = append(runs[name], one)
		}
	}
	rates := make(map[string]float64)
	for _, name := range names {
		var rate, cpu, perGB []float64
		each := ""
		for _, one := range runs[name] {
			rate, cpu, perGB = append(rate, one.rate), append(cpu, one.cpu), append(perGB, one.cpuPerGB)
			each += number(one.rate) + " "
		}
		rates[name] = median(rate)
		t.row(name, median(rate), each, median(cpu), median(perGB))
	}
	if len(names) > 1 {
		t.result("the relay has %.0f %% of socat's throughput (target: at least 80 %%)", 100*rates["relay"]/rates["socat"])
	}
	got, command, err := r.goBench(ctx, "relay", "^BenchmarkWrite$", "1s")
	if err != nil {
		return tables, err
	}
	t.result("handing over costs %v ns for each message of 145 bytes, %v allocations (target: 100 and 0; %s)",
		number(median(got["Write/64KiB"]["ns/msg"])), got.cell("Write/64KiB", "allocs/op"), command)
	return tables, nil
}

// relayOnce sends the stream through one copier.
func relayOnce(ctx context.Context, name string, stream []byte, copies int) (relaying, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return relaying{}, err
	}
	defer ln.Close()
	port, err := rig.FreePort("")
	if err != nil {
		return relaying{}, err
	}
	listen := fmt.Sprintf("127.0.0.1:%d", port)
	c := rig.Command{Name: name, Grace: time.Second}
	if name == "socat" {
		c.Path = "socat"
		c.Args = []string{"-b", "262144", "-u", fmt.Sprintf("TCP-LISTEN:%d,bind=127.0.0.1", port), "TCP:" + ln.Addr().String()}
	} else {
		if c.Path, err = os.Executable(); err != nil {
			return relaying{}, err
		}
		c.Env = []string{relayEnv + "=" + listen + " " + ln.Addr().String()}
	}
	p, err := rig.Start(ctx, c)
	if err != nil {
		return relaying{}, err
	}
	defer p.Close()
	var router net.Conn
	err = rig.WaitFor(ctx, func() (err error) {
		router, err = net.Dial("tcp", listen)
		return err
	})
	if err != nil {
		return relaying{}, err
	}
	defer router.Close()
	station, err := ln.Accept()
	if err != nil {
		return relaying{}, err
	}
	defer station.Close()

	before, err := p.Usage()
	if err != nil {
		return relaying{}, err
	}
	begin := time.Now()
	sent := make(chan error, 1)
	go func() {
		for range copies {
			if _, err := router.Write(stream); err != nil {
				sent <- fmt.Errorf("send as router: %w", err)
				return
			}
		}
		sent <- nil
	}()
	want := int64(copies * len(stream))
	b := make([]byte, 1<<20)
	var got int64
	for got < want {
		n, err := station.Read(b)
		got += int64(n)
		if err != nil && !errors.Is(err, io.EOF) || n == 0 {
			return relaying{}, fmt.Errorf("station got %d of %d bytes: %w", got, want, err)
		}
	}
	wall := time.Since(begin)
	after, err := p.Usage()
	if err := errors.Join(err, <-sent); err != nil {
		return relaying{}, err
	}
	cpu := (after.CPU - before.CPU).Seconds()
	return relaying{rate: float64(want) / 1e6 / wall.Seconds(), cpu: cpu, cpuPerGB: cpu / (float64(want) / 1e9)}, nil
}
