package control

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"math"
	"slices"
	"strings"
	"time"
	"unicode/utf8"
)

// RenderOptions say how a screen is drawn.
type RenderOptions struct {
	// Width in columns; 0 means 80, and no less than 60 is used.
	Width int
	// Height in lines that the screen should not exceed: routers that do not fit
	// are counted instead, those with problems and those furthest behind are shown
	// first. 0 means 24, a negative number shows all.
	Height int
	Color  bool
	// Now is the time on the clock of the collector's host; the zero time means
	// the status' own.
	Now time.Time
}

const (
	minWidth     = 60
	shownMembers = 6
	shownProblem = 6
	minRouters   = 3 // shown at least, however low the screen

	shownGroups    = 3 // of routers that are alike
	shownTakeovers = 3

	// worthTelling is the least by which a reading is behind, or a link silent.
	worthTelling = Seconds(1)
	// takeoverTogether is how long after the role routers may go on at the latest
	// for both to be one takeover.
	takeoverTogether = 10 * time.Second
)

// Render draws s as one screen of text. The first line says the role, who, since
// when and why; problems follow in words; then members, routers and the parts
// that carry the data. It returns the error of the writer.
func Render(w io.Writer, s *Status, opts RenderOptions) error {
	if opts.Now.IsZero() {
		opts.Now = s.At
	}
	problems := Problems(s, opts.Now)
	members := slices.Clone(s.Members)
	for i := range members {
		if members[i].Self { // what it said last may be older than what it is now
			members[i].Role, members[i].Forced, members[i].Unfit = s.Role, s.Forced, s.Unfit
		}
	}
	for dense := loose; ; dense++ {
		c := newCanvas(opts)
		c.dense = dense
		c.headline(s, degraded(problems), opts.Now)
		c.problems(problems)
		c.members(members, s.Process)

		c.gap()

		// The routers get the lines that the rest leaves.
		tail := canvas{width: c.width, color: c.color, dense: dense}
		tail.parts(s, opts.Now)
		room := math.MaxInt
		if opts.Height >= 0 {
			room = cmp.Or(opts.Height, 24) - len(c.lines) - len(tail.lines)
		}
		c.routers(s, opts.Now, room)
		c.lines = append(c.lines, tail.lines...)
		if dense == packed || opts.Height < 0 || len(c.lines) <= cmp.Or(opts.Height, 24) {
			return c.flush(w)
		}
	}
}

// RenderCluster draws what Redis alone shows of a cluster.
func RenderCluster(w io.Writer, v *ClusterView, opts RenderOptions) error {
	c := newCanvas(opts)
	where := fmt.Sprintf("in cluster %s/%d, says Redis at %s", clean(v.Cluster.Name), v.Cluster.ID, clean(v.Redis))
	n := v.count()
	var active []string
	for i := range v.Members {
		if m := &v.Members[i]; m.Role == RoleActive && !m.Gone {
			active = append(active, clean(m.Name))
		}
	}
	switch {
	case n.active == 1:
		c.paragraph(c.paint(green, "ACTIVE"), active[0]+" "+where)
	case n.active > 1:
		c.paragraph(c.paint(red, fmt.Sprintf("%d ACTIVE", n.active)), list(active, 4)+" "+where)
	case n.live == 0:
		c.paragraph(c.paint(red, "NO MEMBERS"), where)
	case n.native > 0:
		c.paragraph(c.paint(yellow, "NATIVE"), "members do not tell their role: the smallest timestamp is active "+where)
	default:
		c.paragraph(c.paint(red, "NOBODY ACTIVE"), where)
	}
	for i := range v.Members {
		if m := &v.Members[i]; m.Unfit != "" && !m.Gone {
			c.paragraph(c.paint(yellow, " -"), clean(m.Name+" cannot do its job: "+m.Unfit))
		}
	}
	c.members(v.Members, "")
	return c.flush(w)
}

// Line writes s as one line without a line feed, for logs and terminals that are
// none.
func Line(s *Status, now time.Time) string {
	problems := Problems(s, now)
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s %s/%s/%d for %s: %s", now.UTC().Format(time.RFC3339), title(s, degraded(problems)),
		clean(s.Process), clean(s.Cluster.Name), s.Cluster.ID, sinceWords(s.Since, now), clean(cmp.Or(s.Reason, "no reason given")))
	fmt.Fprintf(&b, "; %s, held %s, in flight %s, acknowledged %s", plural(len(s.Routers), "router"),
		mebibytes(s.Hold.Bytes), count(s.Sink.InFlight), count(s.Sink.Acknowledged))
	for _, p := range problems {
		b.WriteString("; " + p.Text)
	}
	return b.String()
}

// title is the role in capitals, with what an operator should see first.
func title(s *Status, degraded bool) string {
	t := clean(strings.ToUpper(s.Role))
	if s.Forced != "" {
		t += " (FORCED)"
	}
	if degraded {
		t = "DEGRADED " + t
	}
	return t
}

// Colours of the ANSI standard.
const (
	bold   = "1"
	red    = "1;31"
	green  = "1;32"
	yellow = "1;33"
	dim    = "2"
)

// How dense a screen is drawn that would be too high otherwise.
const (
	loose  = iota
	short  // one line for each part
	packed // and no empty lines
)

// A canvas collects the lines of a screen.
type canvas struct {
	width int
	color bool
	dense int
	lines []string
}

func newCanvas(opts RenderOptions) *canvas {
	return &canvas{width: max(minWidth, cmp.Or(opts.Width, 80)), color: opts.Color}
}

func (c *canvas) flush(w io.Writer) error {
	_, err := io.WriteString(w, strings.Join(c.lines, "\n")+"\n")
	return err
}

func (c *canvas) paint(color, s string) string {
	if !c.color || s == "" {
		return s
	}
	return "\x1b[" + color + "m" + s + "\x1b[0m"
}

func (c *canvas) line(s string) { c.lines = append(c.lines, strings.TrimRight(s, " ")) }

// gap writes an empty line.
func (c *canvas) gap() {
	if c.dense < packed {
		c.line("")
	}
}

// paragraph writes a painted head and text behind it, wrapped between words and
// indented by two columns where it goes on.
func (c *canvas) paragraph(head, text string) {
	line, used := head, width(head)
	for _, word := range strings.Fields(text) {
		n := utf8.RuneCountInString(word)
		if used > 2 && used+1+n > c.width {
			c.line(line)
			line, used = "   "+word, 3+n
			continue
		}
		line += " " + word
		used += 1 + n
	}
	c.line(line)
}

// labelled writes a line of one of the parts at the end of the screen. Its text
// is wrapped behind the label, or cut where there is little room.
func (c *canvas) labelled(label, text string) {
	const indent = 10
	head := c.paint(bold, fmt.Sprintf("%-*s", indent-1, label))
	if c.dense >= short {
		c.line(head + " " + clip(strings.Join(strings.Fields(text), " "), c.width-indent))
		return
	}
	used, line := indent-1, head
	for _, word := range strings.Fields(text) {
		n := utf8.RuneCountInString(word)
		if used >= indent && used+1+n > c.width {
			c.line(line)
			line, used = strings.Repeat(" ", indent-1), indent-1
		}
		line += " " + word
		used += 1 + n
	}
	c.line(line)
}

// listed writes lines of one part, the first ones, or as much of them as is there
// where there is little room.
func (c *canvas) listed(label string, lines []string) {
	if c.dense == packed && len(lines) > 0 {
		lines = []string{strings.Join(lines, "; ")}
	}
	for i, text := range lines {
		if i == shownGroups && len(lines) > shownGroups+1 {
			c.labelled("", fmt.Sprintf("… and %s more", count(len(lines)-i)))
			return
		}
		c.labelled(label, text)
		label = ""
	}
}

// width counts the columns of s without its colours.
func width(s string) int {
	n := 0
	for s != "" {
		if rest, ok := strings.CutPrefix(s, "\x1b["); ok {
			_, s, _ = strings.Cut(rest, "m")
			continue
		}
		_, size := utf8.DecodeRuneInString(s)
		s = s[size:]
		n++
	}
	return n
}

func (c *canvas) headline(s *Status, degraded bool, now time.Time) {
	color := green
	switch {
	case degraded:
		color = red
	case s.Role != RoleActive:
		color = yellow
	}
	c.paragraph(c.paint(color, title(s, degraded)), fmt.Sprintf("%s of cluster %s/%d for %s: %s",
		clean(s.Process), clean(s.Cluster.Name), s.Cluster.ID, sinceWords(s.Since, now), clean(cmp.Or(s.Reason, "no reason given"))))
	where := ""
	if s.Host != "" {
		where = " on " + s.Host
	}
	c.line(c.paint(dim, clip(clean(fmt.Sprintf("bmpha %s, pid %d%s, up %s, since %s", s.Program.Version, s.PID, where,
		span(s.Uptime), s.Since.UTC().Format("2006-01-02 15:04:05 UTC"))), c.width)))
}

func (c *canvas) problems(problems []Problem) {
	if len(problems) == 0 {
		return
	}
	c.gap()
	for i, p := range problems {
		if i == shownProblem && len(problems) > shownProblem+1 {
			c.line(fmt.Sprintf("  … and %s", plural(len(problems)-i, "more problem")))
			return
		}
		if p.Severity == Degraded {
			c.paragraph(c.paint(red, " !"), p.Text)
		} else {
			c.paragraph(c.paint(yellow, " -"), p.Text)
		}
	}
}

func (c *canvas) members(members []Member, process string) {
	sorted := slices.SortedFunc(slices.Values(members), func(a, b Member) int {
		return cmp.Or(cmp.Compare(memberRank(&a), memberRank(&b)), cmp.Compare(a.Timestamp, b.Timestamp), strings.Compare(a.Name, b.Name))
	})
	t := grid{columns: []column{{head: "member", limit: 28}, {head: "role", limit: 20}, {head: "timestamp"}, {head: "heartbeat", right: true}, {head: "routers", right: true}, {head: "sends", right: true}}}
	for i := range sorted {
		m := &sorted[i]
		if i == shownMembers && len(sorted) > shownMembers+1 {
			t.more = fmt.Sprintf("  … and %s", plural(len(sorted)-i, "more member"))
			break
		}
		name := clean(m.Name)
		switch {
		case m.Self:
			name += " (this)"
		case m.Name == process:
			name += " (same name)"
		}
		role, age, heard, sent := m.Role, span(m.HeartbeatAge)+" ago", count(m.RoutersHeard), count(m.RoutersSent)
		if m.Kind == KindNative {
			role, age, heard, sent = strings.TrimSpace(role+" native"), "-", "-", "-"
		}
		if m.Forced != "" {
			role += " forced"
		}
		if m.Unfit != "" {
			role += " unfit"
		}
		color := ""
		switch {
		case m.Gone:
			role, color = "gone", red
		case m.Unfit != "":
			color = yellow
		case m.Role == RoleActive:
			color = green
		}
		t.add(color, name, clean(role), timestamp(m.Timestamp), age, heard, sent)
	}
	if len(t.rows) > 0 {
		c.gap()
		c.table(&t)
	}
}

func memberRank(m *Member) int {
	switch {
	case m.Gone:
		return 3
	case m.Role == RoleActive:
		return 0
	case m.Role == RoleStandby, m.Kind == KindNative:
		return 1
	}
	return 2
}

// timestamp writes a member's timestamp; those with a meaning of their own in
// words.
func timestamp(us uint64) string {
	const (
		firstOwn = 1_000_000_000_000_001 // above what a forced active one writes
		lastOwn  = 1 << 62               // below what a forced standby writes
	)
	switch {
	case us == 0:
		return "none yet"
	case us < firstOwn:
		return "before all"
	case us > lastOwn:
		return "after all"
	}
	return time.UnixMicro(int64(us)).UTC().Format("2006-01-02 15:04:05")
}

func (c *canvas) routers(s *Status, now time.Time, room int) {
	if len(s.Routers) == 0 {
		c.line(c.paint(bold, "router") + "    none has connected yet")
		return
	}
	sorted := slices.SortedFunc(slices.Values(s.Routers), func(a, b Router) int {
		return cmp.Or(cmp.Compare(a.condition(s.Role), b.condition(s.Role)), cmp.Compare(b.oldest(), a.oldest()), strings.Compare(a.Identity, b.Identity))
	})
	shown := len(sorted)
	if shown+1 > room { // the head takes one line, "… and more" another
		shown = min(shown, max(room-2, minRouters))
	}
	// What is on disk is worth more than how much there ever was.
	spooled := slices.ContainsFunc(sorted[:shown], func(r Router) bool { return r.Spooled.Messages > 0 })
	t := grid{columns: []column{{head: "router", limit: 26}, {head: "sysname", limit: 16}, {head: "heard", limit: 20}, {head: "peers", right: true}, {head: "messages", right: true}, {head: "waiting", right: true}, {head: "sent by", limit: 14}}}
	if spooled {
		t.columns[4], t.columns[5] = t.columns[5], column{head: "on disk", right: true}
	}
	for i := range sorted[:shown] {
		r := &sorted[i]
		heard, color := r.heard(now), ""
		switch cond := r.condition(s.Role); {
		case cond <= routerUnsent:
			color = red
		case cond < routerWell:
			color = yellow
		}
		sender := clean(r.Sender)
		switch {
		case r.Sending:
			sender = "this"
		case sender == "":
			sender = "nobody"
		}
		amounts := [2]string{count(r.Messages), r.waiting().words()}
		if spooled {
			amounts = [2]string{r.waiting().words(), r.Spooled.words()}
		}
		peers := count(r.PeersUp)
		if r.Source == SourcePmacct && r.PeersUp == 0 {
			peers = "-" // pmacct knows
		}
		t.add(color, clean(r.Identity), clean(r.SysName), clean(heard), peers, amounts[0], amounts[1], sender)
	}
	if more := len(sorted) - shown; more > 0 {
		t.more = fmt.Sprintf("  … and %s more", count(more))
	}
	c.table(&t)
}

// waiting is what is to be sent by whoever sends: a sender's backlog, else what
// is held until the sender confirms it.
func (r *Router) waiting() Backlog {
	if r.Sending {
		return r.Behind
	}
	return r.Held
}

// oldest is the age of the oldest message that waits in memory or on disk.
func (r *Router) oldest() Seconds { return max(r.waiting().OldestAge, r.Spooled.OldestAge) }

// words writes "812, 21 ms", "0" when it is empty.
func (b Backlog) words() string {
	if b.Messages == 0 {
		return "0"
	}
	return count(b.Messages) + ", " + span(b.OldestAge)
}

func (r *Router) heard(now time.Time) string {
	switch {
	case !r.here() && len(r.HeardBy) > 0:
		return "only by " + list(r.HeardBy, 1)
	case !r.here() && r.Session != nil:
		return "not by pmacct"
	case !r.here() && r.LastHeard.IsZero():
		return "never"
	case !r.here():
		return "gone " + sinceWords(r.LastHeard, now)
	case r.Paused:
		return "paused"
	case r.Opaque:
		return "undecodable"
	}
	heard := "silent"
	if !r.LastHeard.IsZero() {
		heard = sinceWords(r.LastHeard, now) + " ago"
	}
	if r.Source == SourcePmacct {
		heard = "pmacct " + heard
	}
	return heard
}

// parts writes the parts that carry the data.
func (c *canvas) parts(s *Status, now time.Time) {
	c.gap()
	c.listed("sent by", s.senders())
	c.listed("reading", s.readings())
	for i := range s.Relay {
		c.labelled("relay", s.Relay[i].words(now))
	}
	if s.Intake != nil {
		c.labelled("intake", s.Intake.words(now))
	}
	h := &s.Hold
	hold := plural(h.Messages, "message") + ", " + usage(h.Bytes, h.Limit)
	if h.Messages > 0 {
		hold += ", oldest " + span(h.OldestAge)
	}
	if h.LowWater > 0 {
		hold += ", low-water " + span(h.LowWaterLag)
	} else if s.Role == RoleStandby {
		hold += ", no low-water mark"
	}
	if n := total(h.Dropped); n > 0 {
		hold += ", " + count(n) + " dropped"
	}
	c.labelled("hold", hold)
	if s.Spool != nil {
		c.labelled("spool", s.Spool.words())
	}
	if t := s.Tables; t != nil {
		c.labelled("tables", plural(t.Routes, "route")+", "+usage(t.Used, t.Limit))
	}
	if s.Dump != nil {
		c.labelled("dumps", s.Dump.words(now))
	}

	k := &s.Sink
	sink := "connected"
	if !k.Connected {
		sink = "NOT CONNECTED"
	}
	sink += fmt.Sprintf(", %s in flight, %s acknowledged, %s failed", count(k.InFlight), count(k.Acknowledged), count(k.Failed))
	if k.DeadLetters > 0 {
		sink += ", " + plural(k.DeadLetters, "dead letter")
	}
	if k.Fenced > 0 {
		sink += ", shut out " + plural(k.Fenced, "time")
	}
	if k.Unsure > 0 {
		sink += ", " + count(k.Unsure) + " unsure"
	}
	sink += "; " + clean(k.Target)
	// A young error is among the problems.
	if k.LastError != "" && k.Connected && now.Sub(k.LastErrorAt) >= recently {
		sink += fmt.Sprintf("; last error %s ago: %s", sinceWords(k.LastErrorAt, now), clean(k.LastError))
	}
	c.labelled(strings.ToLower(s.sinkName()), sink)

	r := &s.Redis
	switch {
	case r.State == RedisOff:
		c.labelled("redis", "off: this collector is on its own")
	case r.Rounds == 0 && r.LastOKAge == 0:
		c.labelled("redis", fmt.Sprintf("%s %s, never answered, %s", clean(r.Address), clean(strings.ToUpper(r.State)), plural(r.Failures, "failure")))
	default:
		state := r.State
		if state != RedisOK {
			state = strings.ToUpper(state) + ", answered"
		}
		text := fmt.Sprintf("%s %s %s ago in %s, %s", clean(r.Address), clean(state), span(r.LastOKAge), span(r.RoundTrip), plural(r.Failures, "failure"))
		if s.Token != 0 {
			text += fmt.Sprintf(", token %d", s.Token)
		}
		c.labelled("redis", text)
	}

	if s.Link != nil {
		c.labelled("link", s.Link.words(s.Members, now))
	}

	latest := shownTakeovers
	if c.dense >= short {
		latest = 1
	}
	t := s.LastTakeover
	if n := len(s.Takeovers); n > 0 && (t == nil || s.Takeovers[0].At.After(t.At.Add(-takeoverTogether))) {
		label := "takeover"
		for i := range s.Takeovers[:min(n, latest)] {
			if i > 0 && now.Sub(s.Takeovers[i].At) > 24*time.Hour {
				break
			}
			c.labelled(label, s.Takeovers[i].words(now))
			label = ""
		}
		return
	}
	if t != nil {
		from := ""
		if t.From != "" {
			from = " from " + t.From
		}
		c.labelled("takeover", clean(fmt.Sprintf("%s ago%s in %s, %s replayed since: %s", sinceWords(t.At, now), from, span(t.Duration), plural(t.Replayed, "message"), t.Reason)))
	} else {
		c.labelled("takeover", "none since the start")
	}
}

// leader names the member that is active, "the leader" if that is not known.
func (s *Status) leader() string {
	if s.Role == RoleActive {
		return "this one"
	}
	for i := range s.Members {
		if m := &s.Members[i]; m.Role == RoleActive && !m.Gone && !m.Self {
			return clean(m.Name)
		}
	}
	return "the leader"
}

// whys say why a router is not, or not yet, sent by the leader: of one and of many.
// %s is the leader. Those that are left out are as they should be, or are among the
// problems.
var whys = map[string][2]string{
	WhyOnly:        {"nobody else hears it", "nobody else hears them"},
	WhyLeaderDeaf:  {"%s does not hear it", "%s does not hear them"},
	WhyLeaderDumps: {"%s has yet to read its table dump", "%s has yet to read their table dumps"},
	WhyLeaderLate:  {"%s reads it late", "%s reads them late"},
	WhyKept:        {"taken over and not given back to %s", "taken over and not given back to %s"},
	WhyHandingOver: {"soon, this one sends until it is ready", "soon, this one sends until it is ready"},
	WhyTakingOver:  {"soon, another has not stopped yet", "soon, another has not stopped yet"},
	WhyReadingBack: {"soon, reads what Kafka has", "soon, reads what Kafka has"},
}

// senders writes who sends what is not simply sent by the leader, and why.
func (s *Status) senders() (lines []string) {
	type sent struct{ by, why string }
	groups := make(map[sent][]string)
	for i := range s.Routers {
		if r := &s.Routers[i]; whys[r.Why][0] != "" {
			k := sent{r.Sender, r.Why}
			groups[k] = append(groups[k], clean(r.Identity))
		}
	}
	for k, names := range groups {
		slices.Sort(names)
		why := whys[k.why][0]
		if len(names) > 1 {
			why = whys[k.why][1]
		}
		if strings.Contains(why, "%s") {
			why = fmt.Sprintf(why, s.leader())
		}
		lines = append(lines, fmt.Sprintf("%s: %s (%s)", s.nameOf(k.by), list(names, listedRouters), why))
	}
	slices.Sort(lines)
	return lines
}

// nameOf writes the name of a member.
func (s *Status) nameOf(member string) string {
	if member == s.Process {
		return "this one"
	}
	return clean(member)
}

// readings writes who is behind with reading, or has not read whole tables yet.
func (s *Status) readings() (lines []string) {
	dumps, behind := make(map[string]int), make(map[string][]*Router)
	for i := range s.Routers {
		for _, d := range s.Routers[i].Readings {
			if !d.Whole {
				dumps[d.Member]++
			}
			if d.Behind >= worthTelling || d.Late {
				behind[d.Member] = append(behind[d.Member], &s.Routers[i])
			}
		}
	}
	members := slices.Sorted(maps.Keys(dumps))
	for m := range behind {
		if dumps[m] == 0 {
			members = append(members, m)
		}
	}
	slices.Sort(members)
	for _, m := range members {
		var parts []string
		if n := dumps[m]; n > 0 {
			parts = append(parts, plural(n, "table dump")+" under way")
		}
		if late := behind[m]; len(late) > 0 {
			slices.SortFunc(late, func(a, b *Router) int {
				return cmp.Or(cmp.Compare(b.reading(m).Behind, a.reading(m).Behind), strings.Compare(a.Identity, b.Identity))
			})
			var names []string
			for _, r := range late {
				names = append(names, clean(r.Identity)+" "+span(r.reading(m).Behind))
			}
			parts = append(parts, list(names, listedRouters)+" behind")
		}
		lines = append(lines, s.nameOf(m)+": "+strings.Join(parts, ", "))
	}
	return lines
}

// words writes which members are reached directly. Errors are among the problems.
func (l *Link) words(members []Member, now time.Time) string {
	reached := make(map[string]bool)
	var up, down []string
	for i := range l.Peers {
		p := &l.Peers[i]
		if !p.Connected {
			continue
		}
		reached[p.Name] = true
		text := clean(p.Name) + " for " + sinceWords(p.Since, now)
		if p.RoundTrip > 0 {
			text += ", round trip " + span(p.RoundTrip)
		}
		if p.HeardAge >= worthTelling {
			text += ", silent for " + span(p.HeardAge)
		}
		up = append(up, text)
	}
	for i := range members {
		if m := &members[i]; !m.Self && !m.Gone && m.Kind != KindNative && !reached[m.Name] {
			down = append(down, clean(m.Name))
		}
	}
	slices.Sort(up)
	slices.Sort(down)
	var parts []string
	if len(up) > 0 {
		parts = append(parts, "connected to "+list(up, shownGroups))
	}
	if len(down) > 0 {
		parts = append(parts, "NOT CONNECTED to "+list(down, 3))
	}
	if parts == nil {
		return "no other member"
	}
	return strings.Join(parts, "; ")
}

// hows say what had become of the sender before, whose name is %s.
var hows = map[string]string{
	HowHandedOver: "handed over by %s",
	HowStopped:    "from %s, which had left",
	HowDead:       "from %s, whose process had died",
	HowExpired:    "from %s, which had fallen silent",
	HowOverdue:    "from %s, which did not stop in time",
	HowRedisAway:  "beside %s, without Redis",
}

// words writes when routers went on, behind whom, and what that cost.
func (t *TakenOver) words(now time.Time) string {
	from := cmp.Or(t.From, "another")
	how := "from " + from
	if text := hows[t.How]; text != "" {
		how = fmt.Sprintf(text, from)
	}
	parts := []string{plural(t.Routers, "router")}
	if t.Waiting > 0 {
		parts = append(parts, count(t.Waiting)+" WAITING")
	}
	if t.Gap > 0 {
		parts = append(parts, span(t.Gap)+" without a sender")
	}
	if t.Skipped > 0 {
		parts = append(parts, count(t.Skipped)+" in Kafka left out")
	}
	if t.Doubtful > 0 {
		parts = append(parts, count(t.Doubtful)+" in doubt")
	}
	if t.BlindMessages > 0 {
		parts = append(parts, plural(t.BlindMessages, "message")+" perhaps repeated")
	}
	return clean(sinceWords(t.At, now) + " ago " + how + ": " + strings.Join(parts, ", "))
}

// usage writes "12.0 of 1,024 MiB (1 %)", without the limit when there is none.
func usage(used, limit uint64) string {
	if limit == 0 {
		return mebibytes(used)
	}
	return fmt.Sprintf("%s of %s (%.0f %%)", strings.TrimSuffix(mebibytes(used), " MiB"), mebibytes(limit), 100*share(used, limit))
}

// words writes how dumps go. The error of a young failure is among the problems.
func (d *Dump) words(now time.Time) string {
	parts := []string{"every " + span(d.Period) + " to " + strings.Join(d.Targets, " and ")}
	if d.Running != "" {
		parts = append(parts, "now "+d.Running)
	}
	if l := d.Last; l != nil {
		parts = append(parts, fmt.Sprintf("last %s %s ago (%s in %s)", l.Router, sinceWords(l.At, now), plural(l.Routes, "route"), span(l.Took)))
	} else {
		parts = append(parts, "none yet")
	}
	for _, n := range []struct {
		n    uint64
		what string
	}{{d.Missed, "missed"}, {d.Failed, "failed"}, {d.Interrupted, "interrupted"}} {
		if n.n > 0 {
			parts = append(parts, count(n.n)+" "+n.what)
		}
	}
	return clean(strings.Join(parts, ", "))
}

// words writes the state of a target. The error of one that is down is among the
// problems.
func (t *RelayTarget) words(now time.Time) string {
	state := t.State
	if state == RelayDown {
		state = "DOWN"
	}
	if !t.Since.IsZero() && t.State != RelayIdle {
		state += " " + sinceWords(t.Since, now)
	}
	parts := []string{t.Address + " " + state, plural(t.Sessions, "session")}
	if t.Waiting > 0 {
		parts = append(parts, count(t.Waiting)+" to start over")
	}
	if t.Replaying > 0 {
		parts = append(parts, count(t.Replaying)+" being replayed")
	}
	if t.Paused {
		parts = append(parts, "PAUSED")
	}
	if t.Buffered > 0 {
		parts = append(parts, "buffer "+usage(t.Buffered, t.Limit))
	}
	if t.Lost > 0 {
		parts = append(parts, "lost "+plural(t.Lost, "time"))
	}
	if t.Cut > 0 {
		parts = append(parts, count(t.Cut)+" cut")
	}
	return clean(strings.Join(parts, ", "))
}

// words writes where records come in, and since when they do not.
func (n *Intake) words(now time.Time) string {
	var parts []string
	if len(n.Listen) > 0 || len(n.Producers) > 0 || !n.Lost.IsZero() {
		producers := plural(len(n.Producers), "producer")
		if len(n.Producers) == 0 {
			producers = "NO PRODUCER"
		}
		if len(n.Listen) > 0 {
			producers += " at " + list(n.Listen, 2)
		}
		switch {
		case !n.Lost.IsZero() && len(n.Producers) > 0:
			producers += ", only of dumps for " + sinceWords(n.Lost, now)
		case !n.Lost.IsZero():
			producers += " for " + sinceWords(n.Lost, now)
		case len(n.Producers) == 0:
			producers += " yet"
		}
		parts = append(parts, producers)
	}
	if len(n.Files) > 0 {
		var behind, failing uint64
		for i := range n.Files {
			behind += uint64(max(0, n.Files[i].Behind))
			if n.Files[i].Error != "" {
				failing++
			}
		}
		files := plural(len(n.Files), "file")
		if behind > 0 {
			files += " " + mebibytes(behind) + " behind"
		}
		parts = append(parts, files)
		if failing > 0 {
			parts = append(parts, count(failing)+" FAILING")
		}
	}
	parts = append(parts, plural(n.Records, "record"))
	if n.Refused > 0 {
		parts = append(parts, count(n.Refused)+" refused")
	}
	return clean(strings.Join(parts, ", "))
}

// words writes how much is on disk, and what was found there.
func (p *Spool) words() string {
	parts := []string{plural(p.Messages, "message"), usage(p.Used, p.Limit)}
	if p.Error != "" {
		parts = append([]string{"FAILING"}, parts...)
	}
	if p.Messages > 0 {
		parts = append(parts, "oldest "+span(p.OldestAge))
	}
	if p.Recovered > 0 {
		parts = append(parts, count(p.Recovered)+" recovered")
	}
	if p.Cut > 0 {
		parts = append(parts, mebibytes(p.Cut)+" cut")
	}
	return clean(strings.Join(parts, ", "))
}

// A grid has columns as wide as their widest cell, cells longer than a limit are
// cut.
type grid struct {
	columns  []column
	rows     [][]string
	colors   []string
	above    map[int]string // lines of their own above a row
	below    map[int]string // and below it
	more     string         // last line, instead of rows
	headless bool           // it goes on from another one
}

type column struct {
	head  string
	limit int // longest cell, 0 for none
	least int // of the width
	right bool
	end   bool // what is cut is the beginning of a cell
}

func (t *grid) add(color string, cells ...string) {
	t.rows = append(t.rows, cells)
	t.colors = append(t.colors, color)
}

// table writes t. When it is too wide, columns with a limit give way, the widest
// first. Another one with these columns lines up with it where it can.
func (c *canvas) table(t *grid) {
	widths := make([]int, len(t.columns))
	sum := 2 * (len(widths) - 1)
	for i, col := range t.columns {
		widths[i] = max(col.least, utf8.RuneCountInString(col.head))
		for _, row := range t.rows {
			widths[i] = max(widths[i], utf8.RuneCountInString(row[i]))
		}
		if col.limit > 0 {
			widths[i] = min(widths[i], col.limit)
		}
		sum += widths[i]
	}
	for ; sum > c.width; sum-- {
		widest, most := -1, 0
		for i, col := range t.columns {
			if col.limit > 0 && widths[i] > max(8, utf8.RuneCountInString(col.head), most) {
				widest, most = i, widths[i]
			}
		}
		if widest < 0 {
			break
		}
		widths[widest]--
	}
	row := func(cells []string) string {
		var b strings.Builder
		for i, cell := range cells {
			if i > 0 {
				b.WriteString("  ")
			}
			if t.columns[i].end {
				cell = clipFront(cell, widths[i])
			} else {
				cell = clip(cell, widths[i])
			}
			pad := strings.Repeat(" ", widths[i]-utf8.RuneCountInString(cell))
			if t.columns[i].right {
				b.WriteString(pad + cell)
			} else {
				b.WriteString(cell + pad)
			}
		}
		return clip(strings.TrimRight(b.String(), " "), c.width)
	}
	heads := make([]string, len(t.columns))
	for i, col := range t.columns {
		heads[i] = col.head
	}
	if !t.headless {
		c.line(c.paint(bold, row(heads)))
	}
	for i, cells := range t.rows {
		if text := t.above[i]; text != "" {
			c.line(c.paint(bold, clip(text, c.width)))
		}
		s := row(cells)
		if t.colors[i] != "" {
			s = c.paint(t.colors[i], s)
		}
		c.line(s)
		if text := t.below[i]; text != "" {
			c.paragraph("   ", text)
		}
	}
	for i := range t.columns {
		t.columns[i].least = widths[i]
	}
	if t.more != "" {
		c.line(t.more)
	}
}

// clip cuts s to n columns, with an ellipsis as the last one.
func clip(s string, n int) string {
	if utf8.RuneCountInString(s) <= n {
		return s
	}
	r := []rune(s)
	return string(r[:max(n-1, 0)]) + "…"
}

// clipFront cuts s to n columns, with an ellipsis as the first one.
func clipFront(s string, n int) string {
	r := []rune(s)
	if len(r) <= n {
		return s
	}
	return "…" + string(r[len(r)-max(n-1, 0):])
}
