package tail

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// ledger checks lines of the form "writer generation number filler": those of
// each generation come in order, without a gap, and once unless there was a
// restart.
type ledger struct {
	mu   sync.Mutex
	next map[string]int // number that is to come
	top  map[string]int // most that came
	// fresh is set after a restart for generations that may begin again anywhere
	// before what came.
	fresh map[string]bool
	errs  []string
	total int
}

func (l *ledger) Lines(_ context.Context, file string, lines [][]byte) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, line := range lines {
		f := strings.Fields(string(line))
		if len(f) < 3 || file != f[0] {
			l.errs = append(l.errs, fmt.Sprintf("%s: broken line %.80q", file, line))
			continue
		}
		key := f[0] + " " + f[1]
		n, err := strconv.Atoi(f[2])
		switch {
		case err != nil:
			l.errs = append(l.errs, fmt.Sprintf("broken line %.80q", line))
			continue
		case n == l.next[key]:
		case l.fresh[key] && n < l.next[key]:
		default:
			l.errs = append(l.errs, fmt.Sprintf("%s: %d came, want %d", key, n, l.next[key]))
		}
		delete(l.fresh, key)
		l.next[key] = n + 1
		l.top[key] = max(l.top[key], n+1)
		l.total++
	}
	return nil
}

func (l *ledger) restart() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for k := range l.next {
		l.fresh[k] = true
	}
}

// has reports whether all that was written came.
func (l *ledger) has(written map[string]int) (missing string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.errs) > 0 {
		return ""
	}
	for k, n := range written {
		if l.top[k] != n {
			missing += fmt.Sprintf("\n%s: %d of %d", k, l.top[k], n)
		}
	}
	return missing
}

// author writes one name.
type author struct {
	r       *rand.Rand
	name    string
	gen     int
	f       *os.File
	late    *os.File // a file that was rotated and is still written
	lateGen int
	half    map[int]string // what is to complete the last line of a generation
	written map[string]int
}

func (a *author) line(gen int) string {
	key := fmt.Sprintf("%s %d", a.name, gen)
	n := a.written[key]
	a.written[key]++
	size := a.r.IntN(30)
	if a.r.IntN(20) == 0 {
		size = a.r.IntN(3000)
	}
	return fmt.Sprintf("%s %d %s\n", key, n, strings.Repeat("x", size))
}

func (a *author) write(f *os.File, gen int) error {
	var b bytes.Buffer
	b.WriteString(a.half[gen])
	delete(a.half, gen)
	for range a.r.IntN(20) {
		b.WriteString(a.line(gen))
	}
	if a.r.IntN(2) == 0 {
		l := a.line(gen)
		n := a.r.IntN(len(l))
		b.WriteString(l[:n])
		a.half[gen] = l[n:]
	}
	_, err := b.WriteTo(f)
	return err
}

func (a *author) open() (err error) {
	a.f, err = os.OpenFile(a.name, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	return err
}

// end completes the last line.
func (a *author) end(f *os.File, gen int) error {
	_, err := io.WriteString(f, a.half[gen])
	delete(a.half, gen)
	return err
}

func (a *author) shift(keep int) {
	for i := keep; i > 0; i-- {
		from := a.name
		if i > 1 {
			from = fmt.Sprintf("%s.%d", a.name, i-1)
		}
		os.Rename(from, fmt.Sprintf("%s.%d", a.name, i))
	}
}

// rotate renames; with late set the old file goes on being written.
func (a *author) rotate(late bool) error {
	a.shift(1000)
	if a.late != nil {
		if err := a.end(a.late, a.lateGen); err != nil {
			return err
		}
		a.late.Close()
		a.late = nil
	}
	if late {
		a.late, a.lateGen = a.f, a.gen
	} else {
		if err := a.end(a.f, a.gen); err != nil {
			return err
		}
		a.f.Close()
	}
	a.gen++
	return a.open()
}

// copyTruncate is done when nobody writes, as then alone it loses nothing.
func (a *author) copyTruncate() error {
	if err := a.end(a.f, a.gen); err != nil {
		return err
	}
	a.shift(1000)
	b, err := os.ReadFile(a.name + ".1")
	if err == nil {
		// The file keeps its inode, the copy is the new one.
		err = os.Rename(a.name+".1", a.name)
	}
	if err == nil {
		err = os.WriteFile(a.name+".1", b, 0o600)
	}
	if err == nil {
		err = os.Truncate(a.name, 0)
	}
	a.gen++
	return err
}

// TestModel writes, rotates and restarts at random.
func TestModel(t *testing.T) {
	seeds := 20
	if testing.Short() {
		seeds = 5
	}
	for seed := range seeds {
		t.Run(strconv.Itoa(seed), func(t *testing.T) {
			t.Parallel()
			model(t, rand.New(rand.NewPCG(uint64(seed), 1)), seed%3 != 0)
		})
	}
}

func model(t *testing.T, r *rand.Rand, restarts bool) {
	dir := t.TempDir()
	l := &ledger{next: make(map[string]int), top: make(map[string]int), fresh: make(map[string]bool)}
	var said bytes.Buffer
	o := Options{
		Patterns: []string{filepath.Join(dir, "*.json")}, Positions: filepath.Join(dir, "positions"),
		MaxLine: 4096, Poll: time.Millisecond, Quiet: time.Hour, // a late writer may sleep for long here
		Handler: l, Log: slog.New(slog.NewTextHandler(&said, nil)),
	}
	var tail *Tail
	var stop func()
	start := func() {
		var err error
		if tail, err = New(o); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func(tail *Tail) { done <- tail.Run(ctx) }(tail)
		stop = sync.OnceFunc(func() {
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
		})
		t.Cleanup(stop)
	}
	written := make(map[string]int)
	authors := make([]*author, 3)
	for i := range authors {
		authors[i] = &author{
			r: r, name: filepath.Join(dir, fmt.Sprintf("%d.json", i)),
			half: make(map[int]string), written: written,
		}
		if err := authors[i].open(); err != nil {
			t.Fatal(err)
		}
	}
	caughtUp := func() {
		t.Helper()
		for _, a := range authors {
			for f, gen := range map[*os.File]int{a.f: a.gen, a.late: a.lateGen} {
				if f == nil {
					continue
				}
				if err := a.end(f, gen); err != nil {
					t.Fatal(err)
				}
			}
		}
		end := time.Now().Add(time.Minute)
		for missing := l.has(written); missing != ""; missing = l.has(written) {
			if time.Now().After(end) {
				stop()
				t.Fatalf("missing: %s\n%s", missing, said.String())
			}
			time.Sleep(time.Millisecond)
		}
	}
	start()
	// Of a name that was never seen, rotated files are not known to be its.
	for _, a := range authors {
		if err := a.write(a.f, a.gen); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(a.f, a.half[a.gen]+a.line(a.gen)); err != nil {
			t.Fatal(err)
		}
		delete(a.half, a.gen)
	}
	caughtUp()
	old := tail.Checkpoint()
	if err := tail.Save(old); err != nil {
		t.Fatal(err)
	}
	for range 150 {
		a := authors[r.IntN(len(authors))]
		var err error
		switch n := r.IntN(100); {
		case n < 55:
			err = a.write(a.f, a.gen)
		case n < 70:
			if a.late != nil {
				err = a.write(a.late, a.lateGen)
			}
		case n < 80:
			err = a.rotate(r.IntN(2) == 0)
		case n < 84:
			// A copy is known by what was read of the file before, and what is
			// truncated twice between looks is nobody's.
			if err = a.end(a.f, a.gen); err == nil {
				_, err = io.WriteString(a.f, a.line(a.gen))
			}
			caughtUp()
			if err == nil {
				err = a.write(a.f, a.gen)
			}
			if err == nil {
				err = a.copyTruncate()
			}
			caughtUp()
			old = tail.Checkpoint()
			if err == nil {
				err = tail.Save(old)
			}
		case n < 90:
			old = tail.Checkpoint()
		case n < 94:
			err = tail.Save(old) // of any time before
		default:
			if !restarts {
				break
			}
			stop()
			l.restart()
			for range r.IntN(4) {
				if err = a.write(a.f, a.gen); err == nil && r.IntN(2) == 0 {
					err = a.rotate(r.IntN(2) == 0)
				}
			}
			start()
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	caughtUp()
	stop()
	lines := 0
	for _, n := range written {
		lines += n
	}
	for _, e := range l.errs {
		t.Error(e)
	}
	if !restarts && l.total != lines {
		t.Errorf("%d lines came, %d were written", l.total, lines)
	}
	if t.Failed() {
		t.Log(said.String())
	}
	for _, a := range authors {
		a.f.Close()
		if a.late != nil {
			a.late.Close()
		}
	}
}

func FuzzPositions(f *testing.F) {
	f.Add([]byte(`{"version": 1, "files": [{"name":"/a","device":1,"inode":2,"offset":3,"head":"00000000000000ff","head_len":3,"mtime":"2026-01-01T00:00:00Z"}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := parsePositions(b)
		if err != nil {
			return
		}
		// What is understood is written as it was understood.
		one, err := appendPositions(p)
		if err != nil {
			t.Fatal(err)
		}
		q, err := parsePositions(one)
		if err != nil {
			t.Fatalf("%v in %s", err, one)
		}
		two, err := appendPositions(q)
		if err != nil || !bytes.Equal(one, two) {
			t.Fatalf("%v\n%s\n%s", err, one, two)
		}
	})
}

// FuzzLines compares what is handed over with a scanner's lines, for any bytes
// that are written in any pieces.
func FuzzLines(f *testing.F) {
	f.Add([]byte("1\n22\r\n\x00\x00333\n\n4444444444444444444\n5"), uint8(3))
	f.Fuzz(func(t *testing.T, b []byte, piece uint8) {
		dir := t.TempDir()
		name := filepath.Join(dir, "f")
		var got []string
		o := Options{
			Patterns: []string{name}, Positions: filepath.Join(dir, "p"), MaxLine: 16,
			Handler: handlerFunc(func(lines [][]byte) {
				for _, l := range lines {
					got = append(got, string(l))
				}
			}),
			Log: slog.New(slog.DiscardHandler),
		}
		tail, err := New(o)
		if err != nil {
			t.Fatal(err)
		}
		defer tail.closeAll()
		w, err := os.Create(name)
		if err != nil {
			t.Fatal(err)
		}
		defer w.Close()
		step := max(int(piece), len(b)/50+1)
		for rest := b; len(rest) > 0; {
			n := min(step, len(rest))
			w.Write(rest[:n])
			rest = rest[n:]
			tail.look(context.Background(), true)
			tail.wg.Wait()
		}
		var want []string
		s := bufio.NewReader(bytes.NewReader(b))
		for {
			l, err := s.ReadString('\n')
			if err != nil {
				break // half a line
			}
			l = strings.TrimLeft(strings.TrimSuffix(l, "\n"), "\x00")
			if len(l) > 16 {
				continue
			}
			if l = strings.TrimSuffix(l, "\r"); l != "" {
				want = append(want, l)
			}
		}
		if strings.Join(got, "\n") != strings.Join(want, "\n") {
			t.Fatalf("got %q, want %q", got, want)
		}
	})
}

type handlerFunc func(lines [][]byte)

func (h handlerFunc) Lines(_ context.Context, _ string, lines [][]byte) error {
	h(lines)
	return nil
}

// BenchmarkRead reads lines of the size of pmacct's from a file that is cached.
func BenchmarkRead(b *testing.B) {
	dir := b.TempDir()
	name := filepath.Join(dir, "f")
	line := strings.Repeat("x", 699) + "\n"
	const lines = 50_000
	if err := os.WriteFile(name, []byte(strings.Repeat(line, lines)), 0o600); err != nil {
		b.Fatal(err)
	}
	n := 0
	tail, err := New(Options{
		Patterns: []string{name}, Positions: filepath.Join(dir, "p"),
		Handler: handlerFunc(func(l [][]byte) { n += len(l) }), Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		b.Fatal(err)
	}
	defer tail.closeAll()
	tail.look(context.Background(), true)
	tail.wg.Wait()
	s := tail.streams[name]
	buf := tail.buffers.Get().(*buffer)
	b.SetBytes(int64(len(line)))
	b.ReportAllocs()
	n = 0
	for n < b.N {
		g := s.last()
		g.begin()
		limit := int64(min(lines, b.N-n)) * int64(len(line))
		if err := tail.read(context.Background(), s, g, limit, buf); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "lines/s")
}
