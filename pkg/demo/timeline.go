package demo

import (
	"context"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/bmpha/bmpha/pkg/control"
)

// Style says what a terminal can show.
type Style struct {
	Color bool
	ASCII bool // nothing but ASCII in the strips
}

// A state is what a collector, or Redis or Kafka, was at one moment.
type state byte

const (
	off state = iota
	starting
	standby
	active
)

// A sample is the state of everything at one moment.
type sample struct {
	at          time.Duration // since the beginning
	states      []state       // the collectors, Redis, Kafka
	sent, kafka int           // records so far
}

// sample takes one. The lock is held.
func (s *scene) sample(v view) sample {
	sm := sample{at: time.Since(s.began)}
	for _, m := range s.members {
		sm.states = append(sm.states, map[string]state{
			control.RoleStarting: starting, control.RoleStandby: standby, control.RoleActive: active,
		}[v.role(m.name)])
	}
	for _, up := range []bool{s.redisUp, s.kafkaUp} {
		st := off
		if up {
			st = standby
		}
		sm.states = append(sm.states, st)
	}
	for _, c := range s.ledger.steps {
		sm.sent += c.Sent
		sm.kafka += c.Kafka
	}
	return sm
}

// strip returns the states of one row over time, cell after cell, at most n, the
// last ones if there are more. A cell without a sample repeats the one before.
func strip(samples []sample, row int, cell time.Duration, n int) []state {
	var cells []state
	for _, s := range samples {
		i := int(s.at / cell)
		for len(cells) <= i {
			st := off
			if len(cells) > 0 {
				st = cells[len(cells)-1]
			}
			cells = append(cells, st)
		}
		cells[i] = s.states[row]
	}
	return cells[max(0, len(cells)-n):]
}

// rates returns the records per second sent and in Kafka over the last second of
// the samples.
func rates(samples []sample) (sent, kafka float64) {
	if len(samples) == 0 {
		return 0, 0
	}
	last := samples[len(samples)-1]
	for i := len(samples) - 2; i >= 0; i-- {
		if d := last.at - samples[i].at; d >= time.Second || i == 0 && d > 0 {
			return float64(last.sent-samples[i].sent) / d.Seconds(), float64(last.kafka-samples[i].kafka) / d.Seconds()
		}
	}
	return 0, 0
}

// A frame is what the live timeline shows at one moment.
type frame struct {
	elapsed time.Duration
	step    string
	n, of   int
	samples []sample
	rows    []row // as the states of the samples
	total   Counts
	missing int
	hint    string
	events  []event
}

type row struct {
	name, note string
	service    bool // Redis, Kafka: neither active nor standby
}

const (
	cellTime = time.Second
	// The smallest terminal that the timeline is drawn on.
	leastColumns, leastLines = 50, 18
)

// render draws a frame in the given size: no line is longer, and there is one
// line less than the terminal has.
func (f frame) render(columns, lines int, style Style) []string {
	var out []string
	put := func(format string, args ...any) { out = append(out, clip(fmt.Sprintf(format, args...), columns)) }
	put("bmpha demo  %s  %s", clock(f.elapsed), f.title())
	put("")
	out = append(out, f.strips(columns, style)...)
	put("")
	sent, kafka := rates(f.samples)
	put("routers  %s records/s sent", padLeft(number(int(sent)), 7))
	put("Kafka    %s records/s; %s on the way, %s repeated, %s re-sent by routers",
		padLeft(number(int(kafka)), 7), number(f.missing), number(f.total.Repeated), number(f.total.Resent))
	put("")
	if f.hint != "" {
		put("From another shell:")
		for _, l := range breakCommand(f.hint, columns) {
			put("%s", l)
		}
		put("")
	}
	if room := lines - 1 - len(out); room > 0 {
		for _, e := range f.events[max(0, len(f.events)-room):] {
			put("%s", e)
		}
	}
	return out[:min(len(out), max(lines-1, 0))]
}

func (f frame) title() string {
	if f.step == "" {
		return "starting"
	}
	return fmt.Sprintf("%d of %d: %s", f.n, f.of, f.step)
}

// strips draws the rows over time.
func (f frame) strips(columns int, style Style) []string {
	name, note := 0, 0
	for _, r := range f.rows {
		name, note = max(name, utf8.RuneCountInString(r.name)), max(note, utf8.RuneCountInString(r.note))
	}
	n := max(columns-name-note-4, 10)
	var out []string
	for i, r := range f.rows {
		cells := strip(f.samples, i, cellTime, n)
		text := clip(fmt.Sprintf("%-*s  %s  %s", name, r.name, strings.Repeat("\x00", len(cells)), r.note), columns)
		// Colours come last, so that they do not count as columns.
		from := strings.IndexByte(text, 0)
		if from < 0 {
			out = append(out, text)
			continue
		}
		to := strings.LastIndexByte(text, 0) + 1
		out = append(out, text[:from]+paint(cells[:to-from], r.service, style)+text[to:])
	}
	return out
}

// paint draws cells.
func paint(cells []state, service bool, style Style) string {
	marks := map[state]string{off: "×", starting: "·", standby: "░", active: "█"}
	if style.ASCII {
		marks = map[state]string{off: "x", starting: ".", standby: "-", active: "#"}
	}
	colors := map[state]string{off: "31", starting: "33", standby: "2", active: "32"}
	if service {
		marks[standby] = "─"
		if style.ASCII {
			marks[standby] = "-"
		}
	}
	var b strings.Builder
	for i, c := range cells {
		if style.Color && (i == 0 || cells[i-1] != c) {
			b.WriteString("\x1b[0;" + colors[c] + "m")
		}
		b.WriteString(marks[c])
	}
	if style.Color && len(cells) > 0 {
		b.WriteString("\x1b[0m")
	}
	return b.String()
}

// breakCommand puts a command that is too long for one line on two, so that it
// can still be copied.
func breakCommand(command string, columns int) []string {
	at := strings.LastIndex(command, " --")
	if utf8.RuneCountInString(command)+2 <= columns || at < 0 {
		return []string{"  " + command}
	}
	return []string{"  " + command[:at] + " \\", "   " + command[at:]}
}

// clip cuts text to so many columns; each rune that the demo prints takes one.
func clip(text string, columns int) string {
	if utf8.RuneCountInString(text) <= columns {
		return text
	}
	return string([]rune(text)[:columns])
}

func padLeft(s string, n int) string { return strings.Repeat(" ", max(0, n-len(s))) + s }

func clock(d time.Duration) string { return fmt.Sprintf("%5.1fs", d.Seconds()) }

// String writes an event in one line.
func (e event) String() string {
	return clock(e.at) + "  " + strings.ReplaceAll(e.text, "\n", "; ")
}

// An output shows a run: as a timeline that is drawn over and over, or as a line
// for each event.
type output struct {
	s     *scene
	live  bool
	drawn int // lines of the last frame
	stop  context.CancelFunc
	loops sync.WaitGroup
}

const drawEvery = 200 * time.Millisecond

func (o *output) begin(s *scene) {
	o.s = s
	if s.o.Out == nil {
		return
	}
	if s.o.Size != nil {
		columns, lines := s.o.Size()
		o.live = columns >= leastColumns && lines >= leastLines
	}
	if !o.live {
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	o.stop = cancel
	fmt.Fprint(s.o.Out, "\x1b[?25l")
	o.loops.Go(func() {
		tick := time.NewTicker(drawEvery)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				columns, lines := s.o.Size()
				o.draw(s.frame().render(columns, lines, s.o.Style))
			}
		}
	})
}

// draw replaces the last frame.
func (o *output) draw(lines []string) {
	var b strings.Builder
	if o.drawn > 0 {
		fmt.Fprintf(&b, "\x1b[%dA", o.drawn)
	}
	b.WriteString("\r\x1b[J")
	for _, l := range lines {
		b.WriteString(l + "\n")
	}
	o.drawn = len(lines)
	_, _ = io.WriteString(o.s.o.Out, b.String()) // a terminal that is gone is no reason to stop
}

// event shows an event.
func (o *output) event(e event) {
	if o.s.o.Out != nil && !o.live {
		fmt.Fprintln(o.s.o.Out, e)
	}
}

// end replaces the last frame by all events and the timeline.
func (o *output) end() {
	if !o.live {
		return
	}
	o.stop()
	o.loops.Wait()
	columns, _ := o.s.o.Size()
	f := o.s.frame()
	var lines []string
	for _, e := range f.events {
		lines = append(lines, e.String())
	}
	lines = append(append(append(lines, ""), f.strips(columns, o.s.o.Style)...), "")
	o.draw(lines)
	fmt.Fprint(o.s.o.Out, "\x1b[?25h")
}

// frame is the frame of now.
func (s *scene) frame() frame {
	s.mu.Lock()
	defer s.mu.Unlock()
	f := frame{
		elapsed: time.Since(s.began), samples: s.samples, events: s.events, missing: s.ledger.missing,
		n: s.current + 1, of: len(s.names),
	}
	if len(s.names) > 0 {
		f.step = s.names[s.current]
	}
	for _, c := range s.ledger.steps {
		f.total.add(c)
	}
	for _, m := range s.members {
		r := row{name: m.name, note: "down"}
		if st := s.view.status[m.name]; st != nil {
			r.note = fmt.Sprintf("%-8s holds %5.1f MB", st.Role, float64(st.Hold.Bytes)/1e6)
		}
		f.rows = append(f.rows, r)
	}
	for _, x := range []struct {
		name string
		up   bool
	}{{"Redis", s.redisUp}, {"Kafka", s.kafkaUp}} {
		r := row{name: x.name, note: "away", service: true}
		if x.up {
			r.note = "up"
		}
		f.rows = append(f.rows, r)
	}
	if len(s.members) > 0 {
		f.hint = s.hint()
	}
	return f
}
