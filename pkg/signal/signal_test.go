package signal

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

var four = []Request{Regenerate, Active, Standby, Auto}

// The test binary is also the program that gets the signals: it prints the
// number of each, and ends well when its input does.
const childEnv = "BMPHA_SIGNAL_TEST_CHILD"

func TestMain(m *testing.M) {
	if os.Getenv(childEnv) != "" {
		if err := child(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func init() {
	if os.Getenv(childEnv) != "" {
		runtime.LockOSThread() // main stays on the first thread
	}
}

func child() error {
	// The thread on which os/signal blocks nearly everything may be any that is
	// idle. Let it be one, and the first one, too.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGTERM)
	var all unix.Sigset_t
	for i := range all.Val {
		all.Val[i] = ^all.Val[i]
	}
	if err := unix.PthreadSigmask(unix.SIG_BLOCK, &all, nil); err != nil {
		return err
	}

	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	requests, err := Requests(ctx)
	if err != nil {
		return err
	}
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		cancel()
	}()
	fmt.Println("ready")
	for r := range requests {
		fmt.Println(int(r))
	}
	return nil
}

// A process is a running child.
type process struct {
	t     *testing.T
	cmd   *exec.Cmd
	stdin io.Closer
	lines *bufio.Scanner
}

// start runs the child with the signals unblocked, as from a shell, or blocked.
func start(t *testing.T, blocked bool) *process {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	// The race detector sleeps for a second at the end of a process.
	cmd.Env = append(os.Environ(), childEnv+"=1", "GORACE=atexit_sleep_ms=0")
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	launch := Start
	if blocked {
		launch = startBlocked
	}
	if err := launch(cmd); err != nil {
		t.Fatal(err)
	}
	p := &process{t: t, cmd: cmd, stdin: stdin, lines: bufio.NewScanner(stdout)}
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // fails when stop has been here
		_ = cmd.Wait()
	})
	return p
}

// startBlocked starts cmd with all four signals blocked.
func startBlocked(cmd *exec.Cmd) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var set, old unix.Sigset_t
	for _, r := range four {
		set.Val[0] |= 1 << (r - 1)
	}
	if err := unix.PthreadSigmask(unix.SIG_BLOCK, &set, &old); err != nil {
		return err
	}
	err := cmd.Start()
	return errors.Join(err, unix.PthreadSigmask(unix.SIG_SETMASK, &old, nil))
}

func (p *process) send(r Request) {
	p.t.Helper()
	if err := syscall.Kill(p.cmd.Process.Pid, syscall.Signal(r)); err != nil {
		p.t.Fatalf("send %v: %v", r, err)
	}
}

func (p *process) line() string {
	p.t.Helper()
	if !p.lines.Scan() {
		p.t.Fatalf("the process has ended: %v", p.cmd.Wait())
	}
	return p.lines.Text()
}

func (p *process) ready() {
	p.t.Helper()
	if got := p.line(); got != "ready" {
		p.t.Fatalf("first line %q, want ready", got)
	}
}

// received reads n requests and counts them by kind.
func (p *process) received(n int) map[Request]int {
	p.t.Helper()
	counts := map[Request]int{}
	for range n {
		number, err := strconv.Atoi(p.line())
		if err != nil {
			p.t.Fatal(err)
		}
		counts[Request(number)]++
	}
	return counts
}

// stop ends the child and fails if it says more, or does not end by itself.
func (p *process) stop() {
	p.t.Helper()
	if err := p.stdin.Close(); err != nil {
		p.t.Fatal(err)
	}
	for p.lines.Scan() {
		p.t.Errorf("more than was sent: %s", p.lines.Text())
	}
	if err := p.cmd.Wait(); err != nil {
		p.t.Errorf("the process did not end well: %v", err)
	}
}

func each(n int) map[Request]int {
	want := map[Request]int{}
	for _, r := range four {
		want[r] = n
	}
	return want
}

func TestOrderIsKept(t *testing.T) {
	p := start(t, false)
	p.ready()
	for i := range 400 {
		r := four[(i*i+i/7)%4] // neither sorted nor round
		p.send(r)
		if got, want := p.line(), strconv.Itoa(int(r)); got != want {
			t.Fatalf("signal %d: got %s, want %s", i, got, want)
		}
	}
	p.stop()
}

func TestBurstIsCountedExactly(t *testing.T) {
	p := start(t, false)
	p.ready()
	for range 100 {
		for _, r := range four {
			p.send(r)
		}
	}
	if diff := cmp.Diff(each(100), p.received(400)); diff != "" {
		t.Errorf("received (-want +got):\n%s", diff)
	}
	p.stop()
}

// The signals come as soon as the handler is seen to be there, while Go's
// runtime has not started or is starting.
func TestBeforeMain(t *testing.T) {
	for range 100 {
		p := start(t, false)
		for !p.catches() {
			runtime.Gosched()
		}
		for _, r := range four {
			p.send(r)
		}
		p.ready()
		if diff := cmp.Diff(each(1), p.received(4)); diff != "" {
			t.Fatalf("received (-want +got):\n%s", diff)
		}
		p.stop()
	}
}

// catches reports whether the process has a handler for all four.
func (p *process) catches() bool {
	p.t.Helper()
	mask := statusMask(p.t, fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid), "SigCgt")
	return mask&fourMask == fourMask
}

const fourMask = 0xf << (34 - 1)

func statusMask(t *testing.T, file, name string) uint64 {
	t.Helper()
	status, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		if value, ok := strings.CutPrefix(line, name+":"); ok {
			mask, err := strconv.ParseUint(strings.TrimSpace(value), 16, 64)
			if err != nil {
				t.Fatal(err)
			}
			return mask
		}
	}
	t.Fatalf("%s has no %s", file, name)
	return 0
}

// With the signals blocked by the parent nothing is lost from the first moment.
// They are pending when the new image starts, so they meet everything that
// installs a handler on the way.
func TestRightAfterExecFromABlockingParent(t *testing.T) {
	for range 100 {
		p := start(t, true)
		for _, r := range four {
			p.send(r)
		}
		p.ready()
		if diff := cmp.Diff(each(1), p.received(4)); diff != "" {
			t.Fatalf("received (-want +got):\n%s", diff)
		}
		p.stop()
	}
}

func TestRequestsAreRememberedBetweenReaders(t *testing.T) {
	self := func(r Request) {
		t.Helper()
		if err := syscall.Kill(os.Getpid(), syscall.Signal(r)); err != nil {
			t.Fatal(err)
		}
	}
	self(Standby) // nobody listens

	ctx, cancel := context.WithCancel(t.Context())
	first, err := Requests(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Requests(t.Context()); !errors.Is(err, ErrBusy) {
		t.Errorf("a second reader: got error %v, want ErrBusy", err)
	}
	if r := <-first; r != Standby {
		t.Errorf("got %v, want standby", r)
	}
	self(Auto) // read or not read by now, but not taken
	cancel()
	var left []Request
	for r := range first {
		left = append(left, r) // both cases of the select may have been ready
	}

	ctx, cancel = context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	self(Regenerate)
	second, err := Requests(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for len(left) < 2 {
		r, ok := <-second
		if !ok {
			t.Fatal("a request is lost")
		}
		left = append(left, r)
	}
	slices.Sort(left) // when both were pending, the lower came first
	if diff := cmp.Diff([]Request{Regenerate, Auto}, left); diff != "" {
		t.Errorf("after the first reader (-want +got):\n%s", diff)
	}
	cancel()
	for r := range second {
		t.Errorf("more than was sent: %v", r)
	}
}

func TestStartLeavesNothingBlocked(t *testing.T) {
	cmd := exec.Command("cat", "/proc/self/status")
	out := t.TempDir() + "/status"
	f, err := os.Create(out)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	cmd.Stdout = f
	if err := Start(cmd); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	if mask := statusMask(t, out, "SigBlk"); mask&fourMask != 0 {
		t.Errorf("blocked in the new program: %#x", mask&fourMask)
	}
}

func TestNames(t *testing.T) {
	for r, want := range map[Request]string{
		Regenerate: "regenerate", Active: "active", Standby: "standby", Auto: "auto", 38: "signal 38",
	} {
		if got := r.String(); got != want {
			t.Errorf("Request(%d) is %q, want %q", int(r), got, want)
		}
	}
}
