package spool

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"go.uber.org/goleak"
)

const childEnv = "BMPHA_SPOOL_CHILD" // a directory: this process is TestFileLimit's child

func TestMain(m *testing.M) {
	if dir := os.Getenv(childEnv); dir != "" {
		if err := child(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

func open(t testing.TB, o Options) *Spool {
	t.Helper()
	o.MaxBytes = cmp.Or(o.MaxBytes, 1<<30)
	s, err := newSpool(o)
	must(t, err)
	s.sync = func(string) error { return nil } // no test takes the power away
	must(t, s.open())
	t.Cleanup(func() { s.Close() })
	return s
}

func queue(t testing.TB, s *Spool, name string) *Queue {
	t.Helper()
	q, err := s.Queue(name)
	if err != nil {
		t.Fatal(err)
	}
	return q
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// entry makes entry i of a queue; size is of its body, which tells them apart.
func entry(i, size int) *Entry {
	b := bytes.Repeat([]byte{byte(i)}, size)
	copy(b, fmt.Sprintf("%08d", i))
	return &Entry{Kind: uint8(i), Session: uint32(i / 7), Arrival: int64(i) * 1000, Body: b}
}

func equal(a, b *Entry) bool {
	return a.Kind == b.Kind && a.Session == b.Session && a.Arrival == b.Arrival && bytes.Equal(a.Body, b.Body)
}

// number is the i that an entry was made with.
func number(t testing.TB, e *Entry) int {
	t.Helper()
	i := int(e.Arrival / 1000)
	if !equal(e, entry(i, len(e.Body))) {
		t.Fatalf("entry %d came back changed", i)
	}
	return i
}

// drain consumes everything and returns the numbers.
func drain(t testing.TB, q *Queue) []int {
	t.Helper()
	var all []int
	for {
		var e Entry
		ok, err := q.Peek(&e)
		must(t, err)
		if !ok {
			if q.Len() != 0 || q.Bytes() != 0 {
				t.Fatalf("an empty queue has %d entries, %d bytes", q.Len(), q.Bytes())
			}
			return all
		}
		all = append(all, number(t, &e))
		q.Next()
	}
}

func run(from, to int) []int {
	var all []int
	for i := from; i < to; i++ {
		all = append(all, i)
	}
	return all
}

func same(t testing.TB, got, want []int) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Fatalf("got %d entries %v, want %d %v", len(got), ends(got), len(want), ends(want))
	}
}

func ends(n []int) []int {
	if len(n) > 40 {
		return []int{n[0], n[len(n)-1]}
	}
	return n
}

// files returns the names of the files with an extension.
func files(t testing.TB, dir, ext string) []string {
	t.Helper()
	all, err := filepath.Glob(filepath.Join(dir, "*"+ext))
	must(t, err)
	return all
}

// crash copies a directory as it is, which is what the end of the process leaves.
func crash(t testing.TB, dir string) string {
	t.Helper()
	to := t.TempDir()
	must(t, os.CopyFS(to, os.DirFS(dir)))
	return to
}

// A queue gives back what was put in, across segments, in order, before and
// after Flush, and leaves nothing behind.
func TestOrder(t *testing.T) {
	for _, flush := range []int{0, 1, 7, 100} {
		dir := t.TempDir()
		s := open(t, Options{Dir: dir, SegmentBytes: 4096})
		q := queue(t, s, "r")
		for i := range 1000 {
			must(t, q.Append(entry(i, 8+i%600)))
			if flush > 0 && i%flush == 0 {
				must(t, q.Flush())
			}
		}
		if at, ok := q.Oldest(); !ok || at != 0 || q.Len() != 1000 {
			t.Fatalf("oldest %d, %v, length %d", at, ok, q.Len())
		}
		if st := s.Status(); st.Entries != 1000 || st.Queues != 1 || st.Segments < 50 || st.Used < q.Bytes() {
			t.Fatalf("status %+v", st)
		}
		same(t, drain(t, q), run(0, 1000))
		if flush == 1 && len(files(t, dir, segmentExt)) < 50 {
			t.Fatal("segments were deleted before their entries were acknowledged")
		}
		q.Acked(q.Moved())
		must(t, q.Flush())
		if st := s.Status(); st != (Status{Max: 1 << 30}) {
			t.Fatalf("status of an empty spool %+v", st)
		}
		if left := append(files(t, dir, segmentExt), files(t, dir, positionExt)...); len(left) > 0 {
			t.Fatalf("left: %v", left)
		}
		must(t, s.Close())
	}
}

// Segments are deleted as their entries are acknowledged, not later.
func TestSegmentsGo(t *testing.T) {
	dir := t.TempDir()
	s := open(t, Options{Dir: dir, SegmentBytes: 4096})
	q := queue(t, s, "r")
	for i := range 100 {
		must(t, q.Append(entry(i, 1000-frameFixed)))
	}
	must(t, q.Flush())
	before := len(files(t, dir, segmentExt))
	var e Entry
	for range 50 {
		q.Peek(&e)
		q.Next()
	}
	if n := len(files(t, dir, segmentExt)); n != before {
		t.Fatalf("%d segments of %d without an acknowledgement", n, before)
	}
	q.Acked(50)
	if n := len(files(t, dir, segmentExt)); n > before/2+1 {
		t.Fatalf("%d segments of %d are left with half of it acknowledged", n, before)
	}
	if used, _ := s.Used(); used > 55_000 {
		t.Fatalf("%d bytes used", used)
	}
	must(t, s.Close())
	s = open(t, Options{Dir: dir})
	same(t, drain(t, queue(t, s, "r")), run(50, 100))
}

// TestModel does what a collector may do, at random, beside a plain list.
func TestModel(t *testing.T) {
	seeds := 50
	if testing.Short() {
		seeds = 10
	}
	for seed := range seeds {
		model(t, uint64(seed))
	}
}

func model(t *testing.T, seed uint64) {
	rnd := rand.New(rand.NewPCG(seed, 3))
	dir := t.TempDir()
	o := Options{Dir: dir, MaxBytes: 1 << 24, SegmentBytes: 1 << (10 + rnd.IntN(8))}
	s := open(t, o)
	q := queue(t, s, "r")
	// Numbers of entries: [acked, moved) are in the caller's memory, [moved, end)
	// in the queue, those below flushed are with the operating system.
	var acked, moved, flushed, end int
	var before int // entries that were consumed before this Open
	check := func() {
		t.Helper()
		if q.Len() != int64(end-moved) {
			t.Fatalf("seed %d: length %d, want %d", seed, q.Len(), end-moved)
		}
	}
	// reopened takes over what the spool has after an Open.
	reopened := func(atLeast, atMost int) {
		t.Helper()
		q = queue(t, s, "r")
		var e Entry
		ok, err := q.Peek(&e)
		must(t, err)
		if st := s.Status(); st.Lost != 0 {
			t.Fatalf("seed %d: lost %d", seed, st.Lost)
		}
		if !ok {
			if acked < atLeast {
				t.Fatalf("seed %d: empty, want from %d to %d", seed, acked, atLeast)
			}
			// Entries that nobody has any more are as good as acknowledged.
			acked, moved, flushed, before = end, end, end, end
			return
		}
		first := number(t, &e)
		if first > acked {
			t.Fatalf("seed %d: first is %d, but %d is not acknowledged", seed, first, acked)
		}
		last := first + int(q.Len())
		if last < atLeast || last > atMost {
			t.Fatalf("seed %d: last is %d, want %d to %d", seed, last, atLeast, atMost)
		}
		acked, moved, before, flushed, end = first, first, first, last, last
	}
	for range 600 {
		switch n := rnd.IntN(100); {
		case n < 45:
			for range rnd.IntN(10) {
				size := 8 + rnd.IntN(300)
				if rnd.IntN(200) == 0 {
					size = rnd.IntN(3 * chunk)
				}
				must(t, q.Append(entry(end, max(size, 8))))
				end++
			}
		case n < 75:
			var e Entry
			for range rnd.IntN(12) {
				ok, err := q.Peek(&e)
				must(t, err)
				if ok != (moved < end) {
					t.Fatalf("seed %d: peek says %v with %d of %d", seed, ok, moved, end)
				}
				if !ok {
					break
				}
				if got := number(t, &e); got != moved {
					t.Fatalf("seed %d: got %d, want %d", seed, got, moved)
				}
				if rnd.IntN(3) == 0 {
					must(t, q.Flush())
					flushed = end
				}
				q.Next()
				moved++
			}
		case n < 85:
			if moved > acked {
				acked += rnd.IntN(moved-acked) + 1
				q.Acked(uint64(acked - before))
			}
		case n < 95:
			must(t, q.Flush())
			flushed = end
		case n < 97:
			must(t, s.Close())
			s = open(t, o)
			was := acked
			reopened(end, end)
			if acked < was {
				t.Fatalf("seed %d: after Close %d came back, %d were acknowledged", seed, acked, was)
			}
		default:
			o.Dir = crash(t, o.Dir)
			must(t, s.Close())
			s = open(t, o)
			reopened(flushed, end)
		}
		check()
	}
	must(t, s.Close())
}

// The file ends anywhere: what is before is read, what is after is cut.
func TestTornTail(t *testing.T) {
	dir := t.TempDir()
	s := open(t, Options{Dir: dir, SegmentBytes: 600})
	q := queue(t, s, "r")
	const count = 40
	for i := range count {
		must(t, q.Append(entry(i, 8+i%30)))
	}
	must(t, s.Close())
	all := files(t, dir, segmentExt)
	slices.Sort(all)
	file := filepath.Base(all[len(all)-1])
	whole, err := os.ReadFile(filepath.Join(dir, file))
	must(t, err)
	_, base, _, _ := parseSegmentFile(file)
	last := int(base)
	for cut := range len(whole) {
		torn := crash(t, dir)
		must(t, os.Truncate(filepath.Join(torn, file), int64(cut)))
		var log bytes.Buffer
		s := open(t, Options{Dir: torn, SegmentBytes: 600, Log: slog.New(slog.NewTextHandler(&log, nil))})
		q := queue(t, s, "r")
		n := int(q.Len())
		if n < last {
			t.Fatalf("cut at %d: %d entries, want at least %d", cut, n, last)
		}
		last = n
		// What is appended now follows what is left, also after another Open.
		must(t, q.Append(entry(1000, 8)))
		must(t, s.Close())
		s = open(t, Options{Dir: torn})
		if st := s.Status(); st.Lost != 0 || st.LostBytes != 0 {
			t.Fatalf("cut at %d: %+v after the second Open", cut, st)
		}
		same(t, drain(t, queue(t, s, "r")), append(run(0, n), 1000))
		must(t, s.Close())
		// Said, unless the cut is between two frames.
		if b := log.String(); strings.Contains(b, "torn") && !strings.Contains(b, "offset=") {
			t.Fatalf("cut at %d: log %q", cut, b)
		}
	}
	if last != count-1 {
		t.Fatalf("one byte short leaves %d entries of %d", last, count)
	}
}

// Damage at every byte of a segment, at Open and while it is read: no entry comes
// back changed, and only those that were hit are missing.
func TestDamage(t *testing.T) {
	dir := t.TempDir()
	s := open(t, Options{Dir: dir, SegmentBytes: 500})
	q := queue(t, s, "r")
	for i := range 30 {
		must(t, q.Append(entry(i, 8+i%30)))
	}
	must(t, s.Close())
	all := files(t, dir, segmentExt)
	slices.Sort(all)
	for which, path := range all {
		file := filepath.Base(path)
		whole, err := os.ReadFile(path)
		must(t, err)
		at := headerLen("r")
		frames := make(map[int]int) // by where they begin
		_, base, key, _ := parseSegmentFile(file)
		for i := int(base); at < len(whole); i++ {
			var e Entry
			_, n, err := parseFrame(whole[at:], key, &e)
			must(t, err)
			for j := range n {
				frames[at+j] = i
			}
			at += n
		}
		for off := range whole {
			for _, live := range []bool{false, true} {
				broken := crash(t, dir)
				damage := func() {
					f, err := os.OpenFile(filepath.Join(broken, file), os.O_WRONLY, 0)
					must(t, err)
					_, err = f.WriteAt([]byte{whole[off] ^ byte(1+off%255)}, int64(off))
					must(t, errors.Join(err, f.Close()))
				}
				if !live {
					damage()
				}
				s := open(t, Options{Dir: broken, SegmentBytes: 500})
				if live {
					damage()
				}
				want := run(0, 30)
				hit, lost := frames[off], uint64(1)
				if off >= headerLen("r") {
					want = slices.DeleteFunc(want, func(i int) bool { return i == hit })
				} else {
					lost = 0
				}
				if hit == 29 && !live {
					lost = 0 // the tail is cut; nobody knows what it was
				}
				same(t, drain(t, queue(t, s, "r")), want)
				if st := s.Status(); st.Lost != lost || st.Entries != 0 {
					t.Fatalf("segment %d byte %d live %v: %+v, want %d lost", which, off, live, st, lost)
				}
				q := queue(t, s, "r")
				q.Acked(q.Moved())
				must(t, q.Flush())
				if used, _ := s.Used(); used != 0 {
					t.Fatalf("segment %d byte %d live %v: %d bytes used when empty", which, off, live, used)
				}
				must(t, s.Close())
			}
		}
	}
}

// Without any good copy of the name the entries have no owner: the file is set
// aside and the rest goes on. A damaged position lets entries come back.
func TestDamagedNames(t *testing.T) {
	dir := t.TempDir()
	s := open(t, Options{Dir: dir})
	for _, name := range []string{"a", "b"} {
		q := queue(t, s, name)
		for i := range 10 {
			must(t, q.Append(entry(i, 8)))
		}
		var e Entry
		q.Peek(&e)
		q.Next()
		q.Acked(1)
	}
	must(t, s.Close())
	flip := func(ext, name string) {
		for _, path := range files(t, dir, ext) {
			if b, err := os.ReadFile(path); err == nil && strings.HasPrefix(filepath.Base(path), fileHash(name)) {
				b[12] ^= 1
				must(t, os.WriteFile(path, b, 0o600))
			}
		}
	}
	flip(positionExt, "a")
	flip(positionExt, "b")
	flip(segmentExt, "b")
	s = open(t, Options{Dir: dir})
	same(t, drain(t, queue(t, s, "a")), run(0, 10))
	same(t, drain(t, queue(t, s, "b")), nil)
	if n := len(files(t, dir, ".bad")); n != 1 || s.Status().Lost == 0 {
		t.Fatalf("%d files set aside, status %+v", n, s.Status())
	}
}

// After a power failure the position may be ahead of what the disk has of the
// segments. What is appended then is not taken for acknowledged.
func TestPositionAhead(t *testing.T) {
	dir := t.TempDir()
	s := open(t, Options{Dir: dir, SegmentBytes: 1000})
	q := queue(t, s, "r")
	for i := range 100 {
		must(t, q.Append(entry(i, 50)))
	}
	must(t, q.Flush())
	early := crash(t, dir)
	for range 90 {
		q.Next()
	}
	q.Acked(90)
	must(t, q.Flush())
	position := files(t, dir, positionExt)[0]
	b, err := os.ReadFile(position)
	must(t, err)
	must(t, os.WriteFile(filepath.Join(early, filepath.Base(position)), b, 0o600))
	all := files(t, early, segmentExt)
	slices.Sort(all)
	for _, path := range all[2:] {
		must(t, os.Truncate(path, 0))
	}
	s = open(t, Options{Dir: early, SegmentBytes: 1000})
	if r := s.Recovered(); len(r) > 0 {
		t.Fatalf("recovered %+v", r)
	}
	q = queue(t, s, "r")
	for i := range 95 {
		must(t, q.Append(entry(i, 50)))
	}
	must(t, s.Close())
	s = open(t, Options{Dir: early})
	same(t, drain(t, queue(t, s, "r")), run(0, 95))
}

// A file that cannot be deleted counts until it can, and its entries do not come
// back.
func TestDeleteFails(t *testing.T) {
	dir := t.TempDir()
	s := open(t, Options{Dir: dir, SegmentBytes: 1000})
	s.unlink = func(string) error { return syscall.EROFS }
	q := queue(t, s, "r")
	for i := range 100 {
		must(t, q.Append(entry(i, 50)))
	}
	must(t, q.Flush())
	before, _ := s.Used()
	drain(t, q)
	q.Acked(60)
	q.Acked(100)
	must(t, q.Flush())
	if used, _ := s.Used(); used != before {
		t.Fatalf("%d of %d bytes used", used, before)
	}
	after := open(t, Options{Dir: crash(t, dir)})
	if r := after.Recovered(); len(r) > 0 || len(files(t, after.o.Dir, "*1")) > 0 {
		t.Fatalf("came back: %+v", r)
	}
	must(t, q.Append(entry(100, 50)))
	must(t, q.Flush())
	after = open(t, Options{Dir: crash(t, dir)})
	same(t, drain(t, queue(t, after, "r")), []int{100})
	drain(t, q)
	q.Acked(101)
	s.unlink = os.Remove
	must(t, q.Flush())
	if used, _ := s.Used(); used != 0 || len(files(t, dir, "*1")) > 0 {
		t.Fatalf("%d bytes used, files %v", used, files(t, dir, "*1"))
	}
}

// A file that somebody deletes is a loss, not the end.
func TestDeletedFile(t *testing.T) {
	dir := t.TempDir()
	s := open(t, Options{Dir: dir, SegmentBytes: 1000})
	q := queue(t, s, "r")
	for i := range 100 {
		must(t, q.Append(entry(i, 50)))
	}
	must(t, q.Flush())
	all := files(t, dir, segmentExt)
	slices.Sort(all)
	_, from, _, _ := parseSegmentFile(filepath.Base(all[2]))
	_, to, _, _ := parseSegmentFile(filepath.Base(all[3]))
	must(t, os.Remove(all[2]))
	same(t, drain(t, q), append(run(0, int(from)), run(int(to), 100)...))
	if q.Lost() != to-from {
		t.Fatalf("lost %d, want %d", q.Lost(), to-from)
	}
}

// A bad sector costs the entries in it, at Open and later; another error of the
// disk only time.
func TestReadErrors(t *testing.T) {
	dir := t.TempDir()
	s := open(t, Options{Dir: dir})
	q := queue(t, s, "r")
	for i := range 5000 {
		must(t, q.Append(entry(i, 100)))
	}
	must(t, s.Close())
	bad := func(f *os.File, b []byte, off int64) (int, error) {
		const sector, n = 100 << 12, 1 << 12
		switch {
		case off >= sector && off < sector+n:
			return 0, syscall.EIO
		case off < sector && off+int64(len(b)) > sector:
			m, _ := f.ReadAt(b[:sector-off], off)
			return m, syscall.EIO
		}
		return f.ReadAt(b, off)
	}
	for _, live := range []bool{false, true} {
		s, err := newSpool(Options{Dir: crash(t, dir), MaxBytes: 1 << 30})
		must(t, err)
		if !live {
			s.readAt = bad
		}
		must(t, s.open())
		s.readAt = bad
		q := queue(t, s, "r")
		got := drain(t, q)
		if n := 5000 - len(got); n < 4096/129 || n > 4096/129+2 || uint64(n) != q.Lost() {
			t.Errorf("live %v: %d missing, %d counted", live, n, q.Lost())
		}
		must(t, s.Close())
	}
	s = open(t, Options{Dir: dir})
	q = queue(t, s, "r")
	s.readAt = func(*os.File, []byte, int64) (int, error) { return 0, syscall.EAGAIN }
	var e Entry
	if ok, err := q.Peek(&e); ok || !errors.Is(err, syscall.EAGAIN) {
		t.Fatalf("peek: %v, %v", ok, err)
	}
	s.readAt = (*os.File).ReadAt
	same(t, drain(t, q), run(0, 5000))
}

// All queues share one limit; what one gives back another may use.
func TestLimit(t *testing.T) {
	const size = 1000
	s := open(t, Options{Dir: t.TempDir(), MaxBytes: 100 * size, SegmentBytes: 10 * size})
	var queues []*Queue
	for i := range 8 {
		queues = append(queues, queue(t, s, fmt.Sprint(i)))
	}
	var wg sync.WaitGroup
	for _, q := range queues {
		wg.Go(func() {
			for i := 0; ; i++ {
				if err := q.Append(entry(i, size-frameFixed)); err != nil {
					if err != ErrFull {
						t.Error(err)
					}
					return
				}
				if err := q.Flush(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	used, limit := s.Used()
	if used > limit || used < limit-limit/16 || !s.Full() {
		t.Fatalf("used %d of %d, full: %v", used, limit, s.Full())
	}
	most := slices.MaxFunc(queues, func(a, b *Queue) int { return cmp.Compare(a.Len(), b.Len()) })
	other := queues[0]
	if other == most {
		other = queues[1]
	}
	drain(t, most)
	if other.Append(entry(0, size)) != ErrFull {
		t.Fatal("room for what is not acknowledged")
	}
	most.Acked(most.Moved())
	if s.Full() {
		t.Fatal("still full")
	}
	must(t, other.Append(entry(0, size)))
}

// A disk that takes no more is like the limit: nothing half-written comes back,
// what was taken can be read, and all goes on with space.
func TestDiskFull(t *testing.T) {
	for _, errno := range []syscall.Errno{syscall.ENOSPC, syscall.EIO} {
		dir := t.TempDir()
		s := open(t, Options{Dir: dir, SegmentBytes: 300_000})
		space := 1_000_000
		s.writeAt = func(f *os.File, b []byte, off int64) (int, error) {
			if len(b) > space {
				n, _ := f.WriteAt(b[:space], off)
				return n, errno
			}
			space -= len(b)
			return f.WriteAt(b, off)
		}
		q := queue(t, s, "r")
		i := 0
		var err error
		for ; err == nil; i++ {
			if err = q.Append(entry(i, 500)); err == nil && i%1000 == 0 {
				err = q.Append(entry(i+1, 100_000))
				if err == nil {
					i++
				}
			}
		}
		i-- // was not taken
		if !errors.Is(err, errno) || errors.Is(err, ErrFull) != (errno == syscall.ENOSPC) || s.Full() != (errno == syscall.ENOSPC) {
			t.Fatalf("%v: %v, full: %v", errno, err, s.Full())
		}
		if again := q.Append(entry(i, 500)); again != err {
			t.Fatalf("a second append: %v", again)
		}
		if err := q.Flush(); !errors.Is(err, errno) {
			t.Fatalf("flush: %v", err)
		}
		// The end of the process here leaves a beginning.
		after := open(t, Options{Dir: crash(t, dir)})
		got := drain(t, queue(t, after, "r"))
		same(t, got, run(0, len(got)))
		if len(got) < 1000 {
			t.Fatalf("%d entries after a crash", len(got))
		}
		if errno == syscall.EIO {
			// Everything can be taken out while the disk fails.
			same(t, drain(t, q), run(0, i))
			q.Acked(q.Moved())
			if used, _ := s.Used(); used != 0 {
				t.Fatalf("%d bytes used when empty", used)
			}
			must(t, q.Append(entry(0, 500)))
			continue
		}
		space = 1 << 30
		must(t, q.Flush())
		if s.Full() {
			t.Fatal("still full")
		}
		must(t, q.Append(entry(i, 500)))
		must(t, s.Close())
		s = open(t, Options{Dir: dir})
		same(t, drain(t, queue(t, s, "r")), run(0, i+1))
	}
}

// An entry that is too large for the disk leaves no trace.
func TestLargeEntries(t *testing.T) {
	dir := t.TempDir()
	s := open(t, Options{Dir: dir, SegmentBytes: 1 << 20})
	q := queue(t, s, "r")
	full := false
	s.writeAt = func(f *os.File, b []byte, off int64) (int, error) {
		if full {
			n, _ := f.WriteAt(b[:len(b)/2], off)
			return n, syscall.ENOSPC
		}
		return f.WriteAt(b, off)
	}
	for i, size := range []int{10, 2 << 20, 3 * chunk, MaxBody, 10} {
		full = true
		if err := q.Append(entry(i, max(size, chunk))); !errors.Is(err, ErrFull) {
			t.Fatal(err)
		}
		full = false
		must(t, q.Flush())
		must(t, q.Append(entry(i, size)))
	}
	if err := q.Append(&Entry{Body: make([]byte, MaxBody+1)}); err != ErrTooLarge {
		t.Fatal(err)
	}
	left := crash(t, dir) // the last entry is in memory
	same(t, drain(t, q), run(0, 5))
	q.Acked(q.Moved())
	if used, _ := s.Used(); used != 0 {
		t.Fatalf("%d bytes used when empty", used)
	}
	s = open(t, Options{Dir: left})
	same(t, drain(t, queue(t, s, "r")), run(0, 4))
	if st := s.Status(); st.Lost != 0 || st.LostBytes != 0 {
		t.Fatalf("%+v", st)
	}
}

// TestFileLimit: the kernel refuses to make files larger, in a process of its own.
func TestFileLimit(t *testing.T) {
	dir := t.TempDir()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"="+dir)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	s := open(t, Options{Dir: dir})
	got := drain(t, queue(t, s, "r"))
	if len(got) < 100 {
		t.Fatalf("%d entries", len(got))
	}
	same(t, got, run(0, len(got)))
}

func child(dir string) error {
	signal.Ignore(syscall.SIGXFSZ)
	s, err := Open(Options{Dir: dir, MaxBytes: 1 << 30})
	if err != nil {
		return err
	}
	limit := syscall.Rlimit{Cur: 200_000, Max: 200_000}
	if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &limit); err != nil {
		return err
	}
	q, err := s.Queue("r")
	if err != nil {
		return err
	}
	for i := 0; ; i++ {
		if err := q.Append(entry(i, 500)); err != nil {
			if !errors.Is(err, syscall.EFBIG) {
				return fmt.Errorf("append: %w", err)
			}
			return nil // without Close
		}
	}
}

// One process at a time, and the other is told by whom.
func TestLock(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "b")
	s, err := Open(Options{Dir: dir, MaxBytes: 1 << 20})
	must(t, err)
	must(t, queue(t, s, "r").Append(entry(0, 8)))
	_, err = Open(Options{Dir: dir, MaxBytes: 1})
	if err == nil || !strings.Contains(err.Error(), fmt.Sprintf("in use by process %d", os.Getpid())) {
		t.Fatalf("second Open: %v", err)
	}
	must(t, s.Close())
	must(t, s.Close())
	s = open(t, Options{Dir: dir})
	q := queue(t, s, "r")
	must(t, q.Append(entry(1, 8)))
	must(t, s.Close())
	var e Entry
	_, err = q.Peek(&e)
	if q.Append(entry(1, 8)) != ErrClosed || q.Flush() != ErrClosed || err != ErrClosed {
		t.Fatal("a closed spool answers")
	}
	err = filepath.Walk(dir, func(path string, f os.FileInfo, err error) error {
		if err == nil && f.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s has mode %v", path, f.Mode())
		}
		return err
	})
	must(t, err)
}

func TestOpenErrors(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	must(t, os.WriteFile(file, nil, 0o600))
	readOnly := t.TempDir()
	must(t, os.Chmod(readOnly, 0o500))
	later := t.TempDir()
	must(t, os.WriteFile(filepath.Join(later, "x.seg2"), nil, 0o600))
	for _, c := range []struct {
		name string
		o    Options
		want string
	}{
		{"no limit", Options{Dir: later}, "a limit of 0 bytes"},
		{"below a file", Options{Dir: filepath.Join(file, "dir"), MaxBytes: 1}, "not a directory"},
		{"read only", Options{Dir: readOnly, MaxBytes: 1}, "directory cannot be written"},
		{"other version", Options{Dir: later, MaxBytes: 1}, "x.seg2 was written by another version"},
	} {
		if c.name == "read only" && os.Getuid() == 0 {
			continue // root writes anywhere
		}
		s, err := Open(c.o)
		if err == nil || s != nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

// Names are the routers'; none leaves the directory or meets another.
func TestNames(t *testing.T) {
	dir := t.TempDir()
	names := []string{"", ".", "..", "../../etc/passwd", "/", "a/b", "a\\b", "192.0.2.1", "2001:db8::1", "A", "a",
		"\x00", "line\nfeed", "🛰️", strings.Repeat("é", 127), strings.Repeat("x", 255)}
	s := open(t, Options{Dir: dir})
	for i, name := range names {
		q := queue(t, s, name)
		if queue(t, s, name) != q || q.Name() != name {
			t.Fatalf("%q: another queue", name)
		}
		must(t, q.Append(entry(i, 20)))
		must(t, q.Append(entry(i+1, 20)))
	}
	for _, name := range []string{strings.Repeat("x", 256), "\xff"} {
		if _, err := s.Queue(name); err == nil {
			t.Errorf("%q was taken", name)
		}
	}
	must(t, s.Close())
	s = open(t, Options{Dir: dir})
	slices.Sort(names)
	var got []string
	for _, r := range s.Recovered() {
		got = append(got, r.Name)
		i := int(r.Oldest / 1000)
		if r.Entries != 2 || r.Bytes != 2*(20+frameFixed) || r.Newest != r.Oldest+1000 {
			t.Errorf("%+v", r)
		}
		same(t, drain(t, queue(t, s, r.Name)), []int{i, i + 1})
	}
	if !slices.Equal(got, names) {
		t.Fatalf("recovered %q", got)
	}
}

// A thousand queues need no descriptors between calls and, flushed, no memory.
func TestManyQueues(t *testing.T) {
	s := open(t, Options{Dir: t.TempDir()})
	descriptors := func() int {
		list, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Skip(err)
		}
		return len(list)
	}
	before := descriptors()
	var e Entry
	for i := range 1000 {
		q := queue(t, s, fmt.Sprint(i))
		must(t, q.Append(entry(i, 100)))
		must(t, q.Append(entry(i+1, 100)))
		must(t, q.Flush())
		if q.wbuf != nil {
			t.Fatal("keeps its buffer")
		}
		if ok, err := q.Peek(&e); !ok || err != nil {
			t.Fatal(ok, err)
		}
	}
	if n := descriptors(); n > before {
		t.Fatalf("%d descriptors, %d before", n, before)
	}
	if st := s.Status(); st.Queues != 1000 || st.Entries != 2000 {
		t.Fatalf("%+v", st)
	}
}

// FuzzSegment reads any bytes as a segment, as its file and as a position: what
// is taken for a frame is one.
func FuzzSegment(f *testing.F) {
	b := appendHeader(nil, header{name: "r", base: 7, salt: 1 << 40})
	for i := range 3 {
		b = appendFrame(b, 1<<40, uint32(i), entry(i, 10))
	}
	f.Add(b, 0)
	f.Add(append(b[:60:60], b[50:]...), 50)
	f.Add(append(b, b[headerLen("r"):]...), headerLen("r")) // each frame a second time
	f.Add(appendPosition(nil, "r", 9), 3)
	f.Fuzz(func(t *testing.T, b []byte, off int) {
		h, n, err := parseHeader(b)
		if err == nil && !bytes.Equal(appendHeader(nil, h), b[:n]) {
			t.Fatal("a header that is none")
		}
		if name, position, err := parsePosition(b); err == nil && !bytes.Equal(appendPosition(nil, name, position), b) {
			t.Fatal("a position that is none")
		}
		if hash, base, key, ok := parseSegmentFile(string(b)); ok && segmentFile(hash, base, key) != string(b) {
			t.Fatal("a file name that is none")
		}
		if off < 0 || off > len(b) {
			return
		}
		rest, least := b[off:], uint32(0)
		for {
			var e Entry
			at, index, n := findFrame(rest, h.salt, least, &e)
			if at < 0 {
				return
			}
			if index < least || !bytes.Equal(appendFrame(nil, h.salt, index, &e), rest[at:at+n]) {
				t.Fatal("a frame that is none")
			}
			rest, least = rest[at+n:], index+1
		}
	})
}

// FuzzDamage opens a spool of which one file was changed: entries come back as
// they were, in order, or not at all.
func FuzzDamage(f *testing.F) {
	f.Add([]byte("body"), uint16(40), uint16(3), []byte{0})
	f.Add(bytes.Repeat([]byte("x"), 200), uint16(500), uint16(0), []byte("inserted"))
	f.Add([]byte(""), uint16(0), uint16(1000), []byte(nil))
	f.Fuzz(func(t *testing.T, body []byte, off, remove uint16, insert []byte) {
		dir := t.TempDir()
		s := open(t, Options{Dir: dir})
		q := queue(t, s, "r")
		const count = 8
		for i := range count {
			must(t, q.Append(&Entry{Arrival: int64(i), Session: uint32(i), Kind: 1, Body: body}))
		}
		must(t, s.Close())
		path := files(t, dir, segmentExt)[0]
		whole, err := os.ReadFile(path)
		must(t, err)
		from := min(int(off), len(whole))
		to := min(from+int(remove), len(whole))
		must(t, os.Remove(path)) // or some file systems wait for the disk
		must(t, os.WriteFile(path, slices.Concat(whole[:from], insert, whole[to:]), 0o600))
		s = open(t, Options{Dir: dir})
		q = queue(t, s, "r")
		last, n := int64(-1), q.Len()
		for ; ; n-- {
			var e Entry
			ok, err := q.Peek(&e)
			must(t, err)
			if !ok {
				break
			}
			if e.Arrival <= last || e.Arrival >= count || e.Session != uint32(e.Arrival) || e.Kind != 1 || !bytes.Equal(e.Body, body) {
				t.Fatalf("%+v after %d", e, last)
			}
			last = e.Arrival
			q.Next()
		}
		if n != 0 {
			t.Fatalf("length is wrong by %d", n)
		}
		must(t, s.Close())
	})
}

// BenchmarkAppendNext: one entry in, one out, through the disk, acknowledged by
// the thousand.
func BenchmarkAppendNext(b *testing.B) {
	for _, size := range []int{145, 600} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			s := open(b, Options{Dir: b.TempDir()})
			q := queue(b, s, "r")
			e := entry(1, size)
			const batch = 1000
			for range 20 * batch {
				must(b, q.Append(e))
			}
			b.SetBytes(int64(size))
			b.ReportAllocs()
			b.ResetTimer()
			var got Entry
			for i := range b.N {
				if err := q.Append(e); err != nil {
					b.Fatal(err)
				}
				if ok, err := q.Peek(&got); !ok || err != nil {
					b.Fatal(ok, err)
				}
				q.Next()
				if i%batch == 0 {
					q.Acked(q.Moved())
					must(b, q.Flush())
				}
			}
		})
	}
}
