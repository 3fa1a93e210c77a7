package control

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/bmpha/bmpha/pkg/bgp"
	"github.com/bmpha/bmpha/pkg/rig"
	"github.com/bmpha/bmpha/pkg/table"
)

// serveTables runs a server that has tables until the test ends.
func serveTables(t *testing.T, tables func() []RouterTable) (*Server, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "bmpha.sock")
	s, err := Listen(ServerOptions{Backend: &backend{}, Tables: tables, Socket: path, HTTP: "127.0.0.1:0", Log: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return s, path
}

// fetch asks a server for routes.
func fetch(t *testing.T, path string, q Query) (lines []string, more bool, err error) {
	answer, err := client(t, path).Routes(t.Context(), &q, func(line []byte) error {
		lines = append(lines, string(line)+"\n")
		return nil
	})
	if err == nil && answer.Found != len(lines) {
		t.Errorf("%d lines, %d by the end", len(lines), answer.Found)
	}
	return lines, answer.More, err
}

// queries waits until n queries are being answered.
func queries(t *testing.T, s *Server, n int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := rig.WaitFor(ctx, func() error {
		if now := len(s.queries); now != n {
			return fmt.Errorf("%d queries, want %d", now, n)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

func TestRoutesOverTheSocket(t *testing.T) {
	tables := lookingGlass(t)
	s, path := serveTables(t, func() []RouterTable { return tables })
	want, _ := ask(t, tables, "limit=0")
	got, more, err := fetch(t, path, Query{})
	if err != nil || more || !slices.Equal(got, want) {
		t.Errorf("%d routes, more %v, error %v; want %d", len(got), more, err, len(want))
	}
	got, more, err = fetch(t, path, Query{Limit: 3, Match: table.Longest})
	if err != nil || !more || !slices.Equal(got, want[:3]) {
		t.Errorf("%d routes, more %v, error %v; want 3 and more", len(got), more, err)
	}
	got, more, err = fetch(t, path, Query{Prefix: netip.MustParsePrefix("192.0.2.99/32"), Match: table.Exact})
	if err != nil || more || len(got) != 0 {
		t.Errorf("%d routes, more %v, error %v; want none", len(got), more, err)
	}
	stop := errors.New("enough")
	if _, err := client(t, path).Routes(t.Context(), &Query{}, func([]byte) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("error %v; want that of the callback", err)
	}
	var routers []string
	err = client(t, path).Peers(t.Context(), "", func(line []byte) error {
		var r RouterPeers
		routers = append(routers, r.Router)
		err := json.Unmarshal(line, &r)
		routers[len(routers)-1] = r.Router
		return err
	})
	if err != nil || !slices.Equal(routers, []string{"core-2", "edge-1", "new"}) {
		t.Errorf("peers of %q, error %v", routers, err)
	}
	queries(t, s, 0)
	for _, url := range []string{"/v1/routes?prefix=203.0.113.9", "/v1/peers"} {
		resp, err := http.Get("http://" + s.Addr().String() + url)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusNotFound {
			t.Errorf("%s on TCP: %s; want it on the socket only", url, resp.Status)
		}
	}
	http.DefaultClient.CloseIdleConnections()
}

func TestNothingToLookAt(t *testing.T) {
	tables := lookingGlass(t)
	hashes := []RouterTable{{Router: "r", Hashes: true, Table: tables[0].Table}}
	none := func([]byte) error { return nil }
	for name, c := range map[string]struct {
		tables        func() []RouterTable
		router        string
		routes, peers string // errors
	}{
		"no table":       {nil, "", "no table: this collector keeps no routes; set table: full", "no table: this collector"},
		"hashes":         {func() []RouterTable { return hashes }, "", "no table: this collector keeps no routes; set table: full", ""},
		"no router":      {func() []RouterTable { return nil }, "", "", ""},
		"not yet":        {func() []RouterTable { return nil }, "r1", "no table of router r1; no router has", "no router has connected yet"},
		"unknown router": {func() []RouterTable { return tables }, "192.0.2.200", "no table of router 192.0.2.200; there are those of core-2, edge-1 and new", "there are those of"},
	} {
		_, path := serveTables(t, c.tables)
		_, routes := client(t, path).Routes(t.Context(), &Query{Router: c.router}, none)
		peers := client(t, path).Peers(t.Context(), c.router, none)
		for _, e := range []struct {
			err  error
			want string
		}{{routes, c.routes}, {peers, c.peers}} {
			if (e.err == nil) != (e.want == "") || e.err != nil && !strings.Contains(e.err.Error(), e.want) {
				t.Errorf("%s: %v, want %q", name, e.err, e.want)
			}
			missing := (*NotFound)(nil)
			if e.err != nil && errors.Is(e.err, ErrNoTable) == errors.As(e.err, &missing) {
				t.Errorf("%s: %T is neither ErrNoTable nor a *NotFound", name, e.err)
			}
		}
	}
}

// What was not looked at, and what has not come yet, is said.
func TestPartOfTheTables(t *testing.T) {
	tables := append(lookingGlass(t), RouterTable{Router: "big", State: SessionUp, Off: "no room\x1b[2J"})
	_, path := serveTables(t, func() []RouterTable { return tables })
	none := func([]byte) error { return nil }
	for _, c := range []struct {
		query Query
		want  Answer
	}{
		{Query{Router: "edge-1", Limit: 1}, Answer{Found: 1, More: true}},
		{Query{Limit: 1}, Answer{Found: 1, More: true, Without: "big (no room?[2J)"}},
		{Query{OriginAS: 1}, Answer{Without: "big (no room?[2J)", Telling: "core-2 and edge-1"}},
		{Query{Router: "big"}, Answer{Without: "big (no room?[2J)"}},
		{Query{Router: "new"}, Answer{}},
	} {
		got, err := client(t, path).Routes(t.Context(), &c.query, none)
		if err != nil || got != c.want {
			t.Errorf("%+v: %+v, %v; want %+v", c.query, got, err, c.want)
		}
	}
	var out strings.Builder
	err := client(t, path).Peers(t.Context(), "big", func(line []byte) error {
		var r RouterPeers
		if err := json.Unmarshal(line, &r); err != nil {
			return err
		}
		return RenderPeers(&out, &r, RenderOptions{})
	})
	if want := "big session up: no table: no room?[2J\n"; err != nil || out.String() != want {
		t.Errorf("%q, %v; want %q", out.String(), err, want)
	}
}

func TestBadRequestsForRoutes(t *testing.T) {
	tables := lookingGlass(t)
	_, path := serveTables(t, func() []RouterTable { return tables })
	c := client(t, path)
	for url, want := range map[string]string{
		"/v1/routes?prefix=10.0.0.0/33":                `prefix "10.0.0.0/33": want a prefix as in`,
		"/v1/routes?limit=x":                           `limit "x": want a number`,
		"/v1/routes?a=%zz":                             `invalid URL escape`,
		"/v1/peers?colour=red":                         `colour "red": want router alone`,
		"/v1/peers?router=a&router=b":                  `want router alone`,
		"/v1/peers?router=%zz":                         `invalid URL escape`,
		"/v1/peers?router=" + strings.Repeat("x", 300): `want router alone`,
	} {
		_, err := c.lines(t.Context(), url, func([]byte) error { return nil })
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", url, err, want)
		}
	}
}

func TestAnswersThatAreNotWhole(t *testing.T) {
	path := answering(t, http.StatusOK, `{"router": "r"}`+"\n")
	if _, _, err := fetch(t, path, Query{}); err == nil || !strings.Contains(err.Error(), "broken off") {
		t.Errorf("an answer without its end: %v", err)
	}
	path = filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path) // nobody accepts
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := client(t, path).Routes(ctx, &Query{}, nil); !errors.Is(err, ErrNoAnswer) {
		t.Errorf("a collector that hangs: %v", err)
	}
	if _, _, err := fetch(t, path+"x", Query{}); !errors.Is(err, ErrNotRunning) {
		t.Errorf("no collector: %v", err)
	}
}

// bigTable has more routes than any buffer on the way to a client.
func bigTable(t testing.TB, routes int) *table.Table {
	tab := table.NewTable(table.NewStore(), table.Options{})
	apply(t, tab, at, transit.up())
	fill(t, tab, routes)
	return tab
}

// fill announces n prefixes of 24 bits.
func fill(t testing.TB, tab *table.Table, n int) {
	t.Helper()
	const each = 500
	for from := 0; from < n; from += each {
		var nlri []byte
		for i := from; i < min(n, from+each); i++ {
			nlri = bgp.AppendPrefix(nlri, netip.PrefixFrom(netip.AddrFrom4([4]byte{byte(1 + i>>16), byte(i >> 8), byte(i), 0}), 24))
		}
		attrs := bgp.AppendNextHop(bgp.AppendASPath(bgp.AppendOrigin(nil, 0), 64501, uint32(100_000+from)), netip.MustParseAddr("192.0.2.7"))
		apply(t, tab, at, transit.say(bgp.AppendUpdate(nil, nil, attrs, nlri)))
	}
}

// While routes are written, however long that takes, the table is not locked.
func TestWritingLocksNothing(t *testing.T) {
	tab := bigTable(t, 3*stepRoutes)
	for _, text := range []Query{{}, {Prefix: netip.MustParsePrefix("1.0.0.0/24"), Match: table.Exact}} {
		writes := 0
		look := search{q: &text, write: func(context.Context, []byte) error {
			writes++
			// Would wait for ever.
			apply(t, tab, at, transit.announce([]uint32{64501, uint32(writes)}, nil, "192.0.2.0/24"))
			return nil
		}}
		if err := look.table(t.Context(), &RouterTable{Router: "r", Table: tab}); err != nil || writes == 0 {
			t.Errorf("%d writes, %v", writes, err)
		}
	}
}

// stuck asks for everything and reads the head of the answer only.
func stuck(t *testing.T, path string) net.Conn {
	t.Helper()
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(conn, "GET /v1/routes?limit=0 HTTP/1.1\r\nHost: bmpha\r\n\r\n")
	line, err := bufio.NewReaderSize(conn, 16).ReadSlice(' ')
	if err != nil || string(line) != "HTTP/1.1 " {
		t.Fatalf("%q, %v", line, err)
	}
	return conn
}

func TestSlowReader(t *testing.T) {
	tab := bigTable(t, 40_000)
	s, path := serveTables(t, func() []RouterTable { return []RouterTable{{Router: "r", Table: tab}} })
	var conns []net.Conn
	for range maxQueries {
		conns = append(conns, stuck(t, path))
	}
	// The router and the status do not wait for them, other queries are refused.
	apply(t, tab, at, transit.announce([]uint32{64501}, nil, "192.0.2.0/24"))
	if _, err := client(t, path).Status(t.Context()); err != nil {
		t.Error(err)
	}
	if _, _, err := fetch(t, path, Query{Limit: 1}); err == nil || !strings.Contains(err.Error(), "queries are being answered already") {
		t.Errorf("one too many: %v", err)
	}
	if len(s.queries) != maxQueries {
		t.Fatalf("%d queries", len(s.queries))
	}
	// One that reads on gets everything.
	n, err := io.Copy(io.Discard, io.LimitReader(conns[0], 8<<20))
	if err != nil || n != 8<<20 {
		t.Errorf("%d bytes, %v", n, err)
	}
	// Those that go away free their places.
	for _, c := range conns {
		c.Close()
	}
	queries(t, s, 0)
	lines, more, err := fetch(t, path, Query{Limit: 10})
	if len(lines) != 10 || !more || err != nil {
		t.Errorf("%d routes, more %v, %v", len(lines), more, err)
	}
}

// Close does not wait for a client that does not read.
func TestCloseWithASlowReader(t *testing.T) {
	tab := bigTable(t, 40_000)
	path := filepath.Join(t.TempDir(), "s")
	s, err := Listen(ServerOptions{Backend: &backend{}, Tables: func() []RouterTable { return []RouterTable{{Router: "r", Table: tab}} }, Socket: path, Log: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	conn := stuck(t, path)
	defer conn.Close()
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if len(s.queries) != 0 {
		t.Error("the query goes on")
	}
}

func TestClientGoesAwayDuringASearch(t *testing.T) {
	tab := bigTable(t, 200_000)
	s, path := serveTables(t, func() []RouterTable {
		return slices.Repeat([]RouterTable{{Router: "r", Table: tab}}, 1000)
	})
	ctx, cancel := context.WithCancel(t.Context())
	var failed error
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, failed = client(t, path).Routes(ctx, &Query{OriginAS: 1}, func([]byte) error { return nil })
	}()
	queries(t, s, 1)
	cancel()
	<-done
	if !errors.Is(failed, context.Canceled) {
		t.Errorf("error %v", failed)
	}
	queries(t, s, 0)
}

// BenchmarkRoutes is a query over the socket. The tables of many routers are one and
// the same here.
func BenchmarkRoutes(b *testing.B) {
	tab := table.NewTable(table.NewStore(), table.Options{})
	apply(b, tab, at, transit.up())
	fill(b, tab, 1_000_000)
	for _, routers := range []int{1, 100} {
		tables := make([]RouterTable, routers)
		for i := range tables {
			tables[i] = RouterTable{Router: fmt.Sprint("r", i), Table: tab}
		}
		path := filepath.Join(b.TempDir(), "s")
		s, err := Listen(ServerOptions{Backend: &backend{}, Tables: func() []RouterTable { return tables }, Socket: path, Log: quiet()})
		if err != nil {
			b.Fatal(err)
		}
		c := NewClient(path)
		for _, q := range []struct {
			name string
			Query
			found int
		}{
			{"exact", Query{Prefix: netip.MustParsePrefix("3.4.5.0/24"), Match: table.Exact}, 1},
			{"longest", Query{Prefix: netip.MustParsePrefix("3.4.5.6/32"), Match: table.Longest}, 1},
			{"longer", Query{Prefix: netip.MustParsePrefix("3.4.0.0/20"), Match: table.Longer}, 16},
			{"origin", Query{OriginAS: 100_500}, 500},
		} {
			if q.name == "origin" && routers > 1 {
				continue
			}
			b.Run(fmt.Sprintf("%s/%d", q.name, routers), func(b *testing.B) {
				for b.Loop() {
					n := 0
					if _, err := c.Routes(b.Context(), &q.Query, func([]byte) error { n++; return nil }); err != nil || n != q.found*routers {
						b.Fatalf("%d routes, %v", n, err)
					}
				}
			})
		}
		c.Close()
		if err := s.Close(); err != nil {
			b.Fatal(err)
		}
	}
}
