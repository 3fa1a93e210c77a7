package pmacct

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"testing"
	"time"

	"github.com/bmpha/bmpha/pkg/bmp"
	"github.com/bmpha/bmpha/pkg/record"
)

// captures are the captured sessions, in the order in which pmacct was given
// them.
var captures = []string{
	"huawei-locrib", "cisco-xr-peer-down", "6wind-frr",
	"mixed-2001-db8-53--1", "mixed-2001-db8-73--1", "mixed-2001-db8-90--1", "mixed-2001-db8-91--1",
	"mixed-203.0.113.19", "mixed-203.0.113.21", "mixed-203.0.113.23", "mixed-203.0.113.24",
	"mixed-203.0.113.44", "mixed-203.0.113.54", "mixed-203.0.113.58", "mixed-203.0.113.81",
}

// fixturesDir returns the folder of captured router traffic, which lives
// outside of the repository, and whether it is there.
func fixturesDir() (dir string, ok bool) {
	dir = os.Getenv("BMPHA_FIXTURES")
	if dir == "" {
		dir = filepath.Join("..", "..", "..", "shared", "fixtures")
	}
	_, err := os.Stat(dir)
	return dir, err == nil
}

// fixtures returns that folder, or skips the test.
func fixtures(t testing.TB) string {
	dir, ok := fixturesDir()
	if !ok {
		t.Skipf("no captured traffic in %s (BMPHA_FIXTURES names another folder)", dir)
	}
	return dir
}

func readCapture(t testing.TB, dir, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, name+".bmp"))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// eachMessage calls f with the messages of stream, which must be whole.
func eachMessage(t testing.TB, stream []byte, f func(msg []byte)) {
	t.Helper()
	for off := 0; off < len(stream); {
		n, err := bmp.Next(stream[off:], 1<<20)
		if err != nil || n == 0 {
			t.Fatalf("no message at offset %d: n=%d, err=%v", off, n, err)
		}
		f(stream[off : off+n])
		off += n
	}
}

// varying matches what differs from run to run: the port of the router, times
// of arrival, and the time of log_init and log_close.
var varying = []struct {
	re  *regexp.Regexp
	new []byte
}{
	{regexp.MustCompile(`"bmp_router_port": \d+`), []byte(`"bmp_router_port": 0`)},
	{regexp.MustCompile(`"timestamp_arrival": "[^"]*"`), []byte(`"timestamp_arrival": ""`)},
	{regexp.MustCompile(`"timestamp": "[^"]*"(, "bmp_router": .*"event_type": "log_(init|close)")`), []byte(`"timestamp": ""$1`)},
}

func maskVarying(b []byte) []byte {
	for _, v := range varying {
		b = v.re.ReplaceAll(b, v.new)
	}
	return b
}

// TestGoldenPmacct compares every record made of the captured sessions with
// what pmacct 1.8 wrote for them, byte for byte except for what varies.
func TestGoldenPmacct(t *testing.T) {
	dir := fixtures(t)
	f, err := os.Open(filepath.Join(dir, "pmacct-1.8.jsonl.gz"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	want := bufio.NewScanner(z)
	want.Buffer(nil, 1<<20)

	enc, err := NewEncoder(Options{Timestamps: UTC})
	if err != nil {
		t.Fatal(err)
	}
	enc.seq.Store(2) // the run began with a probe connection
	var b record.Batch
	records, equal, shown := 0, 0, 0
	check := func() {
		for i := range b.Len() {
			records++
			if !want.Scan() {
				if shown++; shown < 20 {
					t.Errorf("record %d is more than pmacct wrote: %s", records, b.Value(i))
				}
				continue
			}
			if g, w := maskVarying(b.Value(i)), maskVarying(want.Bytes()); bytes.Equal(g, w) {
				equal++
			} else if shown++; shown < 20 {
				t.Errorf("record %d:\n got %s\nwant %s", records, g, w)
			}
		}
		b.Reset()
	}
	now := time.Date(2026, 11, 21, 2, 24, 0, 0, time.UTC).UnixMicro()
	for i, name := range captures {
		s := enc.Session(Identity{Addr: netip.AddrFrom4([4]byte{127, 0, 1, byte(i + 1)}), Port: 40000})
		s.Open(&b, nil, now)
		eachMessage(t, readCapture(t, dir, name), func(msg []byte) {
			// Real routers send a few messages that pmacct cannot decode
			// either; that both make the same of them is what is compared.
			_ = s.Message(&b, nil, now, msg)
			check()
		})
		s.Close(&b, nil, now)
		check()
	}
	missing := 0
	for want.Scan() {
		missing++
	}
	if missing != 0 {
		t.Errorf("%d records that pmacct wrote are missing", missing)
	}
	if records == 0 {
		t.Error("no records")
	}
	t.Logf("%d of %d records equal, counters %+v", equal, records+missing, enc.Counters())
}

// ribCaptures are those of the captures that a pmacct with a table was given.
var ribCaptures = []string{
	"huawei-locrib", "cisco-xr-peer-down", "6wind-frr", "mixed-2001-db8-90--1", "mixed-203.0.113.54",
}

// varyingRIB matches what differs further: the number of a record, which tells
// its order, the time of a delete, and how an IPv4 next hop is written, which in
// pmacct depends on the other routes (docs/pmacct-differences.md).
var varyingRIB = []struct {
	re  *regexp.Regexp
	new []byte
}{
	{regexp.MustCompile(`"seq": \d+`), []byte(`"seq": 0`)},
	{regexp.MustCompile(`("log_type": "delete", "timestamp": )"[^"]*"`), []byte(`$1""`)},
	{regexp.MustCompile(`"bgp_nexthop": "::ffff:`), []byte(`"bgp_nexthop": "`)},
}

// TestGoldenRIB compares the records made with a table of the captured sessions
// with what pmacct 1.8 wrote for them: the deletes as a set, all others in order.
func TestGoldenRIB(t *testing.T) {
	f, err := os.Open(filepath.Join(fixtures(t), "rib-1.8.jsonl.gz"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	var ours bytes.Buffer
	for i, name := range ribCaptures {
		_, err := Decode(&ours, bytes.NewReader(readCapture(t, fixtures(t), name)), DecodeOptions{
			Timestamps: UTC, Router: netip.AddrFrom4([4]byte{127, 0, 1, byte(i + 1)}), RIB: true,
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	split := func(b []byte) (others, deletes []string) {
		for line := range bytes.Lines(b) {
			line = maskVarying(bytes.TrimSpace(line))
			for _, v := range varyingRIB {
				line = v.re.ReplaceAll(line, v.new)
			}
			if bytes.Contains(line, []byte(`"log_type": "delete"`)) {
				deletes = append(deletes, string(line))
			} else {
				others = append(others, string(line))
			}
		}
		slices.Sort(deletes)
		return others, deletes
	}
	gotOthers, gotDeletes := split(ours.Bytes())
	wantOthers, wantDeletes := split(theirs)
	for _, c := range []struct {
		what      string
		got, want []string
	}{{"records", gotOthers, wantOthers}, {"deletes", gotDeletes, wantDeletes}} {
		if len(c.got) != len(c.want) {
			t.Errorf("%d %s, pmacct wrote %d", len(c.got), c.what, len(c.want))
		}
		equal := 0
		for i := range min(len(c.got), len(c.want)) {
			if c.got[i] == c.want[i] {
				equal++
			} else if i-equal < 10 {
				t.Errorf("of %s, number %d:\n got %s\nwant %s", c.what, i, c.got[i], c.want[i])
			}
		}
		t.Logf("%d of %d %s equal", equal, len(c.want), c.what)
	}
}
