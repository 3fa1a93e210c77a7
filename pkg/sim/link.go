package sim

import "github.com/bmpha/bmpha/pkg/election"

// hearing is the arrival of what a member says over its direct connection.
type hearing struct {
	p    *proc
	m    election.Member
	news bool // more than that it is alive, and its marks
}

func (x *hearing) run() {
	p := x.p
	p.el.Heard(p.local(), x.m)
	if x.news || p.el.Next() <= p.local() {
		p.turn()
	}
}

// obituary is the news that a process has ended.
type obituary struct {
	p        *proc
	name     string
	instance uint64
}

func (x *obituary) run() {
	p := x.p
	p.w.fire(DeathSeen)
	p.el.Dead(p.local(), x.name, x.instance)
	p.turn()
}

// linked are the processes that p has a connection to.
func (p *proc) linked(do func(q *proc)) {
	if !p.w.links {
		return
	}
	for _, nd := range p.w.nodes {
		if q := nd.proc; q != nil && q != p && !nd.cutLinks && !p.node.cutLinks {
			do(q)
		}
	}
}

// tell says to all that p has a connection to what it says in Redis.
func (p *proc) tell(news bool) {
	if !p.w.links || p.ended {
		return
	}
	m := p.words()
	m.Value, _ = p.el.Wants()
	p.linked(func(q *proc) { p.w.push(p.w.between(50, 500), q, &hearing{q, m, news}) })
}

// obituary lets the others know that p has ended: its host refuses connections. One
// whose host is gone, too, just says nothing any more.
func (p *proc) obituary() {
	if p.node.gone {
		return
	}
	p.linked(func(q *proc) { p.w.push(p.w.between(100, 2*ms), q, &obituary{q, p.node.name, p.instance}) })
}
