package table

import "github.com/bmpha/bmpha/pkg/bgp"

// Full reports whether t takes no more routes.
func (t *Table) Full() bool { return t.entries >= t.opts.MaxRoutes }

// Used returns the memory of s that is in use.
func (s *Store) Used() int64 { return s.mem.used.Load() }

// Conversation is one message of each kind that matters, as a router might send
// them.
func Conversation() [][]byte {
	var s speaker
	return [][]byte{
		s.peerUp(0, 0, 1), speaker{addPath: true}.peerUp(1, 0, 1),
		s.announce(0, 0, 1, 16, true, nlri{prefix: prefix("10.0.0.1/15")}),
		s.announce(0, 0, 1, 16, false, nlri{family: 2, prefix: prefix("10.0.0.0/8"), rd: 1 << 48}),
		s.announce(0, 0, 1, 16, false, nlri{family: 4, prefix: prefix("2001:db8::/32")}),
		speaker{addPath: true}.announce(1, 0, 1, 16, false, nlri{family: 3, prefix: prefix("2001:db8::/33"), path: 7}),
		s.withdraw(0, 0, nlri{prefix: prefix("10.0.0.0/15")}), s.endOfRIB(0, 0, bgp.IPv6Unicast), s.peerDown(1, 0),
	}
}
