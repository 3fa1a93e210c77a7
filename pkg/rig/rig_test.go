package rig

import (
	"bytes"
	"context"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// TestMain also plays the parent in TestProcessEndsWithItsParent.
func TestMain(m *testing.M) {
	if os.Getenv("RIG_TEST_PARENT") == "1" {
		p, err := Start(context.Background(), Command{Path: "sleep", Args: []string{"600"}})
		if err != nil {
			panic(err)
		}
		os.Stdout.WriteString(strconv.Itoa(p.PID()) + "\n")
		select {}
	}
	goleak.VerifyTestMain(m)
}

// within returns a context that ends with the test, and after d at the latest.
func within(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestFreePort(t *testing.T) {
	seen := make(map[int]bool)
	for range 50 {
		p, err := FreePort("")
		must(t, err)
		if seen[p] {
			t.Fatalf("port %d given twice", p)
		}
		seen[p] = true
		if p < portsFrom || p >= portsTo {
			t.Fatalf("port %d outside %d..%d", p, portsFrom, portsTo)
		}
	}
}

func TestProcess(t *testing.T) {
	log := filepath.Join(t.TempDir(), "log")
	p, err := Start(t.Context(), Command{
		Path: "sh", Args: []string{"-c", `trap 'echo bye; exit 7' TERM; echo hello; while :; do sleep 0.01; done`},
		Log: log,
		Ready: func() error {
			b, err := os.ReadFile(log)
			if err == nil && !bytes.Contains(b, []byte("hello")) {
				err = os.ErrNotExist
			}
			return err
		},
	})
	must(t, err)
	defer p.Kill()
	must(t, p.Pause())
	if s, err := p.state(); err != nil || s != 'T' {
		t.Errorf("state after Pause: %c, %v", s, err)
	}
	must(t, p.Resume())
	if u, err := p.Usage(); err != nil || u.RSS == 0 || u.PeakRSS < u.RSS {
		t.Errorf("usage %+v, %v", u, err)
	}
	must(t, p.Pause()) // a paused process is to be stopped too
	must(t, p.Stop())
	if got := p.ExitCode(); got != 7 || p.Alive() {
		t.Errorf("exit code %d, alive %v; want 7 and false", got, p.Alive())
	}
	old := p.PID()
	must(t, p.Restart(t.Context()))
	if !p.Alive() || p.PID() == old {
		t.Error("no new process after Restart")
	}
	must(t, p.Kill())
	if got := p.ExitCode(); got != -1 {
		t.Errorf("exit code after Kill %d, want -1", got)
	}
	if err := p.Signal(syscall.SIGHUP); err == nil {
		t.Error("a signal to an ended process is no error")
	}
}

func TestProcessThatEndsTooSoonSaysWhy(t *testing.T) {
	_, err := Start(t.Context(), Command{
		Path: "sh", Args: []string{"-c", "echo no such luck; exit 3"},
		Log:   filepath.Join(t.TempDir(), "log"),
		Ready: func() error { return os.ErrNotExist },
	})
	if err == nil || !strings.Contains(err.Error(), "exit status 3") || !strings.Contains(err.Error(), "no such luck") {
		t.Errorf("error %v; want the exit status and the log", err)
	}
}

func TestProcessEndsWithItsParent(t *testing.T) {
	parent := exec.Command(os.Args[0])
	parent.Env = append(os.Environ(), "RIG_TEST_PARENT=1")
	out, err := parent.StdoutPipe()
	must(t, err)
	must(t, parent.Start())
	var buf [32]byte
	n, err := out.Read(buf[:])
	must(t, err)
	pid, err := strconv.Atoi(strings.TrimSpace(string(buf[:n])))
	must(t, err)
	must(t, syscall.Kill(pid, 0))
	must(t, parent.Process.Kill())
	parent.Wait()
	must(t, WaitFor(within(t, time.Minute), func() error {
		// Gone, or a zombie that the new parent has not collected yet.
		b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
		if err != nil || bytes.Contains(b, []byte(") Z ")) {
			return nil
		}
		return syscall.EBUSY
	}))
}

func TestKafkaVersionIsTheScripts(t *testing.T) {
	for _, name := range []string{"install-parts", "parts"} {
		b, err := os.ReadFile(filepath.Join("..", "..", "scripts", name))
		must(t, err)
		m := regexp.MustCompile(`(?m)^kafka_version=(\S+)`).FindSubmatch(b)
		if m == nil || string(m[1]) != KafkaVersion {
			t.Errorf("scripts/%s has kafka_version %q, pkg/rig has %s", name, m, KafkaVersion)
		}
	}
}

type fakeT struct{ skipped, failed bool }

func (*fakeT) Helper()                 {}
func (f *fakeT) Skipf(string, ...any)  { f.skipped = true }
func (f *fakeT) Fatalf(string, ...any) { f.failed = true }

func TestRequire(t *testing.T) {
	t.Setenv("CI", "")
	t.Setenv("BMPHA_REQUIRE", "")
	f := new(fakeT)
	if Require(f, "teapot"); !f.skipped || f.failed {
		t.Errorf("a missing part: %+v, want skipped", f)
	}
	t.Setenv("CI", "true")
	f = new(fakeT)
	if Require(f, "teapot"); !f.failed {
		t.Errorf("a missing part in CI: %+v, want failed", f)
	}
	if Missing() == "" || len(Parts()) != 5 {
		t.Errorf("parts %v, missing %q", Parts(), Missing())
	}
}

// echo is a server that returns what it gets.
func echo(t *testing.T) string {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				c.(*net.TCPConn).ReadFrom(c)
			}()
		}
	}()
	t.Cleanup(func() { ln.Close(); <-done })
	return ln.Addr().String()
}

func roundTrip(c net.Conn, msg string, d time.Duration) error {
	c.SetDeadline(time.Now().Add(d))
	if _, err := c.Write([]byte(msg)); err != nil {
		return err
	}
	b := make([]byte, len(msg))
	for n := 0; n < len(b); {
		m, err := c.Read(b[n:])
		if err != nil {
			return err
		}
		n += m
	}
	if string(b) != msg {
		return os.ErrInvalid
	}
	return nil
}

func TestProxy(t *testing.T) {
	p, err := NewProxy(echo(t))
	must(t, err)
	defer p.Close()
	dial := func() net.Conn {
		t.Helper()
		c, err := net.Dial("tcp", p.Addr())
		must(t, err)
		t.Cleanup(func() { c.Close() })
		return c
	}
	c := dial()
	must(t, roundTrip(c, "plain", 10*time.Second))

	p.Delay(50 * time.Millisecond)
	start := time.Now()
	must(t, roundTrip(c, "later", 10*time.Second))
	if d := time.Since(start); d < 100*time.Millisecond {
		t.Errorf("delayed round trip took %v, want at least 100ms", d)
	}
	p.Delay(0)

	p.Rate(100_000)
	start = time.Now()
	must(t, roundTrip(c, strings.Repeat("x", 10_000), 20*time.Second))
	if d := time.Since(start); d < 90*time.Millisecond {
		t.Errorf("10 kB at 100 kB/s took %v", d)
	}
	p.Rate(0)

	p.Hang(ToClient)
	_, err = c.Write([]byte("hung"))
	must(t, err)
	c.SetDeadline(time.Now().Add(50 * time.Millisecond))
	if n, err := c.Read(make([]byte, 4)); err == nil {
		t.Errorf("answer of %d bytes through a hanging proxy", n)
	}
	p.Hang(0)
	c.SetDeadline(time.Now().Add(10 * time.Second))
	b := make([]byte, 4)
	if n, err := c.Read(b); err != nil || string(b[:n]) != "hung" {
		t.Errorf("after the hang %q, %v; want what was held", b, err)
	}

	p.Drop()
	if err := roundTrip(c, "dropped", 10*time.Second); err == nil {
		t.Error("a dropped connection still answers")
	}
	c = dial()
	must(t, roundTrip(c, "again", 10*time.Second))

	p.Cut()
	if err := roundTrip(c, "cut", 10*time.Second); err == nil {
		t.Error("a cut connection still answers")
	}
	if c, err := net.Dial("tcp", p.Addr()); err == nil {
		c.Close()
		t.Error("a cut proxy takes connections")
	}
	must(t, p.Restore())
	c = dial()
	must(t, roundTrip(c, "restored", 10*time.Second))
	if to, back := p.Passed(); to == 0 || back == 0 || p.Conns() != 1 {
		t.Errorf("passed %d and %d bytes, %d connections", to, back, p.Conns())
	}
}

func TestProxyPassesTheEndOfOneHalf(t *testing.T) {
	p, err := NewProxy(echo(t))
	must(t, err)
	defer p.Close()
	c, err := net.Dial("tcp", p.Addr())
	must(t, err)
	defer c.Close()
	c.SetDeadline(time.Now().Add(10 * time.Second))
	c.Write([]byte("all of it"))
	c.(*net.TCPConn).CloseWrite()
	var b bytes.Buffer
	if _, err := b.ReadFrom(c); err != nil || b.String() != "all of it" {
		t.Errorf("got %q, %v", b.String(), err)
	}
}
