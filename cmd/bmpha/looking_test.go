package main

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/bmpha/bmpha/pkg/bmp"
	"github.com/bmpha/bmpha/pkg/control"
	"github.com/bmpha/bmpha/pkg/table"
)

// lookingGlass serves a collector with tables on a socket.
func lookingGlass(t *testing.T, tables func() []control.RouterTable) (socket string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "bmpha.sock")
	server, err := control.Listen(control.ServerOptions{Backend: &collectorStub{}, Tables: tables, Socket: path, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Close() })
	return path
}

// smallTables are two routers in the middle of smallSession; the first has 1 and 2
// of its routes.
func smallTables(t *testing.T) []control.RouterTable {
	store := table.NewStore()
	one, two := table.NewTable(store, table.Options{}), table.NewTable(store, table.Options{})
	stream := append(append(smallOpening(), smallRoute(1, true)...), smallRoute(2, true)...)
	for len(stream) > 0 {
		n, err := bmp.Next(stream, 1<<20)
		if err == nil {
			err = one.Apply(stream[:n], time.Now().UnixMicro(), nil)
		}
		if err != nil {
			t.Fatal(err)
		}
		stream = stream[n:]
	}
	return []control.RouterTable{
		{Router: "edge-1", Address: netip.MustParseAddr("127.0.0.1"), State: "up", Table: one},
		{Router: "edge-2", Address: netip.MustParseAddr("127.0.0.2"), State: "up", Table: two},
	}
}

func TestLookingGlass(t *testing.T) {
	tables := smallTables(t)
	full := lookingGlass(t, func() []control.RouterTable { return tables })
	empty := lookingGlass(t, func() []control.RouterTable { return nil })
	off := lookingGlass(t, nil)
	for _, c := range []struct {
		name   string
		args   []string
		code   int
		stdout []string // parts, none for no output at all
		stderr string
	}{
		{"an address", []string{"routes", "203.0.113.1", "--socket", full}, 0, []string{"prefix          router", "203.0.113.1/32  edge-1  192.0.2.7  in-pre  192.0.2.7  64501 64502 i"}, ""},
		{"flags before it", []string{"routes", "--socket", full, "--exact", "203.0.113.2/32"}, 0, []string{"203.0.113.2/32"}, ""},
		{"longer", []string{"routes", "203.0.113.0/24", "--longer", "--socket", full}, 0, []string{"203.0.113.1/32", "203.0.113.2/32"}, ""},
		{"shorter", []string{"routes", "203.0.113.2", "--shorter", "--socket", full}, 0, []string{"203.0.113.2/32"}, ""},
		{"JSON", []string{"routes", "203.0.113.1", "--json", "--socket", full}, 0, []string{`"ip_prefix": "203.0.113.1/32"`, `"as_path": "64501 64502"`}, ""},
		{"wide", []string{"routes", "203.0.113.1", "-w", "--socket", full}, 0, []string{"pref  MED  label"}, ""},
		{"a limit", []string{"routes", "--origin-as", "64502", "--limit", "1", "--socket", full}, 0, []string{"203.0.113.1/32"}, "more than these 1 routes: --limit N"},
		{"all", []string{"routes", "--all", "--socket", full}, 0, []string{"203.0.113.1/32", "203.0.113.2/32"}, ""},
		{"every flag", []string{"routes", "203.0.113.1", "--router", "127.0.0.1", "--peer", "192.0.2.7", "--origin-as", "AS64502", "--rib", "in-pre", "--family", "ipv4-unicast", "--withdrawn", "--limit", "0", "--socket", full}, 0, []string{"203.0.113.1/32"}, ""},
		{"nothing there", []string{"routes", "203.0.113.3", "--socket", full}, control.ExitNotFound, nil, "no such route; but not all of the table has come yet from edge-1"},
		{"another RD", []string{"routes", "203.0.113.1", "--rd", "64500:1", "--socket", full}, control.ExitNotFound, nil, "no such route"},
		{"nothing there, JSON", []string{"routes", "203.0.113.3", "--json", "--socket", full}, control.ExitNotFound, nil, "no such route"},
		{"no such router", []string{"routes", "--router", "edge-9", "--socket", full}, control.ExitNotFound, nil, "no table of router edge-9; there are those of edge-1 and edge-2"},
		{"no table", []string{"routes", "203.0.113.1", "--socket", off}, control.ExitNoTable, nil, "no table: this collector keeps no routes; set table: full"},
		{"peers", []string{"peers", "--socket", full}, 0, []string{"edge-1 (127.0.0.1) session up: 1 of 1 peer up, 2 routes", "192.0.2.7", "in-pre: ipv4 dump; 4-octet AS", "\nedge-2 (127.0.0.2) session up: 0 of 0 peers up"}, ""},
		{"peers of a router", []string{"peers", "--router", "edge-2", "--socket", full}, 0, []string{"edge-2 (127.0.0.2) session up: 0"}, ""},
		{"peers of none", []string{"peers", "--router", "edge-9", "--socket", full}, control.ExitNotFound, nil, "there are those of"},
		{"peers, nobody there yet", []string{"peers", "--socket", empty}, control.ExitNotFound, nil, "no router has connected yet"},
		{"peers, no table", []string{"peers", "--socket", off}, control.ExitNoTable, nil, "table: full"},
	} {
		stdout, stderr, code := command(c.args...)
		if code != c.code || !strings.Contains(stderr, c.stderr) || c.stderr == "" && stderr != "" || c.stdout == nil && stdout != "" {
			t.Errorf("%s: exit code %d, want %d, output\n%s%s", c.name, code, c.code, stdout, stderr)
		}
		for _, part := range c.stdout {
			if !strings.Contains(stdout, part) {
				t.Errorf("%s: no %q in\n%s", c.name, part, stdout)
			}
		}
		if strings.Contains(stdout, "\x1b") {
			t.Errorf("%s: colours although the output is no terminal", c.name)
		}
	}
	stdout, _, _ := command("peers", "--json", "--socket", full)
	var got []control.RouterPeers
	for line := range strings.Lines(stdout) {
		var r control.RouterPeers
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			t.Fatal(err)
		}
		got = append(got, r)
	}
	if len(got) != 2 || len(got[0].Peers) != 1 || got[0].Peers[0].AS != 64501 || got[0].SysName != "edge-1" || !got[0].Peers[0].Since.Equal(smallTime) {
		t.Errorf("peers as JSON: %+v", got)
	}
}

// The active and the standby both show the table that the router has.
func TestLookingGlassOfCollectors(t *testing.T) {
	t.Parallel()
	l := newLab(t).consume(1)
	a := l.start("a", "BMPHA_TABLE=full")
	a.role(control.RoleActive)
	b := l.start("b", "BMPHA_TABLE=full")
	b.role(control.RoleStandby)
	r := l.numbered(500, a, b)
	l.more(500)
	l.complete(r)
	want := make(map[string]int)
	for k := range r.Table() {
		want[k.Prefix]++
	}
	for _, m := range []*member{a, b} {
		l.until("the table of "+m.name, func() error {
			o := l.command("routes", "--all", "--json", "--socket", m.socket)
			got := make(map[string]int)
			for line := range strings.Lines(o.out) {
				var route control.Route
				l.must(json.Unmarshal([]byte(line), &route))
				got[route.Prefix]++
			}
			if o.code != 0 || !maps.Equal(got, want) {
				return fmt.Errorf("exit code %d, %d prefixes, want %d: %s", o.code, len(got), len(want), o.errOut)
			}
			return nil
		})
		for prefix := range want {
			if o := l.command("routes", prefix, "--exact", "--socket", m.socket); o.code != 0 || !strings.Contains(o.out, "\n"+prefix+" ") {
				t.Errorf("%s: %s: exit code %d\n%s%s", m.name, prefix, o.code, o.out, o.errOut)
			}
			break
		}
		if o := l.command("peers", "--socket", m.socket); o.code != 0 || !strings.Contains(o.out, "session up: ") {
			t.Errorf("%s: peers: exit code %d\n%s%s", m.name, o.code, o.out, o.errOut)
		}
	}
	off := l.start("c") // table: auto, and nothing needs one
	if o := l.command("routes", "--all", "--socket", off.socket); o.code != control.ExitNoTable {
		t.Errorf("without table: full: exit code %d\n%s%s", o.code, o.out, o.errOut)
	}
}
