package demo

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write the golden files anew")

func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got)\n%s", file, diff)
	}
}

func TestStrip(t *testing.T) {
	at := func(ms int, st state) sample {
		return sample{at: time.Duration(ms) * time.Millisecond, states: []state{st}}
	}
	for _, c := range []struct {
		name    string
		samples []sample
		n       int
		want    []state
	}{
		{"nothing yet", nil, 5, nil},
		{"the last of a cell counts", []sample{at(0, starting), at(900, active), at(1000, standby)}, 5, []state{active, standby}},
		{"a cell without a sample", []sample{at(0, active), at(3500, standby)}, 5, []state{active, active, active, standby}},
		{"late", []sample{at(2000, active)}, 5, []state{off, off, active}},
		{"the newest when there is no room", []sample{at(0, off), at(1000, starting), at(2000, active)}, 2, []state{starting, active}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if diff := cmp.Diff(c.want, strip(c.samples, 0, time.Second, c.n)); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
}

func TestRates(t *testing.T) {
	var samples []sample
	if sent, kafka := rates(samples); sent != 0 || kafka != 0 {
		t.Error("a rate of nothing")
	}
	for i := range 30 {
		samples = append(samples, sample{at: time.Duration(i) * 100 * time.Millisecond, sent: i * 300, kafka: i * 150})
	}
	for _, n := range []int{2, 5, 30} {
		if sent, kafka := rates(samples[:n]); int(sent+.5) != 3000 || int(kafka+.5) != 1500 {
			t.Errorf("of %d samples: %v, %v", n, sent, kafka)
		}
	}
}

// someFrame is a frame in the middle of a run.
func someFrame() frame {
	f := frame{
		elapsed: 19600 * time.Millisecond, step: "B comes back", n: 4, of: 9, missing: 239,
		total: Counts{Sent: 60000, Kafka: 67626, Repeated: 7865},
		rows: []row{
			{name: "A", note: "standby  holds   0.6 MB"}, {name: "B", note: "down"}, {name: "C", note: "active   holds   0.0 MB"},
			{name: "Redis", note: "up", service: true}, {name: "Kafka", note: "away", service: true},
		},
		hint: "./bin/bmpha status --watch --socket /tmp/bmpha-demo-1234567890/a.sock",
	}
	for i := range 19 {
		sm := sample{at: time.Duration(i) * time.Second, sent: i * 3200, kafka: i * 3300,
			states: []state{standby, standby, standby, standby, standby}}
		switch {
		case i == 0:
			sm.states[0], sm.states[1], sm.states[2] = starting, off, off
		case i < 6:
			sm.states[0] = active
		case i < 11:
			sm.states[1] = active
		default:
			sm.states[1], sm.states[2] = off, active
		}
		if i > 16 {
			sm.states[4] = off
		}
		f.samples = append(f.samples, sm)
		f.events = append(f.events, event{sm.at, strings.Repeat("something happens ", 1+i%7)})
	}
	return f
}

func TestRender(t *testing.T) {
	for _, c := range []struct {
		name           string
		columns, lines int
		style          Style
	}{
		{"wide", 100, 30, Style{}},
		{"colour", 80, 24, Style{Color: true}},
		{"ascii", 80, 24, Style{ASCII: true}},
		{"narrow", leastColumns, leastLines, Style{}},
		{"tiny", 20, 5, Style{}},
	} {
		t.Run(c.name, func(t *testing.T) {
			lines := someFrame().render(c.columns, c.lines, c.style)
			if len(lines) >= c.lines {
				t.Errorf("%d lines on a terminal of %d", len(lines), c.lines)
			}
			for _, l := range lines {
				if n := utf8.RuneCountInString(l); n > c.columns && !c.style.Color {
					t.Errorf("%d columns on a terminal of %d: %s", n, c.columns, l)
				}
				if c.style.ASCII && strings.ContainsAny(l, "█░×─") {
					t.Errorf("not ASCII: %s", l)
				}
			}
			golden(t, "frame-"+c.name+".txt", strings.ReplaceAll(strings.Join(lines, "\n"), "\x1b", "ESC")+"\n")
		})
	}
	// Before anything runs.
	if lines := (frame{}).render(80, 24, Style{}); len(lines) == 0 || !strings.Contains(lines[0], "starting") {
		t.Errorf("the first frame: %q", lines)
	}
}

func someReport() *Report {
	return &Report{
		Steps: []StepReport{
			{"quiet", "A", 0, Counts{Sent: 15988, Kafka: 15970}},
			{"kill -9 of B", "B → C", 1.04, Counts{Sent: 15983, Kafka: 19816, Repeated: 3830}},
			{"Redis away", "C → A+B+C → C", 0.09, Counts{Sent: 26797, Kafka: 78992, Repeated: 52209}},
			{"session frr–C cut", "C, A for frr", 2, Counts{Sent: 20271, Kafka: 22689, Repeated: 1503, Resent: 910}},
		},
		Total:    Counts{Sent: 79039, Kafka: 137467, Repeated: 57542, Resent: 910},
		Finished: true, TableEqual: true, Routes: 1741, Seconds: 47.4, OK: true,
	}
}

func TestReport(t *testing.T) {
	lost := someReport()
	lost.Total.Lost, lost.Steps[1].Lost, lost.OK = 12, 12, false
	differs := someReport()
	differs.TableEqual, differs.OK, differs.Difference = false, false, "1740 equal, 1 missing, 0 extra, 0 changed\nmissing: …"
	stopped := someReport()
	stopped.Finished, stopped.OK, stopped.TableEqual, stopped.Total.Lost = false, false, false, 7
	for _, c := range []struct {
		name    string
		report  *Report
		columns int
	}{
		{"ok", someReport(), 80}, {"narrow", someReport(), 60}, {"lost", lost, 0}, {"differs", differs, 80}, {"stopped", stopped, 80},
	} {
		t.Run(c.name, func(t *testing.T) {
			var b bytes.Buffer
			if err := c.report.Write(&b, c.columns); err != nil {
				t.Fatal(err)
			}
			golden(t, "report-"+c.name+".txt", b.String())
			if c.columns > 0 && c.report.TableEqual {
				for l := range strings.Lines(b.String()) {
					if n := utf8.RuneCountInString(strings.TrimSuffix(l, "\n")); n > c.columns && !strings.HasPrefix(l, "OK") {
						t.Errorf("%d columns: %s", n, l)
					}
				}
			}
			if c.report.OK != strings.HasPrefix(c.report.Verdict(), "OK") {
				t.Errorf("ok is %t: %s", c.report.OK, c.report.Verdict())
			}
		})
	}
}
