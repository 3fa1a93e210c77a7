package replay

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	oraclebgp "github.com/osrg/gobgp/v4/pkg/packet/bgp"
	oracle "github.com/osrg/gobgp/v4/pkg/packet/bmp"

	"github.com/bmpha/bmpha/pkg/bmp"
)

// kinds writes the types of the messages in data, runs of one type as one.
func kinds(t testing.TB, data []byte) string {
	var b strings.Builder
	last, n := byte(0xff), 0
	flush := func() {
		if n > 0 {
			fmt.Fprintf(&b, "%dx%d ", n, last)
		}
	}
	messages(t, data, func(msg []byte) {
		if msg[5] != last {
			flush()
			last, n = msg[5], 0
		}
		n++
	})
	flush()
	return strings.TrimSpace(b.String())
}

// The same description makes the same bytes, on every machine and in every
// version: a seed in a report is worth something.
func TestSyntheticIsDeterministic(t *testing.T) {
	s := Synthetic{Seed: 7, Peers: 3, Prefixes: 500, IPv6: 0.3, Routes: 5, Attributes: 100, PostPolicy: true, Churn: DefaultChurn}
	const want = "1becba0a7d6e8784"
	if got := fmt.Sprintf("%x", sha256.Sum256(collect(t, synthetic(t, s), 20000)))[:16]; got != want {
		t.Errorf("hash %s, want %s", got, want)
	}
	s.Seed = 8
	if got := fmt.Sprintf("%x", sha256.Sum256(collect(t, synthetic(t, s), 20000)))[:16]; got == want {
		t.Error("another seed makes the same stream")
	}
}

// GoBGP reads a synthetic stream without an error and finds the routes that the
// table has.
func TestSyntheticAgainstOracle(t *testing.T) {
	churn := DefaultChurn
	churn.PeerFlap = 0.005
	data := collect(t, synthetic(t, Synthetic{Seed: 1, Peers: 3, Prefixes: 300, IPv6: 0.4, Routes: 4, Churn: churn}), 6000)
	type route struct{ peer, prefix string }
	have := make(map[route]string) // to the AS path
	var ups, downs, withdrawn, again int
	messages(t, data, func(msg []byte) {
		m, err := oracle.ParseBMPMessage(msg)
		if err != nil {
			t.Fatalf("decode % x: %v", msg, err)
		}
		peer := m.PeerHeader.PeerAddress.String()
		switch b := m.Body.(type) {
		case *oracle.BMPPeerUpNotification:
			ups++
		case *oracle.BMPPeerDownNotification:
			downs++
			for r := range have {
				if r.peer == peer {
					delete(have, r)
				}
			}
		case *oracle.BMPRouteMonitoring:
			u := b.BGPUpdate.Body.(*oraclebgp.BGPUpdate)
			path := ""
			for _, a := range u.PathAttributes {
				if a, ok := a.(*oraclebgp.PathAttributeAsPath); ok {
					path = strings.TrimSuffix(strings.TrimPrefix(a.String(), "{AsPath: "), "}")
				}
			}
			drop := u.WithdrawnRoutes
			add := u.NLRI
			for _, a := range u.PathAttributes {
				switch a := a.(type) {
				case *oraclebgp.PathAttributeMpReachNLRI:
					add = a.Value
				case *oraclebgp.PathAttributeMpUnreachNLRI:
					drop = a.Value
				}
			}
			for _, n := range drop {
				delete(have, route{peer, n.NLRI.String()})
				withdrawn++
			}
			for _, n := range add {
				r := route{peer, n.NLRI.String()}
				if have[r] == path {
					again++
				}
				have[r] = path
			}
		}
	})
	if downs == 0 || ups != 3+downs || withdrawn == 0 || again == 0 {
		t.Errorf("%d ups, %d downs, %d withdrawn, %d announced as they were", ups, downs, withdrawn, again)
	}
	table := tableOf(t, data).text("r")
	if len(table) != len(have) {
		t.Errorf("%d routes in the table, GoBGP finds %d", len(table), len(have))
	}
	for k, v := range table {
		if path, ok := have[route{k.Peer, k.Prefix}]; !ok || !strings.Contains(v, "path ["+path+"]") {
			t.Fatalf("%s: table %q, GoBGP %q", k, v, path)
		}
	}
}

func TestSyntheticPhases(t *testing.T) {
	s := Synthetic{Peers: 2, Prefixes: 10, IPv6: 0.5, PostPolicy: true}
	data := collect(t, synthetic(t, s), 1000)
	// Two peers, ten routes, two End-of-RIBs, each for two RIBs; then the end.
	if got, want := kinds(t, data), "1x4 2x3 48x0"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if n := tableOf(t, data).len(); n != 40 {
		t.Errorf("%d routes", n)
	}
	s.Churn.PeerFlap = 1
	data = collect(t, synthetic(t, s), 51+42)
	if got, want := kinds(t, data), "1x4 2x3 48x0 1x2 1x3 20x0 1x2 1x3 18x0"; got != want {
		t.Errorf("with peer flaps: got %s, want %s", got, want)
	}
}

func TestSyntheticRefuses(t *testing.T) {
	for _, s := range []Synthetic{{Peers: -1}, {Prefixes: 1 << 24}, {Routes: 1000}, {IPv6: 2}, {Churn: Churn{Flap: -1}}, {Attributes: -1}} {
		if _, err := s.Stream(); err == nil {
			t.Errorf("%+v was accepted", s)
		}
	}
}

// Each message of a numbered stream can be found by its prefix.
func TestNumbered(t *testing.T) {
	data := collect(t, synthetic(t, Synthetic{Peers: 2, IPv6: 0.5, Numbered: true}), 7+1000)
	seen := make(map[uint64]int)
	v6 := 0
	for k := range tableOf(t, data).text("r") {
		n, ok := Number(k.Prefix)
		if !ok {
			t.Fatalf("%s has no number", k.Prefix)
		}
		seen[n]++
		v6 += int(k.AFI) - 1
	}
	for n := range uint64(1000) {
		if seen[n] != 1 {
			t.Errorf("number %d: %d times", n, seen[n])
		}
	}
	if v6 < 300 || v6 > 700 {
		t.Errorf("%d of 1000 are IPv6, want half", v6)
	}
	for _, p := range []string{"", "10.0.0.0/32", "240.0.0.1/24", "2001:db8::/64", "3fff::/48", "3fff::%eth0/64"} {
		if n, ok := Number(p); ok {
			t.Errorf("Number(%q) = %d", p, n)
		}
	}
	for p, want := range map[string]uint64{"240.0.1.2/32": 258, "3fff:0:0:7::/64": 7, "3fff:fff:ffff:ffff::/64": 1<<44 - 1} {
		if n, ok := Number(p); !ok || n != want {
			t.Errorf("Number(%q) = %d, %v, want %d", p, n, ok, want)
		}
	}
}

func TestBig(t *testing.T) {
	table := tableOf(t, Big(5000, 42, true))
	if table.len() != 5000 || table.announced != 5000 {
		t.Errorf("v4: %d routes, %d announced", table.len(), table.announced)
	}
	data := Big(5000, 42, false)
	if got, want := kinds(t, data), "1x4 4x3 5000x0"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	table = tableOf(t, data)
	if n := table.len(); n != int(table.announced) || n < 14000 || n > 16000 {
		t.Errorf("%d routes, %d announced, want about 15000", n, table.announced)
	}
	if size := len(data) / 5000; size < 130 || size > 160 {
		t.Errorf("%d bytes per message, want about 145", size)
	}
}

// A capture that loops repeats routes and statistics, each as often as the
// others, and nothing that would take a peer up or down.
func TestCaptureLoop(t *testing.T) {
	peer := func(n byte) []byte { return append(make([]byte, 25), append([]byte{n}, make([]byte, 16)...)...) }
	route := func(n byte) []byte { return bmp.AppendRouteMonitoring(nil, peer(n), []byte{n}) }
	up := func(n byte) []byte { return bmp.AppendPeerUp(nil, peer(n), loopback, 1, 2, nil, nil, nil) }
	down := func(n byte) []byte { return bmp.AppendPeerDown(nil, peer(n), 4, nil) }
	init := bmp.AppendInitiation(nil, "", "r")
	stats := bmp.AppendStats(nil, peer(2))
	first := [][]byte{init, up(1), up(2), route(1), route(2), stats, down(1), down(2), up(2), route(2), route(3), stats}
	repeated := [][]byte{route(2), route(3), stats}

	c, err := NewCapture(slices.Concat(first...), true)
	if err != nil {
		t.Fatal(err)
	}
	want := slices.Concat(slices.Concat(first...), slices.Concat(repeated...), slices.Concat(repeated...))
	if got := collect(t, c, len(first)+2*len(repeated)); !bytes.Equal(got, want) {
		t.Errorf("got %s, want %s", kinds(t, got), kinds(t, want))
	}

	for _, loop := range []bool{false, true} {
		c, err := NewCapture(slices.Concat(init, up(1)), loop)
		if err != nil {
			t.Fatal(err)
		}
		collect(t, c, 2)
		if b, err := c.Next([]byte("x")); !errors.Is(err, io.EOF) || string(b) != "x" {
			t.Errorf("loop %v: nothing to repeat: %q, %v", loop, b, err)
		}
	}
}

func TestCaptureRefuses(t *testing.T) {
	init := bmp.AppendInitiation(nil, "", "r")
	for _, test := range []struct {
		name string
		data []byte
		want string
	}{
		{"cut short", append(init[:len(init):len(init)], init[:9]...), "byte 15: BMP message of 15 bytes, 9 are left"},
		{"half a header", init[:3], "byte 0: 3 bytes left, a BMP header has 6"},
		{"another protocol", []byte("GET / HTTP/1.1\r\n"), "byte 0: BMP version 71"},
		{"length 5", []byte{3, 0, 0, 0, 5, 4}, "byte 0: BMP message of 5 bytes, a header has 6"},
	} {
		if _, err := NewCapture(test.data, false); err == nil || err.Error() != test.want {
			t.Errorf("%s: got %v, want %s", test.name, err, test.want)
		}
	}
}

// Any bytes are either refused or played as they are, and a loop never plays what
// is not in them.
func FuzzCapture(f *testing.F) {
	peer := make([]byte, peerLen)
	f.Add(bmp.AppendInitiation(nil, "", "r"))
	f.Add(slices.Concat(bmp.AppendPeerUp(nil, peer, loopback, 1, 2, nil, nil, nil), bmp.AppendStats(nil, peer), bmp.AppendPeerDown(nil, peer, 4, nil)))
	f.Add([]byte{3, 0, 0, 0, 6, 0, 3, 0, 0, 0, 7, 1, 9})
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := NewCapture(data, true)
		if err != nil {
			return
		}
		var first []byte
		for len(first) < len(data) {
			if first, err = c.Next(first); err != nil {
				t.Fatal(err)
			}
		}
		if !bytes.Equal(first, data) {
			t.Errorf("first round: % x, want % x", first, data)
		}
		for range 10 {
			msg, err := c.Next(nil)
			if err != nil {
				break
			}
			if kind := msg[5]; kind > statisticsReport || !bytes.Contains(data, msg) {
				t.Errorf("repeated % x", msg)
			}
		}
	})
}

func TestLimit(t *testing.T) {
	s := Limit(synthetic(t, Synthetic{Numbered: true}), 9)
	if got, want := kinds(t, collect(t, s, 100)), "1x4 4x3 4x0"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

// The pace is even, is made up for after a short delay and not after a long one.
func TestPacer(t *testing.T) {
	p := pacer{rate: 1000}
	now := time.Unix(0, 0)
	sent := 0
	for end := now.Add(10 * time.Second); now.Before(end); {
		n, wait := p.due(now)
		sent += n
		if n > 1 {
			t.Fatalf("%d messages at once at %v", n, now)
		}
		now = now.Add(wait)
	}
	if sent != 10000 {
		t.Errorf("%d messages in 10 s, want 10000", sent)
	}
	burst := func() (sum int) {
		for {
			n, _ := p.due(now)
			if n == 0 {
				return sum
			}
			sum += n
		}
	}
	burst()
	now = now.Add(50 * time.Millisecond)
	if n := burst(); n != 50 {
		t.Errorf("%d messages after 50 ms, want 50", n)
	}
	now = now.Add(time.Minute)
	if n := burst(); n < 100 || n > 101 {
		t.Errorf("%d messages after a minute, want those of %v", n, mostLate)
	}
	if n, wait := new(pacer).due(now); n != mostDue || wait != 0 {
		t.Errorf("no rate: %d, %v", n, wait)
	}
}

func BenchmarkSynthetic(b *testing.B) {
	s := synthetic(b, Synthetic{Peers: 4, Prefixes: 100000, IPv6: 0.3, Routes: 5, Attributes: 10000, Churn: DefaultChurn})
	collect(b, s, 200000)
	b.ReportAllocs()
	buf := make([]byte, 0, 1<<20)
	var size int64
	for b.Loop() {
		buf, _ = s.Next(buf[:0])
		size += int64(len(buf))
	}
	b.SetBytes(size / int64(b.N))
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "msg/s")
}

func BenchmarkTable(b *testing.B) {
	s := synthetic(b, Synthetic{Peers: 4, Prefixes: 100000, IPv6: 0.3, Routes: 1, Attributes: 10000,
		Churn: Churn{Withdraw: 0.2, Announce: 0.5, Flap: 0.1, Repeat: 0.2}})
	table := newRIBs()
	messages(b, collect(b, s, 400100), func(msg []byte) { table.apply(msg) })
	var msgs [][]byte
	messages(b, collect(b, s, 100000), func(msg []byte) { msgs = append(msgs, msg) })
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		table.apply(msgs[i])
		if i++; i == len(msgs) {
			i = 0
		}
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "msg/s")
}
