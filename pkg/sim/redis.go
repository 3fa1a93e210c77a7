package sim

import (
	"slices"
	"strings"

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

type redisKey struct {
	value   uint64
	expires int64 // true time, 0 never
}

// An indexEntry is what a collector says of itself in the members hash.
type indexEntry struct {
	instance  uint64
	timestamp uint64
	beat      int64
	token     uint64
	routers   map[string]election.RouterState
}

// redis is the one Redis of the cluster.
type redis struct {
	w      *world
	mode   redisMode
	slow   int64   // added to each way
	lose   float64 // part of the replies that get lost
	silent bool    // announcements get lost
	coarse bool    // the clock stands, for equal timestamps
	keys   map[string]*redisKey
	index  map[string]*indexEntry
	token  uint64
	offset int64 // of its clock to true time
	stuck  []func()
}

func (rd *redis) clock() int64 {
	if rd.coarse {
		return epoch + rd.offset
	}
	return rd.w.now + epoch + rd.offset
}

func (rd *redis) trip() int64 { return rd.w.between(50, 800) + rd.w.between(0, rd.slow) }

// call runs op in Redis and tells p how it went, at the latest at until.
func (rd *redis) call(p *proc, until int64, op func(), done func(why string)) {
	w := rd.w
	over := false
	finish := func(why string) {
		p.do(0, func() {
			if !over {
				over = true
				done(why)
			}
		})
	}
	w.after(until-w.now, func() { finish("no answer in time") })
	if p.node.cutRedis {
		return
	}
	w.after(rd.trip(), func() {
		run := func() {
			if rd.mode == redisErrors {
				w.after(rd.trip(), func() { finish("LOADING Redis is loading the dataset in memory") })
				return
			}
			op()
			if !w.chance(rd.lose) {
				w.after(rd.trip(), func() { finish("") })
			}
		}
		switch rd.mode {
		case redisRefuses:
			finish("connection refused")
		case redisHangs:
			rd.stuck = append(rd.stuck, run)
		default:
			run()
		}
	})
}

// set changes the mode; what was stuck is done late.
func (rd *redis) set(m redisMode) {
	rd.mode = m
	stuck := rd.stuck
	rd.stuck = nil
	if m == redisFine {
		for _, f := range stuck {
			f()
		}
	}
}

// restart forgets everything.
func (rd *redis) restart() {
	rd.keys = make(map[string]*redisKey)
	rd.index = make(map[string]*indexEntry)
	rd.token = 0
	rd.stuck = nil
}

func (rd *redis) get(name string) (v uint64, ttl int64, ok bool) {
	k := rd.keys[name]
	if k == nil {
		return 0, 0, false
	}
	if k.expires == 0 {
		return k.value, 0, true
	}
	if k.expires <= rd.w.now { // lazily
		delete(rd.keys, name)
		return 0, 0, false
	}
	return k.value, k.expires - rd.w.now, true
}

// view is the state of one exchange, as in cluster.Client.Round.
type view struct {
	time     int64
	members  []election.Member
	shadowed bool
	unknown  bool
}

// read is the first half of a round.
func (rd *redis) read(p *proc, timestamp uint64) *view {
	v := &view{time: rd.clock(), unknown: rd.index[p.node.name] == nil}
	names := make([]string, 0, len(rd.index))
	for name := range rd.index {
		names = append(names, name)
	}
	slices.SortFunc(names, strings.Compare)
	for _, name := range names {
		e := rd.index[name]
		age := v.time - e.beat
		mine := name == p.node.name
		if mine && e.instance != p.instance && age < rd.w.expiry && older(e.timestamp, e.instance, timestamp, p.instance) {
			v.shadowed = true
		}
		if mine && !v.shadowed || age > rd.w.window {
			continue
		}
		v.members = append(v.members, election.Member{Name: name, Instance: e.instance, Token: e.token, Routers: e.routers})
	}
	return v
}

func older(t uint64, instance uint64, ourTime, ourInstance uint64) bool {
	if t == ourTime {
		return instance < ourInstance
	}
	return t != 0 && (ourTime == 0 || t < ourTime)
}

// write is the second half.
func (rd *redis) write(p *proc, v *view, timestamp, value uint64, token uint64, routers map[string]election.RouterState) {
	if value != 0 {
		rd.put(p.node.name, value)
		rd.index[p.node.name] = &indexEntry{p.instance, timestamp, v.time, token, routers}
	}
	for i := range v.members {
		m := &v.members[i]
		t, ttl, ok := rd.get(m.Name)
		m.Value, m.TTL, m.Gone = t, ttl, !ok
	}
	if value != 0 {
		v.members = append(v.members, election.Member{
			Name: p.node.name, Instance: p.instance, Value: value, Token: token, Routers: routers, TTL: rd.w.expiry,
		})
	}
}

func (rd *redis) put(name string, value uint64) {
	if old, _, _ := rd.get(name); old != value && value != election.ForcedStandby && value != election.ForcedActive {
		for _, other := range rd.w.nodes {
			if v, _, ok := rd.get(other.name); ok && other.name != name && v == value {
				rd.w.fire(EqualTimestamps)
			}
		}
	}
	rd.keys[name] = &redisKey{value, rd.w.now + rd.w.expiry}
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
	for _, p := range rd.w.procs {
		if p != from && !p.dead && !p.node.cutRedis {
			p.do(rd.trip(), func() {
				p.el.Look(p.local())
				p.turn()
			})
		}
	}
}
