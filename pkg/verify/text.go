package verify

import (
	"bytes"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"
)

// A Result is all that `bmpha verify` found.
type Result struct {
	Topic      string      `json:"topic"`
	Partitions []Span      `json:"partitions"`
	Report     *Report     `json:"report"`
	Comparison *Comparison `json:"comparison,omitempty"`
	// Dumps is what there was of dumps, if tables begin with one.
	Dumps *DumpReport `json:"dumps,omitempty"`
	// Collector is the comparison with a running collector.
	Collector *TableComparison `json:"collector,omitempty"`
	// Against is the comparison with another topic.
	Against *TopicComparison `json:"against,omitempty"`
}

// A Span is what was read of a partition: the offsets from From up to, and not
// including, Until.
type Span struct {
	Partition int32 `json:"partition"`
	From      int64 `json:"from"`
	Until     int64 `json:"until"`
}

// Sound tells whether there was no fault and no difference.
func (r *Result) Sound() bool {
	return r.Report.Faults() == 0 && r.differences() == 0
}

func (r *Result) differences() (n int64) {
	if r.Comparison != nil {
		n += int64(r.Comparison.Differences())
	}
	if r.Collector != nil {
		n += r.Collector.Differences()
	}
	if r.Against != nil {
		n += r.Against.Differences()
	}
	return n
}

// few is how many findings of a sort are written unless all are wanted.
const few = 10

// Write writes r for people. Without all, it is the first few findings of each
// sort.
func (r *Result) Write(w io.Writer, all bool) error {
	t := text{most: few}
	if all {
		t.most = 1 << 62
	}
	rep := r.Report
	t.line("topic %s: %s", r.Topic, number(rep.Records, "record"))
	for _, p := range r.Partitions {
		t.line("  partition %d: offsets %d to %d", p.Partition, p.From, p.Until)
	}
	if r.Dumps != nil {
		t.dumps(r.Dumps)
	}
	if rep.Skipped > 0 {
		t.line("  %s of other routers", number(rep.Skipped, "record"))
	}
	if rep.Foreign > 0 {
		t.line("  %s not about a BMP router", number(rep.Foreign, "record"))
	}
	if rep.Unreadable > 0 {
		t.line("! %s could not be read", number(rep.Unreadable, "record"))
		t.faults(rep.UnreadableFirst, rep.Unreadable)
	}
	for i := range rep.Routers {
		t.router(&rep.Routers[i])
	}
	if r.Comparison != nil {
		t.comparison(r.Comparison)
	}
	if r.Collector != nil {
		t.tables(r.Collector)
	}
	if r.Against != nil {
		t.topics(r.Against)
	}
	t.line("")
	t.line("%s", r.verdict())
	_, err := w.Write(t.b.Bytes())
	return err
}

func (r *Result) verdict() string {
	n := r.Report.Faults()
	faults := "no faults"
	if n > 0 {
		faults = number(n, "fault")
	}
	switch {
	case r.Comparison == nil && r.Collector == nil && r.Against == nil:
		return faults
	case r.differences() == 0:
		return "tables are equal, " + faults
	default:
		return number(r.differences(), "difference") + ", " + faults
	}
}

// text is a page that grows.
type text struct {
	b    bytes.Buffer
	most int
}

func (t *text) line(format string, args ...any) { fmt.Fprintf(&t.b, format+"\n", args...) }

func (t *text) faults(list []Fault, total int64) {
	n := min(len(list), t.most)
	for _, f := range list[:n] {
		by := ""
		if f.Sender != nil && f.Sender.Writer != "" {
			by = " (" + printable(f.Sender.Writer) + ")"
		}
		t.line("!   partition %d offset %d, %s: %s%s", f.Partition, f.Offset, moment(f.Time), printable(f.What), by)
	}
	t.more(total - int64(n))
}

func (t *text) more(n int64) {
	if n > 0 {
		t.line("    and %s more", grouped(n))
	}
}

func (t *text) router(n *RouterReport) {
	t.line("")
	t.line("router %s", printable(n.Router))
	var types []string
	for _, name := range slices.Sorted(maps.Keys(n.Types)) {
		types = append(types, grouped(n.Types[name])+" "+printable(name))
	}
	t.line("  records  %s: %s", grouped(n.Records), strings.Join(types, ", "))
	t.line("  table    %s of %s, %d of them up", number(int64(n.Routes), "route"), number(int64(n.Peers), "peer"), n.PeersUp)
	if len(n.Partitions) > 1 {
		t.line("  spread over partitions %s: their order among each other is not known", strings.Trim(fmt.Sprint(n.Partitions), "[]"))
	}
	if r := n.Repeats; r.Sum() == 0 {
		t.line("  repeats  none")
	} else {
		var parts []string
		for _, p := range []struct {
			n    int64
			what string
		}{
			{r.Replayed, "flagged as replayed"}, {r.Shared, "flagged as sent by two"},
			{r.Router, "by the same sender (the router said it again)"},
			{r.Told, "by another sender, after a Peer Up in its session (the router told it its table)"},
			{r.Other, "by another sender, without a flag (a table that the router told it, too, may be among them)"},
		} {
			if p.n > 0 {
				parts = append(parts, grouped(p.n)+" "+p.what)
			}
		}
		t.line("  repeats  %s: %s", grouped(r.Sum()), strings.Join(parts, ", "))
	}
	t.takeovers(n)
	for i, s := range n.Senders[:min(len(n.Senders), t.most)] {
		label := "senders"
		if i > 0 {
			label = ""
		}
		t.line("  %-8s %s", label, s.String())
	}
	t.more(int64(max(0, len(n.Senders)-t.most)))
	if n.SendersUnlisted > 0 {
		t.line("    and %s of senders after these", number(n.SendersUnlisted, "record"))
	}
	if n.Faults > 0 {
		t.line("! %s of order", number(n.Faults, "fault"))
		t.faults(n.FaultsFirst, n.Faults)
	}
}

// takeovers tells what came behind takeovers. Those behind which all was well are not
// listed, unless all are wanted.
func (t *text) takeovers(n *RouterReport) {
	if n.AtTakeovers.Takeovers == 0 {
		return
	}
	t.line("  takeovers %s: %s", grouped(n.AtTakeovers.Takeovers), n.AtTakeovers.String())
	listed, more := 0, n.AtTakeovers.Takeovers-int64(len(n.Takeovers))
	for i := range n.Takeovers {
		o := &n.Takeovers[i]
		switch {
		case t.most > few:
		case o.Behind == Behind{}:
			continue
		case listed == t.most:
			more++
			continue
		}
		listed++
		t.line("    %s partition %d offset %d, after %.3f s: %s from %s: %s",
			moment(o.Time), o.Partition, o.Offset, o.Gap, o.By.String(), o.From.String(), o.Behind.String())
	}
	t.more(more)
}

// String returns n in one line.
func (n *Behind) String() string {
	flagged := func(n, of int64) string {
		switch {
		case n == 0:
			return ""
		case n == of:
			return " (flagged)"
		}
		return " (" + grouped(n) + " flagged)"
	}
	parts := []string{"nothing repeated"}
	if n.Repeated > 0 {
		parts[0] = grouped(n.Repeated) + " repeated" + flagged(n.RepeatedFlagged, n.Repeated)
	}
	if n.Back > 0 {
		parts = append(parts, grouped(n.Back)+" of them older than what was said"+flagged(n.BackFlagged, n.Back))
	}
	if n.Unmatched > 0 {
		parts = append(parts, grouped(n.Unmatched)+" flagged that nobody had said")
	}
	if n.Late > 0 {
		parts = append(parts, grouped(n.Late)+" late from a sender before"+flagged(n.LateFlagged, n.Late))
	}
	return strings.Join(parts, ", ")
}

// String returns s in one line.
func (s *Stint) String() string {
	var b strings.Builder
	b.WriteString((&Sender{s.Instance, s.Token, s.Writer}).String())
	fmt.Fprintf(&b, ", partition %d: %s to %s, %s", s.Partition, moment(s.First), moment(s.Last), number(s.Records, "record"))
	if s.Replayed > 0 {
		fmt.Fprintf(&b, ", %s replayed", grouped(s.Replayed))
	}
	if s.Shared > 0 {
		fmt.Fprintf(&b, ", %s while two could send", grouped(s.Shared))
	}
	return b.String()
}

func (t *text) comparison(c *Comparison) {
	var ribs, families []string
	for _, r := range c.RIBs {
		ribs = append(ribs, string(r))
	}
	for _, a := range c.AFIs {
		families = append(families, map[uint16]string{1: "ipv4", 2: "ipv6"}[a])
	}
	t.line("")
	t.line("%s of %s, %s: its own table against Kafka's", strings.Join(ribs, " and "), printable(c.Router), strings.Join(families, " and "))
	t.line("  %s equal, %s missing, %s extra, %s different",
		grouped(int64(c.Equal)), grouped(int64(len(c.Missing))), grouped(int64(len(c.Extra))), grouped(int64(len(c.Different))))
	if c.Skipped > 0 {
		t.line("  %s not compared: the router's own, or not valid", number(int64(c.Skipped), "route"))
	}
	for _, sort := range []struct {
		name string
		list []Difference
	}{{"missing in Kafka", c.Missing}, {"only in Kafka", c.Extra}, {"different", c.Different}} {
		if len(sort.list) == 0 {
			continue
		}
		t.line("! %s:", sort.name)
		n := min(len(sort.list), t.most)
		for _, d := range sort.list[:n] {
			fields := ""
			if len(d.Fields) > 0 {
				fields = ": " + strings.Join(d.Fields, ", ")
			}
			t.line("    peer %s %s%s", d.Peer, d.Prefix, fields)
			if d.Router != "" {
				t.line("      router: %s", printable(d.Router))
			}
			if d.Kafka != "" {
				t.line("      kafka:  %s", printable(d.Kafka))
			}
			if d.Sender != nil {
				t.line("      last said: %s, by %s", moment(*d.At), d.Sender.String())
			}
		}
		t.more(int64(len(sort.list) - n))
	}
}

func (t *text) dumps(d *DumpReport) {
	t.line("  tables begin with dumps of topic %s: %s whole, %s not", d.Topic, grouped(d.Whole), grouped(d.Broken))
	for _, b := range d.Bases[:min(len(d.Bases), t.most)] {
		t.line("    %s: %s, partition %d offset %d, %s", printable(b.Router), number(int64(b.Routes), "route"), b.Partition, b.Offset, moment(b.Time))
	}
	t.more(int64(max(0, len(d.Bases)-t.most)))
}

// tables is a comparison with a collector.
func (t *text) tables(c *TableComparison) {
	t.line("")
	t.line("collector %s, %s: its tables against Kafka's", printable(c.Collector), number(int64(len(c.Routers)), "router"))
	again := ""
	if c.First > 0 {
		again = fmt.Sprintf("; %s differed at first, looked at again for %.1f s", grouped(c.First), c.Waited)
	}
	t.line("  %s equal, %s missing, %s extra, %s different%s",
		grouped(c.Equal), grouped(c.Missing.Count), grouped(c.Extra.Count), grouped(c.Different.Count), again)
	if c.Unsorted > 0 {
		t.line("! %s more differ, too many to look at", grouped(c.Unsorted))
	}
	for _, w := range c.Without[:min(len(c.Without), t.most)] {
		t.line("  not compared: router %s: %s", printable(w.Router), printable(w.Reason))
	}
	t.more(int64(max(0, len(c.Without)-t.most)))
	if c.Others > 0 {
		t.line("  not compared: %s of families that a collector does not keep", number(c.Others, "route"))
	}
	if c.Unclear > 0 {
		t.line("  not compared: %s in Kafka, of peers an instance of which went down: records do not tell whose they were", number(c.Unclear, "VPN route"))
	}
	if n := c.NotMentioned; n.Count > 0 {
		t.line("  not mentioned since the start, and so no difference: %s", number(n.Count, "route"))
		t.list(n, false)
	}
	for _, sort := range []struct {
		name string
		list Unequal
	}{{"missing in Kafka", c.Missing}, {"only in Kafka", c.Extra}, {"different", c.Different}} {
		if sort.list.Count > 0 {
			t.line("! %s:", sort.name)
			t.list(sort.list, true)
		}
	}
}

// topics is a comparison with another topic.
func (t *text) topics(c *TopicComparison) {
	t.line("")
	t.line("topic %s, %s: its tables against these", printable(c.Topic), number(c.Report.Records, "record"))
	t.line("  %s equal, %s missing, %s extra, %s different",
		grouped(c.Equal), grouped(c.Missing.Count), grouped(c.Extra.Count), grouped(c.Different.Count))
	if c.NotMentioned > 0 {
		t.line("  not mentioned in one of them since the start, and so no difference: %s", number(c.NotMentioned, "route"))
	}
	if c.Unclear > 0 {
		t.line("  not compared: %s of peers an instance of which went down: records do not tell whose they were", number(c.Unclear, "VPN route"))
	}
	for _, sort := range []struct {
		name string
		list Unequal
	}{{"only in " + printable(c.Topic), c.Missing}, {"not in " + printable(c.Topic), c.Extra}, {"different", c.Different}} {
		if sort.list.Count > 0 {
			t.line("! %s:", sort.name)
			t.list(sort.list, true)
		}
	}
}

// list writes routes, with what is said about them if wanted.
func (t *text) list(u Unequal, values bool) {
	n := min(len(u.First), t.most)
	for i := range u.First[:n] {
		d := &u.First[i]
		fields := ""
		if len(d.Fields) > 0 {
			fields = ": " + strings.Join(d.Fields, ", ")
		}
		t.line("    %s%s", printable(d.String()), fields)
		if values && d.Collector != "" {
			t.line("      collector: %s", printable(d.Collector))
		}
		if values && d.Other != "" {
			t.line("      there:     %s", printable(d.Other))
		}
		if values && d.Kafka != "" {
			t.line("      kafka:     %s", printable(d.Kafka))
		}
		if values && d.Sender != nil {
			t.line("      last said: %s, by %s", moment(*d.At), d.Sender.String())
		}
	}
	t.more(u.Count - int64(n))
}

func moment(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05.000") }

// number is a count with its noun.
func number(n int64, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return grouped(n) + " " + noun + "s"
}

// grouped writes a number with commas between thousands.
func grouped(n int64) string {
	s := fmt.Sprint(n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// printable takes out of a text what a terminal would obey.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r >= 0x7f && r < 0xa0 || r == '\u2028' || r == '\u2029' {
			return '?'
		}
		return r
	}, s)
}
