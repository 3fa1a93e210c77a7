package relay

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestPacer plays one target's life. Each line is a time in seconds, an event or
// nothing, and after > what step must ask for then: "reset 1,2", "probe", the
// state, "gone".
func TestPacer(t *testing.T) {
	for _, c := range []struct {
		name     string
		parallel int
		noResync bool
		lines    string
	}{
		{"a target that is there", 1, false, `
			0   open 1 a   > connecting
			0.1 up 1       > up
			0.2 open 2 b   > up
			0.3 close 1    > up
			0.4 close 2    > up
		`},
		{"sessions are reset when the target accepts again, one after the other", 1, false, `
			0   open 1 a   > connecting
			0   open 2 b   > connecting
			0   up 1       > up
			0   up 2       > up
			1   lost 1     > resyncing probe
			1   lost 2     > down gone
			1.1 refused    > down gone
			1.2            > down gone
			1.4            > down gone
			1.5            > down gone probe
			1.5 probed     > down gone
			1.7            > down gone
			1.8            > resyncing gone reset 1
			1.9 close 1    > resyncing gone
			1.9 open 3 a   > resyncing gone
			1.9 taken      > resyncing gone
			2   up 3       > resyncing
			3   drained 3  > resyncing
			3.5            > resyncing
			4              > resyncing probe
			4   probed     > resyncing
			4.3            > resyncing reset 2
			4.4 close 2    > resyncing
			4.5 open 4 b   > resyncing
			4.5 up 4       > resyncing
			5   drained 4  > resyncing
			6   drained 4  > up
		`},
		{"a router that does not come back is waited for 30 s", 1, false, `
			0   open 1 a   > connecting
			0   open 2 b   > connecting
			0   refused 1  > down gone
			0   refused 2  > down gone
			0.2            > down gone probe
			0.2 probed     > down gone
			0.5            > resyncing gone reset 1
			0.6 close 1    > resyncing gone
			30.4           > resyncing gone
			30.5           > resyncing gone reset 2
		`},
		{"a session that is busy is waited for 30 s", 1, false, `
			0   open 1 a   > connecting
			0   open 2 b   > connecting
			0   refused 1  > down gone
			0   refused 2  > down gone
			0.2            > down gone probe
			0.2 probed     > down gone
			0.5            > resyncing gone reset 1
			0.6 close 1    > resyncing gone
			1   open 3 a   > resyncing gone
			1   up 3       > resyncing
			2   drained 3  > resyncing
			2.5 busy 3     > resyncing
			3   drained 3  > resyncing
			3.5 busy 3     > resyncing
			30.5           > resyncing reset 2
		`},
		{"several at a time", 2, false, `
			0   open 1 a   > connecting
			0   open 2 b   > connecting
			0   open 3 c   > connecting
			0   refused 1  > down gone
			0   refused 2  > down gone
			0   refused 3  > down gone
			0.2            > down gone probe
			0.2 probed     > down gone
			0.5            > resyncing gone reset 1,2
		`},
		{"a session that is lost again and again waits longer and longer", 1, false, `
			0   open 1 a   > connecting
			0   open 9 z   > connecting
			0   up 9       > up
			0   up 1       > up
			1   lost 1     > resyncing probe
			1   probed     > resyncing
			1.3            > resyncing reset 1
			1.4 close 1    > resyncing
			1.5 open 2 a   > resyncing
			1.5 up 2       > resyncing
			1.6 lost 2     > resyncing
			2.5            > resyncing
			2.6            > resyncing reset 2
			2.7 close 2    > resyncing
			2.8 open 3 a   > resyncing
			2.8 up 3       > resyncing
			3   lost 3     > resyncing
			4.9            > resyncing
			5              > resyncing reset 3
			5.1 close 3    > resyncing
			5.2 open 4 a   > resyncing
			5.2 up 4       > resyncing
			6   drained 4  > resyncing
			7   drained 4  > up
			95  lost 4     > resyncing reset 4
		`},
		{"a session that closes by itself is not reset", 1, false, `
			0   open 1 a   > connecting
			0   refused 1  > down gone
			0.1 close 1    > down gone
			0.2            > down gone probe
			0.2 probed     > down gone
			0.5            > up
		`},
		{"a reset that nobody heeded is repeated", 1, false, `
			0   open 1 a   > connecting
			0   refused 1  > down gone
			0.2            > down gone probe
			0.2 probed     > down gone
			0.5            > resyncing gone reset 1
			30.4           > resyncing gone
			30.5           > resyncing gone reset 1
		`},
		{"a target that accepts and closes at once is down", 1, false, `
			0   open 1 a   > connecting
			0   refused 1  > down gone
			0.2            > down gone probe
			0.2 probed     > down gone
			0.3 spareLost  > down gone
			0.6            > down gone
			0.7            > down gone probe
			0.7 refused    > down gone
			1.4            > down gone
			1.5            > down gone probe
		`},
		{"nothing is reset while paused", 1, false, `
			0   open 1 a   > connecting
			0   refused 1  > down gone
			0.2            > down gone probe
			0.2 probed     > down gone
			0.4 pause      > down gone
			0.5            > resyncing gone
			9   go on      > resyncing gone reset 1
		`},
		{"without resync", 1, true, `
			0   open 1 a   > connecting
			0   refused 1  > down gone
			0.2            > down gone probe
			0.2 probed     > down gone
			0.5            > resyncing gone
			99             > resyncing gone
			100 close 1    > up
			100 open 2 a   > up
			100 up 2       > up
		`},
		{"the router's own new session is a try, too", 1, false, `
			0   open 1 a   > connecting
			0   refused 1  > down gone
			0.1 close 1    > down gone
			0.1 open 2 a   > down gone
			0.1 up 2       > up
		`},
	} {
		t.Run(c.name, func(t *testing.T) {
			start := time.Unix(1_700_000_000, 0)
			p := newPacer(c.parallel, !c.noResync)
			p.jitter = func() float64 { return 0.5 }
			for line := range strings.Lines(strings.TrimSpace(c.lines)) {
				line = strings.TrimSpace(line)
				what, want, _ := strings.Cut(line, ">")
				var at float64
				var event, router string
				var key uint64
				fmt.Sscan(what, &at, &event, &key, &router)
				now := start.Add(time.Duration(at*1000+0.5) * time.Millisecond)
				switch event {
				case "open":
					p.opened(now, key, netip.AddrFrom4([4]byte{10, 0, 0, router[0]}))
				case "up":
					p.up(now, key)
				case "lost":
					p.lost(now, key)
				case "refused":
					if key == 0 {
						p.probed(now, false)
					} else {
						p.lost(now, key)
					}
				case "close":
					p.closed(now, key)
				case "probed":
					p.probed(now, true)
				case "spareLost":
					p.spareLost(now)
				case "taken":
					p.spareTaken()
				case "drained", "busy":
					p.drained(now, key, event == "drained")
				case "pause", "go":
					p.paused = event == "pause"
				}
				reset, probe, next := p.step(now)
				got := []string{string(p.state())}
				if !p.goneSince.IsZero() {
					got = append(got, "gone")
				}
				if probe {
					got = append(got, "probe")
				}
				if len(reset) > 0 {
					slices.Sort(reset)
					got = append(got, "reset", strings.Trim(strings.ReplaceAll(fmt.Sprint(reset), " ", ","), "[]"))
				}
				if g := strings.Join(got, " "); g != strings.TrimSpace(want) {
					t.Fatalf("%s\n got %s", line, g)
				}
				if !next.IsZero() && next.Before(now) {
					t.Fatalf("%s: next step in the past: %v", line, next.Sub(now))
				}
			}
		})
	}
}
