package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/bmpha/bmpha/pkg/control"
	"github.com/bmpha/bmpha/pkg/rig"
)

// TestControl: how operators and monitoring see a daemon.
func TestControl(t *testing.T) {
	t.Parallel()
	l := newLab(t).consume(1)
	port, err := rig.FreePort("")
	l.must(err)
	address := "127.0.0.1:" + strconv.Itoa(port)
	a := l.start("a", "BMPHA_CONTROL_HTTP="+address)
	a.role(control.RoleActive)

	get := func(path string) (int, string, error) {
		r, err := http.Get("http://" + address + path)
		if err != nil {
			return 0, "", err
		}
		defer r.Body.Close()
		b, err := io.ReadAll(r.Body)
		return r.StatusCode, string(b), err
	}
	for _, path := range []string{"/healthz", "/readyz"} {
		l.until(path, func() error {
			if code, text, err := get(path); code != http.StatusOK || err != nil {
				return fmt.Errorf("%d %q %v", code, text, err)
			}
			return nil
		})
	}
	r := l.numbered(500, a)
	l.more(500)
	l.complete(r)
	s := a.status()
	l.until("metrics", func() error {
		_, text, err := get("/metrics")
		if err != nil {
			return err
		}
		for _, want := range []string{
			fmt.Sprintf("bmpha_sink_acknowledged_records_total %d", s.Sink.Acknowledged),
			`bmpha_role{role="active"} 1`,
		} {
			if !strings.Contains(text, want) {
				return fmt.Errorf("no %q in\n%s", want, text)
			}
		}
		return nil
	})

	// The socket is for the daemon's user and group, and nobody else.
	info, err := os.Stat(a.socket)
	l.must(err)
	if got := info.Mode().Perm(); got != 0o660 {
		t.Errorf("socket: permissions %o, want 660", got)
	}
	l.says(control.ExitActive, "ACTIVE a", "status", "--socket", a.socket)
	// One that was left behind by a crash is no obstacle, one in use is.
	l.must(a.Kill())
	l.must(a.Restart(t.Context()))
	if o := l.command("run", "-c", a.file); o.code != 1 || o.errOut == "" {
		t.Errorf("a second daemon on the same addresses: exit code %d, %q", o.code, o.errOut)
	}
	a.role(control.RoleActive)

	// Alone, it does not hand over unless it has to.
	if o := l.command("maintenance", "--socket", a.socket); o.code != control.ExitRefused || !strings.Contains(o.errOut, "no other member is alive") {
		t.Errorf("maintenance alone: exit code %d, %q", o.code, o.errOut)
	}
	if o := l.command("maintenance", "--force", "--socket", a.socket); o.code != 0 {
		t.Errorf("maintenance --force alone: exit code %d, %q", o.code, o.errOut)
	}
}

// TestServiceManager: a daemon of systemd's says that it is ready, that its main
// loops turn, and that it stops; a paused one says nothing.
func TestServiceManager(t *testing.T) {
	t.Parallel()
	l := newLab(t).consume(1)
	dir, err := os.MkdirTemp(scratch, "n")
	l.must(err)
	name := filepath.Join(dir, "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
	l.must(err)
	defer conn.Close()
	next := func(within time.Duration) (string, error) {
		b := make([]byte, 4096)
		if err := conn.SetReadDeadline(time.Now().Add(within)); err != nil {
			return "", err
		}
		n, err := conn.Read(b)
		return string(b[:n]), err
	}
	want := func(state string) {
		t.Helper()
		for {
			got, err := next(patience * 20 * time.Second)
			if err != nil {
				t.Fatalf("%s: %v", state, err)
			}
			if strings.Contains(got, state) {
				return
			}
		}
	}
	a := l.start("a", "NOTIFY_SOCKET="+name, "WATCHDOG_USEC=400000")
	want("READY=1")
	for range 3 {
		want("WATCHDOG=1")
	}
	want("STATUS=active: no other member")

	l.must(a.Pause())
	for err = nil; err == nil; { // what was sent before, and then nothing
		_, err = next(time.Second)
	}
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatal(err)
	}
	l.must(a.Resume())
	want("WATCHDOG=1")

	l.must(a.Signal(syscall.SIGTERM))
	want("STOPPING=1")
	if code := a.ExitCode(); code != 0 {
		t.Errorf("exit code %d", code)
	}
}
