package election

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
)

const (
	ms  int64 = 1000
	sec       = 1000 * ms

	heartbeat = sec
	expiry    = 2 * sec
	handover  = 3 * sec
	window    = 15 * sec
	proof     = 4 * sec
	maxBehind = sec
	steady    = 2 * sec
	// redisEpoch is Redis' clock when a test begins.
	redisEpoch int64 = 1_760_000_000 * sec
)

// takeover is the longest that a takeover from a dead member lasts: its
// timestamp expires, it is noticed, and a round with a claim is made.
const takeover = expiry + expirySlack + 100*ms

// A world is a Redis and some collectors on one virtual clock. Each turn is a
// millisecond. It watches what must never happen: two that send for a router
// within their leases without both or the later of them saying so.
type world struct {
	t       *testing.T
	now     int64
	latency int64
	grace   int64         // of those that start from now on
	config  func(*Config) // changes it, likewise
	mode    string        // of Redis: "" or what it does wrong: refuse, hang, errors
	keys    map[string]key
	said    map[string]Member // what members last said, which stays after their end
	token   uint64
	nodes   map[string]*node
	history []string // who was active, whenever that changed

	heartbeat, expiry int64 // of those that start from now on

	pubsub   bool                // members ask each other to look
	links    bool                // members hear each other directly
	cut      map[[2]string]bool  // links that are down, from and to
	read     int64               // how long it takes to read what another has written
	together map[[2]string]int64 // since when two send, each as if alone
	most     int64               // for how long they may
	longest  int64               // for how long they did
}

// A replica is what Redis was at some time.
type replica struct {
	keys  map[string]key
	said  map[string]Member
	token uint64
}

// copies returns a replica that is up to date.
func (w *world) copies() *replica {
	return &replica{maps.Clone(w.keys), maps.Clone(w.said), w.token}
}

// failOver makes the replica the Redis.
func (w *world) failOver(r *replica) {
	w.keys, w.said, w.token = maps.Clone(r.keys), maps.Clone(r.said), r.token
}

type key struct {
	value   uint64
	expires int64
}

type node struct {
	w      *world
	name   string
	e      *Election
	offset int64 // of the local clock
	hears  map[string]bool
	sends  map[string]bool
	states map[string]RouterState // Whole and Behind, of those that are not just whole
	duties map[string]Duty
	ready  bool
	expect int64 // since when there is something to read in advance, 0 if not
	cutOff bool  // from Redis
	told   string

	counted uint64 // the token in Redis at the last round
	spoke   int64  // Redis' clock when what we say was last written
	mark    int64  // that it gives for what it sends, Redis' clock
	slow    bool   // does not stop sending when it should
	paused  bool
	dead    bool

	busy   bool
	sent   int64 // of the round under way
	doneAt int64
}

func newWorld(t *testing.T, names ...string) *world {
	w := &world{
		t: t, now: 1, latency: 2 * ms,
		keys: make(map[string]key), said: make(map[string]Member), nodes: make(map[string]*node),
		heartbeat: heartbeat, expiry: expiry, read: 20 * ms,
		cut: make(map[[2]string]bool), together: make(map[[2]string]int64),
	}
	for _, name := range names {
		w.start(name)
		w.run(10 * ms) // so that the order of names is that of age
	}
	return w
}

// start starts a collector that hears router r.
func (w *world) start(name string) *node {
	n := &node{
		w: w, name: name, offset: int64(len(w.history)+len(w.nodes)+1) * 1234567,
		hears: map[string]bool{"r": true}, sends: make(map[string]bool), mark: redisEpoch,
		states: make(map[string]RouterState), duties: make(map[string]Duty),
	}
	cfg := Config{
		Name: name, Instance: uint64(w.now), Heartbeat: w.heartbeat, Expiry: w.expiry,
		Deadline: Deadline(w.heartbeat, w.expiry), Failures: 3, Handover: handover, Grace: w.grace, Window: window, Proof: proof,
		Failback: true, MaxBehind: maxBehind, Steady: steady,
	}
	if w.config != nil {
		w.config(&cfg)
	}
	n.e = New(cfg, n.local())
	w.nodes[name] = n
	return n
}

func (n *node) local() int64 { return n.w.now + n.offset }

func (w *world) redisTime() int64 { return redisEpoch + w.now }

// run lets time pass.
func (w *world) run(d int64) {
	for end := w.now + d; w.now < end; w.now += ms {
		for _, name := range slices.Sorted(maps.Keys(w.nodes)) {
			w.nodes[name].turn()
		}
		w.watch()
	}
}

// until runs until cond holds and returns how long that took. It fails the test
// after most.
func (w *world) until(what string, most int64, cond func() bool) int64 {
	w.t.Helper()
	from := w.now
	for !cond() {
		if w.now-from > most {
			w.t.Fatalf("%s: not within %d ms\n%s", what, most/ms, w)
		}
		w.run(ms)
	}
	return w.now - from
}

func (n *node) turn() {
	if n.paused || n.dead {
		return
	}
	n.e.Tick(n.local())
	n.apply()
	if _, ok := n.w.said[n.name]; ok && n.w.now/ms%(n.e.cfg.Heartbeat/4/ms) == 0 && n.w.mode == "" && !n.cutOff &&
		n.w.said[n.name].Instance == n.e.cfg.Instance {
		me := n.words()
		me.Beat = n.w.redisTime()
		n.w.said[n.name] = me // between rounds
	}
	if n.w.links && n.w.now/ms%(n.e.cfg.Heartbeat/4/ms) == 0 {
		n.speak()
	}
	if n.busy && n.w.now >= n.doneAt {
		n.busy = false
		n.finish()
		n.apply()
	}
	if !n.busy && n.local() >= n.e.Next() {
		n.busy, n.sent = true, n.local()
		n.doneAt = n.w.now + n.w.latency
		if n.w.mode == "hang" {
			n.doneAt = n.w.now + n.e.cfg.Deadline
		}
	}
}

// speak tells the others directly what n says in Redis.
func (n *node) speak() {
	m := n.words()
	m.Value = n.e.value()
	for _, name := range slices.Sorted(maps.Keys(n.w.nodes)) {
		o := n.w.nodes[name]
		if o != n && !o.dead && !o.paused && !n.w.cut[[2]string{n.name, name}] {
			o.e.Heard(o.local(), m)
		}
	}
}

// kill ends the process; those that it has a connection with are refused.
func (n *node) kill() {
	n.dead = true
	for name, o := range n.w.nodes {
		if n.w.links && o != n && !o.dead && !n.w.cut[[2]string{n.name, name}] {
			o.e.Dead(o.local(), n.name, n.e.cfg.Instance)
		}
	}
}

// apply does what the election says about each router.
func (n *node) apply() {
	expect := false
	defer func() {
		if !expect {
			n.expect, n.ready = 0, false
			return
		}
		if n.expect == 0 {
			n.expect = n.w.now
		}
		if ready := n.w.now-n.expect >= n.w.read; ready != n.ready {
			n.ready = ready
			n.e.Look(n.local())
		}
	}()
	for router := range n.hears {
		d := n.duty(router)
		n.duties[router] = d
		expect = expect || d.Expect
		if (d.Send || !n.slow) && n.sends[router] != d.Send {
			n.sends[router] = d.Send
			n.e.Look(n.local()) // others must know
		}
	}
}

func (n *node) duty(router string) Duty {
	return n.e.Duty(n.local(), router, n.hears[router], n.sends[router])
}

func (n *node) finish() {
	w := n.w
	if w.mode != "" || n.cutOff {
		n.e.Failed(n.local(), n.sent, cmp.Or(w.mode, "no route to host"))
		return
	}
	value, claim := n.e.Wants()
	r := Round{Sent: n.sent, RedisTime: w.redisTime(), Token: w.token}
	if old, ok := w.said[n.name]; ok && old.Instance != n.e.cfg.Instance && w.alive(n.name) {
		r.Shadowed, value = true, 0
	}
	_, known := w.said[n.name]
	r.Unknown = !known || w.token < n.counted || w.said[n.name].Beat < n.spoke
	n.counted = w.token
	if value != 0 {
		w.keys[n.name] = key{value, w.now + n.e.cfg.Expiry}
		me := n.words()
		me.Beat = w.redisTime()
		n.spoke = me.Beat
		w.said[n.name] = me
	}
	r.Wrote = value
	r.Members = w.members()
	n.e.Done(n.local(), r)
	if claim {
		w.token = max(w.token, n.e.Token()) + 1
		n.e.Claimed(n.local(), w.token)
	}
	me := n.words()
	if said := fmt.Sprint(me.Ready, me.Active, me.Unfit, me.Routers, w.keys[n.name].value); w.pubsub && said != n.told {
		n.told = said
		for _, o := range w.nodes {
			if o != n && !o.dead && !o.paused {
				o.e.Look(o.local())
			}
		}
	}
}

// words is what n says of itself.
func (n *node) words() Member {
	role, _, _ := n.e.Role()
	me := Member{
		Name: n.name, Instance: n.e.cfg.Instance, Token: n.e.Token(), Unfit: n.e.Unfit() != "", Ready: n.ready,
		Active: role == Active, Strayed: n.e.Strayed(n.local()), Routers: make(map[string]RouterState),
	}
	for router, hears := range n.hears {
		s, ok := n.states[router]
		if !ok {
			s.Whole = hears
		}
		s.Hears, s.Sends, s.Mark = hears, n.sends[router], -1
		s.Keeps, s.Lags = n.duties[router].Keeps, n.duties[router].Lags
		if s.Sends {
			s.Mark = n.mark
		}
		me.Routers[router] = s
	}
	return me
}

func (w *world) alive(name string) bool { return w.keys[name].expires > w.now }

// members lists what Redis knows, native members too: they have a key and have
// said nothing.
func (w *world) members() (all []Member) {
	for _, name := range slices.Sorted(maps.Keys(w.said)) {
		m := w.said[name]
		m.Value, m.TTL, m.Gone = w.keys[name].value, w.keys[name].expires-w.now, !w.alive(name)
		m.Beat = w.redisTime() - m.Beat + 1
		all = append(all, m)
	}
	for _, name := range slices.Sorted(maps.Keys(w.keys)) {
		if _, ours := w.said[name]; !ours && w.alive(name) {
			all = append(all, Member{Name: name, Value: w.keys[name].value, Native: true, TTL: w.keys[name].expires - w.now})
		}
	}
	return all
}

// watch checks that no two send without a word about it, and notes who is
// active.
func (w *world) watch() {
	w.t.Helper()
	var alone []string
	for _, name := range slices.Sorted(maps.Keys(w.nodes)) {
		n := w.nodes[name]
		if n.dead || n.paused || n.slow || n.local() >= n.e.Lease() {
			continue
		}
		if d := n.duty("r"); d.Send && !d.Shared {
			alone = append(alone, name)
		}
	}
	for i, a := range alone {
		for _, b := range alone[i+1:] {
			pair := [2]string{a, b}
			if w.together[pair] == 0 {
				w.together[pair] = w.now
			}
			if d := w.now - w.together[pair]; d >= w.most {
				w.t.Fatalf("%s and %s send for %d ms, each as if alone\n%s", a, b, d/ms, w)
			} else {
				w.longest = max(w.longest, d)
			}
		}
	}
	maps.DeleteFunc(w.together, func(pair [2]string, _ int64) bool {
		return !slices.Contains(alone, pair[0]) || !slices.Contains(alone, pair[1])
	})
	if a := w.active(); len(w.history) == 0 || w.history[len(w.history)-1] != a {
		w.history = append(w.history, a)
	}
}

// active names those that are active, and may hand over.
func (w *world) active() string {
	var names []string
	for _, name := range slices.Sorted(maps.Keys(w.nodes)) {
		n := w.nodes[name]
		if role, _, _ := n.e.Role(); role == Active && !n.dead && !n.paused {
			names = append(names, name)
		}
	}
	return strings.Join(names, " ")
}

// senders names those that send for router r.
func (w *world) senders(router string) string {
	var names []string
	for _, name := range slices.Sorted(maps.Keys(w.nodes)) {
		n := w.nodes[name]
		if !n.dead && !n.paused && n.sends[router] && n.local() < n.e.Lease() {
			names = append(names, name)
		}
	}
	return strings.Join(names, " ")
}

// announce makes all look at Redis, as members ask each other to.
func (w *world) announce() {
	for _, n := range w.nodes {
		if !n.dead && !n.paused {
			n.e.Look(n.local())
		}
	}
}

func (w *world) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "at %d ms, Redis %q, active so far: %q\n", w.now/ms, w.mode, w.history)
	for _, name := range slices.Sorted(maps.Keys(w.nodes)) {
		n := w.nodes[name]
		role, why, _ := n.e.Role()
		fmt.Fprintf(&b, "  %s: %s (%s), timestamp %d, token %d, lease for %d ms, sends %v\n",
			name, role, why, n.e.Timestamp(), n.e.Token(), (n.e.Lease()-n.local())/ms, n.sends)
	}
	return b.String()
}

func (w *world) want(what, got, want string) {
	w.t.Helper()
	if got != want {
		w.t.Fatalf("%s: %q, want %q\n%s", what, got, want, w)
	}
}
