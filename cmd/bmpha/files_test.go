package main

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/bmpha/bmpha/pkg/control"
	"github.com/bmpha/bmpha/pkg/rig"
)

// A logged is a pmbmpd that writes its records into a file for each router, and
// the collectors that follow these files: all on one host, without an intake.
type logged struct {
	*lab
	pmacct  *rig.Pmbmpd
	dir     string
	rotated int

	mu    sync.Mutex
	lines map[string]int // of the topic, with how often each came
}

func newLogged(t *testing.T) *logged {
	t.Helper()
	rig.Require(t, rig.PmbmpdPart)
	f := &logged{lab: newLab(t, withDefaultTimers), dir: t.TempDir(), lines: make(map[string]int)}
	f.consume(4)
	sub, err := rig.ConsumeEach(t.Context(), f.kafka.Brokers(), f.name, func(r rig.Record) {
		f.mu.Lock()
		f.lines[string(r.Value)]++
		f.mu.Unlock()
	}, f.kafka.Client()...)
	f.must(err)
	t.Cleanup(sub.Close)
	f.pmacct, err = rig.StartPmbmpd(f.within(30*time.Second), rig.PmbmpdOptions{
		Config: []string{"bmp_daemon_msglog_file: " + filepath.Join(f.dir, "bmp-$bmp_router.json")},
	})
	f.must(err)
	t.Cleanup(func() { f.must(f.pmacct.Close()) })
	return f
}

// follower starts a collector that follows the files.
func (f *logged) follower(name string) *member {
	f.t.Helper()
	return f.start(name, "BMPHA_INTAKE_FILES="+filepath.Join(f.dir, "bmp-*.json"),
		"BMPHA_INTAKE_POSITIONS="+filepath.Join(f.dir, name+".positions"))
}

// rotate does what logrotate does without copytruncate.
func (f *logged) rotate() {
	f.t.Helper()
	current := filepath.Join(f.dir, "bmp-127_0_0_1.json")
	for n := f.rotated; n > 0; n-- {
		f.must(os.Rename(fmt.Sprintf("%s.%d", current, n), fmt.Sprintf("%s.%d", current, n+1)))
	}
	f.rotated++
	f.must(os.Rename(current, current+".1"))
	f.must(f.pmacct.Signal(syscall.SIGHUP))
	f.until("a new file", func() error {
		s, err := os.Stat(current)
		if err == nil && s.Size() == 0 {
			err = fmt.Errorf("%s is empty", current)
		}
		return err
	})
}

// written counts the lines that pmacct has written, in all files.
func (f *logged) written() (lines map[string]int, n int) {
	f.t.Helper()
	files, err := filepath.Glob(filepath.Join(f.dir, "bmp-*.json*"))
	f.must(err)
	if len(files) != f.rotated+1 {
		f.t.Fatalf("files %v, want %d", files, f.rotated+1)
	}
	lines = make(map[string]int)
	for _, file := range files {
		b, err := os.Open(file)
		f.must(err)
		s := bufio.NewScanner(b)
		for s.Scan() {
			lines[s.Text()]++
			n++
		}
		f.must(s.Err())
		b.Close()
	}
	return lines, n
}

// missing says which lines are not in Kafka, and how many records are there more
// than lines.
func (f *logged) missing() (repeats int, err error) {
	lines, n := f.written()
	f.mu.Lock()
	defer f.mu.Unlock()
	total, lost := 0, 0
	first := ""
	for line, count := range lines {
		if f.lines[line] < count {
			lost++
			first = line
		}
	}
	for line, count := range f.lines {
		if lines[line] == 0 {
			return 0, fmt.Errorf("a record that is no line: %.200q", line)
		}
		total += count
	}
	if lost > 0 {
		err = fmt.Errorf("%d lines of %d are not in Kafka, such as %.200q", lost, n, first)
	}
	return total - n, err
}

// TestFiles: a pair follows pmacct's files through rotation, an end in good order
// and kills: every line is in Kafka.
func TestFiles(t *testing.T) {
	t.Parallel()
	f := newLogged(t)
	const rate = 500
	a := f.follower("a")
	a.role(control.RoleActive)
	b := f.follower("b")
	b.role(control.RoleStandby)
	r := f.numberedTo(rate, f.pmacct.Addr())
	for _, m := range []*member{a, b} {
		m.seen("the file", func(s *control.Status) error {
			if s.Intake == nil || len(s.Intake.Files) == 0 || s.Intake.Files[0].Lines == 0 {
				return fmt.Errorf("%s: %+v", m.name, s.Intake)
			}
			return nil
		})
	}
	f.more(rate)

	seam := func(what string, do func(), most time.Duration) {
		t.Helper()
		_, before := f.tally.numbered()
		begin := time.Now()
		do()
		f.more(2 * rate)
		_, after := f.tally.numbered()
		if most == 0 {
			if after > before {
				f.errorf("%s: %d records repeated", what, after-before)
			}
			return
		}
		f.repeated(what, rate, after-before, most, begin)
	}
	// Files are looked at once a second, by each for itself. Checkpoints are a
	// second apart and wait for what is in flight.
	const twoFiles, unsaved = mostRepeated + time.Second, 4 * time.Second
	seam("rotation", func() { f.rotate(); f.more(rate); f.rotate() }, 0)
	seam("the active one is started anew", func() {
		f.must(a.Restart(t.Context()))
		b.role(control.RoleActive)
		a.role(control.RoleStandby)
	}, twoFiles)
	seam("the active one is killed", func() {
		f.must(b.Kill())
		a.role(control.RoleActive)
		f.must(b.Restart(t.Context()))
		b.role(control.RoleStandby)
	}, twoFiles)
	seam("the only one is killed, and files are rotated meanwhile", func() {
		f.must(b.Stop())
		f.more(rate)
		f.must(a.Kill())
		f.rotate()
		f.rotate()
		f.must(a.Restart(t.Context()))
		a.role(control.RoleActive)
	}, unsaved)

	r.Pause(true)
	var repeats int
	f.until("all lines", func() (err error) {
		repeats, err = f.missing()
		return err
	})
	f.same(r)
	f.repeated("more records than lines", rate, repeats, 2*twoFiles+unsaved, f.began)
	f.must(a.Stop())
}
