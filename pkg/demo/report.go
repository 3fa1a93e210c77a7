package demo

import (
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// A Report is what a demo has found.
type Report struct {
	Steps []StepReport `json:"steps"`
	Total Counts       `json:"total"`
	// Finished is set when the demo went through all its steps. If it did not, Lost
	// counts what had not arrived yet, and what follows could not be told.
	Finished bool `json:"finished"`
	// TableEqual says that at the end the table built from Kafka was the routers'.
	TableEqual bool `json:"table_equal"`
	Routes     int  `json:"routes"` // in the routers' tables
	// Difference is the first differences of the tables, in words.
	Difference string  `json:"difference,omitempty"`
	Seconds    float64 `json:"seconds"`
	OK         bool    `json:"ok"` // finished, nothing lost or strange, tables equal
}

// A StepReport is one line of the table.
type StepReport struct {
	Name string `json:"step"`
	// Active is who was active, one after the other: "A → B"; "A+B" at the same
	// time; "B for frr" when another sent for a single router.
	Active string `json:"active"`
	// WithoutSender is the longest time in seconds in which nothing of a router
	// arrived in Kafka, beyond what is usual in the quiet step. Times when Kafka
	// was away do not count.
	WithoutSender float64 `json:"without_sender_seconds"`
	Counts
}

// report makes the report of a run that has ended.
func (s *scene) report() *Report {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := &Report{Total: s.ledger.total(), Seconds: time.Since(s.began).Seconds(), Finished: s.finished}
	for i, active := range s.actives {
		r.Steps = append(r.Steps, StepReport{
			Name: s.names[i], Active: active, WithoutSender: s.gaps.gap(i, 0).Seconds(), Counts: *s.ledger.step(i),
		})
	}
	if r.Finished {
		d := s.compare()
		r.TableEqual, r.Routes = d.Empty(), d.Equal+len(d.Missing)+len(d.Changed)
		if !r.TableEqual {
			r.Difference = d.String()
		}
	}
	r.OK = r.Finished && r.TableEqual && r.Total.Lost == 0 && r.Total.Strange == 0 && r.Total.Sent > 0
	return r
}

// Write writes the report for people: a table, or one block for each step where
// the terminal has too few columns for it. With 0 columns, they are enough.
func (r *Report) Write(w io.Writer, columns int) error {
	rows := [][]string{{"step", "active", "without", "sent by", "in", "lost", "repeated"}, {"", "", "a sender", "routers", "Kafka", "", ""}}
	head := len(rows)
	for _, s := range r.Steps {
		rows = append(rows, s.cells())
	}
	rows = append(rows, StepReport{Name: "total", Counts: r.Total}.cells())
	widths := make([]int, len(rows[0]))
	for _, row := range rows {
		for i, cell := range row {
			widths[i] = max(widths[i], utf8.RuneCountInString(cell))
		}
	}
	need := 2 * (len(widths) - 1)
	for _, n := range widths {
		need += n
	}
	var b strings.Builder
	if columns == 0 || need <= columns {
		for i, row := range rows {
			if i == head || i == len(rows)-1 {
				b.WriteString(strings.Repeat("-", need) + "\n")
			}
			b.WriteString(line(row, widths))
		}
	} else {
		for _, row := range rows[head:] {
			b.WriteString(row[0] + "\n")
			for i, cell := range row[1:] {
				if cell != "" {
					fmt.Fprintf(&b, "  %s: %s\n", strings.TrimSpace(rows[0][i+1]+" "+rows[1][i+1]), cell)
				}
			}
		}
	}
	b.WriteString("\n")
	for _, note := range r.notes() {
		for _, l := range wrap(note, columns) {
			b.WriteString(l + "\n")
		}
	}
	b.WriteString("\n" + r.Verdict() + "\n")
	_, err := io.WriteString(w, b.String())
	return err
}

func (s StepReport) cells() []string {
	gap := "-"
	if s.WithoutSender >= 0.1 {
		gap = fmt.Sprintf("%.1f s", s.WithoutSender)
	}
	if s.Name == "total" {
		gap = ""
	}
	return []string{s.Name, s.Active, gap, number(s.Sent), number(s.Kafka), number(s.Lost), number(s.Repeated)}
}

// line aligns one row: words to the left, numbers to the right.
func line(row []string, widths []int) string {
	var b strings.Builder
	for i, cell := range row {
		if i > 0 {
			b.WriteString("  ")
		}
		pad := strings.Repeat(" ", widths[i]-utf8.RuneCountInString(cell))
		if i < 2 {
			b.WriteString(cell + pad)
		} else {
			b.WriteString(pad + cell)
		}
	}
	return strings.TrimRight(b.String(), " ") + "\n"
}

// notes explain the table.
func (r *Report) notes() []string {
	notes := []string{"Records are route records. Sent and lost count where the router spoke, the others " +
		"where the record arrived, which may be in the next step. Without a sender is the longest silence " +
		"of a router in Kafka, beyond the usual, and not while Kafka itself was away."}
	var in []string
	for _, s := range r.Steps {
		if s.Resent > 0 {
			in = append(in, fmt.Sprintf("%s %s", s.Name, number(s.Resent)))
		}
	}
	if r.Total.Resent > 0 {
		notes = append(notes, fmt.Sprintf("In Kafka are also %s records that the routers said again themselves, "+
			"because a session begins with the table (%s): in Kafka = sent - lost + repeated + these.",
			number(r.Total.Resent), strings.Join(in, ", ")))
	}
	return notes
}

// Verdict is the result in one line, or more if the tables differ.
func (r *Report) Verdict() string {
	if !r.Finished {
		return "NOT FINISHED: what had not arrived when it ended may have been on the way (" + number(r.Total.Lost) + " records)"
	}
	var bad []string
	if r.Total.Sent == 0 {
		bad = append(bad, "nothing was sent")
	}
	if r.Total.Lost > 0 {
		bad = append(bad, number(r.Total.Lost)+" records lost")
	}
	if r.Total.Strange > 0 {
		bad = append(bad, number(r.Total.Strange)+" records that no router sent")
	}
	if !r.TableEqual {
		bad = append(bad, "the table rebuilt from Kafka is not the routers': "+r.Difference)
	}
	if !r.OK {
		return "FAILED: " + strings.Join(bad, "; ")
	}
	return fmt.Sprintf("OK: lost 0; the table rebuilt from Kafka equals the routers' (%s routes); %.0f s",
		number(r.Routes), r.Seconds)
}

// number writes n with separators between thousands.
func number(n int) string {
	s := strconv.Itoa(n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// wrap breaks text into lines of at most so many columns; 0 means 80.
func wrap(text string, columns int) []string {
	if columns == 0 {
		columns = 80
	}
	var lines []string
	for word := range strings.FieldsSeq(text) {
		if i := len(lines) - 1; i >= 0 && utf8.RuneCountInString(lines[i])+1+utf8.RuneCountInString(word) <= columns {
			lines[i] += " " + word
		} else {
			lines = append(lines, word)
		}
	}
	return slices.Clip(lines)
}
