package collector

import (
	"github.com/bmpha/bmpha/pkg/cluster"
	"github.com/bmpha/bmpha/pkg/link"
)

// listen opens the links to the other members, if there are to be any.
func (co *coordinator) listen() error {
	c := co.c
	if c.o.Link == nil {
		return nil
	}
	o := *c.o.Link
	o.Name, o.Instance, o.Cluster = c.o.Process, c.instance, cluster.NewKeys(c.o.Cluster, c.o.ID).Members()
	o.Heartbeat, o.Expiry, o.Log = c.o.Heartbeat, c.o.Expiry, c.log
	o.Heard = func(peer link.Peer, body []byte) {
		m, err := cluster.ParseWords(peer.Name, body)
		if err != nil {
			co.warn("a member says what cannot be read", "member", peer.Name, "error", err)
			return
		}
		if m.Instance == peer.Instance {
			c.past.hear(&m)
			c.past.linked(&m)
			co.hear(func(now int64) { co.e.Heard(now, m.Member) })
		}
	}
	o.Dead = func(name string, instance uint64) {
		c.log.Debug("a member's process has ended", "member", name) // the link has warned
		c.past.died(name, instance)
		co.hear(func(now int64) {
			co.e.Dead(now, name, instance)
			co.ask(now)
		})
	}
	var err error
	co.link, err = link.New(o)
	return err
}

// hear has the loop take in some news. While the loop is at an end, nobody waits.
func (co *coordinator) hear(f func(now int64)) {
	select {
	case co.told <- f:
	case <-co.over:
	}
}

// say tells the other members directly what Redis is told.
func (co *coordinator) say(now int64) {
	co.sayAt = now + micros(co.c.o.Heartbeat)/4
	if co.link == nil {
		return
	}
	self, _ := co.self()
	value, _ := co.e.Wants()
	if co.left {
		self.Left = true
	}
	if err := co.link.Say(self.Words(co.e.Timestamp(), value, co.c.clock.toRedis(now))); err != nil {
		co.warn("tell the other members", "error", err)
	}
}

// meet says who the other members are.
func (co *coordinator) meet(v *cluster.View) {
	if co.link == nil {
		return
	}
	var peers []link.Peer
	for i := range v.Members {
		m := &v.Members[i]
		if m.Native || m.Gone || m.Name == co.c.o.Process {
			continue
		}
		peers = append(peers, link.Peer{Name: m.Name, Instance: m.Instance, Address: m.Link})
	}
	co.link.Peers(peers)
}
