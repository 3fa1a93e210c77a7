//go:build !amd64 && !arm64

package table

import "unsafe"

// fetch would bring memory near, which takes an instruction that Go has no word
// for.
func fetch(unsafe.Pointer, int) {}
