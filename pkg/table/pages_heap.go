//go:build !unix || race

package table

import "unsafe"

// acquireChunk returns zeroed memory, aligned for pointers. It is longer than
// asked for by what the last node in it may be shorter than its type.
func acquireChunk(n int) []byte {
	const slack = unsafe.Sizeof(leaf{})
	words := make([]uint64, (n+int(slack))/8)
	return unsafe.Slice((*byte)(unsafe.Pointer(&words[0])), 8*len(words))
}

func releaseChunk([]byte) {}
