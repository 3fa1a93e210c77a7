package table_test

import (
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"github.com/bmpha/bmpha/pkg/bgp"
	"github.com/bmpha/bmpha/pkg/bmp"
	"github.com/bmpha/bmpha/pkg/pmacct"
	"github.com/bmpha/bmpha/pkg/record"
	. "github.com/bmpha/bmpha/pkg/table"
)

// A pair applies messages to a table and has package pmacct make records of
// them: what the one takes and how it names it must be what the other does.
type pair struct {
	tab     *Table
	store   *Store
	bare    *Table // with hashes instead of attributes
	session *pmacct.Session
	batch   record.Batch
	now     int64
}

func newPair(t testing.TB, maxRoutes int) *pair {
	enc, err := pmacct.NewEncoder(pmacct.Options{Header: true})
	if err != nil {
		t.Fatal(err)
	}
	store := NewStore()
	return &pair{tab: NewTable(store, Options{MaxRoutes: maxRoutes}), store: store,
		bare: NewTable(store, Options{MaxRoutes: maxRoutes, Hashes: true}), session: enc.Session(pmacct.Identity{Router: "r1"})}
}

type hashes struct{ key, value uint64 }

// A change is what a Change says, attributes and labels by their hash.
type change struct {
	kind          Kind
	rib           PeerID
	key           uint64
	value, before uint64
	found, same   bool
	now, was      Value
}

func changeOf(c *Change) change {
	d := change{kind: c.Kind, rib: c.RIB.Peer, found: c.Found, same: c.Same, now: bare(&c.Value), was: bare(&c.Before)}
	if c.Kind != Marker {
		d.key, d.value, d.before = c.KeyHash(""), c.Value.Hash(), c.Before.Hash()
	}
	return d
}

// bare returns what a value says beside attributes and labels.
func bare(v *Value) Value {
	return Value{
		Sec: v.Sec, Usec: v.Usec, Arrival: v.Arrival, Flags: v.Flags, TwoOctet: v.TwoOctet, Classic: v.Classic,
		Withdrawn: v.Withdrawn, Stale: v.Stale,
	}
}

// both applies a message to the tables with and without attributes, which must
// tell the same.
func (p *pair) both(t testing.TB, msg []byte, each func(*Change)) error {
	var full, hashed []change
	err := p.tab.Apply(msg, p.now, func(c *Change) {
		full = append(full, changeOf(c))
		each(c)
	})
	bareErr := p.bare.Apply(msg, p.now, func(c *Change) {
		hashed = append(hashed, changeOf(c))
		if c.Attrs != nil || c.Before.Attrs != nil {
			t.Error("attributes in a table of hashes")
		}
	})
	if !reflect.DeepEqual(full, hashed) || fmt.Sprint(err) != fmt.Sprint(bareErr) {
		t.Fatalf("%x:\nwith attributes:\n%+v %v\nwith hashes:\n%+v %v", msg, full, err, hashed, bareErr)
	}
	return err
}

func (p *pair) message(t testing.TB, msg []byte) {
	p.now++
	var ours []hashes
	err := p.both(t, msg, func(c *Change) {
		if c.Kind != Marker {
			ours = append(ours, hashes{c.KeyHash("r1"), c.Value.Hash()})
			if c.Kind == Announced && c.Found && c.Same != (c.Value.Hash() == c.Before.Hash() && c.Value.TwoOctet == c.Before.TwoOctet) {
				t.Errorf("Same is %v", c.Same)
			}
		}
	})
	if err == ErrTooManyRoutes {
		err = nil
	}
	p.batch.Reset()
	theirErr := p.session.Message(&p.batch, &record.Origin{}, p.now, msg)
	if len(msg) < bmp.HeaderLen || bmp.Type(msg) != bmp.TypeRouteMonitoring {
		return
	}
	if (err == nil) != (theirErr == nil) {
		t.Errorf("%x:\n%v, pmacct: %v", msg, err, theirErr)
	}
	var theirs []hashes
	for i := range p.batch.Recs {
		h, err := record.ParseHeader(p.batch.Header(i))
		if err != nil {
			t.Fatal(err)
		}
		if h.Flags&record.FlagRoute != 0 {
			theirs = append(theirs, hashes{h.KeyHash, h.ValueHash})
		}
	}
	for i := range min(len(ours), len(theirs)) {
		if ours[i] != theirs[i] {
			t.Fatalf("%x:\nroute %d: %+v, pmacct: %+v", msg, i, ours[i], theirs[i])
		}
	}
	if len(ours) != len(theirs) && !p.tab.Full() {
		t.Errorf("%x:\n%d routes, pmacct: %d", msg, len(ours), len(theirs))
	}
}

// again makes messages of all routes, and a second table of them.
func (p *pair) again(t testing.TB) {
	type what struct {
		hash      uint64
		sec, usec uint32
		flags     byte
		two       bool
	}
	hash := func(r *Route) what {
		return what{r.Value.Hash(), r.Sec, r.Usec, r.Flags, r.TwoOctet}
	}
	want := map[uint64]what{}
	second := NewTable(NewStore(), Options{})
	for _, peer := range p.tab.Peers() {
		for _, m := range peer.PeerUps {
			if err := second.Apply(m, 0, nil); err != nil {
				t.Fatal(err)
			}
		}
	}
	var w Walk
	for p.tab.Walk(&w, 10, func(r *Route) {
		if r.Stale || r.Classic && hasReach(r.Attrs) {
			return
		}
		want[r.KeyHash("")] = hash(r)
		if err := second.Apply(r.AppendMessage(nil), 0, nil); err != nil {
			t.Errorf("%v %v again: %v", r.Family, r.Prefix, err)
		}
	}) {
	}
	var w2 Walk
	for second.Walk(&w2, 10, func(r *Route) {
		if want[r.KeyHash("")] != hash(r) {
			t.Errorf("%v %v is %+v again, want %+v: %x", r.Family, r.Prefix, hash(r), want[r.KeyHash("")], r.Attrs)
		}
		delete(want, r.KeyHash(""))
	}) {
	}
	if len(want) != 0 {
		t.Errorf("%d routes did not come again", len(want))
	}
}

func hasReach(attrs []byte) bool {
	for len(attrs) > 0 {
		if attrs[1] == bgp.AttrMPReach {
			return true
		}
		attrs = attrs[4+int(attrs[2])<<8+int(attrs[3]):]
	}
	return false
}

func each(b []byte, f func(msg []byte)) {
	for {
		n, err := bmp.Next(b, 1<<20)
		if n == 0 || err != nil {
			return
		}
		f(b[:n])
		b = b[n:]
	}
}

// TestCaptures: what routers of several makers sent.
func TestCaptures(t *testing.T) {
	dir := os.Getenv("BMPHA_FIXTURES")
	if dir == "" {
		dir = filepath.Join("..", "..", "..", "shared", "fixtures")
	}
	files, _ := filepath.Glob(filepath.Join(dir, "*.bmp"))
	if len(files) == 0 {
		t.Skipf("no captured traffic in %s (BMPHA_FIXTURES names another folder)", dir)
	}
	routes := 0
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		p := newPair(t, 1e6)
		at := 0
		each(b, func(msg []byte) {
			p.message(t, msg)
			if at++; at%500 == 0 {
				p.again(t)
			}
		})
		p.again(t)
		routes += p.tab.Routes()
		for p.tab.Tidy(1000, nil) {
		}
	}
	if routes == 0 {
		t.Error("no routes at the end of any capture")
	}
}

func FuzzApply(f *testing.F) {
	var all []byte
	for _, m := range Conversation() {
		all = append(all, m...)
		f.Add(all)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		p := newPair(t, 1000)
		each(b, func(msg []byte) { p.message(t, msg) })
		p.again(t)
		p.tab.Open(p.now)
		p.bare.Open(p.now)
		each(b, func(msg []byte) { _ = p.both(t, msg, func(*Change) {}) })
		p.tab.Settle(p.now)
		for p.bare.Close(3) {
		}
		for p.tab.Tidy(3, func(*Change) {}) {
		}
		var w Walk
		n := 0
		for p.tab.Walk(&w, 3, func(r *Route) {
			n++
			if r.Stale {
				t.Errorf("%v is stale after a sweep", r.Prefix)
			}
			found := false
			p.tab.Lookup(r.Prefix, Exact, Walk{Family: r.Family, RD: rdOf(r)}, func(q *Route) bool {
				found = found || q.RIB == r.RIB && q.PathID == r.PathID
				return true
			})
			if !found {
				t.Errorf("%v is not found", r.Prefix)
			}
		}) {
		}
		if n != p.tab.Routes() {
			t.Errorf("%d routes walked, %d counted", n, p.tab.Routes())
		}
		p.tab.Clear()
		for p.tab.Tidy(1000, nil) {
		}
		if p.store.AttributeSets() != 0 || p.store.Used() != 0 {
			t.Error("something is left")
		}
	})
}

func rdOf(r *Route) *[8]byte {
	if r.Family.SAFI != bgp.SAFIVPN {
		return nil
	}
	return &r.RD
}
