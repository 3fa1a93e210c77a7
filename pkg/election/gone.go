package election

import (
	"cmp"
	"slices"
)

// Gone follows who was sending when it was last heard. Redis forgets after a while who
// does not come back; one that stood still itself meanwhile has to know it all the same,
// to keep out what that one may still have under way. The zero value knows of nobody.
type Gone struct{ sending map[uint64]Silent }

// A Silent is a member of which nothing newer is known than that it was sending.
type Silent struct {
	Name     string
	Instance uint64
	At       int64 // when it said so, by Redis' clock
}

// Look takes what a round at a time, by Redis' clock, says of the members that Redis
// knows of, those that are Gone among them. stopped says of members[i] that it will send
// no more.
func (g *Gone) Look(at int64, members []Member, stopped func(i int) bool) {
	if g.sending == nil {
		g.sending = make(map[uint64]Silent)
	}
	for i := range members {
		m := &members[i]
		sends := false
		for _, s := range m.Routers {
			sends = sends || s.Sends
		}
		if sends && !m.Native && !stopped(i) {
			g.sending[m.Instance] = Silent{m.Name, m.Instance, at - m.Beat}
		} else {
			delete(g.sending, m.Instance)
		}
	}
	// Who has got the name of one that is forgotten keeps that one out itself.
	for instance, s := range g.sending {
		known, replaced := false, false
		for i := range members {
			known = known || members[i].Instance == instance
			replaced = replaced || members[i].Name == s.Name
		}
		if !known && replaced {
			delete(g.sending, instance)
		}
	}
}

// List returns who is neither self, an instance, nor among alive, in the order of their
// instances.
func (g *Gone) List(self uint64, alive []Member) (list []Silent) {
	for instance, s := range g.sending {
		if instance != self && !slices.ContainsFunc(alive, func(m Member) bool { return m.Instance == instance }) {
			list = append(list, s)
		}
	}
	slices.SortFunc(list, func(a, b Silent) int { return cmp.Compare(a.Instance, b.Instance) })
	return list
}
