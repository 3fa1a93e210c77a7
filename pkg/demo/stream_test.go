package demo

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/bmpha/bmpha/pkg/capture"
	"github.com/bmpha/bmpha/pkg/pmacct"
	"github.com/bmpha/bmpha/pkg/replay"
)

var routerAddr = netip.MustParseAddr("127.0.0.2")

// TestStamped: each message has a time of its own, later than the one before, and
// what is entered is what the capture decodes to.
func TestStamped(t *testing.T) {
	for _, c := range []struct {
		name string
		data []byte
	}{{"frr", capture.FRR}, {"gobgp", capture.GoBGP}} {
		t.Run(c.name, func(t *testing.T) {
			source, err := replay.NewCapture(c.data, false)
			if err != nil {
				t.Fatal(err)
			}
			entered := make(map[identity]bool)
			s, err := newStamped(source, routerAddr, func(ids []identity) {
				for _, id := range ids {
					if entered[id] {
						t.Errorf("%v entered twice", id)
					}
					entered[id] = true
				}
			})
			if err != nil {
				t.Fatal(err)
			}
			var last int64
			var played []byte
			for {
				start := len(played)
				played, err = s.Next(played)
				if err == io.EOF {
					break
				}
				if err != nil {
					t.Fatal(err)
				}
				msg := played[start:]
				if kind := msg[typeAt]; kind == initiation || kind == termination {
					continue
				}
				at := int64(binary.BigEndian.Uint32(msg[secondsAt:]))*1e6 + int64(binary.BigEndian.Uint32(msg[microsAt:]))
				if at <= last {
					t.Fatalf("timestamp %d after %d", at, last)
				}
				last = at
			}
			if want := routeRecords(t, c.data); len(entered) != want {
				t.Errorf("%d records entered, the capture has %d", len(entered), want)
			}
			if got := routeRecords(t, played); got != len(entered) {
				t.Errorf("%d records entered, what was played has %d", len(entered), got)
			}
		})
	}
}

func routeRecords(t *testing.T, stream []byte) (n int) {
	t.Helper()
	var out bytes.Buffer
	if _, err := pmacct.Decode(&out, bytes.NewReader(stream), pmacct.DecodeOptions{Timestamps: pmacct.Epoch, Router: routerAddr}); err != nil {
		t.Fatal(err)
	}
	for line := range bytes.Lines(out.Bytes()) {
		_, ok, err := parseRoute(line)
		if err != nil {
			t.Fatal(err)
		}
		if ok {
			n++
		}
	}
	if n == 0 {
		t.Fatal("no route records")
	}
	return n
}

// A router whose peers never come up has nothing to play; the stream must end, and
// not look for a message for ever.
func TestStampedNothingToPlay(t *testing.T) {
	var only []byte
	for rest := capture.FRR; len(rest) > 0; {
		size := binary.BigEndian.Uint32(rest[1:])
		if rest[typeAt] == routeMonitoring {
			only = append(only, rest[:size]...)
		}
		rest = rest[size:]
	}
	source, err := replay.NewCapture(only, true)
	if err != nil {
		t.Fatal(err)
	}
	s, err := newStamped(source, routerAddr, func([]identity) { t.Error("a record was entered") })
	if err != nil {
		t.Fatal(err)
	}
	if msg, err := s.Next(nil); err == nil || errors.Is(err, io.EOF) || len(msg) > 0 {
		t.Errorf("%d bytes, error %v", len(msg), err)
	}
}

// TestOpenings: what has a timestamp before the first byte of a session is from
// the router's table.
func TestOpenings(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var o openings
	conn, err := o.dial(routerAddr)(t.Context(), l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	port := conn.LocalAddr().(*net.TCPAddr).AddrPort().Port()
	before := time.Now().UnixMicro()
	if o.dumped(routerAddr, port, before) {
		t.Error("a session that has not begun has no table")
	}
	for range 2 { // only the first write counts
		if _, err := conn.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
	}
	after := o.at[netip.AddrPortFrom(routerAddr, port)]
	if after < before {
		t.Fatalf("opened at %d, which is before %d", after, before)
	}
	if !o.dumped(routerAddr, port, before) || o.dumped(routerAddr, port, after+1) || o.dumped(routerAddr, port+1, before) {
		t.Error("the opening is not told from what follows")
	}
}
