package main

import (
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/bmpha/bmpha/pkg/bgp"
	"github.com/bmpha/bmpha/pkg/bmp"
)

// TestScripts is the command line, as written in testdata/script. Each script
// has the program in its PATH and in its folder
//
//	session.bmp  a BMP session from Initiation to Termination
//	cut.bmp      the same without its last three bytes
//	garbage.bmp  the same with "GET / HTTP/1.1" behind the Peer Up
//
// and beside testscript's own commands
//
//	exits CODE PROGRAM [ARG…]  runs a program that must end with this code
//	steady FILE                writes the last output, with NOW for the time of arrival
func TestScripts(t *testing.T) {
	t.Parallel()
	path := filepath.Dir(program(t)) + string(os.PathListSeparator) + os.Getenv("PATH")
	testscript.Run(t, testscript.Params{
		Dir: filepath.Join("testdata", "script"),
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exits": exits,
			"steady": func(ts *testscript.TestScript, _ bool, args []string) {
				out := arrivals.ReplaceAllStringFunc(ts.ReadFile("stdout"), func(s string) string {
					if strings.HasPrefix(s, `"2026-01-02`) {
						return s // said by the router
					}
					return `"NOW"`
				})
				ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte(out), 0o600))
			},
		},
		UpdateScripts: os.Getenv("UPDATE") != "",
		Setup: func(env *testscript.Env) error {
			env.Setenv("PATH", path)
			env.Setenv("TZ", "UTC")
			whole, opening := smallSession()
			return errors.Join(
				os.WriteFile(filepath.Join(env.WorkDir, "session.bmp"), whole, 0o600),
				os.WriteFile(filepath.Join(env.WorkDir, "cut.bmp"), whole[:len(whole)-3], 0o600),
				os.WriteFile(filepath.Join(env.WorkDir, "garbage.bmp"), append(opening, "GET / HTTP/1.1\r\n\r\n"...), 0o600),
			)
		},
	})
}

var arrivals = regexp.MustCompile(`"2\d\d\d-[^"]*"`)

func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE PROGRAM [ARG…]")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	if err := ts.Exec(args[1], args[2:]...); err != nil {
		var exit *exec.ExitError
		if !errors.As(err, &exit) {
			ts.Fatalf("%s: %v", strings.Join(args[1:], " "), err)
		}
		got = exit.ExitCode()
	}
	if got != want {
		ts.Fatalf("%s: exit code %d, want %d", strings.Join(args[1:], " "), got, want)
	}
}

// The one peer of smallSession.
var (
	smallAddr = netip.MustParseAddr("192.0.2.7")
	smallTime = time.Date(2026, 1, 2, 3, 4, 5, 678901000, time.UTC)
	smallPeer = bmp.AppendPeerHeader(nil, 0, 0, 0, smallAddr, 64501, smallAddr, smallTime)
)

// smallOpening is how the session begins: Initiation and Peer Up.
func smallOpening() []byte {
	local := netip.MustParseAddr("192.0.2.1")
	caps := func(as uint32) []byte {
		return bgp.AppendCapAS4(bgp.AppendCapMP(nil, 1, 1), as)
	}
	b := bmp.AppendInitiation(nil, "test router", "edge-1")
	return bmp.AppendPeerUp(b, smallPeer, local, 179, 50000,
		bgp.AppendOpen(nil, 64500, 90, local, caps(64500)), bgp.AppendOpen(nil, 64501, 90, smallAddr, caps(64501)), nil)
}

// smallRoute announces 203.0.113.n/32, or withdraws it.
func smallRoute(n byte, announce bool) []byte {
	nlri := []byte{32, 203, 0, 113, n}
	update := bgp.AppendUpdate(nil, nlri, nil, nil)
	if announce {
		attrs := bgp.AppendOrigin(nil, 0)
		attrs = bgp.AppendASPath(attrs, 64501, 64502)
		attrs = bgp.AppendNextHop(attrs, smallAddr)
		update = bgp.AppendUpdate(nil, nil, attrs, nlri)
	}
	return bmp.AppendRouteMonitoring(nil, smallPeer, update)
}

func smallSession() (whole, opening []byte) {
	opening = smallOpening()
	b := append([]byte(nil), opening...)
	b = append(b, smallRoute(1, true)...)
	b = append(b, smallRoute(2, true)...)
	b = append(b, smallRoute(1, false)...)
	b = bmp.AppendRouteMonitoring(b, smallPeer, bgp.AppendEndOfRIB(nil, 1, 1))
	b = bmp.AppendStats(b, smallPeer, bmp.AppendStat{Type: 7, Value: 1})
	b = bmp.AppendPeerDown(b, smallPeer, 2, []byte{0, 6})
	return bmp.AppendTermination(b, 0, "bye"), opening
}
