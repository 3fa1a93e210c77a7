package systemd

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"
)

func TestNotify(t *testing.T) {
	for name, address := range map[string]string{
		"path":     filepath.Join(t.TempDir(), "notify"),
		"abstract": fmt.Sprintf("@bmpha-test-%d", os.Getpid()),
	} {
		t.Run(name, func(t *testing.T) {
			manager, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: address, Net: "unixgram"})
			if err != nil {
				t.Fatal(err)
			}
			defer manager.Close()
			t.Setenv("NOTIFY_SOCKET", address)
			for _, state := range []string{Ready + "\n" + Status("active, alone"), Watchdog, Stopping} {
				if err := Notify(state); err != nil {
					t.Fatal(err)
				}
				if err := manager.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
					t.Fatal(err)
				}
				buf := make([]byte, 1024)
				n, err := manager.Read(buf)
				if err != nil {
					t.Fatal(err)
				}
				if got := string(buf[:n]); got != state {
					t.Errorf("the manager read %q, want %q", got, state)
				}
			}
		})
	}
}

func TestNotifyWithoutManager(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "")
	if err := Notify(Ready); err != nil {
		t.Errorf("got error %v, want none", err)
	}
}

func TestNotifyFails(t *testing.T) {
	for name, address := range map[string]string{
		"nobody listens": filepath.Join(t.TempDir(), "absent"),
		"not a socket":   "vsock:2:1234",
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv("NOTIFY_SOCKET", address)
			if err := Notify(Ready); err == nil {
				t.Error("got no error")
			}
		})
	}
}

func TestWatchdogInterval(t *testing.T) {
	self := strconv.Itoa(os.Getpid())
	for _, tt := range []struct {
		name, usec, pid string
		want            time.Duration
	}{
		{name: "not asked for"},
		{name: "any process", usec: "10000000", want: 10 * time.Second},
		{name: "this process", usec: "1500000", pid: self, want: 1500 * time.Millisecond},
		{name: "another process", usec: "1500000", pid: "1"},
		{name: "zero", usec: "0"},
		{name: "not a number", usec: "10s"},
		{name: "too large", usec: "18446744073709551615"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Setenv("WATCHDOG_USEC", tt.usec)
			t.Setenv("WATCHDOG_PID", tt.pid)
			got, ok := WatchdogInterval()
			if got != tt.want || ok != (tt.want != 0) {
				t.Errorf("got %v, %v, want %v, %v", got, ok, tt.want, tt.want != 0)
			}
		})
	}
}
