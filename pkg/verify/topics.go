package verify

import "slices"

// A TopicComparison is the difference between the tables that the records of two topics
// make, of the routers that any of them is about. Counts are of routes.
type TopicComparison struct {
	Topic      string  `json:"topic"`      // the other one
	Partitions []Span  `json:"partitions"` // of it
	Report     *Report `json:"report"`     // of it
	Equal      int64   `json:"equal"`
	Missing    Unequal `json:"missing"`   // the other topic has it, this one does not
	Extra      Unequal `json:"extra"`     // this one has it, the other does not
	Different  Unequal `json:"different"` // both have it, with other attributes
	// NotMentioned are routes of which one topic, that is read from its middle on, says
	// nothing; Unclear are VPN routes of an instance of their peer that may be gone. They
	// are no differences.
	NotMentioned int64 `json:"not_mentioned"`
	Unclear      int64 `json:"unclear"`
}

// Differences returns how many routes differ.
func (c *TopicComparison) Differences() int64 {
	return c.Missing.Count + c.Extra.Count + c.Different.Count
}

// Against compares the tables of l with those of another topic. Routers are the same if
// their addresses are.
func (l *Ledger) Against(other *Ledger, scope Scope) *TopicComparison {
	c := &TopicComparison{Report: other.Report()}
	if scope.Peer.IsValid() {
		scope.Peer = plainAddr(scope.Peer)
	}
	var missing, extra, different listing
	l.each(other, scope, func(k openKey, theirs entry, of *peerRoutes, t *routes, ours entry, found bool) {
		switch {
		case ours.value == (value{}) && theirs.doubt:
			c.Unclear++
		case ours.value == (value{}) && t != nil && t.unknown(of, k.id, found) || t == nil && l.o.Partial:
			c.NotMentioned++
		case ours.value == (value{}):
			missing.add(l.unequal(other, k, ours, theirs), mostOpen)
		case sameValue(ours.value, theirs.value):
			c.Equal++
		default:
			different.add(l.unequal(other, k, ours, theirs), mostOpen)
		}
	})
	other.each(l, scope, func(k openKey, ours entry, of *peerRoutes, t *routes, theirs entry, found bool) {
		switch {
		case theirs.value != (value{}): // is compared
		case ours.doubt:
			c.Unclear++
		case t != nil && t.unknown(of, k.id, found) || t == nil && other.o.Partial:
			c.NotMentioned++
		default:
			extra.add(l.unequal(other, k, ours, theirs), mostOpen)
		}
	})
	c.Missing, c.Extra, c.Different = missing.result(), extra.result(), different.result()
	return c
}

// each calls f for the routes of from, with what l knows of them: in which table and of
// which peer, nil without, and the route.
func (l *Ledger) each(from *Ledger, scope Scope, f func(k openKey, theirs entry, of *peerRoutes, t *routes, ours entry, found bool)) {
	names := make(map[string]*router)
	for name, rt := range l.routers {
		names[canonicalAddr(name)] = rt
	}
	for name, rt := range from.routers {
		var t *routes
		if mine := names[canonicalAddr(name)]; mine != nil {
			t = &mine.table
		}
		for p, all := range rt.table.peers {
			for id, e := range all.routes {
				if e.value == (value{}) || !scope.wants(p.Addr, &id) {
					continue
				}
				var of *peerRoutes
				var ours entry
				found := false
				if t != nil {
					of, ours, found = t.find(p, id)
				}
				f(openKey{name, p, id}, e, of, t, ours, found)
			}
		}
	}
}

func (l *Ledger) unequal(other *Ledger, k openKey, ours, theirs entry) RouteDifference {
	d := difference(k, theirs.value, ours.value)
	d.Other, d.Collector = d.Collector, ""
	d.told(l, ours.from)
	if d.Sender == nil {
		d.told(other, theirs.from)
	}
	return d
}

// wants tells whether a route of a peer is to be compared.
func (s *Scope) wants(peer string, id *routeID) bool {
	if s.RIB != "" && id.rib != s.RIB || len(s.AFIs) > 0 && !slices.Contains(s.AFIs, id.afi) {
		return false
	}
	return !s.Peer.IsValid() || canonicalAddr(peer) == s.Peer.String()
}
