package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/bmpha/bmpha/pkg/control"
	"github.com/bmpha/bmpha/pkg/record"
	"github.com/bmpha/bmpha/pkg/replay"
	"github.com/bmpha/bmpha/pkg/rig"
	routes "github.com/bmpha/bmpha/pkg/table"
	"github.com/bmpha/bmpha/pkg/verify"
)

func newText(b []byte) io.Reader { return bytes.NewReader(b) }

// A table is the comparison of what a router says with what is in Kafka.
type table struct {
	Router string `json:"router"`
	Kind   string `json:"kind"`
	Equal  int    `json:"equal"`
	// Lost are routes in which a consumer that goes by the tokens differs from the
	// router. Shared are those of which the last word came while two might send,
	// because Redis could not be asked; Late those in which only a consumer differs
	// that believes every record.
	Lost   int      `json:"lost"`
	Shared int      `json:"two_senders"`
	Late   int      `json:"late"`
	First  []string `json:"first,omitempty"` // differences

	prefixes []string         // of the first differences
	wrong    map[wordKey]bool // all of them
}

// atRest says how it came to rest.
type atRest struct {
	Roles  seconds `json:"roles_seconds"`  // until one was active and all heard all routers
	Tables seconds `json:"tables_seconds"` // from then on, and 5 s of traffic, until the tables were equal
}

const (
	restMost   = time.Minute
	equalMost  = 5 * time.Minute
	equalStill = 20 * time.Second // without a record, nothing more is waited for
	calmBefore = 5 * time.Second  // of traffic, when all is healed
)

// end heals everything, and lets the routers fall silent.
func (t *trouble) end(ctx context.Context) (a atRest) {
	began := time.Now()
	var healed tally
	t.reader.begin(&healed)
	for _, m := range t.members {
		if !m.Alive() {
			t.fail("collector %s has ended by itself", m.name)
			if err := m.Restart(ctx); err != nil {
				t.fail("start collector %s again: %v", m.name, err)
			}
		}
	}
	fmt.Fprintf(t.out, "%7.2f s  all is healed\n", time.Since(t.began).Seconds())
	if err := t.rest(ctx, restMost, "after the last fault"); err != nil {
		t.fail("no rest within %s %v", restMost, err)
	}
	a.Roles = seconds(time.Since(began))
	_ = sleep(ctx, calmBefore)
	began = time.Now()
	for _, g := range t.generators {
		g.Pause(true)
	}
	for _, r := range t.real {
		r.hush()
	}
	seen := -1
	wait, cancel := context.WithTimeout(ctx, equalMost)
	defer cancel()
	_ = rig.WaitFor(wait, func() error { // judge looks again and says what differs
		n, at := t.reader.total()
		if still := time.Since(later(at, began)); still > equalStill {
			return nil
		} else if still < time.Second || n == seen {
			return errors.New("records are coming")
		}
		seen = n
		tables, err := t.compare(wait)
		for _, one := range tables {
			if one.Lost > 0 {
				err = errors.Join(err, fmt.Errorf("router %s: %d routes differ", one.Router, one.Lost))
			}
		}
		return err
	})
	a.Tables = seconds(time.Since(began))
	return a
}

// compare compares all tables.
func (t *trouble) compare(ctx context.Context) (tables []table, err error) {
	plain, fenced := t.reader.routes()
	for _, g := range t.generators {
		own := g.Table()
		d := replay.Compare(own, only(fenced, g.name))
		one := table{Router: g.name, Kind: "generated", Equal: d.Equal}
		for _, k := range d.Missing {
			t.differs(&one, k.Peer, k.Prefix, k.RIB, own[k], "")
		}
		for _, k := range d.Extra {
			t.differs(&one, k.Peer, k.Prefix, k.RIB, "", fenced[k])
		}
		for _, c := range d.Changed {
			t.differs(&one, c.Key.Peer, c.Key.Prefix, c.Key.RIB, c.Router, c.Kafka)
		}
		e := replay.Compare(own, only(plain, g.name))
		one.Late = max(0, len(e.Missing)+len(e.Extra)+len(e.Changed)-one.Lost-one.Shared)
		tables = append(tables, one)
	}
	for _, r := range t.real {
		name := r.Address().String()
		text, err := r.print(ctx)
		if err != nil {
			return nil, err
		}
		own, err := r.parse(text)
		if err != nil {
			return nil, err
		}
		c, err := verify.Compare(name, own, only(fenced, name), verify.Scope{})
		if err != nil {
			return nil, err
		}
		one := table{Router: name, Kind: strings.TrimLeft(r.flag(), "-"), Equal: c.Equal}
		for _, list := range [][]verify.Difference{c.Missing, c.Extra, c.Different} {
			for _, d := range list {
				t.differs(&one, d.Peer.String(), d.Prefix.String(), d.RIB, d.Router, d.Kafka)
			}
		}
		e, err := verify.Compare(name, own, only(plain, name), verify.Scope{})
		if err != nil {
			return nil, err
		}
		one.Late = max(0, e.Differences()-one.Lost-one.Shared)
		tables = append(tables, one)
	}
	return tables, nil
}

// differs enters a route in which Kafka is not as the router.
func (t *trouble) differs(one *table, peer, prefix string, rib replay.RIB, own, kafka string) {
	route := wordKey{one.Router, peer, prefix, rib}
	if one.wrong == nil {
		one.wrong = make(map[wordKey]bool)
	}
	one.wrong[route] = true
	if t.excused(route, own) {
		one.Shared++
		return
	}
	one.Lost++
	if len(one.First) < 6 {
		one.First = append(one.First, route.String()+": "+beside("router", own, kafka))
		one.prefixes = append(one.prefixes, prefix)
	}
}

// excused says whether it is no loss that Kafka has another word about a route than
// own, the router's.
func (t *trouble) excused(route wordKey, own string) bool {
	return !t.strict && t.reader.ambiguous(route, own)
}

func (k wordKey) String() string {
	return fmt.Sprintf("router %s peer %s %s %s", k.router, k.peer, k.rib, k.prefix)
}

// beside shows what two say about a route.
func beside(who, own, kafka string) string {
	nothing := func(s string) string {
		if s == "" {
			return "nothing"
		}
		return s
	}
	return fmt.Sprintf("%s: %s; Kafka: %s", who, nothing(own), nothing(kafka))
}

// judge says what came of it all.
func (t *trouble) judge(ctx context.Context, report *faultsReport) {
	report.Faults = t.done
	report.Whole = t.reader.all()
	tables, err := t.compare(ctx)
	if err != nil {
		t.fail("compare the tables: %v", err)
	}
	report.Tables = tables
	for _, m := range t.members {
		s, err := m.status(ctx)
		if err != nil {
			t.fail("status of %s at rest: %v", m.name, err)
			continue
		}
		for _, r := range s.Routers {
			if r.Behind.Messages > 0 {
				t.fail("collector %s (%s) has %d messages of router %s at rest that are not in Kafka", m.name, s.Role, r.Behind.Messages, r.Identity)
			}
		}
	}
	for _, one := range tables {
		if one.Lost > 0 {
			t.fail("router %s (%s): in %d routes Kafka does not say what the router says\n  %s", one.Router, one.Kind, one.Lost, strings.Join(one.First, "\n  "))
		}
	}
	for _, bad := range t.reader.faults() {
		t.fail("a record that cannot be read: %s", bad)
	}
	for _, m := range t.members {
		if line := m.crashed(); line != "" {
			t.fail("collector %s: %s", m.name, line)
		}
	}
	t.reader.mu.Lock()
	for _, g := range t.generators {
		report.Numbers += uint64(g.talk.number)
		if rt := t.reader.routers[g.name]; rt != nil {
			report.Came += uint64(rt.distinct)
			report.Never = append(report.Never, rt.never(g.name, g.talk.number)...)
		}
	}
	report.Again = slices.Clone(t.reader.again)
	t.reader.mu.Unlock()
	if report.Whole.Older > 0 {
		t.fail("%d records with an older word after a newer one of the same sender, and not flagged\n  %s", report.Whole.Older, strings.Join(t.reader.older, "\n  "))
	}
	if most := unflaggedMost(t.Rate/t.Generators, report.Whole.Records); report.Whole.Plain > most {
		t.fail("%s of %s records repeated without a flag; %s are let pass", count(report.Whole.Plain), count(report.Whole.Records), count(most))
	}
	report.Verify = t.verify(ctx, tables)
}

// A verified is what bmpha verify said.
type verified struct {
	Command string         `json:"command"`
	Exit    int            `json:"exit"`
	Records int64          `json:"records"`
	Repeats verify.Repeats `json:"repeats"`
	// Late are its faults about senders that others had taken over from, Faults all
	// others.
	Late        int64    `json:"late"`
	Faults      int64    `json:"faults"`
	First       []string `json:"first,omitempty"`
	Equal       int      `json:"equal"`
	Differences int      `json:"differences"`
	Excused     int      `json:"excused"` // of the differences
}

// verify runs bmpha verify as an operator would: of all routers, against the tables of
// all collectors, and against what the real routers print. Each difference needs an
// excuse of its own: two senders, or a late word, which verify's table believes. GoBGP
// does not tell a BMP session that began later all withdrawals after policy, so there a
// collector may have more, if Kafka is as the router prints.
func (t *trouble) verify(ctx context.Context, tables []table) (all []verified) {
	late := t.reader.late()
	excused := func(d *differing) bool {
		if late[d.wordKey] || t.excused(d.wordKey, d.own) {
			return true
		}
		of := slices.IndexFunc(tables, func(one table) bool { return one.Router == d.router })
		return d.collector && d.kafka == "" && d.rib == replay.InPost && of >= 0 && tables[of].Kind == "gobgp" && !tables[of].wrong[d.wordKey]
	}
	// most is how many routes of all RIBs of a router can be excused.
	most := func(router string) (n int) {
		for _, one := range tables {
			if one.Router != router {
				continue
			}
			n = one.Shared + one.Late
			if one.Kind != "generated" {
				n *= 2 // before and after policy, of which one was compared
			}
		}
		return n
	}
	// run returns the routers to look at one by one, because not all that differs is
	// listed.
	run := func(args ...string) (again []string) {
		args = append([]string{"verify", "--brokers", t.kafka.Brokers(), "--topic", t.cluster, "--json"}, args...)
		cmd := exec.CommandContext(ctx, t.o.bmpha, args...)
		var out, errOut bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &errOut
		v := verified{Command: "bmpha " + strings.Join(args, " ")}
		err := cmd.Run()
		if err != nil && !errors.As(err, new(*exec.ExitError)) {
			t.fail("%s: %v", v.Command, err)
			return nil
		}
		v.Exit = cmd.ProcessState.ExitCode()
		var r verify.Result
		if err := json.Unmarshal(out.Bytes(), &r); err != nil {
			t.fail("%s: exit code %d: %s", v.Command, v.Exit, strings.TrimSpace(errOut.String()))
			return nil
		}
		v.Records = r.Report.Records
		for _, rt := range r.Report.Routers {
			v.Repeats.Replayed += rt.Repeats.Replayed
			v.Repeats.Shared += rt.Repeats.Shared
			v.Repeats.Router += rt.Repeats.Router
			v.Repeats.Told += rt.Repeats.Told
			v.Repeats.Other += rt.Repeats.Other
			unlisted := rt.Faults - int64(len(rt.FaultsFirst))
			v.Late += unlisted
			for _, f := range rt.FaultsFirst {
				if strings.Contains(f.What, "had taken over") {
					v.Late++
					continue
				}
				v.Faults++
				if len(v.First) < 10 {
					v.First = append(v.First, fmt.Sprintf("router %s, partition %d offset %d: %s", rt.Router, f.Partition, f.Offset, f.What))
				}
			}
		}
		v.Faults += r.Report.Unreadable
		if v.Faults > 0 {
			t.fail("%s: %d faults\n  %s", v.Command, v.Faults, strings.Join(v.First, "\n  "))
		}
		d := differencesOf(&r)
		v.Equal, v.Differences = d.equal, d.count
		var lost []string
		for _, one := range d.listed {
			if excused(&one) {
				v.Excused++
			} else {
				lost = append(lost, one.String()+": "+beside(one.who(), one.own, one.kafka))
			}
		}
		all = append(all, v)
		if len(lost) > 0 {
			t.fail("%s: in %d routes Kafka is not as it should be\n  %s", v.Command, len(lost), strings.Join(lost[:min(6, len(lost))], "\n  "))
		}
		switch {
		case d.count == len(d.listed):
		case r.Collector != nil && len(r.Collector.Routers) > 1:
			return r.Collector.Routers
		case r.Collector == nil || d.count > most(r.Collector.Routers[0]):
			t.fail("%s: %d differences, more than have an excuse", v.Command, d.count)
		}
		return nil
	}
	run()
	for _, m := range t.members {
		args := []string{"--collector", "--socket", filepath.Join(m.dir, "s")}
		for _, router := range run(args...) {
			run(append(args, "--router", router, "--settle", "1s")...)
		}
	}
	for _, r := range t.real {
		text, err := r.print(ctx)
		if err != nil {
			t.fail("%v", err)
			continue
		}
		file := filepath.Join(t.dir, "table-"+r.Address().String())
		if err := os.WriteFile(file, text, 0o600); err != nil {
			t.fail("write the table of %s: %v", r.Address(), err)
			continue
		}
		run("--router", r.Address().String(), r.flag(), file)
	}
	return all
}

// differences are the routes in which verify found Kafka to differ: how many, and those
// that it lists.
type differences struct {
	equal, count int
	listed       []differing
}

type differing struct {
	wordKey
	collector  bool   // own is what a collector has, not what the router prints
	own, kafka string // "" for nothing
}

func (d *differing) who() string {
	if d.collector {
		return "collector"
	}
	return "router"
}

func differencesOf(r *verify.Result) (all differences) {
	if c := r.Comparison; c != nil {
		all.equal, all.count = c.Equal, c.Differences()
		for _, list := range [][]verify.Difference{c.Missing, c.Extra, c.Different} {
			for _, d := range list {
				all.listed = append(all.listed, differing{wordKey{c.Router, d.Peer.String(), d.Prefix.String(), d.RIB}, false, d.Router, d.Kafka})
			}
		}
	}
	if c := r.Collector; c != nil {
		all.equal, all.count = int(c.Equal), int(c.Differences())
		for _, list := range []verify.Unequal{c.Missing, c.Extra, c.Different} {
			for _, d := range list.First {
				all.listed = append(all.listed, differing{wordKey{d.Router, d.Peer, d.Prefix, d.RIB}, true, d.Collector, d.Kafka})
			}
		}
	}
	return all
}

// tell shows what was said about the first routes that differ: what each collector
// has heard last, and all records of them in the order of the topic. All records of
// their routers, and of those of which some came again without a flag, go into files of
// folder.
func (t *trouble) tell(ctx context.Context, report *faultsReport, folder string) error {
	const most = 3 // routes of each router
	wanted := make(map[[2]string]bool)
	files := make(map[string]*bufio.Writer)
	for _, one := range report.Tables {
		if one.Lost == 0 && !slices.ContainsFunc(report.Again, func(a *again) bool { return a.Router == one.Router }) {
			continue
		}
		f, err := os.Create(filepath.Join(folder, "records-"+one.Router))
		if err != nil {
			return fmt.Errorf("keep the records: %w", err)
		}
		defer f.Close()
		files[one.Router] = bufio.NewWriter(f)
		for _, p := range one.prefixes[:min(most, len(one.prefixes))] {
			wanted[[2]string{one.Router, p}] = true
		}
	}
	if len(files) == 0 {
		return nil
	}
	lines := make(map[[2]string][]string)
	each := func(rec rig.Record) {
		var v struct {
			routeRecord
			Peer string `json:"peer_ip"`
			Msg  string `json:"bmp_msg_type"`
			Post int    `json:"is_post"`
			Path string `json:"as_path"`
		}
		if json.Unmarshal(rec.Value, &v) != nil || files[v.Router] == nil {
			return
		}
		var h record.Header
		if raw := rec.Header(record.HeaderName); raw != nil {
			h, _ = record.ParseHeader(raw) // none is shown as zeros
		}
		line := fmt.Sprintf("%d/%d %s by %04x token %d session %d message %d.%d flags %d: %s %s %s peer %s post %d med %s path %s", rec.Partition, rec.Offset,
			rec.Timestamp.Format("15:04:05.000"), h.Instance>>48, h.Token, h.Session, h.Message, h.Index, h.Flags, v.Msg, v.Log, v.Prefix, v.Peer, v.Post, v.MED, v.Path)
		fmt.Fprintln(files[v.Router], line)
		for k := range wanted {
			if k[0] == v.Router && (k[1] == v.Prefix || v.Msg == "peer_up" || v.Msg == "peer_down") {
				lines[k] = append(lines[k], line)
			}
		}
	}
	c, err := rig.ConsumeEach(ctx, t.kafka.Brokers(), t.cluster, each, committed)
	if err != nil {
		return err
	}
	err = c.CatchUp(ctx)
	c.Close()
	if err != nil {
		return err
	}
	for _, w := range files {
		if err := w.Flush(); err != nil {
			return fmt.Errorf("keep the records: %w", err)
		}
	}
	const last = 25 // records
	for k, of := range lines {
		fmt.Fprintf(t.out, "router %s, %s:\n  %s\n", k[0], k[1], strings.Join(of[max(0, len(of)-last):], "\n  "))
		prefix, err := netip.ParsePrefix(k[1])
		if err != nil {
			continue
		}
		for _, m := range t.members {
			_, err := m.control.Routes(ctx, &control.Query{Router: k[0], Prefix: prefix, Match: routes.Exact}, func(line []byte) error {
				fmt.Fprintf(t.out, "  collector %s has heard: %s\n", m.name, bytes.TrimSpace(line))
				return nil
			})
			if err != nil {
				fmt.Fprintf(t.out, "  collector %s has heard: %v\n", m.name, err)
			}
		}
	}
	return nil
}

// A faultsReport is what runFaults found.
type faultsReport struct {
	heading
	size
	Minutes float64    `json:"minutes"`
	Faults  []*result  `json:"faults_done"`
	Kinds   []kindLine `json:"kinds"`
	Whole   tally      `json:"whole"` // of all records from the first fault on
	// Numbers are announcements of generated routers that had one; Came those that
	// are in Kafka. What changes while the sender does not hear the router comes with
	// its last value only, so that some never come.
	Numbers uint64    `json:"numbered_announcements"`
	Came    uint64    `json:"numbered_announcements_in_kafka"`
	Never   []stretch `json:"numbers_that_never_came,omitempty"` // the first of them
	// Again are the first that came again without a flag.
	Again  []*again   `json:"repeated_without_flag,omitempty"`
	Rest   atRest     `json:"rest"`
	Tables []table    `json:"tables"`
	Verify []verified `json:"verify"`
	Logs   string     `json:"logs,omitempty"`
	Failed []string   `json:"failed,omitempty"`
}

// A stretch is a run of numbers of a router.
type stretch struct {
	Router string `json:"router"`
	From   int    `json:"from"`
	Until  int    `json:"until"` // the last
}

// never returns the first stretches of numbers up to last that have not come.
func (t *track) never(router string, last uint32) (all []stretch) {
	const most = 20
	for n := 1; n <= int(last) && len(all) < most; n++ {
		if n < len(t.seen) && t.seen[n] != missing {
			continue
		}
		s := stretch{router, n, n}
		for s.Until < int(last) && (s.Until+1 >= len(t.seen) || t.seen[s.Until+1] == missing) {
			s.Until++
		}
		all, n = append(all, s), s.Until
	}
	return all
}

// A kindLine is what came of all faults of one kind.
type kindLine struct {
	Kind     string     `json:"kind"`
	What     string     `json:"what"`
	Role     string     `json:"role,omitempty"` // of the collector that was hit
	Count    int        `json:"count"`
	Gap      *histogram `json:"without_sender_seconds"`
	GapMax   seconds    `json:"without_sender_most_seconds"`
	GapMid   seconds    `json:"without_sender_median_seconds"`
	Repeated *histogram `json:"repeated"`
	Replayed int        `json:"repeated_flagged"`
	Shared   int        `json:"repeated_shared"`
	Plain    int        `json:"repeated_unflagged"`
	Late     int        `json:"late"`
	Told     int        `json:"repeated_by_router"`
}

// lines sums up the faults by their kind and the role of whom they hit.
func lines(done []*result) []kindLine {
	var all []kindLine
	for _, k := range kinds {
		for _, role := range []string{"active", "standby", "other"} {
			l := kindLine{
				Kind: k.name, What: k.what,
				Gap:      newHistogram(0.05, 0.1, 0.3, 1, 2.1, 3, 5, 10, 30),
				Repeated: newHistogram(0, 10, 100, 1000, 10_000),
			}
			if k.hits == collector {
				l.Role = role
			}
			var gaps []seconds
			for _, r := range done {
				is := r.Role
				if is != "active" && is != "standby" || k.hits != collector {
					is = "other"
				}
				if r.Kind != k.name || is != role || strings.HasPrefix(r.Note, "left out") {
					continue
				}
				l.Count++
				l.Gap.add(time.Duration(r.Seen.Gap).Seconds())
				l.Repeated.add(float64(r.Seen.repeated()))
				gaps = append(gaps, r.Seen.Gap)
				l.Replayed += r.Seen.Replayed
				l.Shared += r.Seen.Shared
				l.Plain += r.Seen.Plain
				l.Late += r.Seen.Late
				l.Told += r.Seen.Told
			}
			if l.Count == 0 {
				continue
			}
			slices.Sort(gaps)
			l.GapMid, l.GapMax = gaps[len(gaps)/2], gaps[len(gaps)-1]
			all = append(all, l)
		}
	}
	return all
}

func (r *faultsReport) write(w io.Writer) {
	r.Kinds = lines(r.Faults)
	fmt.Fprintf(w, "\n%d faults in %.0f min, %d collectors, %d generated routers at %s messages/s together, FRR and GoBGP with %d neighbours each\n",
		len(r.Faults), r.Minutes, r.Collectors, r.Generators, count(r.Rate), neighborsOfEach)
	fmt.Fprintf(w, "  faults overlap: what is seen between one's begin, or end, and the next one's is counted to it, a gap where it begins, repeats where their sender began\n")
	fmt.Fprintf(w, "  role: of the collector that was hit, when it was\n")
	fmt.Fprintf(w, "\nTime without a sender, s: the longest between two records of one router, by the senders' clocks; number of faults\n")
	var g grid
	for i, l := range r.Kinds {
		if i == 0 {
			g.columns = append(append([]string{"fault", "role", "n"}, l.Gap.heads()...), "median", "max")
		}
		g.row(append(append([]string{l.Kind, l.Role, count(l.Count)}, l.Gap.cells()...), l.GapMid.String(), l.GapMax.String())...)
	}
	g.write(w)
	fmt.Fprintf(w, "\nRecords repeated for a fault; number of faults, and sums\n")
	g = grid{}
	for i, l := range r.Kinds {
		if i == 0 {
			g.columns = append(append([]string{"fault", "role", "n"}, l.Repeated.heads()...), "flagged", "two senders", "unflagged", "late words", "router's own")
		}
		g.row(append(append([]string{l.Kind, l.Role, count(l.Count)}, l.Repeated.cells()...), count(l.Replayed), count(l.Shared), count(l.Plain), count(l.Late), count(l.Told))...)
	}
	g.write(w)
	s := &r.Whole
	fmt.Fprintf(w, "\nAll: %s records; repeated %s flagged, %s while two might send, %s unflagged, %s because a router told its table again; %s late words; %s writer changes\n",
		count(s.Records), count(s.Replayed), count(s.Shared), count(s.Plain), count(s.Told), count(s.Late), count(s.Writers))
	fmt.Fprintf(w, "%s of %s numbered announcements are in Kafka; a route that changes while its sender does not hear the router is told with its last value only\n", count(r.Came), count(r.Numbers))
	for _, n := range r.Never[:min(20, len(r.Never))] {
		fmt.Fprintf(w, "  never came: %s %d to %d\n", n.Router, n.From, n.Until)
	}
	for _, a := range r.Again[:min(20, len(r.Again))] {
		fmt.Fprintf(w, "  unflagged: %s\n", a)
	}
	fmt.Fprintf(w, "At rest: roles after %s s; tables equal %s s after the last message\n\nState in Kafka beside the routers' own tables: routes\n  lost: Kafka says otherwise, without an excuse; two senders: excused, see below the table\n  late words: only a consumer differs that does not go by the tokens\n", r.Rest.Roles, r.Rest.Tables)
	g = grid{columns: []string{"router", "kind", "equal", "lost", "two senders", "late words"}}
	for _, t := range r.Tables {
		g.row(t.Router, t.Kind, count(t.Equal), count(t.Lost), count(t.Shared), count(t.Late))
	}
	g.write(w)
	fmt.Fprintf(w, "  %s\n\n", excuse(r.Tables))
	for _, v := range r.Verify {
		fmt.Fprintf(w, "%s\n  exit code %d, %s records, repeated %s flagged %s shared %s by the router %s of a table told anew %s otherwise, %s late words, %s faults, %s routes equal, %s differ, %s of them excused\n",
			v.Command, v.Exit, count(v.Records), count(v.Repeats.Replayed), count(v.Repeats.Shared), count(v.Repeats.Router), count(v.Repeats.Told), count(v.Repeats.Other),
			count(v.Late), count(v.Faults), count(v.Equal), count(v.Differences), count(v.Excused))
	}
	fmt.Fprintf(w, "\nNot here: steps of the clock. Linux has no name space for the wall clock, and Go reads it without the C library; the simulator (make sim) has them.\n")
	if r.Logs != "" {
		fmt.Fprintf(w, "Logs: %s\n", r.Logs)
	}
	for _, f := range r.Failed {
		fmt.Fprintf(w, "  => %s\n", f)
	}
}

// excuse says in one line how many routes are not as the router says and not lost
// either, and why.
func excuse(tables []table) string {
	excused, all := 0, 0
	for _, t := range tables {
		excused += t.Shared
		all += t.Equal + t.Lost + t.Shared
	}
	if excused == 0 {
		return fmt.Sprintf("none of %s routes is excused as of two senders", count(all))
	}
	return fmt.Sprintf("excused: %s of %s routes, wrong in Kafka until they change: their last word, or a Peer Up or Down behind it, was sent while Redis could not be asked and two might send, so that the later record can have the older word (-strict excuses none)",
		count(excused), count(all))
}

// verdict is an error if anything is as it must not be.
func (r *faultsReport) verdict() error {
	if len(r.Failed) == 0 {
		return nil
	}
	return fmt.Errorf("seed %d: %d things that must not be", r.Seed, len(r.Failed))
}
