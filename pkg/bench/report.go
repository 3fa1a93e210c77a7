package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"time"
	"unicode/utf8"
)

// A report is what one run of the program found.
type report struct {
	Date     string   `json:"date"`
	Commit   string   `json:"commit"`
	CPU      string   `json:"cpu"`
	Cores    int      `json:"cores"`
	Kernel   string   `json:"kernel"`
	Go       string   `json:"go"`
	Command  string   `json:"command"`
	Sections []*table `json:"sections"`
	// Failed are promises that did not hold, such as records that went missing.
	// That something is slow is no failure.
	Failed []string `json:"failed,omitempty"`
}

// A table is one section: how it was measured and what came out. Cells are
// strings or float64.
type table struct {
	Title   string   `json:"title"`
	Notes   []string `json:"notes"`
	Columns []string `json:"columns"`
	Rows    [][]any  `json:"rows"`
	Results []string `json:"results,omitempty"` // conclusions, beside the targets
}

func (t *table) note(format string, args ...any) {
	t.Notes = append(t.Notes, fmt.Sprintf(format, args...))
}
func (t *table) result(format string, args ...any) {
	t.Results = append(t.Results, fmt.Sprintf(format, args...))
}
func (t *table) row(cells ...any) { t.Rows = append(t.Rows, cells) }

func newReport() *report {
	return &report{
		Date: time.Now().Format("2006-01-02 15:04 MST"), Commit: commit(), CPU: cpuModel(), Cores: runtime.NumCPU(),
		Kernel: firstLine("uname", "-sr"), Go: runtime.Version(), Command: strings.Join(os.Args[1:], " "),
	}
}

// head prints what all sections share.
func (r *report) head(w io.Writer) {
	fmt.Fprintf(w, "bmpha benchmarks, %s\ncommit %s, %s, %d cores, %s, %s\n", r.Date, r.Commit, r.CPU, r.Cores, r.Kernel, r.Go)
}

// write prints a section, its columns aligned: text to the left, numbers to the
// right.
func (t *table) write(w io.Writer) {
	fmt.Fprintf(w, "\n%s\n", t.Title)
	for _, n := range t.Notes {
		fmt.Fprintf(w, "  %s\n", n)
	}
	cells := [][]string{t.Columns}
	right := make([]bool, len(t.Columns))
	for _, row := range t.Rows {
		line := make([]string, len(t.Columns))
		for i, c := range row {
			switch c := c.(type) {
			case float64:
				line[i], right[i] = number(c), true
			default:
				line[i] = fmt.Sprint(c)
			}
		}
		cells = append(cells, line)
	}
	width := make([]int, len(t.Columns))
	for _, line := range cells {
		for i, c := range line {
			width[i] = max(width[i], utf8.RuneCountInString(c))
		}
	}
	for n, line := range cells {
		var b strings.Builder
		for i, c := range line {
			pad := strings.Repeat(" ", width[i]-utf8.RuneCountInString(c))
			if right[i] {
				b.WriteString("  " + pad + c)
			} else {
				b.WriteString("  " + c + pad)
			}
		}
		fmt.Fprintln(w, strings.TrimRight(b.String(), " "))
		if n == 0 {
			for i := range line {
				fmt.Fprint(w, "  "+strings.Repeat("-", width[i]))
			}
			fmt.Fprintln(w)
		}
	}
	for _, c := range t.Results {
		fmt.Fprintf(w, "  => %s\n", c)
	}
}

// number prints x with about three significant digits, large ones with commas.
func number(x float64) string {
	switch a := max(x, -x); {
	case x == float64(int64(x)) && a < 1000:
		return fmt.Sprintf("%d", int64(x))
	case a < 10:
		return fmt.Sprintf("%.2f", x)
	case a < 100:
		return fmt.Sprintf("%.1f", x)
	}
	s := fmt.Sprintf("%.0f", x)
	for i := len(s) - 3; i > 0 && s[i-1] != '-'; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

func (r *report) save(path string) error {
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := os.WriteFile(path, append(b, '\n'), 0o644); err != nil {
		return fmt.Errorf("write results: %w", err)
	}
	return nil
}

// median returns the middle one of x, which must not be empty.
func median(x []float64) float64 {
	x = slices.Sorted(slices.Values(x))
	n := len(x)
	return (x[(n-1)/2] + x[n/2]) / 2
}

func commit() string {
	c := firstLine("git", "rev-parse", "--short", "HEAD")
	if c == "" {
		return "unknown"
	}
	if firstLine("git", "status", "--porcelain", "--untracked-files=no") != "" {
		c += " with changes"
	}
	return c
}

// firstLine returns the first line that a command prints, or "".
func firstLine(name string, args ...string) string {
	out, err := exec.Command(name, args...).Output()
	if err != nil {
		return ""
	}
	line, _, _ := strings.Cut(string(out), "\n")
	return strings.TrimSpace(line)
}

func cpuModel() string {
	b, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return "unknown CPU"
	}
	for line := range strings.Lines(string(b)) {
		if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return "unknown CPU"
}
