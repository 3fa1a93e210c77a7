package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/bmpha/bmpha/pkg/control"
	"github.com/bmpha/bmpha/pkg/record"
	"github.com/bmpha/bmpha/pkg/replay"
	"github.com/bmpha/bmpha/pkg/rig"
)

// failover compares two pairs of pmacct daemons on the same traffic at the same
// time: one writes to Kafka itself, the other between the two sides of a pair of
// bmpha. Whatever is killed in the second pair, the daemon of that side is killed in
// the first at the same moment, and both are started again at the same moment.
//
// Nothing may stand in for a real part here: the comparison would be with something
// that nobody runs.
func (r *run) failover(ctx context.Context) (tables []*table, err error) {
	var missing []string
	for _, name := range []string{rig.PmbmpdPart, rig.RedisServerPart, rig.KafkaPart} {
		if p, ok := part(name); !ok {
			missing = append(missing, p.Name+": "+p.Missing)
		}
	}
	if len(missing) > 0 {
		return nil, fmt.Errorf("missing real parts: %s (scripts/install-parts installs them)", strings.Join(missing, ", "))
	}
	if r.rate < 100 || r.rate > 100_000 || r.each < 1 {
		return nil, fmt.Errorf("%d messages/s and %d kills of each, want 100 to 100000 and at least 1", r.rate, r.each)
	}
	k, err := rig.StartKafkaServer(ctx, rig.KafkaOptions{Topics: map[string]int{"alone": 1, "beside": 1}})
	if err != nil {
		return nil, err
	}
	defer k.Close()

	c := &contest{run: r, kafka: k}
	defer func() {
		for i := range c.sides {
			if err != nil {
				c.sides[i].explain(os.Stderr)
			}
		}
		for i := range c.sides {
			err = errors.Join(err, c.sides[i].close())
		}
	}()
	for i, role := range []func(*control.Status) bool{isActive, isStandby} {
		if err := c.startSide(ctx, i, k.Brokers()); err != nil {
			return nil, err
		}
		if err := c.sides[i].bmpha.awaitStatus(ctx, "in its role", role); err != nil {
			return nil, err
		}
	}
	for _, to := range []struct {
		topic  string
		reader *reader
	}{{"alone", &c.alone}, {"beside", &c.beside}} {
		consumer, err := rig.ConsumeEach(ctx, k.Brokers(), to.topic, to.reader.take)
		if err != nil {
			return nil, err
		}
		defer consumer.Close()
	}
	stream, err := replay.Synthetic{Seed: 42, Name: "bench", Peers: 4, Numbered: true, Start: time.Now(), Step: time.Second / time.Duration(r.rate)}.Stream()
	if err != nil {
		return nil, err
	}
	var to []string
	for i := range c.sides {
		to = append(to, c.sides[i].alone.Addr(), c.sides[i].bmpha.addr)
	}
	c.router, err = replay.NewRouter(replay.Config{Stream: stream, To: to, Source: routerAddr(0), Rate: float64(r.rate)})
	if err != nil {
		return nil, err
	}
	if c.machine, err = c.watch(); err != nil {
		return nil, err
	}
	c.router.Start()
	defer func() { err = errors.Join(err, c.router.Stop(context.WithoutCancel(ctx), replay.Abort)) }()
	for i := range c.sides {
		if err := c.awaitLevel(ctx, i, i, 0); err != nil {
			return nil, err
		}
	}
	// Two of pmacct and two of bmpha in turn, so that each comes to both sides: one
	// pmacct that dies twice within a minute is another matter, since its bmpha then
	// lets it wait longer and longer for the sessions.
	left := map[bool]int{true: r.each, false: r.each}
	for n := range 2 * r.each {
		if err := c.quiet(ctx); err != nil {
			return nil, err
		}
		pmacct := n%4 < 2
		if left[pmacct] == 0 {
			pmacct = !pmacct
		}
		left[pmacct]--
		if err := c.kill(ctx, pmacct); err != nil {
			return nil, fmt.Errorf("kill %d: %w", n+1, err)
		}
		fmt.Fprintf(os.Stderr, "kill %d of %d\n", n+1, 2*r.each)
	}
	if err := c.quiet(ctx); err != nil {
		return nil, err
	}
	return c.judge(ctx)
}

// A contest is the two pairs in front of one router.
type contest struct {
	*run
	kafka         *rig.KafkaServer
	machine       usage // when the traffic began
	sides         [2]side
	alone, beside reader
	router        *replay.Router
	tables        []float64 // routes that the router had announced at each kill
	short         []float64 // records that pmacct had thrown away, where it had, after a restart
}

// A side is what one host would run, in each of the two pairs.
type side struct {
	alone  *rig.Pmbmpd // routers connect to it, it writes to Kafka
	pmacct *rig.Pmbmpd // the same between the two sides of bmpha
	bmpha  *daemon

	cpuAlone, cpuPmacct, cpuBmpha time.Duration // of processes that are gone
}

// startSide starts the daemons of one side, with the keys of pmacct/pmbmpd.conf and
// pmacct/pmbmpd-both.conf.
func (c *contest) startSide(ctx context.Context, i int, brokers string) (err error) {
	s := &c.sides[i]
	if s.alone, err = rig.StartPmbmpd(ctx, rig.PmbmpdOptions{
		Kafka: brokers, Topic: "alone", Config: []string{"bmp_daemon_max_peers: 10"},
	}); err != nil {
		return err
	}
	var ports [2]string
	for i := range ports {
		port, err := rig.FreePort("")
		if err != nil {
			return fmt.Errorf("start bmpha: %w", err)
		}
		ports[i] = net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
	}
	listen, intake := ports[0], ports[1]
	if s.pmacct, err = rig.StartPmbmpd(ctx, rig.PmbmpdOptions{
		Kafka: intake, Topic: "beside", Config: []string{
			"bmp_daemon_max_peers: 10", "bmp_daemon_parse_proxy_header: true", "bmp_daemon_pipe_size: 131072",
			"bmp_daemon_msglog_kafka_retry: 1",
		},
	}); err != nil {
		return err
	}
	name := string(rune('a' + i))
	dir := filepath.Join(c.dir, "failover-"+name)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("start bmpha: %w", err)
	}
	config, socket := filepath.Join(dir, "bmpha.yaml"), filepath.Join(dir, "bmpha.sock")
	text := fmt.Sprintf(`process: %s
cluster: {name: failover}
listen: {address: "%s"}
relay: {to: ["%s"]}
intake: {listen: ["%s"]}
redis: {address: "%s"}
kafka: {brokers: "%s", topic: "beside", dead_letter: "%s"}
control: {socket: "%s"}
`, name, listen, s.pmacct.Addr(), intake, c.redis.Addr(), brokers, filepath.Join(dir, "dead-letter.jsonl"), socket)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		return fmt.Errorf("start bmpha: %w", err)
	}
	d := &daemon{kind: "bmpha", addr: listen, control: control.NewClient(socket)}
	d.process, err = rig.Start(ctx, rig.Command{
		Name: "bmpha " + name, Path: c.bmpha, Args: []string{"run", "-c", config}, Log: filepath.Join(dir, "log"),
		Ready: func() error { _, err := d.control.Status(ctx); return err },
	})
	if err != nil {
		d.control.Close()
		return err
	}
	s.bmpha = d
	return nil
}

func (s *side) close() error {
	var errs []error
	if s.bmpha != nil {
		s.bmpha.control.Close()
		errs = append(errs, s.bmpha.process.Close())
	}
	for _, p := range []*rig.Pmbmpd{s.pmacct, s.alone} {
		if p != nil {
			errs = append(errs, p.Close())
		}
	}
	return errors.Join(errs...)
}

// explain writes the ends of the logs, which go with the processes.
func (s *side) explain(w io.Writer) {
	var logs []string
	for _, p := range []*rig.Pmbmpd{s.alone, s.pmacct} {
		if p != nil {
			logs = append(logs, p.LogFile())
		}
	}
	if s.bmpha != nil {
		logs = append(logs, s.bmpha.process.LogFile())
	}
	for _, file := range logs {
		text, err := os.ReadFile(file)
		if err != nil {
			text = []byte(err.Error())
		}
		fmt.Fprintf(w, "end of %s:\n%s\n", file, text[max(0, len(text)-4000):])
	}
}

// quiet lets both pairs run undisturbed.
func (c *contest) quiet(ctx context.Context) error {
	c.span(undisturbed)
	return sleep(ctx, backFor+time.Duration(rand.Int64N(int64(time.Second))))
}

// span begins another span of time at both readers.
func (c *contest) span(kind spanKind) {
	now := time.Now()
	c.alone.begin(kind, now)
	c.beside.begin(kind, now)
}

// kill ends pmacct or bmpha of the active side, and of the pair without bmpha
// pmacct of the same side; starts them again as soon as the other side sends; and
// returns when all have caught up with the router.
func (c *contest) kill(ctx context.Context, pmacct bool) error {
	active := -1
	for i := range c.sides {
		if s, err := c.sides[i].bmpha.control.Status(ctx); err != nil {
			return err
		} else if isActive(s) {
			active = i
		}
	}
	if active < 0 {
		return errors.New("no bmpha is active")
	}
	s := &c.sides[active]
	victim, used, kind := s.bmpha.process, &s.cpuBmpha, bmphaKilled
	if pmacct {
		victim, used, kind = s.pmacct.Process, &s.cpuPmacct, pmacctKilled
	}
	c.tables = append(c.tables, float64(c.router.Counters().Announced))
	old, session := c.beside.lastSender(), c.alone.begun()
	c.span(kind)
	for _, one := range []struct {
		p    *rig.Process
		used *time.Duration
	}{{victim, used}, {s.alone.Process, &s.cpuAlone}} {
		u, err := one.p.Usage()
		if err != nil {
			return err
		}
		*one.used += u.CPU
		if err := one.p.Kill(); err != nil {
			return err
		}
	}
	wait, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if err := rig.WaitFor(wait, func() error {
		if c.beside.lastSender() == old {
			return errors.New("nobody has taken over")
		}
		return nil
	}); err != nil {
		return err
	}
	before := uint64(0)
	if pmacct {
		st, err := s.bmpha.control.Status(ctx)
		if err != nil {
			return err
		}
		before = st.Intake.Records
	}
	if err := errors.Join(victim.Restart(ctx), s.alone.Restart(ctx)); err != nil {
		return err
	}
	return c.awaitLevel(ctx, active, session, before)
}

// awaitLevel waits until both pairs' daemons of a side, which have just been
// started, have made records of all that the router has said, its table included.
// session is the one to pmacct alone, by the order in which they began; before is
// what the side's intake had got from earlier daemons. A pmacct that has thrown
// records away never gets there: it counts as level, and as short, when it follows
// the router at a distance that stays the same.
func (c *contest) awaitLevel(ctx context.Context, i, session int, before uint64) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	slack := uint64(c.rate) / 10
	const steadyFor = 3 * time.Second
	err := rig.WaitFor(ctx, func() error {
		if n, want := c.alone.routes(session), c.router.Counters().Announced; n+slack < want {
			return fmt.Errorf("pmbmpd has written %d of %d routes", n, want)
		}
		return nil
	})
	if err != nil {
		return err
	}
	most := uint64(3 * c.rate) // what a standby holds anyway: a little over a second of traffic
	var behind, anchor uint64
	var steady time.Time // since when it is no closer to the router, and no further away
	err = c.sides[i].bmpha.awaitStatus(ctx, "level", func(s *control.Status) bool {
		want, got := c.router.Counters().Announced, s.Intake.Records-before
		behind = want - min(want, got)
		if now := time.Now(); steady.IsZero() || max(behind, anchor)-min(behind, anchor) > slack {
			steady, anchor = now, behind
		}
		return (behind <= slack || got > 0 && time.Since(steady) >= steadyFor) && s.Sessions.Now == 1 && (isActive(s) || s.Hold.Messages <= most)
	})
	if err != nil {
		return err
	}
	if behind > slack {
		c.short = append(c.short, float64(behind))
	}
	// What is still on its way is not to be counted as quiet operation.
	return sleep(ctx, time.Second)
}

// A usage is what the machine has done until a moment, and what of it was the
// contest's: everything but Redis.
type usage struct {
	at          time.Time
	busy, total time.Duration
	own         time.Duration
}

func (c *contest) watch() (u usage, err error) {
	u.at = time.Now()
	if u.busy, u.total, err = machineCPU(); err != nil {
		return u, err
	}
	kafka, err := c.kafka.Usage()
	u.own = kafka.CPU + selfCPU()
	for i := range c.sides {
		s := &c.sides[i]
		u.own += s.cpuAlone + s.cpuPmacct + s.cpuBmpha
		for _, p := range []*rig.Process{s.alone.Process, s.pmacct.Process, s.bmpha.process} {
			one, usageErr := p.Usage()
			err = errors.Join(err, usageErr)
			u.own += one.CPU
		}
	}
	return u, err
}

// judge ends the traffic and makes the tables.
func (c *contest) judge(ctx context.Context) ([]*table, error) {
	c.router.Pause(true)
	end, err := c.watch()
	if err != nil {
		return nil, err
	}
	took := end.at.Sub(c.machine.at)
	counters := c.router.Counters()
	sent := counters.Announced
	wait, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	_ = rig.WaitFor(wait, func() error { // in the end the count speaks for itself
		if c.alone.missing(sent)+c.beside.missing(sent) > 0 {
			return errors.New("records are missing")
		}
		return nil
	})
	for i := range c.sides {
		s := &c.sides[i]
		for _, one := range []struct {
			p    *rig.Process
			used *time.Duration
		}{{s.alone.Process, &s.cpuAlone}, {s.pmacct.Process, &s.cpuPmacct}, {s.bmpha.process, &s.cpuBmpha}} {
			u, err := one.p.Usage()
			if err != nil {
				return nil, err
			}
			*one.used += u.CPU
		}
	}

	whole := &table{Title: "8. pmacct alone, and with bmpha in front and behind", Columns: []string{
		"", "sent", "lost", "records in Kafka", "for each sent", "quiet: repeated/s", "quiet: repeated, %", "CPU s, pmacct", "CPU s, bmpha"}}
	version, _ := part(rig.PmbmpdPart)
	whole.note("alone: two pmbmpd %s, each heard by the router, both write to Kafka. with bmpha: router -> two bmpha -> two pmbmpd -> the same two bmpha -> Kafka", version.Version)
	whole.note("default timers (heartbeat 1 s, expiry 2 s, patience 5 s), redis-server, Apache Kafka %s; everything on this machine at the same time", rig.KafkaVersion)
	whole.note("one router for all, %d messages of one route a second, %.0f s; every route is numbered and counted at a consumer of each topic", c.rate, took.Seconds())
	whole.note("quiet: what comes again while nothing is disturbed; lost: numbers that never came; CPU is user and system time of both processes of the pair")
	whole.note("other processes, redis-server among them, had %.0f %% of the machine meanwhile",
		100*max(0, (end.busy-end.own-c.machine.busy+c.machine.own).Seconds())/(end.total-c.machine.total).Seconds())
	c.alone.mu.Lock()
	defer c.alone.mu.Unlock()
	c.beside.mu.Lock()
	defer c.beside.mu.Unlock()
	var aloneCPU, pmacctCPU, bmphaCPU time.Duration
	for i := range c.sides {
		aloneCPU += c.sides[i].cpuAlone
		pmacctCPU += c.sides[i].cpuPmacct
		bmphaCPU += c.sides[i].cpuBmpha
	}
	row := func(name string, r *reader, pmacct float64, bmpha any) {
		fresh, again, d := r.in(undisturbed)
		lost := sent - min(sent, uint64(r.distinct))
		whole.row(name, float64(sent), float64(lost), float64(r.records), float64(r.records)/float64(sent),
			float64(again)/d.Seconds(), 100*float64(again)/float64(fresh), pmacct, bmpha)
	}
	row("alone", &c.alone, aloneCPU.Seconds(), "")
	row("with bmpha", &c.beside, pmacctCPU.Seconds(), bmphaCPU.Seconds())

	kills := &table{Title: "8b. Kills", Columns: []string{
		"", "killed", "kills", "repeated: median", "max", "s of traffic: median", "max", "s without a new record: min", "median", "max"}}
	kills.note("kill -9 of pmbmpd or bmpha of the active side, two of each in turn; alone, pmbmpd of the same side at the same moment")
	kills.note("started again when the other side sends, and back for at least %v after it has caught up; it gets the router's whole table: %.0f routes at the first kill, %.0f at the last",
		backFor, c.tables[0], c.tables[len(c.tables)-1])
	kills.note("repeated: from the kill until all have caught up, less what quiet operation repeats of as many new records")
	kills.note("s without a new record: the longest time between two records of numbers that had not come, at the consumer, the kill and the return included")
	line := func(name, killed string, r *reader, kinds ...spanKind) (worst float64) {
		repeated, gaps := r.kills(kinds...)
		var seconds []float64
		for _, n := range repeated {
			seconds = append(seconds, n/float64(c.rate))
		}
		kills.row(name, killed, float64(len(gaps)), median(repeated), slices.Max(repeated), median(seconds), slices.Max(seconds),
			slices.Min(gaps), median(gaps), slices.Max(gaps))
		return slices.Max(seconds)
	}
	line("alone", "pmbmpd", &c.alone, pmacctKilled, bmphaKilled)
	line("with bmpha", "pmbmpd", &c.beside, pmacctKilled)
	worst := line("with bmpha", "bmpha", &c.beside, bmphaKilled)
	kills.result("with bmpha at most %s s of traffic repeated for a kill of bmpha (target: 1.5)", number(worst))

	if n := len(c.short); n > 0 {
		kills.result("with bmpha, pmacct on the side that came back had thrown records away after %d of %d kills: at most %s",
			n, len(c.tables), number(slices.Max(c.short)))
	}
	for _, to := range counters.Collectors {
		if to.Overflows > 0 {
			kills.result("%d sessions to %s were given up because it did not read", to.Overflows, to.Address)
		}
	}
	lost := sent - min(sent, uint64(c.beside.distinct))
	c.promise(lost == 0, "failover: %d of %d records lost", lost, sent)
	c.promise(c.alone.strange+c.beside.strange == 0, "failover: %d records that nobody sent", c.alone.strange+c.beside.strange)
	return []*table{whole, kills}, nil
}

// A spanKind says what a span of time begins with.
type spanKind int

const (
	starting spanKind = iota
	undisturbed
	pmacctKilled
	bmphaKilled
)

// A span is a part of the run as the consumer of one topic saw it.
type span struct {
	kind         spanKind
	from, to     time.Time
	fresh, again int           // numbers that came for the first time, and not
	longest      time.Duration // between two fresh ones, the last before the span included
}

// A reader is a consumer of one topic. It is safe for concurrent use.
type reader struct {
	mu       sync.Mutex
	records  int // that carry a number
	seen     []bool
	distinct int
	strange  int    // records of routes that nobody announced
	sender   uint64 // the instance of bmpha that sent the last record
	last     time.Time
	spans    []span
	sessions []session // in the order in which they began
}

// A session is one from the router to a pmacct daemon, as its records tell.
type session struct {
	port   string // the router's
	routes uint64
}

var portKey = []byte(`"bmp_router_port": `)

// after returns what is in a record between key and end.
func after(record, key []byte, end byte) ([]byte, bool) {
	i := bytes.Index(record, key)
	if i < 0 {
		return nil, false
	}
	text := record[i+len(key):]
	return text[:max(0, bytes.IndexByte(text, end))], true
}

func (r *reader) take(rec rig.Record) {
	now := time.Now()
	prefix, ok := after(rec.Value, prefixKey, '"')
	if !ok {
		return // a session's or a peer's event
	}
	n, ok := replay.Number(string(prefix))
	port, hasPort := after(rec.Value, portKey, ',')
	r.mu.Lock()
	defer r.mu.Unlock()
	if !ok || !hasPort {
		r.strange++
		return
	}
	r.records++
	if raw := rec.Header(record.HeaderName); raw != nil {
		if h, err := record.ParseHeader(raw); err == nil {
			r.sender = h.Instance
		}
	}
	// The newest session is the likely one.
	i := len(r.sessions) - 1
	for i >= 0 && r.sessions[i].port != string(port) {
		i--
	}
	if i < 0 {
		i = len(r.sessions)
		r.sessions = append(r.sessions, session{port: string(port)})
	}
	r.sessions[i].routes++
	if len(r.spans) == 0 {
		r.spans = []span{{from: now}}
	}
	s := &r.spans[len(r.spans)-1]
	if need := int(n) + 1 - len(r.seen); need > 0 {
		r.seen = append(r.seen, make([]bool, need)...)
	}
	if r.seen[n] {
		s.again++
		return
	}
	r.seen[n] = true
	r.distinct++
	s.fresh++
	if !r.last.IsZero() {
		s.longest = max(s.longest, now.Sub(r.last))
	}
	r.last = now
}

// begin ends the present span and begins another.
func (r *reader) begin(kind spanKind, now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if n := len(r.spans); n > 0 {
		r.spans[n-1].to = now
	}
	r.spans = append(r.spans, span{kind: kind, from: now})
}

func (r *reader) lastSender() uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.sender
}

// begun returns how many sessions have begun.
func (r *reader) begun() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.sessions)
}

// routes returns how many routes have come of a session, counted from 0.
func (r *reader) routes(session int) uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	if session >= len(r.sessions) {
		return 0
	}
	return r.sessions[session].routes
}

// missing returns how many of the numbers below n have not come.
func (r *reader) missing(n uint64) uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return n - min(n, uint64(r.distinct))
}

// in adds up the spans of one kind. The lock is held.
func (r *reader) in(kind spanKind) (fresh, again int, d time.Duration) {
	for _, s := range r.spans {
		if s.kind == kind && !s.to.IsZero() {
			fresh, again, d = fresh+s.fresh, again+s.again, d+s.to.Sub(s.from)
		}
	}
	return fresh, again, d
}

// kills returns for each span of these kinds what was repeated beyond quiet
// operation, and the longest time without a new record, in seconds. The lock is
// held.
func (r *reader) kills(kinds ...spanKind) (repeated, gaps []float64) {
	fresh, again, _ := r.in(undisturbed)
	usual := float64(again) / float64(fresh)
	for _, s := range r.spans {
		if slices.Contains(kinds, s.kind) {
			repeated = append(repeated, max(0, float64(s.again)-usual*float64(s.fresh)))
			gaps = append(gaps, s.longest.Seconds())
		}
	}
	return repeated, gaps
}
