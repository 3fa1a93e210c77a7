package tail

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// errMoving says that files were renamed while they were looked at: the next
// look tells.
var errMoving = errors.New("files are being renamed")

// claim returns what is known of a file that was found at path. An inode that
// belongs to something else now is forgotten. The error is errMoving.
func (t *Tail) claim(path string, fi fs.FileInfo) (owned, bool, error) {
	id, _ := identify(fi)
	t.mu.Lock()
	o, ok := t.owner[id]
	// A file that was found anew at its own path is checked before it is read.
	sure := !ok || o.g.f != nil || o.g.path == path && !o.g.done ||
		o.g.size == fi.Size() && o.g.mtime.Equal(fi.ModTime())
	var head fingerprint
	if ok {
		head = o.g.head
	}
	t.mu.Unlock()
	if sure {
		return o, ok, nil
	}
	same := false
	if head.n > 0 {
		f, now, err := open(path)
		if err != nil {
			return o, true, errMoving
		}
		same, err = head.matches(f)
		f.Close()
		if other, _ := identify(now); err != nil || other != id {
			return o, true, errMoving
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.owner[id] != o || o.g.f != nil || o.g.head.n != head.n || o.s.busy && !o.g.done {
		return o, true, errMoving // its reader was or is there
	}
	if same {
		if o.g.done {
			o.g.done, o.g.looked = false, false // went on being written after all
			o.g.path, o.g.changed = path, time.Now()
		}
		return o, true, nil
	}
	t.forget(o.s, o.g)
	return owned{}, false, nil
}

// forget drops g from s. The caller holds the lock and s is not busy, unless it
// is the caller's.
func (t *Tail) forget(s *stream, g *generation) {
	if !g.done && !g.restored && g.size > g.pos {
		s.file.Lost++
		t.log.Warn("a file was removed before it was read to its end", "file", s.name, "path", g.path, "bytes", g.size-g.pos)
	}
	t.shut(g)
	if t.owner[g.id].g == g {
		delete(t.owner, g.id)
	}
	s.gens = slices.DeleteFunc(s.gens, func(o *generation) bool { return o == g })
}

// succeed makes the file that fi describes the one that s stands for now.
func (t *Tail) succeed(s *stream, fi fs.FileInfo) {
	t.mu.Lock()
	prev := s.last()
	t.mu.Unlock()
	id, _ := identify(fi)
	var missed []*generation
	if prev != nil {
		var err error
		if missed, err = t.between(s, prev, id); err != nil {
			return
		}
	}
	add := missed
	if !slices.ContainsFunc(missed, func(g *generation) bool { return g.id == id }) {
		add = append(add, &generation{id: id, path: s.name, named: true})
	}
	t.mu.Lock()
	if prev != nil {
		s.file.Rotated += uint64(len(add))
		t.log.Info("a file was rotated", "file", s.name, "times", len(add))
	}
	for _, g := range s.gens {
		g.changed = time.Now() // its writers have Quiet from now on
	}
	for _, m := range add {
		t.add(s, m, nil)
	}
	t.mu.Unlock()
	for _, m := range add {
		t.hold(m, false)
	}
}

// between returns files, the oldest first, that had the name of s after prev and
// were never seen with it: it was rotated again while nobody looked. current,
// which had the name a moment ago, is among them if it does not have it now.
// After an error it is to be tried again at the next look.
func (t *Tail) between(s *stream, prev *generation, current identity) ([]*generation, error) {
	entries, err := related(s.name)
	if err != nil {
		return nil, err
	}
	base := filepath.Base(s.name)
	t.mu.Lock()
	id, mtime := prev.id, prev.mtime
	t.mu.Unlock()
	var since age
	placed := false
	for _, e := range entries {
		if e.id == id {
			since, placed = rotation(base, e.base)
		}
	}
	type candidate struct {
		age
		entry
	}
	var found []candidate
	for _, e := range entries {
		a, ok := rotation(base, e.base)
		if !ok || t.matches(e.path) {
			continue
		}
		if placed && a.date == since.date {
			ok = a.after(since)
		} else {
			ok = e.info.ModTime().After(mtime)
		}
		if !ok && e.id != current {
			continue
		}
		_, known, err := t.claim(e.path, e.info)
		if err != nil {
			return nil, err
		}
		if !known {
			found = append(found, candidate{a, e})
		}
	}
	slices.SortFunc(found, func(a, b candidate) int {
		switch {
		case a.date != b.date:
			return a.info.ModTime().Compare(b.info.ModTime())
		case b.after(a.age):
			return -1
		case a.after(b.age):
			return 1
		default:
			return 0
		}
	})
	var out []*generation
	for _, c := range found {
		out = append(out, &generation{id: c.id, path: c.path})
	}
	return out, nil
}

// remainder looks for the copy of what was read up to pos, for a file that was
// truncated or removed, and returns the place in it. The result is closed.
func (t *Tail) remainder(s *stream, h fingerprint, pos int64, entries []entry) *generation {
	if h.n == 0 {
		return nil
	}
	base := filepath.Base(s.name)
	for _, e := range entries {
		if _, ok := rotation(base, e.base); !ok && e.path != s.name || e.info.Size() < pos {
			continue
		}
		if _, known, _ := t.claim(e.path, e.info); known {
			continue
		}
		if g := matching(e, h, pos); g != nil {
			return g
		}
	}
	return nil
}

// matching returns a generation at pos of e if e begins with h.
func matching(e entry, h fingerprint, pos int64) *generation {
	f, fi, err := open(e.path)
	if err != nil {
		return nil
	}
	defer f.Close()
	id, _ := identify(fi)
	if id != e.id || fi.Size() < pos {
		return nil
	}
	if ok, err := h.resume(f); !ok || err != nil {
		return nil
	}
	return &generation{id: id, path: e.path, head: h, pos: pos, at: pos, size: fi.Size(), mtime: fi.ModTime()}
}

// restore finds the files of a checkpoint. Device numbers may change over a
// restart of the machine: inode and fingerprint must do.
func (t *Tail) restore(s *stream) {
	t.mu.Lock()
	old := slices.Clone(s.gens)
	t.mu.Unlock()
	if len(old) == 0 || !old[0].restored {
		return
	}
	dir := filepath.Dir(s.name)
	entries, err := t.listing(dir)
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) { // else not mounted yet, perhaps
			t.fail(s, err)
		}
		return
	}
	// A symbolic link's files are elsewhere.
	dirs := map[string]bool{dir: true}
	elsewhere := []string{filepath.Dir(old[len(old)-1].path)}
	if to, err := filepath.EvalSymlinks(s.name); err == nil {
		elsewhere = append(elsewhere, filepath.Dir(to))
	}
	for _, d := range elsewhere {
		if more, err := t.listing(d); err == nil && !dirs[d] {
			dirs[d] = true
			entries = append(slices.Clone(entries), more...)
		}
	}
	var prev *generation // the last one, found or not
	var found []*generation
	for _, r := range old {
		prev = r
		g := t.rediscover(s, r, entries)
		if g == nil && !r.done {
			// The list may be of before a rename.
			if fresh, err := list(filepath.Dir(s.name), ""); err == nil {
				g = t.rediscover(s, r, fresh)
			}
		}
		if g == nil {
			if !r.done {
				t.mu.Lock()
				s.file.Lost++
				t.mu.Unlock()
				t.log.Warn("a file that was being read is not there any more, what was unread of it is lost",
					"file", s.name, "path", r.path, "offset", r.pos)
			}
			continue
		}
		g.done = r.done
		prev = g
		found = append(found, g)
		t.mu.Lock()
		t.owner[g.id] = owned{s, g}
		t.mu.Unlock()
	}
	t.mu.Lock()
	s.gens = nil
	for _, g := range found {
		t.add(s, g, nil)
	}
	t.mu.Unlock()
	// Files that came and went meanwhile, unless the name is still that file's.
	var current identity
	if fi, err := os.Stat(s.name); err == nil {
		current, _ = identify(fi)
	}
	if current != prev.id || prev.restored {
		// An error leaves them to the next change of the name's file.
		missed, _ := t.between(s, prev, current)
		t.mu.Lock()
		s.file.Rotated += uint64(len(missed))
		for _, m := range missed {
			t.add(s, m, nil)
		}
		t.mu.Unlock()
		found = append(found, missed...)
	}
	for _, g := range found {
		if !g.done {
			t.hold(g, false)
		}
	}
}

// rediscover returns r as it is found among entries, or nil.
func (t *Tail) rediscover(s *stream, r *generation, entries []entry) *generation {
	for _, e := range entries {
		if e.id.ino == r.id.ino && !t.taken(e.id) {
			if g := matching(e, r.head, r.pos); g != nil {
				return g
			}
		}
	}
	if r.done {
		return nil
	}
	return t.remainder(s, r.head, r.pos, entries)
}

func (t *Tail) taken(id identity) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	_, ok := t.owner[id]
	return ok
}

// retire lets go of files that were replaced, read to their end and quiet. The
// caller holds the lock; nobody reads s.
func (t *Tail) retire(s *stream, now time.Time) {
	for _, g := range slices.Clone(s.gens) {
		quiet := now.Sub(g.changed)
		switch {
		case g.done || g.restored || g.named || g.news() || s.failed:
			continue
		case g == s.last() && (g.links > 0 || quiet < goneFactor*t.o.Quiet):
			continue // nothing took its place: it may still be written
		case quiet < t.o.Quiet:
			continue
		}
		if g.f != nil {
			if fi, err := g.f.Stat(); err == nil && g.see(fi, now) {
				t.want(s)
				continue
			}
		}
		if g.size > g.pos {
			s.file.Torn++
			t.log.Warn("a rotated file ends within a line, which is dropped", "file", s.name, "path", g.path, "bytes", g.size-g.pos)
		}
		t.shut(g)
		g.done = true
		if g.links == 0 {
			t.forget(s, g)
		}
	}
	active, done := 0, 0
	for _, g := range slices.Backward(slices.Clone(s.gens)) {
		if g.done {
			if done++; done > maxDone {
				t.forget(s, g)
			}
		} else if active++; active > maxActive {
			t.forget(s, g)
		}
	}
	if len(s.gens) == 0 && !s.failed {
		if _, err := os.Lstat(s.name); err != nil {
			delete(t.streams, s.name)
		}
	}
}

// sweep forgets files that were read to their end and do not exist any more.
func (t *Tail) sweep() {
	t.lists = make(map[string][]entry)
	defer func() { t.lists = nil }()
	t.mu.Lock()
	all := t.sorted()
	t.mu.Unlock()
	for _, s := range all {
		t.mu.Lock()
		var gone []*generation
		for _, g := range s.gens {
			if g.done && !g.restored {
				gone = append(gone, g)
			}
		}
		t.mu.Unlock()
		for _, g := range gone {
			exists := false
			for _, dir := range []string{filepath.Dir(s.name), filepath.Dir(g.path)} {
				l, err := t.listing(dir)
				exists = exists || err != nil && !errors.Is(err, fs.ErrNotExist) ||
					slices.ContainsFunc(l, func(e entry) bool { return e.id == g.id })
			}
			t.mu.Lock()
			if !exists && !s.busy && g.done {
				t.forget(s, g)
			}
			t.mu.Unlock()
		}
	}
}
