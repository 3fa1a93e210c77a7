package collector

import (
	"context"
	"fmt"
	"io"
	"net"
	"testing"
	"time"

	"github.com/bmpha/bmpha/pkg/rig"
)

// TestReceived: the kernel tells what has come, read or not.
func TestReceived(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	from, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer from.Close()
	to, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer to.Close()
	if _, _, ok := received(to); !ok {
		t.Skip("not known on this system")
	}
	is := func(want uint64) {
		t.Helper()
		// The kernel's other end is quick, but not part of Write.
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		if err := rig.WaitFor(ctx, func() error {
			if n, _, _ := received(to); n != want {
				return fmt.Errorf("received %d, want %d", n, want)
			}
			return nil
		}); err != nil {
			t.Error(err)
		}
	}
	is(0)
	_, _ = from.Write(make([]byte, 100))
	is(100)
	_, _ = io.ReadFull(to, make([]byte, 60))
	is(100)
	_, _ = from.Write(make([]byte, 7))
	is(107)
}
