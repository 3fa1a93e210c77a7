package table

import (
	"bytes"

	"github.com/bmpha/bmpha/pkg/bmp"
)

// A resumption tells whether a BGP session that a router speaks of in a new BMP
// session is the one that it spoke of in the last. If so, its Peer Up is no news,
// and whoever built a table of what was said has no reason to start over.
type resumption struct {
	prior [][]byte             // Peer Ups in force when the last BMP session ended
	had   [bmp.LocRIB + 1]bool // which RIBs had one of their own
	is    [bmp.LocRIB + 1]bool // which are resumed
	first bool                 // the first Peer Up of this session was no news
}

// begin keeps the Peer Ups of the session that has ended, nil if the peer was not
// up in it.
func (r *resumption) begin(ups [][]byte) {
	*r = resumption{prior: ups}
	for _, m := range ups {
		known, _ := bmp.ParsePeerUp(m) // was good before
		r.had[known.Peer.RIB()] = true
	}
}

// up follows a Peer Up. again says that the peer was up, and other that another
// BGP session has begun.
func (r *resumption) up(u *bmp.PeerUp, again, other bool) {
	kind := u.Peer.RIB()
	if other {
		if r.is[kind] = false; kind == bmp.AdjRIBInPre {
			*r = resumption{}
		}
		return
	}
	r.is[kind] = false
	for _, m := range r.prior {
		known, _ := bmp.ParsePeerUp(m)
		r.is[kind] = r.is[kind] || continues(u, &known)
	}
	if !again {
		r.first = r.is[kind]
	}
}

// of reports whether the routes of a RIB are those of before as far as nothing
// else is said of them.
func (r *resumption) of(kind bmp.RIB) bool {
	if r.had[kind] {
		return r.is[kind]
	}
	return r.first
}

// continues reports whether two Peer Ups are about one BGP session. Times do not
// count: routers fill in that of the BMP session. Ports tell, and a Loc-RIB, which
// has none, has no sessions either.
func continues(u, known *bmp.PeerUp) bool {
	return u.Peer.RIB() == known.Peer.RIB() && u.Peer.BGPID == known.Peer.BGPID &&
		u.LocalPort == known.LocalPort && u.RemotePort == known.RemotePort && u.RawLocalAddress == known.RawLocalAddress &&
		(u.LocalPort|u.RemotePort != 0 || u.Peer.Type == bmp.PeerLocRIB) &&
		bytes.Equal(u.Sent, known.Sent) && bytes.Equal(u.Received, known.Received)
}

// Resumed reports whether msg, a Peer Up that Apply has just taken, said nothing
// that was not said in the session before.
func (t *Table) Resumed(msg []byte) bool {
	u, err := bmp.ParsePeerUp(msg)
	if err != nil {
		return false
	}
	t.mu.RLock()
	defer t.mu.RUnlock()
	p := t.peers[IDOf(&u.Peer)]
	return p != nil && p.up && p.resumption.is[u.Peer.RIB()]
}

// StartOver says that msg, a Peer Up that Apply has just taken, is passed on to those
// who build a table of what was said, and that they forget what they had: of the RIB
// that it names, or of all RIBs of the peer if that is the pre-policy Adj-RIB-In.
// None of that is Resumed from then on, in later sessions neither, until it has been
// said again.
func (t *Table) StartOver(msg []byte) {
	u, err := bmp.ParsePeerUp(msg)
	if err != nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	p := t.peers[IDOf(&u.Peer)]
	if p == nil || !p.up {
		return
	}
	kind := u.Peer.RIB()
	if kind == bmp.AdjRIBInPre {
		t.kept -= p.kept()
		p.resumption = resumption{}
		t.kept += p.kept()
	}
	p.resumption.had[kind], p.resumption.is[kind] = true, false
	for _, r := range p.ribs {
		if kind == bmp.AdjRIBInPre || r.Kind == kind {
			r.begun = r.gen
		}
	}
}
