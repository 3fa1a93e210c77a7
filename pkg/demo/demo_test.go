package demo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		if programDir != "" {
			os.RemoveAll(programDir)
		}
		os.Exit(code)
	}))
}

var programDir string

// program builds bmpha, once.
var program = sync.OnceValues(func() (file string, err error) {
	if programDir, err = os.MkdirTemp("", "bmpha-program-"); err != nil {
		return "", err
	}
	file = filepath.Join(programDir, "bmpha")
	out, err := exec.Command("go", "build", "-buildvcs=false", "-o", file, "github.com/bmpha/bmpha/cmd/bmpha").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("build bmpha: %w: %s", err, out)
	}
	return file, nil
})

// fast is a demo on fast timers, yet such that nobody takes over because the machine
// stood still for a moment.
func fast(t *testing.T, out *transcript) Options {
	t.Helper()
	if testing.Short() {
		t.Skip("starts processes")
	}
	file, err := program()
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("BMPHA_PROCESS", "another bmpha's setting") // which must not reach the demo's
	t.Setenv("TMPDIR", t.TempDir())
	return Options{
		Binary: file, Rate: 600, Heartbeat: 250 * time.Millisecond, Expiry: 2500 * time.Millisecond,
		Margin: 200 * time.Millisecond, Look: 500 * time.Millisecond, Patience: time.Minute, Out: out,
	}
}

// A transcript is the demo's output.
type transcript struct {
	mu   sync.Mutex
	text bytes.Buffer
	each func(line string)
}

func (w *transcript) Write(b []byte) (int, error) {
	if w.each != nil {
		w.each(string(b))
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.text.Write(b)
}

func (w *transcript) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.text.String()
}

// nothingLeft checks that the processes and the folder are gone.
func nothingLeft(t *testing.T, out *transcript) {
	t.Helper()
	pids := regexp.MustCompile(`\(process (\d+)\)`).FindAllStringSubmatch(out.String(), -1)
	if len(pids) < 3 {
		t.Errorf("%d processes were told of", len(pids))
	}
	for _, m := range pids {
		pid, err := strconv.Atoi(m[1])
		if err != nil {
			t.Fatal(err)
		}
		if err := syscall.Kill(pid, 0); !errors.Is(err, syscall.ESRCH) {
			t.Errorf("process %d: %v", pid, err)
		}
	}
	if left, err := os.ReadDir(os.Getenv("TMPDIR")); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v %v", left, err)
	}
}

// TestDemo: the whole demo.
func TestDemo(t *testing.T) {
	var out transcript
	r, err := Run(t.Context(), fast(t, &out))
	t.Logf("%s", &out)
	if err != nil {
		t.Fatal(err)
	}
	var table bytes.Buffer
	if err := r.Write(&table, 0); err != nil {
		t.Fatal(err)
	}
	t.Logf("\n%s", &table)
	if !r.OK {
		t.Error(r.Verdict())
	}
	want := []string{"A", "A → B", "B → C", "C", "C → A+B+C → C", "C, A for frr", "C", "C → A", "A"}
	if len(r.Steps) != len(want) {
		t.Fatalf("%d steps, want %d", len(r.Steps), len(want))
	}
	for i, s := range r.Steps {
		if s.Active != want[i] {
			t.Errorf("%s: active was %q, want %q", s.Name, s.Active, want[i])
		}
	}
	if q := r.Steps[0]; q.Sent == 0 || q.Repeated != 0 {
		t.Errorf("quiet: %+v", q)
	}
	if n := r.Steps[4].Repeated; n == 0 {
		t.Error("all three sent while Redis was away, and nothing was repeated")
	}
	nothingLeft(t, &out)
}

// TestInterrupted: the end of the context ends the demo at any step.
func TestInterrupted(t *testing.T) {
	for _, at := range []string{"B runs", "kill -9 ", "Kafka is away"} {
		t.Run(at, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			var out transcript
			out.each = func(line string) {
				if strings.Contains(line, at) {
					cancel()
				}
			}
			o := fast(t, &out)
			o.Look = 100 * time.Millisecond
			r, err := Run(ctx, o)
			if !errors.Is(err, context.Canceled) {
				t.Errorf("error %v", err)
			}
			if r != nil && (r.OK || r.Finished) {
				t.Error("an interrupted demo says that it has finished")
			}
			if at == "B runs" {
				return // the third was not there yet
			}
			nothingLeft(t, &out)
		})
	}
}

// TestCollectorThatDoesNotRun: the error says which, and why.
func TestCollectorThatDoesNotRun(t *testing.T) {
	var out transcript
	o := fast(t, &out)
	o.Binary = "false"
	r, err := Run(t.Context(), o)
	if r != nil || err == nil || !strings.Contains(err.Error(), "collector A") {
		t.Errorf("report %v, error %v", r, err)
	}
	if left, err := os.ReadDir(os.Getenv("TMPDIR")); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v %v", left, err)
	}
}

// TestKeep: the folder stays on request, with the logs.
func TestKeep(t *testing.T) {
	var out transcript
	o := fast(t, &out)
	o.Keep = true
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	out.each = func(line string) {
		if strings.Contains(line, "A runs") {
			cancel()
		}
	}
	if _, err := Run(ctx, o); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	logs, err := filepath.Glob(filepath.Join(os.Getenv("TMPDIR"), "bmpha-demo-*", "a.log"))
	if err != nil || len(logs) != 1 {
		t.Fatalf("logs: %v %v", logs, err)
	}
	if text, err := os.ReadFile(logs[0]); err != nil || !strings.Contains(string(text), "collector started") {
		t.Errorf("log of A: %q %v", text, err)
	}
}

// TestLive: on a terminal the timeline is drawn, and the cursor comes back.
func TestLive(t *testing.T) {
	var out transcript
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	o := fast(t, &out)
	o.Size = func() (int, int) { return 80, 24 }
	out.each = func(text string) {
		if strings.Contains(text, "1 of 9: quiet") {
			cancel()
		}
	}
	if _, err := Run(ctx, o); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	text := out.String()
	if !strings.HasPrefix(text, "\x1b[?25l") || !strings.HasSuffix(text, "\x1b[?25h") {
		t.Errorf("the cursor is not hidden at first and shown at last: %.20q … %q", text, text[max(0, len(text)-20):])
	}
	if strings.Contains(text, "\x1b[0;") {
		t.Error("colours without being asked for")
	}
	if !strings.Contains(text, "--socket") {
		t.Error("it does not say how to look")
	}
}
