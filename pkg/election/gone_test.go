package election

import (
	"slices"
	"testing"
)

// TestGone: whoever was sending when it was last heard has to be kept out, until it says
// otherwise, even if Redis has forgotten it.
func TestGone(t *testing.T) {
	const self = 9
	sending := map[string]RouterState{"r": {Sends: true}}
	holding := map[string]RouterState{"r": {}}
	a := func(instance uint64, beat int64, routers map[string]RouterState) Member {
		return Member{Name: "a", Instance: instance, Beat: beat, Routers: routers}
	}
	b := Member{Name: "b", Instance: self, Routers: sending}
	type round []Member
	for _, tt := range []struct {
		name    string
		rounds  []round // one each 1000
		stopped uint64  // instance that has left
		alive   []Member
		want    []Silent
	}{
		{"nobody is known", nil, 0, nil, nil},
		{"it lives", []round{{a(1, 0, sending), b}}, 0, []Member{a(1, 0, sending), b}, nil},
		{"it is gone", []round{{a(1, 10, sending), b}}, 0, []Member{b}, []Silent{{"a", 1, 990}}},
		{"and says no more", []round{{a(1, 10, sending), b}, {a(1, 1010, sending), b}}, 0, []Member{b}, []Silent{{"a", 1, 990}}},
		{"it is forgotten", []round{{a(1, 10, sending), b}, {b}}, 0, []Member{b}, []Silent{{"a", 1, 990}}},
		{"it did not send", []round{{a(1, 10, sending), b}, {a(1, 10, holding), b}}, 0, []Member{b}, nil},
		{"it has left", []round{{a(1, 10, sending), b}}, 1, []Member{b}, nil},
		{"it is there again", []round{{a(1, 10, sending), b}, {a(2, 10, holding), b}}, 0, []Member{a(2, 10, holding), b}, nil},
		{"it is there again, and still known", []round{{a(1, 10, sending), a(2, 10, holding), b}}, 0, []Member{a(2, 10, holding), b}, []Silent{{"a", 1, 990}}},
		{"a native one", []round{{{Name: "n", Instance: 3, Native: true, Routers: sending}, b}}, 0, []Member{b}, nil},
		{"two", []round{{a(2, 10, sending), {Name: "c", Instance: 1, Beat: 20, Routers: sending}, b}}, 0, []Member{b}, []Silent{{"c", 1, 980}, {"a", 2, 990}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var g Gone
			for i, r := range tt.rounds {
				g.Look(int64(1000*(i+1)), r, func(i int) bool { return r[i].Instance == tt.stopped })
			}
			if got := g.List(self, tt.alive); !slices.Equal(got, tt.want) {
				t.Errorf("%v, want %v", got, tt.want)
			}
		})
	}
}
