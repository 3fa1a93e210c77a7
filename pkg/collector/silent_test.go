//go:build linux

package collector

import (
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// deaf lets nothing in from the other end of a connection, and so nothing out in
// answer: to that one its host is gone.
func deaf(t *testing.T, c net.Conn) {
	t.Helper()
	raw, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	drop := []unix.SockFilter{{Code: unix.BPF_RET | unix.BPF_K, K: 0}}
	var set error
	if err := raw.Control(func(fd uintptr) {
		set = unix.SetsockoptSockFprog(int(fd), unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: 1, Filter: &drop[0]})
	}); err != nil || set != nil {
		t.Fatal(err, set)
	}
}

// TestSilentWay: the way from a router to the sender is broken, and neither end knows.
// What the router says meanwhile is held by the one that hears it, until that one sends:
// because the other's session has ended, or before, because nothing has been heard there
// for a while.
func TestSilentWay(t *testing.T) {
	for name, keepAlive := range map[string]time.Duration{"ended": 3 * time.Second, "given up": 30 * time.Second} {
		t.Run(name, func(t *testing.T) { silentWay(t, keepAlive) })
	}
}

func silentWay(t *testing.T, keepAlive time.Duration) {
	l := newLab(t)
	options := func(o *Options) { o.KeepAlive = keepAlive }
	a := l.start("a", options)
	l.role(a, "active")
	b := l.start("b", options)
	l.role(b, "standby")
	var f spoken
	first := append(append(hello("r"), f.up(1000)...), append(f.route("10.1.0.0/16"), f.end()...)...)
	way := speak(t, "127.0.0.1", a, first)
	other := speak(t, "127.0.0.1", b, first)
	arrives := func(prefix string) {
		t.Helper()
		l.until(prefix+" is in Kafka", func() error {
			for _, r := range l.sub.Records() {
				if strings.Contains(string(r.Value), prefix) {
					return nil
				}
			}
			return fmt.Errorf("of %d records none says %s", len(l.sub.Records()), prefix)
		})
	}
	arrives("10.1.0.0")
	// A router that says nothing answers keepalives, and marks go on.
	l.until("b has let all of it go", func() error {
		if n := b.Status().Hold.Messages; n != 0 {
			return fmt.Errorf("%d held", n)
		}
		return nil
	})
	deaf(t, way)
	if _, err := other.Write(f.route("10.2.0.0/16")); err != nil {
		t.Fatal(err)
	}
	arrives("10.2.0.0")
	if st := b.Status(); len(st.Routers) != 1 || !st.Routers[0].Sending {
		t.Errorf("b does not send: %+v", st.Routers)
	}
	if keepAlive > 10*time.Second {
		if n := a.Status().Sessions.Now; n != 1 {
			t.Errorf("%d sessions, want the silent one", n)
		}
		return
	}
	l.until("the silent session has ended", func() error {
		if n := a.Status().Sessions.Now; n != 0 {
			return fmt.Errorf("%d sessions", n)
		}
		return nil
	})
}
