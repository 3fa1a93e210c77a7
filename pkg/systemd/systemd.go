// Package systemd tells the service manager how the daemon is, by the protocol
// of sd_notify(3) and sd_watchdog_enabled(3).
//
// Without a service manager everything is a no-op, so callers need no condition.
package systemd

import (
	"fmt"
	"net"
	"os"
	"strconv"
	"time"
)

// States for Notify. Several may be sent at once, one on each line.
const (
	Ready    = "READY=1"
	Stopping = "STOPPING=1"
	Watchdog = "WATCHDOG=1"
)

// Status is the state that shows text, one line, in systemctl status.
func Status(text string) string { return "STATUS=" + text }

// Notify sends state to the service manager, and does nothing if there is none
// (NOTIFY_SOCKET unset). It is safe for concurrent use and may block only while
// the manager's socket is full.
func Notify(state string) error {
	name := os.Getenv("NOTIFY_SOCKET")
	if name == "" {
		return nil
	}
	if name[0] != '/' && name[0] != '@' {
		return fmt.Errorf("notify the service manager: NOTIFY_SOCKET %q is neither a path nor an abstract socket", name)
	}
	// A leading @ means an abstract socket to package net as well.
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		return fmt.Errorf("notify the service manager: %w", err)
	}
	defer conn.Close()
	if _, err := conn.Write([]byte(state)); err != nil {
		return fmt.Errorf("notify the service manager: %w", err)
	}
	return nil
}

// WatchdogInterval returns the time after which the service manager takes this
// process for hung unless Watchdog is sent; sending it twice as often is usual.
// It reports false if no watchdog is asked for, or only of another process.
func WatchdogInterval() (time.Duration, bool) {
	const most = uint64(1<<63-1) / uint64(time.Microsecond)
	micros, err := strconv.ParseUint(os.Getenv("WATCHDOG_USEC"), 10, 64)
	if err != nil || micros == 0 || micros > most {
		return 0, false
	}
	if pid := os.Getenv("WATCHDOG_PID"); pid != "" && pid != strconv.Itoa(os.Getpid()) {
		return 0, false
	}
	return time.Duration(micros) * time.Microsecond, true
}
