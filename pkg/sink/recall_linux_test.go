package sink

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"golang.org/x/sys/unix"
)

// A wire is the listener of a broker, to which no packet comes while it is cut:
// neither what connections carry nor what would make one, as over a network that is
// gone. What a client's kernel holds it goes on trying to send, until it is mended.
type wire struct {
	*net.TCPListener

	mu    sync.Mutex
	isCut bool
	conns []*net.TCPConn
}

func newWire(t *testing.T) *wire {
	t.Helper()
	var c net.ListenConfig
	c.SetMultipathTCP(false) // which takes no filter
	l, err := c.Listen(t.Context(), "tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return &wire{TCPListener: l.(*net.TCPListener)}
}

func (w *wire) Accept() (net.Conn, error) {
	c, err := w.AcceptTCP()
	if err != nil {
		return nil, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.conns = append(w.conns, c)
	if w.isCut {
		err = drop(c, true)
	}
	return c, err
}

func (w *wire) cut(t *testing.T, cut bool) {
	t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.isCut = cut
	if err := drop(w.TCPListener, cut); err != nil {
		t.Fatal(err)
	}
	for _, c := range w.conns {
		if err := drop(c, cut); err != nil && !errors.Is(err, net.ErrClosed) {
			t.Fatal(err)
		}
	}
}

// drop has the kernel drop all packets that come in for a socket, or take them.
func drop(c syscall.Conn, on bool) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Control(func(fd uintptr) {
		if on {
			all := unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: 0}
			failed = unix.SetsockoptSockFprog(int(fd), unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: 1, Filter: &all})
		} else if failed = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_DETACH_FILTER, 0); errors.Is(failed, unix.ENOENT) {
			failed = nil // made meanwhile
		}
	})
	return errors.Join(err, failed)
}

// States of a connection, as the kernel lists them.
const (
	established = "01"
	connecting  = "02"
	over        = "06" // TIME_WAIT
)

// kernel returns what it lists of connections to the broker, except those that are
// not made yet or have come to their end: how many there are, how many of them are open, and how many bytes
// they hold that have not arrived.
func (w *wire) kernel(t *testing.T) (conns, open, bytesHeld int) {
	t.Helper()
	list, err := os.ReadFile("/proc/net/tcp")
	if err != nil {
		t.Skipf("the kernel does not tell about connections: %v", err)
	}
	to := fmt.Sprintf(":%04X", w.Addr().(*net.TCPAddr).Port)
	for line := range bytes.Lines(list) {
		f := strings.Fields(string(line))
		if len(f) < 5 || !strings.HasSuffix(f[2], to) || f[3] == connecting || f[3] == over {
			continue
		}
		tx, _, _ := strings.Cut(f[4], ":")
		n, err := strconv.ParseUint(tx, 16, 32)
		if err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		conns++
		if f[3] == established {
			open++
		}
		bytesHeld += int(n)
	}
	return conns, open, bytesHeld
}

// A collector is cut off, takes back what it has handed over, and the network is
// mended: nothing of it arrives then, neither what librdkafka had queued nor what
// the kernel had, of connections that were open or that librdkafka had given up.
func TestRecallBehindCutWire(t *testing.T) {
	for name, properties := range map[string]map[string]string{
		"open":     nil,
		"given up": {"socket.timeout.ms": "1000"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWire(t)
			b := newBroker(t, kfake.ListenFn(func(string, string) (net.Listener, error) { return w, nil }))
			b.topic(t, "routes", 1, nil)
			s := newSink(t, recallers[0], b, Options{Properties: properties, Window: 4000})
			topic := topicOf(t, s, "routes")
			before := filled(1, topic, 100, 100)
			newDriver(t, s, before).finish()

			w.cut(t, true)
			old := []*feed{filled(2, topic, 500, 1000), filled(3, topic, 500, 1000), filled(4, topic, 1, 1000)}
			d := newDriver(t, s, old...)
			d.until("all is handed over, and some of it to the kernel", func() bool {
				conns, open, held := w.kernel(t)
				if properties != nil {
					return s.Stats().Outstanding == 1001 && (open == 0 || conns == 0)
				}
				return s.Stats().Outstanding == 1001 && held > 1000
			})
			conns, open, held := w.kernel(t)
			t.Logf("before: %d connections, %d of them open, hold %d bytes", conns, open, held)

			started := time.Now()
			recall(s)
			if _, open, held := w.kernel(t); open > 0 || held > 0 {
				t.Errorf("%d connections are open behind a recall, and %d bytes are on their way", open, held)
			}
			told := drain(t, s)
			t.Logf("reported within %v", time.Since(started))
			for _, f := range old {
				r := told[f.stream]
				if !errors.Is(r.Err, ErrRecalled) || r.Outstanding != 0 || r.Acked != 0 {
					t.Errorf("%+v", r)
				}
			}
			if s.Stats().Connected {
				t.Error("connected over a wire that is cut")
			}

			w.cut(t, false)
			after := filled(5, topic, 1, 100)
			mended := newDriver(t, s, after)
			mended.finish()
			mended.until("connected, and nothing is left of before", func() bool {
				conns, open, _ := w.kernel(t)
				return s.Stats().Connected && conns == open
			})
			t.Logf("connected anew %v behind the recall", time.Since(started))
			read := b.read(t, "routes")[0]
			for _, f := range old {
				if p := positions(read, f.stream); len(p) > 0 {
					t.Errorf("stream %d: %d records came late", f.stream, len(p))
				}
			}
			if len(positions(read, 1)) != 100 || len(positions(read, 5)) != 1 {
				t.Errorf("%d records of before and %d of after", len(positions(read, 1)), len(positions(read, 5)))
			}
		})
	}
}
