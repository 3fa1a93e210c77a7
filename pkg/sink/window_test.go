package sink

import (
	"math"
	"math/rand/v2"
	"testing"

	"github.com/bmpha/bmpha/pkg/record"
)

// The window in C agrees with a set of positions, whatever the order in which
// they are acknowledged, and wherever they start.
func TestWindowAgainstModel(t *testing.T) {
	for seed := range uint64(300) {
		rng := rand.New(rand.NewPCG(seed, 1))
		w := newWindow(1 + rng.Uint32N(300))
		if w.size()&(w.size()-1) != 0 {
			t.Fatalf("seed %d: size %d is no power of two", seed, w.size())
		}
		stream := rng.Uint32N(maxStreams)
		for range 4 {
			start := []uint64{0, rng.Uint64N(1 << 50), 1<<44 - 5, 1<<32 - 5, math.MaxUint32 * 77}[rng.IntN(5)]
			w.reset(start)
			outstanding := map[uint64]bool{}
			next := start
			for range 1000 {
				base := next
				for p := range outstanding {
					base = min(base, p)
				}
				if w.base() != base || w.next() != next {
					t.Fatalf("seed %d: window [%d, %d), want [%d, %d)", seed, w.base(), w.next(), base, next)
				}
				if room := w.size() - (next - base); room > 0 && rng.IntN(3) == 0 {
					n := 1 + rng.Uint64N(room)
					w.hand(n)
					for range n {
						outstanding[next] = true
						next++
					}
				} else {
					for p := range outstanding { // any
						stamped := rng.IntN(2) == 0
						s, pos, own := w.carried(stream, p, stamped)
						if s != stream || pos != p || own != stamped {
							t.Fatalf("seed %d: stream %d position %d came back as %d and %d", seed, stream, p, s, pos)
						}
						w.ack(pos)
						delete(outstanding, p)
						break
					}
				}
			}
		}
		w.free()
	}
}

const maxStreams = 1 << 20

// A batch crosses into C as it is: the numbers of each record must arrive.
func TestRecordLayoutIsSharedWithC(t *testing.T) {
	r := record.Rec{
		Topic: 1, KeyOff: 2, KeyLen: 3, HeaderOff: 4, HeaderLen: 5, ValueOff: 6, ValueLen: 7,
		MoreOff: 8, MoreLen: 9, Flags: 10, Route: 11, Partition: -12, Timestamp: -13,
	}
	if got := crossed(&r); got != r {
		t.Fatalf("in C: %+v, in Go: %+v", got, r)
	}
}
