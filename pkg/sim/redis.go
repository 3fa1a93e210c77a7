package sim

import (
	"github.com/bmpha/bmpha/pkg/election"
)

// How Redis behaves.
type redisMode uint8

const (
	redisFine redisMode = iota
	redisRefuses
	redisHangs // reads what comes when it wakes up, as a stopped process does
	redisErrors
)

// A redisState is what Redis holds, by node.
type redisState struct {
	keys  [maxNodes]redisKey
	index [maxNodes]*indexEntry // nil: no such entry
	token uint64
}

type redisKey struct {
	value   uint64 // 0: no such key
	expires int64  // true time, 0 never
}

// An indexEntry is what a collector says of itself in the members hash. It does
// not change.
type indexEntry struct {
	timestamp uint64
	beat      int64
	m         election.Member
}

// redis is the one Redis of the cluster.
type redis struct {
	w      *world
	mode   redisMode
	slow   int64   // added to each way
	lose   float64 // part of the replies that get lost
	silent bool    // announcements get lost
	coarse bool    // the clock stands, for equal timestamps
	redisState
	offset  int64 // of its clock to true time
	stuck   []*redisCall
	replica redisState // what a replica has that no longer hears of changes
}

func (rd *redis) clock() int64 {
	if rd.coarse {
		return epoch + rd.offset
	}
	return rd.w.now + epoch + rd.offset
}

func (rd *redis) trip() int64 { return rd.w.between(50, 800) + rd.w.between(0, rd.slow) }

// A client asks Redis.
type client interface {
	op()             // in Redis
	done(why string) // back in the process; why it failed, "" if it did not
}

// A redisCall is a request of a process and its answer.
type redisCall struct {
	rd    *redis
	p     *proc
	until int64 // the process waits no longer
	c     client
	why   string
	back  bool // the answer is there, or there is none
}

// call runs c.op in Redis and tells p how it went, at the latest at until.
func (rd *redis) call(p *proc, until int64, c client) {
	w := rd.w
	r := &redisCall{rd: rd, p: p, until: until, c: c}
	if p.node.cutRedis {
		r.answer(until-w.now, "no answer in time")
		return
	}
	trip := rd.trip()
	if w.now+trip >= until {
		r.answer(until-w.now, "no answer in time")
	}
	w.push(trip, nil, r)
}

// answer lets the process have an answer after d, or know that it has none.
func (r *redisCall) answer(d int64, why string) {
	w := r.rd.w
	if r.back {
		return
	}
	r.back = true
	if w.now+d >= r.until {
		d, why = r.until-w.now, "no answer in time"
	}
	r.why = why
	w.push(d, r.p, (*redisAnswer)(r))
}

func (r *redisCall) run() {
	rd := r.rd
	switch rd.mode {
	case redisRefuses:
		r.answer(0, "connection refused")
	case redisHangs:
		r.answer(r.until-rd.w.now, "no answer in time")
		rd.stuck = append(rd.stuck, r)
	default:
		r.execute()
	}
}

func (r *redisCall) execute() {
	rd := r.rd
	if rd.mode == redisErrors {
		r.answer(rd.trip(), "LOADING Redis is loading the dataset in memory")
		return
	}
	r.c.op()
	if rd.w.chance(rd.lose) {
		r.answer(r.until-rd.w.now, "no answer in time")
		return
	}
	r.answer(rd.trip(), "")
}

// redisAnswer is the arrival of an answer.
type redisAnswer redisCall

func (r *redisAnswer) run() { r.c.done(r.why) }

// set changes the mode; what was stuck is done late.
func (rd *redis) set(m redisMode) {
	rd.mode = m
	stuck := rd.stuck
	rd.stuck = nil
	if m == redisFine {
		for _, r := range stuck {
			r.execute()
		}
	}
}

// restart forgets everything.
func (rd *redis) restart() {
	rd.redisState = redisState{}
	rd.stuck = nil
}

func (rd *redis) get(node int) (v uint64, ttl int64, ok bool) {
	k := &rd.keys[node]
	switch {
	case k.value == 0:
		return 0, 0, false
	case k.expires == 0:
		return k.value, 0, true
	case k.expires <= rd.w.now: // lazily
		*k = redisKey{}
		return 0, 0, false
	}
	return k.value, k.expires - rd.w.now, true
}

// view is the state of one exchange, as in cluster.Client.Round.
type view struct {
	time     int64
	nodes    []int // of members, in order
	members  []election.Member
	shadowed bool
	unknown  bool
	token    uint64
}

// read is the first half of a round.
func (rd *redis) read(v *view, p *proc, timestamp uint64) {
	own := rd.index[p.node.id]
	*v = view{time: rd.clock(), token: rd.token, nodes: v.nodes[:0], members: make([]election.Member, 0, len(rd.w.nodes)+1)}
	v.unknown = own == nil || rd.token < p.counted || own.beat < p.wroteAt-2*rd.w.deadline
	p.counted = rd.token
	for i, e := range rd.index[:len(rd.w.nodes)] {
		if e == nil {
			continue
		}
		age := v.time - e.beat
		mine := i == p.node.id
		if mine && e.m.Instance != p.instance && age < rd.w.expiry && older(e.timestamp, e.m.Instance, timestamp, p.instance) {
			v.shadowed = true
		}
		if mine && !v.shadowed || age > rd.w.window {
			continue
		}
		v.nodes = append(v.nodes, i)
		m := e.m
		m.Beat = max(1, age)
		v.members = append(v.members, m)
	}
}

func older(t uint64, instance uint64, ourTime, ourInstance uint64) bool {
	if t == ourTime {
		return instance < ourInstance
	}
	return t != 0 && (ourTime == 0 || t < ourTime)
}

// write is the second half.
func (rd *redis) write(p *proc, v *view, timestamp, value uint64, m election.Member) {
	if value != 0 {
		rd.put(p.node.id, value)
		rd.index[p.node.id] = &indexEntry{timestamp, v.time, m}
	}
	for i, node := range v.nodes {
		m := &v.members[i]
		t, ttl, ok := rd.get(node)
		m.Value, m.TTL, m.Gone = t, ttl, !ok
		switch rd.w.opt.Defect {
		case GoneIsOldest:
			m.Gone = false
		case TiesBothActive:
			if m.Value == value && value != 0 {
				m.Value++
			}
		}
	}
	if value != 0 {
		m.Value, m.TTL = value, rd.w.expiry
		v.members = append(v.members, m)
	}
}

func (rd *redis) put(node int, value uint64) {
	if old, _, _ := rd.get(node); old != value && value != election.ForcedStandby && value != election.ForcedActive {
		for _, other := range rd.w.nodes {
			if v, _, ok := rd.get(other.id); ok && other.id != node && v == value {
				rd.w.fire(EqualTimestamps)
			}
		}
	}
	rd.keys[node] = redisKey{value, rd.w.now + rd.w.expiry}
}

// claim gives the next token. A Redis that has forgotten goes on from its clock,
// so that tokens rise even when no collector remembers the last one.
func (rd *redis) claim(seen uint64) uint64 {
	if rd.token == 0 {
		rd.token = uint64(rd.clock())
	}
	rd.token = max(rd.token, seen) + 1
	rd.w.res.Takeovers++
	return rd.token
}

// tell passes an announcement on to all but p.
func (rd *redis) tell(from *proc) {
	if rd.silent {
		rd.w.fire(AnnouncementsLost)
		return
	}
	for _, nd := range rd.w.nodes {
		if p := nd.proc; p != nil && p != from && !nd.cutRedis {
			rd.w.push(rd.trip(), p, (*announced)(p))
		}
	}
}

// announced is the arrival of an announcement.
type announced proc

func (t *announced) run() {
	p := (*proc)(t)
	p.el.Look(p.local())
	p.turn()
}

// lag makes a replica that hears of nothing from now on.
func (rd *redis) lag() { rd.replica = rd.redisState }

// failover makes the replica the Redis that there is.
func (rd *redis) failover() { rd.redisState = rd.replica }
