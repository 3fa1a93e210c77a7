package verify

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/bmpha/bmpha/pkg/pmacct"
	"github.com/bmpha/bmpha/pkg/replay"
	"github.com/bmpha/bmpha/pkg/rig"
)

var rerecord = flag.Bool("record", false, "record testdata/frr* and testdata/gobgp* anew from the real routers")

// TestRecord makes the files that the tests read: what FRR and GoBGP print of
// their tables, and the BMP that they sent of the same routes.
func TestRecord(t *testing.T) {
	if !*rerecord {
		t.Skip("records only with -record")
	}
	rig.Require(t, rig.FRRPart, rig.GoBGPPart)
	t.Run("frr", func(t *testing.T) {
		capture(t, "frr", func(ctx context.Context, o rig.RouterOptions) (rig.Router, func(...string) []byte, error) {
			f, err := rig.StartFRR(ctx, o)
			ask := func(command ...string) []byte {
				out, err := f.VTY(ctx, strings.Join(command, " "))
				must(t, err)
				return out
			}
			return f, ask, err
		}, map[string]string{
			"ipv4":      "show bgp ipv4 unicast json",
			"ipv6":      "show bgp ipv6 unicast json",
			"detail":    "show bgp ipv4 unicast json detail",
			"received":  "show bgp ipv4 unicast neighbors 127.2.0.31 received-routes json",
			"received6": "show bgp ipv6 unicast neighbors 127.2.0.31 received-routes json",
			"routes":    "show bgp ipv4 unicast neighbors 127.2.0.31 routes json",
		}, "configure terminal\nrouter bgp 65000\naddress-family ipv4 unicast\nnetwork 203.0.113.0/24")
	})
	t.Run("gobgp", func(t *testing.T) {
		capture(t, "gobgp", func(ctx context.Context, o rig.RouterOptions) (rig.Router, func(...string) []byte, error) {
			g, err := rig.StartGoBGP(ctx, o)
			ask := func(command ...string) []byte {
				cmdline, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", g.PID()))
				must(t, err)
				args := strings.Split(string(cmdline), "\x00")
				host, port := "", ""
				for i, a := range args {
					if a == "--api-hosts" {
						host, port, err = net.SplitHostPort(args[i+1])
						must(t, err)
					}
				}
				full := append([]string{"-u", host, "-p", port}, strings.Fields(strings.Join(command, " "))...)
				out, err := exec.CommandContext(ctx, "gobgp", full...).Output()
				must(t, err)
				return out
			}
			return g, ask, err
		}, map[string]string{
			"ipv4":     "global rib -a ipv4 -j",
			"ipv6":     "global rib -a ipv6 -j",
			"received": "neighbor 127.2.0.31 adj-in -a ipv4 -j",
		}, "global rib add -a ipv4 203.0.113.0/24")
	})
}

func capture(t *testing.T, name string, start func(context.Context, rig.RouterOptions) (rig.Router, func(...string) []byte, error), commands map[string]string, own string) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer ln.Close()
	var mu sync.Mutex
	var stream bytes.Buffer
	go func() {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		b := make([]byte, 65536)
		for {
			n, err := c.Read(b)
			mu.Lock()
			stream.Write(b[:n])
			mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	neighbors := []rig.Neighbor{
		{Addr: netip.MustParseAddr("127.2.0.31"), AS: 64501},
		{Addr: netip.MustParseAddr("127.2.0.32"), AS: 65537},
	}
	router, ask, err := start(ctx, rig.RouterOptions{Neighbors: neighbors, Collectors: []string{ln.Addr().String()}})
	must(t, err)
	defer router.Close()
	for i, n := range neighbors {
		s, err := rig.Speak(ctx, rig.SpeakerOptions{Router: router.BGP(), Local: n.Addr, AS: n.AS, ID: netip.AddrFrom4([4]byte{192, 0, 2, byte(11 + i)})})
		must(t, err)
		defer s.Close()
		hop4, hop6 := netip.AddrFrom4([4]byte{192, 0, 2, byte(11 + i)}), netip.MustParseAddr("2001:db8::"+strconv.Itoa(11+i))
		must(t, s.Announce(rig.Attributes{NextHop: hop4, ASPath: []uint32{n.AS, 4200000001}, MED: 50,
			Communities: []uint32{64501<<16 | 7, 0xffffff01}, Large: [][3]uint32{{64501, 1, 2}}},
			netip.MustParsePrefix("198.51.100.0/25"), netip.MustParsePrefix("198.51.100.128/25")))
		must(t, s.Announce(rig.Attributes{NextHop: hop4, ASPath: []uint32{n.AS}, Origin: 2}, netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 18, byte(i), 0}), 24)))
		must(t, s.Announce(rig.Attributes{NextHop: hop6, ASPath: []uint32{n.AS, 64999}, Origin: 1}, netip.MustParsePrefix("2001:db8:1::/48"), netip.MustParsePrefix("2001:db8:"+strconv.Itoa(2+i)+"::/48")))
	}
	ask(own)
	must(t, rig.WaitFor(ctx, func() error {
		mu.Lock()
		data := bytes.Clone(stream.Bytes())
		mu.Unlock()
		got, want := map[replay.RIB]int{}, 10
		for k := range consumed(t, data).Routes() {
			got[k.RIB]++
		}
		if got[replay.InPre] != want || got[replay.InPost] != want {
			return fmt.Errorf("%v", got)
		}
		return nil
	}))
	for file, command := range commands {
		must(t, os.WriteFile(filepath.Join("testdata", name+"-"+file+".json"), ask(command), 0o644))
	}
	mu.Lock()
	defer mu.Unlock()
	must(t, os.WriteFile(filepath.Join("testdata", name+".bmp"), stream.Bytes(), 0o644))
}

// lines returns the records of a BMP stream.
func lines(t testing.TB, bmp []byte) [][]byte {
	t.Helper()
	var out bytes.Buffer
	_, err := pmacct.Decode(&out, bytes.NewReader(bmp), pmacct.DecodeOptions{Dialect: pmacct.Dialect18, Router: netip.MustParseAddr("192.0.2.1")})
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Fatal(err)
	}
	return bytes.Split(bytes.TrimSpace(out.Bytes()), []byte("\n"))
}

func consumed(t testing.TB, bmp []byte) *replay.Consumer {
	var c replay.Consumer
	for _, l := range lines(t, bmp) {
		must(t, c.Record(l))
	}
	return &c
}
