//go:build amd64 || arm64

package table

import "unsafe"

// fetch asks the processor to bring so many cache lines from p on near and does
// not wait for them. It may be asked for any address.
//
//go:noescape
func fetch(p unsafe.Pointer, lines int)
