package tail

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// sink is a handler that remembers.
type sink struct {
	mu    sync.Mutex
	lines map[string][]string
	all   []string // in the order that they came
	block map[string]chan struct{}
	err   error
}

func newSink() *sink {
	return &sink{lines: make(map[string][]string), block: make(map[string]chan struct{})}
}

func (s *sink) Lines(ctx context.Context, file string, lines [][]byte) error {
	s.mu.Lock()
	c, err := s.block[filepath.Base(file)], s.err
	s.mu.Unlock()
	if err != nil {
		return err
	}
	if c != nil {
		select {
		case <-c:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range lines {
		s.lines[filepath.Base(file)] = append(s.lines[filepath.Base(file)], string(l))
		s.all = append(s.all, string(l))
	}
	return nil
}

func (s *sink) got(base string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Join(s.lines[base], " ")
}

// place is a directory, a tail of it, and what came of that.
type place struct {
	t    *testing.T
	dir  string
	o    Options
	sink *sink
	tail *Tail
	stop func()
}

func newPlace(t *testing.T, patterns ...string) *place {
	p := &place{t: t, dir: t.TempDir(), sink: newSink()}
	for i := range patterns {
		patterns[i] = filepath.Join(p.dir, patterns[i])
	}
	p.o = Options{
		Patterns:  append(patterns, filepath.Join(p.dir, "probe-*")),
		Positions: filepath.Join(p.dir, "positions"),
		Poll:      2 * time.Millisecond, Quiet: 20 * time.Millisecond,
		Handler: p.sink, Log: slog.New(slog.NewTextHandler(io.Discard, nil)),
	}
	return p
}

func (p *place) start() {
	p.t.Helper()
	tail, err := New(p.o)
	if err != nil {
		p.t.Fatal(err)
	}
	p.tail = tail
	ctx, cancel := context.WithCancel(p.t.Context())
	done := make(chan error, 1)
	go func() { done <- tail.Run(ctx) }()
	p.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			p.t.Error(err)
		}
	})
	p.t.Cleanup(p.stop)
}

func (p *place) save() {
	p.t.Helper()
	if err := p.tail.Save(p.tail.Checkpoint()); err != nil {
		p.t.Fatal(err)
	}
}

func (p *place) path(name string) string { return filepath.Join(p.dir, name) }

func (p *place) write(name, s string) {
	p.t.Helper()
	f, err := os.OpenFile(p.path(name), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err == nil {
		_, err = f.WriteString(s)
	}
	if err == nil {
		err = f.Close()
	}
	if err != nil {
		p.t.Fatal(err)
	}
}

func (p *place) rename(from, to string) {
	p.t.Helper()
	if err := os.Rename(p.path(from), p.path(to)); err != nil {
		p.t.Fatal(err)
	}
}

func (p *place) copy(from, to string) {
	p.t.Helper()
	b, err := os.ReadFile(p.path(from))
	if err == nil {
		err = os.WriteFile(p.path(to), b, 0o600)
	}
	if err != nil {
		p.t.Fatal(err)
	}
}

func (p *place) truncate(name string) {
	p.t.Helper()
	if err := os.Truncate(p.path(name), 0); err != nil {
		p.t.Fatal(err)
	}
}

func (p *place) remove(name string) {
	p.t.Helper()
	if err := os.Remove(p.path(name)); err != nil {
		p.t.Fatal(err)
	}
}

// wait waits for a condition, and says what did not come true.
func (p *place) wait(what string, cond func() bool) {
	p.t.Helper()
	end := time.Now().Add(time.Minute)
	for !cond() {
		if time.Now().After(end) {
			p.t.Fatalf("not so: %s\nlines %v\nstatus %+v", what, p.sink.lines, p.tail.Status())
		}
		time.Sleep(time.Millisecond)
	}
}

// want waits until exactly these lines came.
func (p *place) want(name, lines string) {
	p.t.Helper()
	p.wait(fmt.Sprintf("%s is %q", name, lines), func() bool { return p.sink.got(name) == lines })
}

func (p *place) status(name string) File {
	for _, f := range p.tail.Status() {
		if f.Path == p.path(name) {
			return f
		}
	}
	return File{}
}

// polls waits until all files were looked at once more.
func (p *place) polls() {
	p.t.Helper()
	name := fmt.Sprintf("probe-%d", time.Now().UnixNano())
	p.write(name, "x\n")
	p.want(name, "x")
	p.remove(name)
}

func TestFollow(t *testing.T) {
	type step = func(p *place)
	w := func(name, s string) step { return func(p *place) { p.write(name, s) } }
	want := func(s string) step { return func(p *place) { p.want("bmp.json", s) } }
	restart := func(down ...step) step {
		return func(p *place) {
			p.save()
			p.stop()
			for _, s := range down {
				s(p)
			}
			p.start()
		}
	}
	mv := func(from, to string) step { return func(p *place) { p.rename(from, to) } }
	cp := func(from, to string) step { return func(p *place) { p.copy(from, to) } }
	rm := func(name string) step { return func(p *place) { p.remove(name) } }
	cut := func(name string) step { return func(p *place) { p.truncate(name) } }
	const f = "bmp.json"
	long := strings.Repeat("l", 1<<11) // more than a fingerprint covers
	tests := []struct {
		name    string
		pattern string // bmp.json if empty
		late    bool   // a rotated file is written late: Quiet is long
		steps   []step
		check   func(t *testing.T, f File)
	}{
		{name: "what is there is read from the beginning", steps: []step{
			want("0"), w(f, "1\n2\n"), want("0 1 2"),
		}},
		{name: "half a line waits", steps: []step{
			w(f, "1\n2"), want("0 1"), w(f, "3"), w(f, "\n4"), want("0 1 23"), w(f, "\n"), want("0 1 23 4"),
		}},
		{name: "half a line waits over a restart", steps: []step{
			w(f, "1\n2"), want("0 1"), restart(w(f, "3")), w(f, "\n"), want("0 1 23"),
		}},
		{name: "carriage returns, NUL bytes and empty lines", steps: []step{
			w(f, "1\r\n\x00\x00\x002\n\n\r\n\x00\n3\x00\n"), want("0 1 2 3\x00"),
		}, check: func(t *testing.T, f File) {
			if f.Lines != 4 {
				t.Errorf("%d lines", f.Lines)
			}
		}},
		{name: "a line that is too long is skipped", steps: []step{
			w(f, strings.Repeat("x", 4096)+"\n"+strings.Repeat("y", 4097)+"\n"+strings.Repeat("z", 700<<10)+"\n1\n"),
			want("0 " + strings.Repeat("x", 4096) + " 1"),
		}, check: func(t *testing.T, f File) {
			if f.Skipped != 2 {
				t.Errorf("%d skipped", f.Skipped)
			}
		}},
		{name: "a line that is too long in pieces, over a restart", steps: []step{
			w(f, strings.Repeat("x", 5000)),
			func(p *place) {
				p.wait("read", func() bool {
					p.tail.mu.Lock()
					defer p.tail.mu.Unlock()
					s := p.tail.streams[p.path(f)]
					return s != nil && s.last() != nil && s.last().at > s.last().pos
				})
			},
			restart(), w(f, "y\n1\n"), want("0 1"),
		}},
		{name: "rename and create", steps: []step{
			want("0"), w(f, "1\n"), mv(f, "bmp.json.1"), w(f, "2\n"), want("0 1 2"),
		}, check: func(t *testing.T, f File) {
			if f.Rotated != 1 {
				t.Errorf("rotated %d", f.Rotated)
			}
		}},
		{name: "the old file is written after it was renamed", late: true, steps: []step{
			want("0"), mv(f, "old"), w("old", "1\n"), want("0 1"), w(f, "a\n"), want("0 1 a"),
			w("old", "2\n"), want("0 1 a 2"), w(f, "b\n"), want("0 1 a 2 b"),
		}},
		{name: "the old file is let go when quiet, with its half line", steps: []step{
			want("0"), w(f, "half"), mv(f, "old"), w(f, "1\n"), want("0 1"),
			func(p *place) {
				p.wait("let go", func() bool { s := p.status(f); return s.Waiting == 0 && s.Torn == 1 })
			},
		}},
		{name: "removed before it was made anew", steps: []step{
			want("0"), rm(f), w(f, "1\n"), want("0 1"),
		}},
		{name: "several rotations", steps: []step{
			want("0"), mv(f, "bmp.json.1"), w(f, "1\n"), want("0 1"),
			mv("bmp.json.1", "bmp.json.2"), mv(f, "bmp.json.1"), w(f, "2\n"), want("0 1 2"),
			rm("bmp.json.2"), mv("bmp.json.1", "bmp.json.2"), mv(f, "bmp.json.1"), w(f, "3\n"), want("0 1 2 3"),
		}},
		{name: "truncate", steps: []step{
			w(f, "1\n"), want("0 1"), cut(f), w(f, "2\n"), want("0 1 2"),
		}, check: func(t *testing.T, f File) {
			if f.Truncated != 1 {
				t.Errorf("truncated %d", f.Truncated)
			}
		}},
		{name: "truncated and longer than before when looked at", steps: []step{
			w(f, "1\n"), want("0 1"), restart(cut(f), w(f, "2\n3\n4\n5\n6\n")), want("0 1 2 3 4 5 6"),
		}},
		{name: "copytruncate while the writer does not append", steps: []step{
			want("0"), func(p *place) {
				h, err := os.OpenFile(p.path(f), os.O_WRONLY, 0)
				if err != nil {
					p.t.Fatal(err)
				}
				defer h.Close()
				h.Seek(0, io.SeekEnd)
				io.WriteString(h, "1\n")
				p.want(f, "0 1")
				p.copy(f, "bmp.json.1")
				p.truncate(f)
				io.WriteString(h, "2\n")
				p.want(f, "0 1 2")
			},
		}},
		{name: "copytruncate: the rest is read from the copy", steps: []step{
			w(f, "1\n"), want("0 1"),
			restart(w(f, "2\n"), cp(f, "bmp.json.1"), cut(f), w(f, "3\n")), want("0 1 2 3"),
		}},
		{name: "copytruncate with a long head", steps: []step{
			w(f, long+"\n"), want("0 " + long),
			restart(w(f, "2\n"), cp(f, "bmp.json-20260101"), cut(f), w(f, "3\n")), want("0 " + long + " 2 3"),
		}},
		{name: "rotated while down", late: true, steps: []step{
			w(f, "1\n"), want("0 1"), restart(w(f, "2\n"), mv(f, "bmp.json.1"), w(f, "3\n")), want("0 1 2 3"),
			w("bmp.json.1", "late\n"), want("0 1 2 3 late"),
		}},
		{name: "rotated while down to any name", steps: []step{
			want("0"), restart(w(f, "2\n"), mv(f, "anything"), w(f, "3\n")), want("0 2 3"),
		}},
		{name: "rotated often while down", steps: []step{
			want("0"), restart(
				w(f, "1\n"), mv(f, "bmp.json.3"), w("bmp.json.2", "2\n"), w("bmp.json.1", "3\n"),
				w("bmp.json.bak", "no\n"), w("bmp.json.4", "no\n"), w(f, "4\n")), want("0 1 2 3 4"),
		}},
		{name: "rotated often while down, by date, and removed", steps: []step{
			want("0"), restart(
				mv(f, "bmp-20260101.json"), w("bmp-20260102.json", "2\n"), w("bmp-20260103.json", "3\n"), w("bmp-20251231.json", "no\n")),
			want("0 2 3"), w(f, "4\n"), want("0 2 3 4"),
		}},
		{name: "a rotated file is not read again after restarts", steps: []step{
			want("0"), mv(f, "bmp.json.1"), w(f, "1\n"), want("0 1"),
			func(p *place) { p.wait("let go", func() bool { return p.status(f).Waiting == 0 }) },
			restart(mv("bmp.json.1", "bmp.json.2"), mv(f, "bmp.json.1"), w(f, "2\n")), want("0 1 2"),
			restart(), w(f, "3\n"), want("0 1 2 3"),
		}},
		{name: "renamed files may match", pattern: "bmp.json*", steps: []step{
			want("0"), mv(f, "bmp.json.1"), w(f, "1\n"), want("0 1"),
			func(p *place) { p.wait("let go", func() bool { return p.status(f).Waiting == 0 }) },
			mv("bmp.json.1", "bmp.json.2"), mv(f, "bmp.json.1"), w(f, "2\n"), want("0 1 2"),
			restart(rm("bmp.json.2"), mv("bmp.json.1", "bmp.json.2"), mv(f, "bmp.json.1"), w(f, "3\n"), w("bmp.json.3.gz", "no\n")),
			want("0 1 2 3"),
			func(p *place) { p.polls() },
			func(p *place) {
				if len(p.sink.lines) != 2 {
					p.t.Errorf("other names were read: %v", p.sink.lines)
				}
			},
		}},
		{name: "a symbolic link that points elsewhere", pattern: "link.json", steps: []step{
			func(p *place) {
				os.Symlink(p.path(f), p.path("link.json"))
				p.want("link.json", "0")
				p.write(f, "1\n")
				p.write("next", "2\n")
				os.Symlink(p.path("next"), p.path("link.new"))
				p.rename("link.new", "link.json")
				p.want("link.json", "0 1 2")
				p.save()
				p.stop()
				p.write(f, "3\n")
				p.write("next", "4\n")
				p.start()
				p.want("link.json", "0 1 2 3 4")
			},
		}},
		{name: "a link and its file are one", pattern: "*.json", steps: []step{
			want("0"), func(p *place) {
				os.Symlink(p.path(f), p.path("a-link.json"))
				p.polls()
				p.want("a-link.json", "")
			}, w(f, "1\n"), want("0 1"),
		}},
		{name: "new names and directories", pattern: "*/*/bmp-*.json", steps: []step{
			func(p *place) {
				os.MkdirAll(p.path("x/y"), 0o700)
				p.write("x/y/bmp-1.json", "1\n")
				p.want("bmp-1.json", "1")
				p.write("x/y/bmp-2.json", "2\n")
				p.want("bmp-2.json", "2")
			},
		}},
		{name: "removed and nothing in its place", steps: []step{
			want("0"), rm(f), func(p *place) {
				p.wait("forgotten", func() bool { return len(p.tail.Status()) == 0 })
			}, w(f, "1\n"), want("0 1"),
		}},
		{name: "a directory that is not there at the start", pattern: "d/bmp.json", steps: []step{
			func(p *place) {
				os.Mkdir(p.path("d"), 0o700)
				p.write("d/bmp.json", "1\n")
				p.want(f, "1")
				p.save()
				p.stop()
				p.rename("d", "away")
				p.start()
				p.polls()
				p.rename("away", "d")
				p.write("d/bmp.json", "2\n")
				p.want(f, "1 2")
			},
		}},
		{name: "a file that was moved to another disk", steps: []step{
			w(f, "1\n"), want("0 1"), restart(cp(f, "x"), rm(f), mv("x", f), w(f, "2\n")), want("0 1 2"),
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			pattern := tt.pattern
			if pattern == "" {
				pattern = f
			}
			p := newPlace(t, pattern)
			p.o.MaxLine = 4096
			if tt.late {
				p.o.Quiet = time.Hour
			}
			p.write(f, "0\n")
			p.start()
			for _, s := range tt.steps {
				s(p)
			}
			if tt.check != nil {
				tt.check(t, p.status(f))
			}
			// Nothing comes later either.
			before := p.sink.got(f)
			p.polls()
			if now := p.sink.got(f); now != before {
				t.Errorf("then %q came to be %q", before, now)
			}
		})
	}
}

func TestOneFileDoesNotHoldUpOthers(t *testing.T) {
	p := newPlace(t, "*.json")
	release := make(chan struct{})
	p.sink.block["a.json"] = release
	p.start()
	p.write("a.json", "1\n")
	p.write("b.json", "1\n")
	p.want("b.json", "1")
	// Rotation goes on meanwhile, and nothing of it is lost.
	for i := 2; i < 6; i++ {
		p.remove("a.json")
		p.write("a.json", fmt.Sprintf("%d\n", i))
		p.wait("seen", func() bool { return p.status("a.json").Rotated == uint64(i-1) })
	}
	p.wait("all are waiting", func() bool {
		f := p.status("a.json")
		return f.Behind == 2*5 && f.Waiting == 4
	})
	close(release)
	p.want("a.json", "1 2 3 4 5")
}

// A file that was written anew is noticed though it is as long as before, also
// while it is being read.
func TestWrittenAnew(t *testing.T) {
	numbers := func(from, n int) (lines, spaced string) {
		var all []string
		for i := range n {
			all = append(all, fmt.Sprintf("%07d", from+i))
		}
		return strings.Join(all, "\n") + "\n", strings.Join(all, " ")
	}
	rewrite := func(p *place, s string) {
		p.truncate("a.json")
		p.write("a.json", s)
	}
	t.Run("between looks", func(t *testing.T) {
		p := newPlace(t, "a.json")
		tail, err := New(p.o)
		if err != nil {
			t.Fatal(err)
		}
		p.tail = tail
		defer tail.closeAll()
		look := func() {
			tail.look(t.Context(), true)
			tail.wg.Wait()
		}
		old, oldSpaced := numbers(0, 10)
		anew, newSpaced := numbers(100, 20)
		p.write("a.json", old)
		look()
		rewrite(p, anew)
		look()
		look()
		if got, want := p.sink.got("a.json"), oldSpaced+" "+newSpaced; got != want {
			t.Errorf("got %s\nwant %s", got, want)
		}
	})
	t.Run("while it is read", func(t *testing.T) {
		p := newPlace(t, "a.json")
		old, _ := numbers(0, 3*maxLines*10)
		anew, newSpaced := numbers(1_000_000, 3*maxLines*10+1)
		release := make(chan struct{})
		p.sink.block["a.json"] = release
		p.write("a.json", old)
		p.start()
		p.wait("the handler has some", func() bool {
			p.tail.mu.Lock()
			defer p.tail.mu.Unlock()
			s := p.tail.streams[p.path("a.json")]
			return s != nil && s.busy && p.tail.opened > 0
		})
		rewrite(p, anew)
		close(release)
		p.wait("all of the new one, and nothing else of the old one than its beginning", func() bool {
			got := p.sink.got("a.json")
			return strings.HasSuffix(got, newSpaced)
		})
		for i, l := range p.sink.all[:len(p.sink.all)-(3*maxLines*10+1)] {
			if l != fmt.Sprintf("%07d", i) {
				t.Fatalf("line %d is %s", i, l)
			}
		}
	})
}

// What one process writes to one file after the other comes in its order.
func TestOrder(t *testing.T) {
	p := newPlace(t, "a.json")
	p.write("a.json", "0\n")
	p.start()
	p.want("a.json", "0")
	const n = 3000
	f, err := os.OpenFile(p.path("a.json"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	for i := 1; i < n; i++ {
		fmt.Fprintln(f, i)
		if i%7 == 0 {
			for k := 5; k > 0; k-- {
				os.Rename(p.path(fmt.Sprintf("a.json.%d", k)), p.path(fmt.Sprintf("a.json.%d", k+1)))
			}
			p.rename("a.json", "a.json.1")
			fmt.Fprintln(f, "rest of", i)
			f.Close()
			if f, err = os.OpenFile(p.path("a.json"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if i%35 == 0 {
			// With more of them some would be removed before a look.
			p.wait("no more than a few are unread", func() bool {
				p.sink.mu.Lock()
				defer p.sink.mu.Unlock()
				return len(p.sink.all) == i+1+i/7
			})
		}
	}
	f.Close()
	p.wait("all came", func() bool {
		p.sink.mu.Lock()
		defer p.sink.mu.Unlock()
		return len(p.sink.all) >= n+(n-1)/7
	})
	i := 0
	for k, l := range p.sink.all {
		if strings.HasPrefix(l, "rest") {
			if l != fmt.Sprint("rest of ", i-1) {
				t.Fatalf("line %d is %q after %d", k, l, i-1)
			}
			continue
		}
		if l != fmt.Sprint(i) {
			t.Fatalf("line %d is %q, want %d", k, l, i)
		}
		i++
	}
}

// A file that was quiet for long has its time from when it was replaced.
func TestQuietCountsFromTheRotation(t *testing.T) {
	p := newPlace(t, "a.json")
	p.o.Quiet = time.Minute
	tail, err := New(p.o)
	if err != nil {
		t.Fatal(err)
	}
	p.tail = tail
	defer tail.closeAll()
	look := func() {
		tail.look(t.Context(), true)
		tail.wg.Wait()
	}
	p.write("a.json", "1\n")
	look()
	tail.streams[p.path("a.json")].last().changed = time.Now().Add(-time.Hour)
	look()
	p.rename("a.json", "old")
	p.write("a.json", "3\n")
	look()
	p.write("old", "2\n")
	look()
	p.want("a.json", "1 3 2")
}

func TestHandlerError(t *testing.T) {
	p := newPlace(t, "a.json")
	p.sink.err = errors.New("full")
	p.start()
	p.write("a.json", "1\n2\n")
	p.wait("said", func() bool { return strings.Contains(p.status("a.json").Error, "full") })
	if c := p.tail.Checkpoint(); c.files[0].Offset != 0 {
		t.Errorf("at %d", c.files[0].Offset)
	}
	p.sink.mu.Lock()
	p.sink.err = nil
	p.sink.mu.Unlock()
	p.want("a.json", "1 2")
	p.wait("over", func() bool { return p.status("a.json").Error == "" })
}

func TestManyFiles(t *testing.T) {
	p := newPlace(t, "*.json")
	tail, err := New(p.o)
	if err != nil {
		t.Fatal(err)
	}
	tail.maxOpen = 8
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- tail.Run(ctx) }()
	p.tail = tail
	const n = 200
	name := func(i int) string { return fmt.Sprintf("%03d.json", i) }
	for round := range 3 {
		for i := range n {
			p.write(name(i), fmt.Sprintf("%d\n", round))
		}
		for i := range n {
			p.want(name(i), "0 1 2"[:2*round+1])
		}
		// Readers at work may have as many more.
		p.wait("few are open", func() bool {
			tail.mu.Lock()
			defer tail.mu.Unlock()
			return tail.opened <= tail.maxOpen+maxReaders
		})
		for i := range n {
			if i%3 == round {
				p.rename(name(i), name(i)+".1")
			}
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestNew(t *testing.T) {
	dir := t.TempDir()
	broken := filepath.Join(dir, "broken")
	os.WriteFile(broken, []byte(`{"version": 1, "files": [`), 0o600)
	ok := Options{Patterns: []string{"/x/*.json"}, Positions: filepath.Join(dir, "none"), Handler: newSink()}
	tests := []struct {
		name string
		edit func(o *Options)
		want string
	}{
		{"no positions", func(o *Options) {}, ""},
		{"relative pattern", func(o *Options) { o.Patterns = []string{"x"} }, "absolute"},
		{"bad pattern", func(o *Options) { o.Patterns = []string{"/x/["} }, "syntax error"},
		{"relative positions", func(o *Options) { o.Positions = "x" }, "absolute"},
		{"no handler", func(o *Options) { o.Handler = nil }, "handler"},
		{"broken positions", func(o *Options) { o.Positions = broken }, "move it away to read all files from their beginning"},
		{"unreadable positions", func(o *Options) { o.Positions = dir }, "directory"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			o := ok
			tt.edit(&o)
			_, err := New(o)
			if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want %q", err, tt.want)
			}
		})
	}
}

func TestSave(t *testing.T) {
	p := newPlace(t, "a.json")
	p.start()
	p.write("a.json", "1\n")
	p.want("a.json", "1")
	p.save()
	fi, err := os.Stat(p.o.Positions)
	if err != nil || fi.Mode() != 0o600 {
		t.Fatal(fi.Mode(), err)
	}
	before, _ := os.ReadFile(p.o.Positions)
	p.tail.o.Positions = filepath.Join(p.dir, "none", "positions")
	p.write("a.json", "2\n")
	p.want("a.json", "1 2")
	p.wait("taken", func() bool { return p.tail.Checkpoint().files[0].Offset == 4 })
	if err := p.tail.Save(p.tail.Checkpoint()); err == nil {
		t.Error("no error of a directory that is not there")
	}
	if after, _ := os.ReadFile(p.o.Positions); !bytes.Equal(before, after) {
		t.Error("changed")
	}
}

func TestRotation(t *testing.T) {
	tests := []struct {
		base, name string
		ok         bool
	}{
		{"bmp.json", "bmp.json.1", true},
		{"bmp.json", "bmp.json-20260101", true},
		{"bmp.json", "bmp.json-20260101-12", true},
		{"bmp.json", "bmp.json-2026-01-01T10:00", true},
		{"bmp.json", "bmp-20260101.json", true},
		{"bmp.json", "bmp.json", false},
		{"bmp.json", "bmp.json.1.gz", false},
		{"bmp.json", "bmp.json.bak", false},
		{"bmp.json", "bmp.json1", false},
		{"bmp.json", "bmp-10.0.0.1.json", false},
		{"bmp.json", "bmp-179.json", false},
		{"bmp-10.0.0.1", "bmp-10.0.0.11", false},
	}
	for _, tt := range tests {
		if _, ok := rotation(tt.base, tt.name); ok != tt.ok {
			t.Errorf("%s to %s: %v", tt.base, tt.name, ok)
		}
	}
	order := []string{"x.10", "x.9", "x.2", "x.1", "x.0"}
	dates := []string{"x-20251231", "x-20260101", "x-20260101-01", "x-20260102"}
	for _, names := range [][]string{order, dates} {
		for i := range names[1:] {
			a, _ := rotation("x", names[i])
			b, _ := rotation("x", names[i+1])
			if !b.after(a) || a.after(b) {
				t.Errorf("%s is not older than %s", names[i], names[i+1])
			}
		}
	}
}
