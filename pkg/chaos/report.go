package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/bmpha/bmpha/pkg/rig"
)

// A heading says what was run, and where.
type heading struct {
	Date     string   `json:"date"`
	Command  string   `json:"command"`
	Commit   string   `json:"commit"`
	Binary   string   `json:"bmpha"` // what it says of itself
	Settings []string `json:"settings"`
	Links    bool     `json:"links"`
	CPU      string   `json:"cpu"`
	Cores    int      `json:"cores"`
	Kernel   string   `json:"kernel"`
	Load     string   `json:"load"` // of the machine before the run, see proc(5)
	Parts    []string `json:"parts"`
}

func newHeading(command string, args []string, o *options) heading {
	h := heading{
		Date: time.Now().Format("2006-01-02 15:04 MST"), Command: strings.Join(append([]string{"scripts/chaos", command}, args...), " "),
		Commit: firstLine("git", "rev-parse", "--short", "HEAD"), Binary: firstLine(o.bmpha, "version"), Settings: o.set, Links: o.links,
		CPU: cpuModel(), Cores: runtime.NumCPU(), Kernel: firstLine("uname", "-sr"),
	}
	if b, err := os.ReadFile("/proc/loadavg"); err == nil {
		h.Load = strings.TrimSpace(string(b))
	}
	for _, p := range rig.Parts() {
		if p.Missing == "" {
			h.Parts = append(h.Parts, p.Name+" "+p.Version)
		}
	}
	return h
}

func (h *heading) write(w io.Writer) {
	fmt.Fprintf(w, "%s\n  %s, commit %s, %s\n", h.Command, h.Date, h.Commit, h.Binary)
	fmt.Fprintf(w, "  %s, %d cores, %s, load before %s\n  %s\n", h.CPU, h.Cores, h.Kernel, h.Load, strings.Join(h.Parts, ", "))
}

// save writes v as JSON, unless file is "".
func save(file string, v any) error {
	if file == "" {
		return nil
	}
	b, err := json.MarshalIndent(v, "", "  ")
	if err == nil {
		err = os.WriteFile(file, append(b, '\n'), 0o644)
	}
	if err != nil {
		return fmt.Errorf("write the results: %w", err)
	}
	return nil
}

// A grid is a table of text, numbers to the right.
type grid struct {
	columns []string
	rows    [][]string
}

func (g *grid) row(cells ...string) { g.rows = append(g.rows, cells) }

func (g *grid) write(w io.Writer) {
	width := make([]int, len(g.columns))
	right := make([]bool, len(g.columns))
	for i := range right {
		right[i] = len(g.rows) > 0
	}
	for n, line := range append([][]string{g.columns}, g.rows...) {
		for i, c := range line {
			width[i] = max(width[i], utf8.RuneCountInString(c))
			if n > 0 && strings.Trim(c, "0123456789.,-") != "" {
				right[i] = false
			}
		}
	}
	rule := make([]string, len(width))
	for i, n := range width {
		rule[i] = strings.Repeat("-", n)
	}
	for _, line := range append([][]string{g.columns, rule}, g.rows...) {
		var b strings.Builder
		for i, c := range line {
			pad := strings.Repeat(" ", width[i]-utf8.RuneCountInString(c))
			if right[i] {
				c = pad + c
			} else {
				c += pad
			}
			b.WriteString("  " + c)
		}
		fmt.Fprintln(w, strings.TrimRight(b.String(), " "))
	}
}

// count writes n with commas.
func count[T int | int64 | uint64](n T) string {
	s := fmt.Sprint(n)
	for i := len(s) - 3; i > 0 && s[i-1] != '-'; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// A histogram counts values by bounds: a count for each bound, of the values up to
// it and above the one before, and one for those above all.
type histogram struct {
	Bounds []float64 `json:"bounds"`
	Counts []int     `json:"counts"`
}

func newHistogram(bounds ...float64) *histogram {
	return &histogram{Bounds: bounds, Counts: make([]int, len(bounds)+1)}
}

func (h *histogram) add(x float64) {
	i := 0
	for i < len(h.Bounds) && x > h.Bounds[i] {
		i++
	}
	h.Counts[i]++
}

// heads are the names of the columns, cells the counts, with nothing for 0.
func (h *histogram) heads() (names []string) {
	for _, b := range h.Bounds {
		if b == 0 {
			names = append(names, "0")
			continue
		}
		names = append(names, "≤"+trimmed(b))
	}
	return append(names, ">"+trimmed(h.Bounds[len(h.Bounds)-1]))
}

func (h *histogram) cells() (cells []string) {
	for _, n := range h.Counts {
		c := ""
		if n > 0 {
			c = count(n)
		}
		cells = append(cells, c)
	}
	return cells
}

func trimmed(x float64) string {
	if x >= 1000 {
		return fmt.Sprintf("%gk", x/1000)
	}
	return fmt.Sprintf("%g", x)
}

// firstLine returns the first line that a command prints, or "unknown".
func firstLine(name string, args ...string) string {
	out, err := exec.Command(name, args...).Output()
	line, _, _ := strings.Cut(string(out), "\n")
	if line = strings.TrimSpace(line); err != nil || line == "" {
		return "unknown"
	}
	return line
}

func cpuModel() string {
	b, err := os.ReadFile("/proc/cpuinfo")
	if err == nil {
		for line := range strings.Lines(string(b)) {
			if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
				return strings.TrimSpace(value)
			}
		}
	}
	return "unknown CPU"
}
