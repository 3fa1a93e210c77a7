//go:build unix && !race

package table

import "syscall"

// acquireChunk maps zeroed memory. Where the system refuses, the heap has to
// do, and decides what becomes of a process without memory.
func acquireChunk(n int) []byte {
	b, err := syscall.Mmap(-1, 0, n, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_ANON|syscall.MAP_PRIVATE)
	if err != nil {
		return make([]byte, n)
	}
	return b
}

func releaseChunk(b []byte) {
	_ = syscall.Munmap(b) // fails for what came from the heap
}
