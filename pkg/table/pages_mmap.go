//go:build linux && !race

package table

import (
	"syscall"
	"unsafe"
)

const hugePage = 2 << 20

// acquireRegion maps n zeroed bytes. Where the system refuses, the heap has to
// do, and decides what becomes of a process without memory. Huge regions are
// asked to be in huge pages: routes are looked up at random, and with small ones
// the address of each costs as much to translate as the route to read.
func acquireRegion(n int, huge bool) []byte {
	more := 0
	if huge {
		more = hugePage
	}
	b, err := syscall.Mmap(-1, 0, n+more, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_ANON|syscall.MAP_PRIVATE|syscall.MAP_NORESERVE)
	if err != nil {
		return make([]byte, n)
	}
	if huge {
		_ = syscall.Madvise(b, syscall.MADV_HUGEPAGE) // is only a wish
	}
	return b
}

// usable returns the part of a region of n bytes that begins at a huge page.
func usablePart(b []byte, n int) []byte {
	if len(b) == n {
		return b
	}
	at := -int(uintptr(unsafe.Pointer(&b[0]))) & (hugePage - 1)
	return b[at : at+n]
}

func releaseRegion(b []byte) {
	_ = syscall.Munmap(b) // fails for what came from the heap
}
