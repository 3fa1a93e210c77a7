package rig

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// A Command says how to run a Process. Path is required.
type Command struct {
	Name string   // for messages; "" is the file name of Path
	Path string   // the program, looked up in PATH
	Args []string // without the program itself
	Env  []string // added to the parent's environment
	Dir  string   // working directory
	Log  string   // file that standard output and error are appended to; "" discards them

	// StopSignal is what Stop sends first, SIGTERM by default. After Grace (5 s
	// by default) Stop sends SIGKILL.
	StopSignal syscall.Signal
	Grace      time.Duration

	// Ready is tried until it returns nil; a nil Ready means that a process
	// that has started is ready. ReadyWithin bounds the wait, 90 s by default: a
	// busy machine takes its time.
	Ready       func() error
	ReadyWithin time.Duration
}

// A Process is a child process that can be stopped, killed, paused and started
// again. It ends when its parent ends, however that happens.
type Process struct {
	cmd Command

	life sync.Mutex // serialises Stop, Kill, Restart, Close

	mu  sync.Mutex
	run *running // the latest run, also after its end
}

var _ Server = (*Process)(nil)

// running is one run of a Process.
type running struct {
	cmd  *exec.Cmd
	done chan struct{} // closed after the end
	err  error         // how it ended; read after done
}

// Start runs c and waits until it is ready.
func Start(ctx context.Context, c Command) (*Process, error) {
	if c.Name == "" {
		c.Name = filepath.Base(c.Path)
	}
	if c.StopSignal == 0 {
		c.StopSignal = syscall.SIGTERM
	}
	if c.Grace == 0 {
		c.Grace = 5 * time.Second
	}
	if c.ReadyWithin == 0 {
		c.ReadyWithin = 90 * time.Second
	}
	p := &Process{cmd: c}
	if err := p.start(ctx); err != nil {
		return nil, err
	}
	return p, nil
}

func (p *Process) start(ctx context.Context) error {
	c := p.cmd
	cmd := exec.Command(c.Path, c.Args...)
	cmd.Dir = c.Dir
	cmd.Env = append(os.Environ(), c.Env...)
	// A group of its own, so that an interrupt typed at the terminal goes to the
	// parent alone, which ends its children in order.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	var log *os.File
	if c.Log != "" {
		f, err := os.OpenFile(c.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
		if err != nil {
			return fmt.Errorf("log of %s: %w", c.Name, err)
		}
		log = f
		cmd.Stdout, cmd.Stderr = f, f
	}

	r := &running{cmd: cmd, done: make(chan struct{})}
	started := make(chan error)
	go func() {
		// The kernel sends Pdeathsig when the thread that forked ends, not the
		// process: keep that thread for as long as the child lives.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		if log != nil {
			log.Close() // the child has its own
		}
		started <- err
		if err != nil {
			return
		}
		r.err = cmd.Wait()
		close(r.done)
	}()
	if err := <-started; err != nil {
		return fmt.Errorf("start %s: %w", c.Name, err)
	}
	p.mu.Lock()
	p.run = r
	p.mu.Unlock()

	if c.Ready == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, c.ReadyWithin)
	defer cancel()
	err := WaitFor(ctx, func() error {
		select {
		case <-r.done:
			cancel()
			return fmt.Errorf("ended before it was ready: %w", errOr(r.err, errors.New("exit status 0")))
		default:
			return c.Ready()
		}
	})
	if err != nil {
		r.kill()
		return fmt.Errorf("start %s: %w%s", c.Name, err, p.tail())
	}
	return nil
}

func errOr(err, other error) error {
	if err != nil {
		return err
	}
	return other
}

// kill ends the run and its whole group and waits.
func (r *running) kill() {
	// The leader may be gone and others of its group not; either way nothing
	// can be done about an error here.
	syscall.Kill(-r.cmd.Process.Pid, syscall.SIGKILL)
	<-r.done
}

func (r *running) alive() bool {
	select {
	case <-r.done:
		return false
	default:
		return true
	}
}

func (p *Process) latest() *running {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.run
}

// PID returns the id of the latest run's process.
func (p *Process) PID() int { return p.latest().cmd.Process.Pid }

// Alive says whether the process runs (paused counts as running).
func (p *Process) Alive() bool { return p.latest().alive() }

// Done returns a channel that is closed when the present run has ended.
func (p *Process) Done() <-chan struct{} { return p.latest().done }

// LogFile returns the file that its output goes to, "" if it is discarded.
func (p *Process) LogFile() string { return p.cmd.Log }

// ExitCode waits for the end of the present run and returns its exit code, or
// -1 when a signal ended it.
func (p *Process) ExitCode() int {
	r := p.latest()
	<-r.done
	return r.cmd.ProcessState.ExitCode()
}

// Signal sends sig to the process.
func (p *Process) Signal(sig syscall.Signal) error {
	r := p.latest()
	if !r.alive() {
		return fmt.Errorf("signal %d to %s: it has ended", int(sig), p.cmd.Name)
	}
	if err := syscall.Kill(r.cmd.Process.Pid, sig); err != nil {
		return fmt.Errorf("signal %d to %s: %w", int(sig), p.cmd.Name, err)
	}
	return nil
}

// Stop sends the command's stop signal and waits, after the grace period with
// SIGKILL. Stopping a process that has ended is no error.
func (p *Process) Stop() error {
	p.life.Lock()
	defer p.life.Unlock()
	p.stop()
	return nil
}

func (p *Process) stop() {
	r := p.latest()
	if !r.alive() {
		return
	}
	// Errors mean that the process has just ended.
	syscall.Kill(r.cmd.Process.Pid, p.cmd.StopSignal)
	syscall.Kill(r.cmd.Process.Pid, syscall.SIGCONT)
	t := time.NewTimer(p.cmd.Grace)
	defer t.Stop()
	select {
	case <-r.done:
	case <-t.C:
		r.kill()
	}
}

// Kill sends SIGKILL to the process and its group and waits.
func (p *Process) Kill() error {
	p.life.Lock()
	defer p.life.Unlock()
	if r := p.latest(); r.alive() {
		r.kill()
	}
	return nil
}

// Pause stops the process (SIGSTOP) and waits until the kernel says so.
func (p *Process) Pause() error {
	if err := p.Signal(syscall.SIGSTOP); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second) // it may be waiting for a disk
	defer cancel()
	return WaitFor(ctx, func() error {
		s, err := p.state()
		if err != nil {
			return fmt.Errorf("pause %s: %w", p.cmd.Name, err)
		}
		if s != 'T' {
			return fmt.Errorf("pause %s: process is in state %c", p.cmd.Name, s)
		}
		return nil
	})
}

// Resume continues a paused process (SIGCONT).
func (p *Process) Resume() error { return p.Signal(syscall.SIGCONT) }

// Restart starts the process again, after stopping it when it still runs.
func (p *Process) Restart(ctx context.Context) error {
	p.life.Lock()
	defer p.life.Unlock()
	p.stop()
	return p.start(ctx)
}

// Close is Stop.
func (p *Process) Close() error { return p.Stop() }

// stat returns the fields of /proc/<pid>/stat that follow the program's name,
// the state first.
func (p *Process) stat() ([]string, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.PID()))
	if err != nil {
		return nil, err
	}
	_, after, ok := strings.Cut(string(b[bytes.LastIndexByte(b, ')'):]), " ")
	if !ok {
		return nil, fmt.Errorf("unexpected stat %q", b)
	}
	return strings.Fields(after), nil
}

func (p *Process) state() (byte, error) {
	f, err := p.stat()
	if err != nil {
		return 0, err
	}
	return f[0][0], nil
}

// Usage is what a process has used.
type Usage struct {
	CPU     time.Duration // user and system time of all threads so far
	RSS     int64         // bytes resident now
	PeakRSS int64         // bytes resident at most
}

// Usage returns what the running process has used so far, to the resolution of
// the kernel's clock tick (10 ms).
func (p *Process) Usage() (Usage, error) {
	f, err := p.stat()
	if err != nil {
		return Usage{}, fmt.Errorf("usage of %s: %w", p.cmd.Name, err)
	}
	var u Usage
	for _, i := range []int{11, 12} { // utime, stime: fields 14 and 15 of proc(5)
		ticks, err := strconv.ParseInt(f[i], 10, 64)
		if err != nil {
			return Usage{}, fmt.Errorf("usage of %s: %w", p.cmd.Name, err)
		}
		u.CPU += time.Duration(ticks) * 10 * time.Millisecond // USER_HZ is 100 on every Linux port that Go has
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.PID()))
	if err != nil {
		return Usage{}, fmt.Errorf("usage of %s: %w", p.cmd.Name, err)
	}
	for line := range strings.Lines(string(status)) {
		var to *int64
		switch {
		case strings.HasPrefix(line, "VmRSS:"):
			to = &u.RSS
		case strings.HasPrefix(line, "VmHWM:"):
			to = &u.PeakRSS
		default:
			continue
		}
		kb, err := strconv.ParseInt(strings.Fields(line)[1], 10, 64)
		if err != nil {
			return Usage{}, fmt.Errorf("usage of %s: %w", p.cmd.Name, err)
		}
		*to = kb << 10
	}
	return u, nil
}

// tail returns the end of the log, to be put after an error.
func (p *Process) tail() string {
	if p.cmd.Log == "" {
		return ""
	}
	b, err := os.ReadFile(p.cmd.Log)
	if err != nil || len(b) == 0 {
		return ""
	}
	if len(b) > 2000 {
		b = b[len(b)-2000:]
	}
	return "\nend of " + p.cmd.Log + ":\n" + string(b)
}
