package pmconf

import (
	"fmt"
	"strings"
)

// edits are changes to the lines of a file.
type edits struct {
	c       *Config
	replace map[int]string   // by line, from 1: what stands there instead
	after   map[int][]string // by line, from 1, or 0 for the top: what comes behind it
}

func newEdits(c *Config) *edits {
	return &edits{c: c, replace: map[int]string{}, after: map[int][]string{}}
}

// set gives key a value, where it stands or else behind the entry of anchor, or
// at the end. why becomes a comment above it unless it is empty.
func (d *edits) set(key, value, anchor, why string) {
	old := d.c.value(key)
	if old == value {
		return
	}
	var lines []string
	if why != "" {
		lines = append(lines, "! "+why)
	}
	lines = append(lines, key+": "+value)
	if e, ok := d.c.Get(key); ok {
		d.replace[e.Line] = strings.Join(lines, "\n")
		return
	}
	line := len(d.c.lines)
	if e, ok := d.c.Get(anchor); ok {
		line = e.Line
	} else {
		for _, e := range d.c.Entries {
			if strings.HasPrefix(e.Key, "bmp_") {
				line = e.Line
			}
		}
	}
	d.after[line] = append(d.after[line], lines...)
}

// comment makes comments of the lines of key.
func (d *edits) comment(key string) {
	for _, e := range d.c.Entries {
		if e.Key == key {
			d.replace[e.Line] = "!" + strings.TrimRight(d.c.lines[e.Line-1], "\r\n")
		}
	}
}

// A row is a line of a diff: ' ', '-' or '+', and the text with its end.
type row struct {
	mark byte
	text string
}

// context is how many lines around a change are shown.
const context = 3

// diff is the unified diff, empty if nothing changes.
func (d *edits) diff() []byte {
	rows, changed := d.rows(), false
	for _, r := range rows {
		changed = changed || r.mark != ' '
	}
	if !changed {
		return nil
	}
	var b strings.Builder
	fmt.Fprintf(&b, "--- %s\n+++ %s\n", d.c.File, d.c.File)
	for at := 0; at < len(rows); {
		first := at
		for first < len(rows) && rows[first].mark == ' ' {
			first++
		}
		if first == len(rows) {
			break
		}
		last := first // of the hunk's changes
		for i := first; i < len(rows) && i <= last+2*context; i++ {
			if rows[i].mark != ' ' {
				last = i
			} else if secret(rows[i].text) {
				break
			}
		}
		before, behind := margin(rows, first, -1), margin(rows, last, 1)
		// patch takes less context on one side for the beginning or the end of
		// the file, so a secret cuts both.
		if before < context && first-before > 0 || behind < context && last+behind < len(rows)-1 {
			before = min(before, behind)
			behind = before
		}
		d.hunk(&b, rows, max(first-before, 0), last+behind+1)
		at = last + behind + 1
	}
	return []byte(b.String())
}

// margin is how many lines of context there are next to rows[i] in a direction.
func margin(rows []row, i, step int) int {
	n := 0
	for n < context {
		next := i + (n+1)*step
		if next < 0 || next >= len(rows) || rows[next].mark != ' ' || secret(rows[next].text) {
			break
		}
		n++
	}
	return n
}

// hunk writes rows[from:to].
func (d *edits) hunk(b *strings.Builder, rows []row, from, to int) {
	start := [2]int{} // lines before the hunk: in the old file and in the new one
	count := [2]int{}
	for i, r := range rows[:to] {
		n := &start
		if i >= from {
			n = &count
		}
		if r.mark != '+' {
			n[0]++
		}
		if r.mark != '-' {
			n[1]++
		}
	}
	for i := range start {
		if count[i] > 0 {
			start[i]++ // an empty range is numbered by the line before it
		}
	}
	fmt.Fprintf(b, "@@ -%d,%d +%d,%d @@\n", start[0], count[0], start[1], count[1])
	for _, r := range rows[from:to] {
		b.WriteByte(r.mark)
		b.WriteString(r.text)
		if !strings.HasSuffix(r.text, "\n") {
			b.WriteString("\n\\ No newline at end of file\n")
		}
	}
}

// rows is the whole file with its changes.
func (d *edits) rows() []row {
	var rows []row
	eol := "\n"
	if len(d.c.lines) > 0 && strings.HasSuffix(d.c.lines[0], "\r\n") {
		eol = "\r\n"
	}
	add := func(texts []string) {
		for _, text := range texts {
			rows = append(rows, row{'+', text + eol})
		}
	}
	add(d.after[0])
	for i, line := range d.c.lines {
		text, replaced := d.replace[i+1]
		after := d.after[i+1]
		switch {
		case replaced:
			rows = append(rows, row{'-', line})
			add(strings.Split(text, "\n"))
		case len(after) > 0 && !strings.HasSuffix(line, "\n"): // the last line gets an end
			rows = append(rows, row{'-', line})
			add([]string{line})
		default:
			rows = append(rows, row{' ', line})
		}
		add(after)
	}
	return rows
}

// secret reports whether a line may contain one.
func secret(line string) bool {
	line = strings.ToLower(line)
	for _, word := range []string{"passw", "secret", "credential", "community", "_key_file"} {
		if strings.Contains(line, word) {
			return true
		}
	}
	return false
}
