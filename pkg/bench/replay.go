package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/bmpha/bmpha/pkg/control"
	"github.com/bmpha/bmpha/pkg/replay"
	"github.com/bmpha/bmpha/pkg/rig"
)

// replayMost is how many seconds a million routes may take.
const replayMost = 30

// A pmacctSetup is what a pmbmpd does with what it hears.
type pmacctSetup struct {
	name   string
	config []string
	file   string // that it writes a line for each route to; "" if it does not
}

// replayed is one replay into a pmbmpd that was killed.
type replayed struct {
	found float64 // seconds from when it listens again until the replay begins
	took  float64 // and from then until it has read everything
	bytes float64

	pmacct, bmpha float64 // CPU seconds
	others        float64 // share of the machine
	disturbed     bool    // the router's session is another one
	lines         int     // of routes, if it writes them
}

// replay measures how long a pmbmpd that was killed is without a table.
func (r *run) replay(ctx context.Context) ([]*table, error) {
	t := &table{Title: "10. A replay to a pmacct that was killed", Columns: []string{"pmbmpd", "found after s", "replay s", "target", "", "MB", "routes/s", "pmbmpd CPU s", "bmpha CPU s", "others %"}}
	tables := []*table{t}
	if p, ok := part(rig.PmbmpdPart); !ok {
		t.note("%s: not measured", p.Missing)
		return tables, nil
	}
	routes := 1_000_000
	if r.quick {
		routes /= 10
	}
	most := replayMost * float64(routes) / 1e6
	t.note("1 router with %s routes of 4 peers, no two with the same time, so that each is a message of its own; pmbmpd is killed and started again; %d run(s), medians", number(float64(routes)), r.repeats)
	t.note("found: from when it listens again until the replay begins; replay: from then until it has read everything; others: what the rest of the machine used, which takes from both where it is much")
	dump := filepath.Join(r.dir, "dump-%s.json")
	log := filepath.Join(r.dir, "msglog")
	for i, s := range []pmacctSetup{
		{name: "no output"},
		{name: "JSON to a file", config: []string{"bmp_daemon_msglog_file: " + log, "bmp_daemon_msglog_output: json"}, file: log},
		{name: "a table, no output", config: []string{"bmp_dump_file: " + dump, "bmp_dump_refresh_time: 86400"}},
	} {
		var found, took, size, pmacct, bmpha, others []float64
		for n := range r.repeats {
			one, err := r.replayOnce(ctx, fmt.Sprintf("replay%d-%d", i, n), s, routes)
			if err != nil {
				return tables, fmt.Errorf("%s: %w", s.name, err)
			}
			r.promise(!one.disturbed, "the router does not notice a replay")
			r.promise(s.file == "" || one.lines == routes, "all of %d routes are replayed (%d)", routes, one.lines)
			found, took, size = append(found, one.found), append(took, one.took), append(size, one.bytes/1e6)
			pmacct, bmpha, others = append(pmacct, one.pmacct), append(bmpha, one.bmpha), append(others, 100*one.others)
		}
		verdict := "met"
		if median(took) > most {
			verdict = "MISSED"
		}
		t.row(s.name, median(found), median(took), fmt.Sprintf("%s s", number(most)), verdict, median(size), float64(routes)/median(took), median(pmacct), median(bmpha), median(others))
	}
	return tables, nil
}

func (r *run) replayOnce(ctx context.Context, name string, s pmacctSetup, routes int) (one replayed, err error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Minute)
	defer cancel()
	p, err := rig.StartPmbmpd(ctx, rig.PmbmpdOptions{Config: append([]string{"bmp_daemon_parse_proxy_header: true"}, s.config...)})
	if err != nil {
		return one, err
	}
	defer p.Close()
	if s.file != "" {
		defer os.Remove(s.file)
	}
	d, err := r.startReplaying(ctx, name, p.Addr())
	if err != nil {
		return one, err
	}
	defer d.close()
	stream, err := replay.Synthetic{Prefixes: routes / 4, IPv6: 0.2, Attributes: 200_000}.Stream()
	if err != nil {
		return one, err
	}
	router, err := replay.NewRouter(replay.Config{Stream: stream, To: []string{d.addr}, Source: netip.MustParseAddr("127.3.0.1"), Stall: time.Minute, Stateless: true})
	if err != nil {
		return one, err
	}
	router.Start()
	defer router.Stop(context.Background(), replay.Abort)

	var last *control.Status
	until := func(what string, ok func(*control.RelayTarget) bool) error {
		err := rig.WaitFor(ctx, func() error {
			st, err := d.control.Status(ctx)
			if err != nil {
				return err
			}
			last = st
			if len(st.Relay) != 1 || len(st.Routers) == 0 || !ok(&st.Relay[0]) {
				return fmt.Errorf("%+v", st.Relay)
			}
			return nil
		})
		if err != nil {
			return fmt.Errorf("wait for %s: %w", what, err)
		}
		return nil
	}
	read := func() error { return rig.WaitFor(ctx, func() error { return unread(p.Addr()) }) }
	err = until("the table", func(t *control.RelayTarget) bool {
		table := last.Routers[0].Table
		return table != nil && int(table.Routes) == routes && t.Sessions == 1 && t.Buffered == 0
	})
	if err := errors.Join(err, read()); err != nil {
		return one, err
	}
	session := *last.Routers[0].Session
	if err := p.Kill(); err != nil {
		return one, err
	}
	if err := until("the loss", func(t *control.RelayTarget) bool { return t.Waiting == 1 }); err != nil {
		return one, err
	}
	before := last.Relay[0]
	var from int64
	if s.file != "" {
		info, err := os.Stat(s.file)
		if err != nil {
			return one, err
		}
		from = info.Size()
	}
	if err := p.Restart(ctx); err != nil {
		return one, err
	}
	up := time.Now()
	if err := until("the replay", func(t *control.RelayTarget) bool { return t.Replays > before.Replays }); err != nil {
		return one, err
	}
	begin := time.Now()
	one.found = begin.Sub(up).Seconds()
	busy, total, err := machineCPU()
	if err != nil {
		return one, err
	}
	self, bmphaBefore := selfCPU(), d.usage()
	err = until("its end", func(t *control.RelayTarget) bool { return t.Sessions == 1 && t.Replaying == 0 && t.Buffered == 0 })
	if err := errors.Join(err, read()); err != nil {
		return one, err
	}
	one.took = time.Since(begin).Seconds()
	used, err := p.Usage() // a new process: all of it is the replay's
	if err != nil {
		return one, err
	}
	busyAfter, totalAfter, err := machineCPU()
	if err != nil {
		return one, err
	}
	cpu := d.usage() - bmphaBefore
	one.pmacct, one.bmpha, one.bytes = used.CPU.Seconds(), cpu.Seconds(), float64(last.Relay[0].Bytes-before.Bytes)
	rest := busyAfter - busy - used.CPU - cpu - (selfCPU() - self)
	one.others = max(0, rest.Seconds()/(totalAfter-total).Seconds())
	one.disturbed = last.Routers[0].Session == nil || last.Routers[0].Session.ID != session.ID || last.Relay[0].Resets > 0 ||
		last.Relay[0].Replays != before.Replays+1
	if s.file != "" {
		one.lines, err = countLines(s.file, from)
	}
	return one, err
}

// startReplaying runs a bmpha in front of a pmacct whose records go elsewhere.
func (r *run) startReplaying(ctx context.Context, name, to string) (*daemon, error) {
	dir := filepath.Join(r.dir, name)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("start bmpha: %w", err)
	}
	port, err := rig.FreePort("")
	if err != nil {
		return nil, fmt.Errorf("start bmpha: %w", err)
	}
	socket := filepath.Join(dir, "bmpha.sock")
	d := &daemon{kind: "bmpha", addr: fmt.Sprintf("127.0.0.1:%d", port), control: control.NewClient(socket)}
	text := fmt.Sprintf(`process: a
cluster: {name: %s}
listen: {address: "%s"}
redis: {address: "%s"}
relay: {to: ["%s"]}
output: {decode: never}
sink: file
file: {path: "%s"}
control: {socket: "%s"}
`, name, d.addr, r.redis.Addr(), to, filepath.Join(dir, "records"), socket)
	return d, r.launch(ctx, d, "bmpha", dir, text)
}

// usage returns the CPU time of the daemon so far, 0 if it has ended.
func (d *daemon) usage() time.Duration {
	u, err := d.process.Usage()
	if err != nil {
		return 0
	}
	return u.CPU
}

// unread reports what a server at an IPv4 address has not read of its connections.
func unread(addr string) error {
	a, err := net.ResolveTCPAddr("tcp4", addr)
	if err != nil {
		return err
	}
	text, err := os.ReadFile("/proc/net/tcp")
	if err != nil {
		return err
	}
	port := fmt.Sprintf(":%04X", a.Port)
	const established = "01"
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		if len(f) < 5 || f[3] != established {
			continue
		}
		sent, received, _ := strings.Cut(f[4], ":")
		if strings.HasSuffix(f[1], port) && received != "00000000" || strings.HasSuffix(f[2], port) && sent != "00000000" {
			return fmt.Errorf("0x%s bytes on their way, 0x%s to be read", sent, received)
		}
	}
	return nil
}

// countLines counts the routes that pmacct has written behind an offset.
func countLines(file string, from int64) (n int, err error) {
	f, err := os.Open(file)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	if _, err := f.Seek(from, io.SeekStart); err != nil {
		return 0, err
	}
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		if bytes.Contains(lines.Bytes(), []byte(`"log_type": "update"`)) {
			n++
		}
	}
	return n, lines.Err()
}
