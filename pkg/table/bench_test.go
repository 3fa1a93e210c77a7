package table

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"testing"
	"time"
	"unsafe"

	"github.com/gaissmai/bart"
)

// BenchmarkStructure puts a tree beside what else could hold the routes of one
// RIB: a map, and bart's trie. Each holds 500,000 random IPv4 prefixes with the
// value of a table; what a structure takes is given per route, and how long the
// collector works on a heap with it.
func BenchmarkStructure(b *testing.B) {
	rng := rand.New(rand.NewPCG(1, 2))
	known := map[netip.Prefix]bool{}
	var prefixes []netip.Prefix
	for len(prefixes) < 500_000 {
		var a [4]byte
		binary.BigEndian.PutUint32(a[:], 1<<24+rng.Uint32N(222<<24))
		p := netip.PrefixFrom(netip.AddrFrom4(a), []int{24, 24, 24, 23, 22, 22, 20, 19, 16}[rng.IntN(9)]).Masked()
		if !known[p] {
			known[p] = true
			prefixes = append(prefixes, p)
		}
	}
	keyOf := func(p netip.Prefix) (k key) { setPrefix(&k, 0, p, 0); return k }
	type structure struct {
		set    func(p netip.Prefix, v value)
		walk   func() int
		memory func() int64 // outside the heap
		keep   any
	}
	for _, s := range []struct {
		name string
		make func() structure
	}{
		{"tree", func() structure {
			t := &tree{mem: newMemory(), words: 1}
			return structure{
				set: func(p netip.Prefix, v value) {
					k := keyOf(p)
					l, i, found := t.seek(&k)
					if found {
						l.vals[i] = v
					} else {
						*t.insert(&k, l, i) = v
					}
				},
				walk: func() (n int) {
					for l := t.first; l != nil; l = l.next {
						for i := range l.n {
							n += int(l.vals[i].sec & 1)
						}
					}
					return n
				},
				memory: t.bytes, keep: t,
			}
		}},
		{"map", func() structure {
			m := map[uint64]value{}
			return structure{
				set: func(p netip.Prefix, v value) { m[keyOf(p)[0]] = v },
				walk: func() (n int) {
					for _, v := range m {
						n += int(v.sec & 1)
					}
					return n
				},
				memory: func() int64 { return 0 }, keep: m,
			}
		}},
		{"bart", func() structure {
			t := new(bart.Table[value])
			return structure{
				set: func(p netip.Prefix, v value) { t.Insert(p, v) },
				walk: func() (n int) {
					for _, v := range t.AllSorted() {
						n += int(v.sec & 1)
					}
					return n
				},
				memory: func() int64 { return 0 }, keep: t,
			}
		}},
	} {
		b.Run(s.name, func(b *testing.B) {
			var m0, m1 runtime.MemStats
			runtime.GC()
			runtime.ReadMemStats(&m0)
			st := s.make()
			for i, p := range prefixes {
				st.set(p, value{sec: uint32(i)})
			}
			runtime.GC()
			runtime.ReadMemStats(&m1)
			at := time.Now()
			runtime.GC()
			gc := time.Since(at)
			at = time.Now()
			st.walk()
			walk := time.Since(at)
			i := 0
			b.ReportAllocs()
			for b.Loop() {
				st.set(prefixes[i*7919%len(prefixes)], value{sec: uint32(i)})
				i++
			}
			n := float64(len(prefixes))
			b.ReportMetric((float64(int64(m1.HeapAlloc)-int64(m0.HeapAlloc))+float64(st.memory()))/n, "B/route")
			b.ReportMetric(float64(walk.Nanoseconds())/n, "walk-ns/route")
			b.ReportMetric(gc.Seconds()*1e3, "gc-ms")
			runtime.KeepAlive(st.keep)
		})
	}
}

// BenchmarkApply: known prefixes with other attributes, in a table of one peer
// with 100,000 routes.
func BenchmarkApply(b *testing.B) {
	var s speaker
	tab := NewTable(NewStore(), Options{})
	must(b, tab, 1, nil, s.peerUp(0, 0, 1))
	var msgs [][]byte
	for i := range 100_000 {
		msgs = append(msgs, s.announce(0, 0, uint32(i%20_000), 0, true, number(i)))
		must(b, tab, 1, nil, msgs[i])
	}
	for i := range msgs {
		msgs[i] = s.announce(0, 0, uint32((i+1)%20_000), 0, true, number(i*7919%len(msgs)))
	}
	each := func(*Change) {}
	i := 0
	b.ReportAllocs()
	for b.Loop() {
		_ = tab.Apply(msgs[i%len(msgs)], 1, each) // tested above
		i++
	}
}

// TestSizes: a value is as long as it looks, and nodes are whole cache lines.
func TestSizes(t *testing.T) {
	if n := unsafe.Sizeof(value{}); n != 32 {
		t.Errorf("a value takes %d bytes, want 32", n)
	}
	for words := 1; words <= maxWords; words++ {
		if leafSize(words)%line != 0 || innerSize(words)%line != 0 {
			t.Errorf("nodes of %d words take %d and %d bytes, not whole cache lines", words, leafSize(words), innerSize(words))
		}
	}
}
