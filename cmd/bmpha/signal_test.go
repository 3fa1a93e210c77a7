package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bmpha/bmpha/pkg/control"
)

// The signals of operators, as with pmacct.
const (
	sigRegenerate = syscall.Signal(34)
	sigActive     = syscall.Signal(35)
	sigStandby    = syscall.Signal(36)
	sigAuto       = syscall.Signal(37)
)

var operatorSignals = []syscall.Signal{sigRegenerate, sigActive, sigStandby, sigAuto}

// TestSignals: each of the four does what it does in pmacct, and hundreds of them
// at any time end nothing, lose nothing and are each heard.
func TestSignals(t *testing.T) {
	t.Parallel()
	l := newLab(t).consume(4)
	ms := l.cluster("a", "b")
	a, b := ms[0], ms[1]
	r := l.numbered(500, a, b)
	roles := func(roleA, roleB string) {
		t.Helper()
		for m, want := range map[*member]string{a: roleA, b: roleB} {
			l.until("role of "+m.name, func() error {
				o := l.command("status", "--json", "--socket", m.socket)
				if got := l.parseStatus(o).Role; got != want {
					return fmt.Errorf("%s, want %s", got, want)
				}
				return nil
			})
		}
	}
	send := func(m *member, sig syscall.Signal) {
		t.Helper()
		l.must(m.Signal(sig))
	}
	roles("active", "standby")
	send(a, sigRegenerate)
	roles("standby", "active")
	send(a, sigActive)
	roles("active", "standby")
	send(a, sigAuto)
	roles("standby", "active")
	send(b, sigStandby)
	roles("active", "standby")
	send(b, sigAuto)
	roles("standby", "active") // it kept its timestamp, which is the older one
	send(b, sigRegenerate)
	roles("active", "standby")

	const times = 100
	sent := map[*member]int{a: 3, b: 3}
	for i := range times {
		for j := range operatorSignals {
			send(a, operatorSignals[(i+j)%4])
			send(b, operatorSignals[(i+2*j+1)%4])
		}
		sent[a] += 4
		sent[b] += 4
	}
	for _, m := range []*member{a, b} {
		l.until("signals in the log of "+m.name, func() error {
			b, err := os.ReadFile(m.log)
			if n := bytes.Count(b, []byte("msg=signal")); n != sent[m] {
				return errors.Join(err, fmt.Errorf("%d signals, want %d", n, sent[m]))
			}
			return nil
		})
		send(m, sigAuto)
	}
	l.until("one active", func() error {
		sa, sb := a.status(), b.status()
		if sa.Forced != "" || sb.Forced != "" || (sa.Role == control.RoleActive) == (sb.Role == control.RoleActive) {
			return fmt.Errorf("a is %s, b is %s", sa.Role, sb.Role)
		}
		return nil
	})
	l.more(500)
	l.complete(r)
}

// startBlocked starts cmd with the four signals blocked, which closes the moment
// between exec and the handler: see package signal.
func startBlocked(cmd *exec.Cmd) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var set, old unix.Sigset_t
	for _, sig := range operatorSignals {
		set.Val[0] |= 1 << (sig - 1)
	}
	if err := unix.PthreadSigmask(unix.SIG_BLOCK, &set, &old); err != nil {
		return err
	}
	err := cmd.Start()
	return errors.Join(err, unix.PthreadSigmask(unix.SIG_SETMASK, &old, nil))
}

// TestSignalsAtStart: a process that gets all four right after exec does its work
// all the same, a hundred times.
func TestSignalsAtStart(t *testing.T) {
	t.Parallel()
	path := program(t)
	session, _ := smallSession()
	for i := range 100 {
		cmd := exec.CommandContext(t.Context(), path, "decode", "-")
		cmd.Env = append(os.Environ(), "GORACE=atexit_sleep_ms=0")
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		var out, errOut bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &errOut
		if err := startBlocked(cmd); err != nil {
			t.Fatal(err)
		}
		for j := range operatorSignals {
			if err := cmd.Process.Signal(operatorSignals[(i+j)%4]); err != nil {
				t.Fatal(err)
			}
		}
		_, err = io.Copy(in, bytes.NewReader(session))
		err = errors.Join(err, in.Close(), cmd.Wait())
		if err != nil {
			t.Fatalf("start %d: %v\n%s", i, err, errOut.String())
		}
		if n := strings.Count(out.String(), "\n"); n != 11 {
			t.Fatalf("start %d: %d records, want 11", i, n)
		}
	}
}

// TestDaemonSignalsAtStart: the daemon carries out what came before it was ready.
func TestDaemonSignalsAtStart(t *testing.T) {
	t.Parallel()
	l := newLab(t).consume(1)
	for _, sigs := range [][]syscall.Signal{
		{sigStandby}, {sigActive}, {sigRegenerate, sigActive, sigStandby, sigAuto}, {sigRegenerate, sigStandby},
	} {
		name := fmt.Sprint("signals ", sigs)
		m := l.start("a") // for its configuration
		l.must(m.Stop())
		l.must(os.Truncate(m.log, 0))
		log, err := os.OpenFile(m.log, os.O_APPEND|os.O_WRONLY, 0)
		l.must(err)
		cmd := exec.CommandContext(t.Context(), program(t), "run", "-c", m.file)
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		cmd.Stdout, cmd.Stderr = log, log
		done := make(chan error, 1)
		started := make(chan error)
		go func() { // the child lives as long as the thread that started it
			runtime.LockOSThread()
			err := startBlocked(cmd)
			started <- err
			if err == nil {
				done <- cmd.Wait()
			}
		}()
		l.must(<-started)
		log.Close()
		for _, sig := range sigs {
			l.must(cmd.Process.Signal(sig))
		}
		// Of several that wait the lowest comes first.
		wantForced, wantRole := "", control.RoleActive
		switch sigs[len(sigs)-1] {
		case sigStandby:
			wantForced, wantRole = control.RoleStandby, control.RoleStandby
		case sigActive:
			wantForced = control.RoleActive
		}
		m.seen(name, func(s *control.Status) error {
			b, err := os.ReadFile(m.log)
			if n := bytes.Count(b, []byte("msg=signal")); err != nil || n != len(sigs) {
				return errors.Join(err, fmt.Errorf("%d signals in the log", n))
			}
			if s.Role != wantRole || s.Forced != wantForced {
				return fmt.Errorf("%s, forced %q; want %s, forced %q", s.Role, s.Forced, wantRole, wantForced)
			}
			return nil
		})
		l.must(cmd.Process.Signal(syscall.SIGTERM))
		select {
		case err := <-done:
			l.must(err)
		case <-time.After(patience * 30 * time.Second):
			t.Fatalf("%s: does not end on SIGTERM", name)
		}
	}
}

// TestPaused: the active one stands still past its expiry. Another takes over;
// when it goes on it hands over nothing before it has seen Redis, and is the
// youngest.
func TestPaused(t *testing.T) {
	t.Parallel()
	l := newLab(t).consume(4)
	ms := l.cluster("a", "b")
	a, b := ms[0], ms[1]
	r := l.numbered(trafficRate, a, b)
	for range 3 {
		l.more(trafficRate)
		instance := a.instance()
		l.must(a.Pause())
		b.role(control.RoleActive)
		l.more(trafficRate)
		resumed := time.Now()
		l.must(a.Resume())
		a.seen("standby after the pause", func(s *control.Status) error {
			if s.Role != control.RoleStandby {
				return fmt.Errorf("%s (%s)", s.Role, s.Reason)
			}
			return nil
		})
		l.more(trafficRate)
		// The time of a record is when it was given to librdkafka.
		for _, s := range l.tally.stints() {
			if s.instance == instance && s.last.After(resumed) {
				l.errorf("a record of a from %s after it went on", s.last.Sub(resumed))
			}
		}
		var own, other uint64
		for _, m := range a.status().Members {
			if m.Self {
				own = m.Timestamp
			} else {
				other = m.Timestamp
			}
		}
		if own <= other {
			l.errorf("after the pause the timestamp is %d, the other's %d", own, other)
		}
		a, b = b, a
	}
	repeats := l.complete(r)
	t.Logf("3 pauses: %d repeated", repeats)
	l.tokensRise()
}

// TestSameName: a second process with the same name stays out, and says so.
func TestSameName(t *testing.T) {
	t.Parallel()
	l := newLab(t).consume(4)
	a := l.start("a")
	a.role(control.RoleActive)
	again, err := l.tryStart("a", "a-again")
	l.must(err)
	again.role(control.RoleStandby)
	again.problem("name_taken")
	l.says(control.ExitDegraded, `another process is named "a"`, "status", "--socket", again.socket)
	r := l.numbered(trafficRate, a, again)
	l.more(2 * trafficRate)
	if _, n := l.tally.numbered(); n != 0 {
		l.errorf("%d records repeated", n)
	}
	if n := again.status().Sink.Handed; n != 0 {
		l.errorf("the second handed over %d records", n)
	}
	l.must(a.Kill())
	again.role(control.RoleActive)
	l.more(trafficRate)
	l.complete(r)
}
