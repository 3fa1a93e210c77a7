//go:build !linux || race

package table

import "unsafe"

// acquireRegion returns zeroed memory, aligned for pointers. It is longer than
// asked for by what the last node in it may be shorter than its type.
func acquireRegion(n int, _ bool) []byte {
	const slack = unsafe.Sizeof(leaf{})
	words := make([]uint64, (n+int(slack))/8)
	return unsafe.Slice((*byte)(unsafe.Pointer(&words[0])), 8*len(words))
}

func usablePart(b []byte, n int) []byte { return b[:n] }

func releaseRegion([]byte) {}
