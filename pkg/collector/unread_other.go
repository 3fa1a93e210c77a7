//go:build !linux

package collector

import (
	"net"
	"time"
)

// received is known on Linux only.
func received(net.Conn) (n uint64, silence time.Duration, ok bool) { return 0, 0, false }
