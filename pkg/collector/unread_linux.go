package collector

import (
	"net"
	"time"

	"golang.org/x/sys/unix"
)

// received returns how many bytes the kernel has received on a connection since it
// was made, read or not, and for how long nothing has come from the other end, not
// even an answer to a keepalive. It reports false if that cannot be known.
func received(conn net.Conn) (n uint64, silence time.Duration, ok bool) {
	tcp, isTCP := conn.(*net.TCPConn)
	if !isTCP {
		return 0, 0, false
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return 0, 0, false
	}
	err = raw.Control(func(fd uintptr) {
		if info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO); err == nil {
			n, ok = info.Bytes_received, true
			silence = time.Duration(min(info.Last_data_recv, info.Last_ack_recv)) * time.Millisecond
		}
	})
	return n, silence, ok && err == nil
}
