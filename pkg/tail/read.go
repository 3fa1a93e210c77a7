package tail

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"time"
)

const (
	maxOpen  = 512  // files that are kept open, about
	maxLines = 4096 // that are handed over at a time
)

type buffer struct {
	b     []byte
	lines [][]byte
}

// want makes a reader come to s. The caller holds the lock.
func (t *Tail) want(s *stream) {
	switch {
	case s.busy:
		s.again = true
	case !s.queued:
		s.queued = true
		t.queue = append(t.queue, s)
	}
}

// dispatch starts readers for what is queued.
func (t *Tail) dispatch(ctx context.Context) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for n := len(t.queue); n > 0 && t.readers < maxReaders; n-- {
		t.readers++
		t.wg.Go(func() { t.reader(ctx) })
	}
}

// reader reads what is queued, each stream as far as it was written when it
// began, so that one that is always written does not keep others waiting.
func (t *Tail) reader(ctx context.Context) {
	b := t.buffers.Get().(*buffer)
	t.mu.Lock()
	for len(t.queue) > 0 && ctx.Err() == nil {
		s := t.queue[0]
		t.queue = slices.Delete(t.queue, 0, 1)
		s.queued, s.busy, s.again, s.failed = false, true, false, false
		t.mu.Unlock()

		err := t.round(ctx, s, b)
		if err != nil && ctx.Err() == nil {
			t.fail(s, err)
		}

		t.mu.Lock()
		s.busy = false
		if err == nil {
			s.file.Error = ""
		}
		if s.again {
			t.want(s)
		}
		if err == nil {
			t.retire(s, time.Now())
		}
		for _, g := range s.gens {
			// Only so many are kept beyond those that are read.
			if t.opened > t.maxOpen && g.f != nil && !g.news() && (g.named || g.links > 0) {
				t.shut(g)
			}
		}
	}
	t.readers--
	t.mu.Unlock()
	if len(b.b) > chunk {
		b.b = make([]byte, chunk)
	}
	clear(b.lines)
	t.buffers.Put(b)
}

// makeRoom closes the file that was read to its end longest ago if too many are
// open. The caller holds the lock.
func (t *Tail) makeRoom() {
	if t.opened < t.maxOpen {
		return
	}
	var oldest *generation
	for _, s := range t.streams {
		if s.busy || s.queued {
			continue
		}
		for _, g := range s.gens {
			if g.f == nil || g.news() || g.links == 0 {
				continue
			}
			if oldest == nil || g.named && !oldest.named || g.named == oldest.named && g.changed.Before(oldest.changed) {
				oldest = g
			}
		}
	}
	if oldest != nil {
		t.shut(oldest)
	}
}

// round reads the files of s to where they end now, the oldest first.
//
// Their ends are noted from the youngest to the oldest: a process that wrote to
// a younger one has written all that it will to the older ones, and that is then
// read before.
func (t *Tail) round(ctx context.Context, s *stream, b *buffer) error {
	t.mu.Lock()
	gens := slices.DeleteFunc(slices.Clone(s.gens), func(g *generation) bool { return g.done || g.restored })
	t.mu.Unlock()
	infos := make([]fs.FileInfo, len(gens))
	for i, g := range slices.Backward(gens) {
		ok, err := t.reopen(s, g)
		if err != nil {
			return err
		}
		if !ok {
			gens[i] = nil
			continue
		}
		if infos[i], err = g.f.Stat(); err != nil {
			return err
		}
	}
	for i, g := range gens {
		if g == nil {
			continue
		}
		err := t.read(ctx, s, g, infos[i].Size(), b)
		if errors.Is(err, errAnew) {
			// Older files that were found are read first, so at the next round.
			t.anew(s, g)
			t.mu.Lock()
			s.again = true
			t.mu.Unlock()
			return nil
		}
		if err != nil {
			return err
		}
		t.mu.Lock()
		g.looked, g.lookedSize, g.lookedMTime = true, infos[i].Size(), infos[i].ModTime()
		g.size, g.mtime = g.lookedSize, g.lookedMTime
		_, g.links = identify(infos[i])
		t.mu.Unlock()
	}
	return nil
}

// reopen opens g where it is now. It reports false if it is nowhere, and then
// forgets it.
func (t *Tail) reopen(s *stream, g *generation) (bool, error) {
	if t.hold(g, true) {
		return true, nil
	}
	t.mu.Lock()
	path := g.path
	t.mu.Unlock()
	entries, err := list(filepath.Dir(path), "")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	exists := false
	for _, e := range entries {
		if e.id == g.id {
			path, exists = e.path, true
		}
	}
	t.mu.Lock()
	g.path = path
	t.mu.Unlock()
	if t.hold(g, true) {
		return true, nil
	}
	f, fi, err := open(path)
	switch {
	case err == nil:
		f.Close()
		if id, _ := identify(fi); exists || id == g.id {
			return false, fmt.Errorf("%s: moved while it was opened", path)
		}
	case exists || !errors.Is(err, fs.ErrNotExist):
		return false, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.forget(s, g)
	return false, nil
}

// errAnew says that a file does not begin any more with what was read of it.
var errAnew = errors.New("written anew")

// read hands over the lines of g up to limit.
func (t *Tail) read(ctx context.Context, s *stream, g *generation, limit int64, b *buffer) error {
	n := 0       // bytes in the buffer
	base := g.at // their place in the file
	tooLong := g.at > g.pos
	if err := g.check(max(base, limit)); err != nil {
		return err
	}
	for base+int64(n) < limit {
		if n == len(b.b) {
			bigger := make([]byte, min(2*len(b.b), t.o.MaxLine+1))
			copy(bigger, b.b)
			b.b = bigger
		}
		end := n + int(min(int64(len(b.b)-n), limit-base-int64(n)))
		m, err := g.f.ReadAt(b.b[n:end], base+int64(n))
		n += m
		// Checked after reading: a file that begins as it did now did so when it
		// was read.
		if err := g.check(max(base+int64(n), limit)); err != nil {
			return err
		}
		if m == 0 {
			return fmt.Errorf("reading %s: %w", g.f.Name(), err)
		}
		for more := true; more; {
			var used int
			var skipped uint64
			used, skipped, more = b.cut(n, t.o.MaxLine, tooLong)
			tooLong = tooLong && used == 0
			if len(b.lines) > 0 {
				if err := t.o.Handler.Lines(ctx, s.name, b.lines); err != nil {
					return fmt.Errorf("handing over lines of %s: %w", s.name, err)
				}
			}
			// A line that is too long already is not kept.
			taken := used
			if !more && (tooLong || n-used > t.o.MaxLine) {
				taken, tooLong = n, true
			}
			t.took(s, g, base, b, used, taken, skipped)
			if taken > 0 {
				copy(b.b, b.b[taken:n])
				base, n = base+int64(taken), n-taken
			}
		}
	}
	return nil
}

// cut finds the lines in the first n bytes and returns how many bytes it went
// through, how many lines were longer than limit, and whether it found so many
// lines that there may be more. If tooLong is set, the bytes begin within a line
// that is too long.
func (b *buffer) cut(n, limit int, tooLong bool) (used int, skipped uint64, more bool) {
	b.lines = b.lines[:0]
	if tooLong {
		i := bytes.IndexByte(b.b[:n], '\n')
		if i < 0 {
			return 0, 0, false
		}
		used, skipped = i+1, 1
	}
	for used < n {
		if b.b[used] == 0 {
			used++
			continue
		}
		i := bytes.IndexByte(b.b[used:n], '\n')
		if i < 0 {
			break
		}
		line := b.b[used : used+i : used+i]
		used += i + 1
		if len(line) > limit {
			skipped++
			continue
		}
		if line = bytes.TrimSuffix(line, cr); len(line) > 0 {
			b.lines = append(b.lines, line)
			if len(b.lines) == maxLines {
				return used, skipped, true
			}
		}
	}
	return used, skipped, false
}

// took notes that the lines in the first used bytes of b, which are at base of
// g, were handed over, and that the first taken bytes need not be read again.
func (t *Tail) took(s *stream, g *generation, base int64, b *buffer, used, taken int, skipped uint64) {
	now := time.Now()
	t.mu.Lock()
	g.head.add(base, b.b[:taken])
	if used > 0 {
		g.pos = base + int64(used)
	}
	g.at = base + int64(taken)
	s.file.Lines += uint64(len(b.lines))
	s.file.Skipped += skipped
	if len(b.lines) > 0 {
		s.file.Read = now
	}
	say := skipped > 0 && now.Sub(s.skipped) > time.Minute
	if say {
		s.skipped = now
	}
	total := s.file.Skipped
	t.mu.Unlock()
	if say {
		t.log.Warn("lines that are too long are skipped", "file", s.name, "max", t.o.MaxLine, "skipped", total)
	}
}

var cr = []byte{'\r'}

// check returns errAnew if the file is shorter than end or begins otherwise than
// what was read of it.
func (g *generation) check(end int64) error {
	fi, err := g.f.Stat()
	if err != nil {
		return err
	}
	if fi.Size() < end {
		return errAnew
	}
	ok, err := g.head.matches(g.f)
	if err != nil {
		return fmt.Errorf("reading %s: %w", g.f.Name(), err)
	}
	if !ok {
		return errAnew
	}
	return nil
}

// anew makes g begin again after it was truncated. What was unread is looked for
// in a copy, which then comes before it.
func (t *Tail) anew(s *stream, g *generation) {
	t.mu.Lock()
	old := *g
	old.f = nil
	t.mu.Unlock()
	entries, _ := related(s.name)
	found := t.remainder(s, old.head, old.pos, entries)

	t.mu.Lock()
	defer t.mu.Unlock()
	s.file.Truncated++
	switch {
	case found != nil:
		t.log.Info("a file was truncated, the rest of it is read from a copy", "file", s.name, "copy", found.path, "bytes", found.size-found.pos)
		t.add(s, found, g)
	case old.size > old.pos:
		s.file.Lost++
		t.log.Warn("a file was truncated before it was read to its end, and there is no copy", "file", s.name, "bytes", old.size-old.pos)
	default:
		t.log.Info("a file was truncated", "file", s.name)
	}
	g.begin()
	g.changed = time.Now()
}
