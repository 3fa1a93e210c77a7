package tail

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/fsnotify/fsnotify"
)

// Defaults of Options.
const (
	DefaultMaxLine = 1 << 20
	DefaultPoll    = time.Second
	DefaultQuiet   = 5 * time.Second
)

const (
	maxReaders = 64   // files that are read at a time
	maxActive  = 64   // files of one name that are not read to their end
	maxDone    = 4096 // files of one name that are remembered as read
	chunk      = 256 << 10

	globEvery  = 5   // polls
	sweepEvery = 60  // polls
	goneFactor = 60  // times Quiet until a removed file is let go that none replaced
	maxDirty   = 256 // names with events, beyond which all are looked at
	gap        = 10 * time.Millisecond
)

// Options are what a Tail is made with.
type Options struct {
	// Patterns are absolute, as for [path/filepath.Match], wildcards anywhere.
	// Directories need not exist yet.
	Patterns []string
	// Positions is the file that remembers how far files were read. Its directory
	// must exist when it is saved.
	Positions string
	// MaxLine is the longest line in bytes, without its newline; 0 means
	// DefaultMaxLine.
	MaxLine int
	// Poll is how often files are looked at; 0 means DefaultPoll.
	Poll time.Duration
	// Quiet is how long a file that was replaced is without news before it is
	// closed; 0 means DefaultQuiet.
	Quiet   time.Duration
	Handler Handler
	Log     *slog.Logger // nil means slog.Default()
}

// A Handler takes lines.
type Handler interface {
	// Lines takes lines that follow each other in the file that was called file
	// when it was found, and returns nil when they are safely taken. It may block
	// for long; ctx ends when Run is to end. After an error the same lines, and
	// perhaps more, come again at the next poll.
	//
	// lines is not empty, no line is, and both are valid during the call only. It
	// is called concurrently, but for one file one call after the other.
	Lines(ctx context.Context, file string, lines [][]byte) error
}

// A File is the state of one name.
type File struct {
	Path      string
	Offset    int64 // of the file that it stands for now, in bytes
	Size      int64 // of that file, when it was looked at last
	Behind    int64 // bytes that were not handed over, in older files too
	Lines     uint64
	Read      time.Time // when lines were handed over last; zero if never
	Rotated   uint64    // times that another file took the name
	Truncated uint64    // times that the file was found to be written anew
	Skipped   uint64    // lines that were too long
	Torn      uint64    // last lines without a newline in files that were let go
	Lost      uint64    // times that something unread was removed, or may have been
	Waiting   int       // older files that are still read or kept open
	Error     string    // that keeps it from being read; empty if none
}

// A Tail follows files. Its methods are safe for concurrent use; Run is called
// once.
type Tail struct {
	o   Options
	log *slog.Logger

	save  sync.Mutex
	saved []byte // as it is in the positions file

	mu      sync.Mutex
	streams map[string]*stream
	owner   map[identity]owned
	queue   []*stream // that want a reader
	readers int
	opened  int // descriptors
	maxOpen int
	wg      sync.WaitGroup
	buffers sync.Pool

	// Of Run's goroutine.
	watcher *fsnotify.Watcher
	watched map[string]bool // directories; false if it failed, which was said
	lists   map[string][]entry
}

type owned struct {
	s *stream
	g *generation
}

// stream is what a name stood for, the oldest first. The fields are under the
// lock of the Tail; files are read by its reader while busy is set.
type stream struct {
	name string
	gens []*generation

	busy   bool // a reader is at it
	queued bool
	again  bool // news since the reader began
	failed bool // try again at the next poll

	file    File
	skipped time.Time // when it was said
}

// New reads the positions file; that there is none is no error. A broken one is,
// and the error says what to do.
func New(o Options) (*Tail, error) {
	o.MaxLine = cmp.Or(o.MaxLine, DefaultMaxLine)
	o.Poll = cmp.Or(o.Poll, DefaultPoll)
	o.Quiet = cmp.Or(o.Quiet, DefaultQuiet)
	switch {
	case o.Handler == nil:
		return nil, errors.New("following files: no handler")
	case o.MaxLine < 0 || o.Poll < 0 || o.Quiet < 0:
		return nil, errors.New("following files: negative option")
	case !filepath.IsAbs(o.Positions):
		return nil, fmt.Errorf("positions file %q: want an absolute path", o.Positions)
	}
	o.Patterns = slices.Clone(o.Patterns)
	for i, p := range o.Patterns {
		if !filepath.IsAbs(p) {
			return nil, fmt.Errorf("files %q: want an absolute pattern", p)
		}
		o.Patterns[i] = filepath.Clean(p)
		if _, err := filepath.Match(o.Patterns[i], ""); err != nil {
			return nil, fmt.Errorf("files %q: %w", p, err)
		}
	}
	t := &Tail{
		o:       o,
		log:     cmp.Or(o.Log, slog.Default()),
		streams: make(map[string]*stream),
		owner:   make(map[identity]owned),
		watched: make(map[string]bool),
		maxOpen: maxOpen,
	}
	t.buffers.New = func() any { return &buffer{b: make([]byte, chunk)} }
	positions, err := readPositions(o.Positions)
	if err != nil {
		return nil, err
	}
	for i := range positions {
		p := &positions[i]
		if !t.matches(p.Name) {
			t.log.Warn("a file of the positions is matched by no pattern any more, its position is forgotten", "file", p.Name)
			continue
		}
		s := t.streams[p.Name]
		if s == nil {
			s = &stream{name: p.Name, file: File{Path: p.Name}}
			t.streams[p.Name] = s
		}
		s.gens = append(s.gens, &generation{
			id:   identity{p.Device, p.Inode},
			path: cmp.Or(p.Path, p.Name),
			head: fingerprint{sum: uint64(p.Head), n: p.HeadLen},
			pos:  p.Offset, at: p.Offset, size: p.Offset, mtime: p.MTime,
			restored: true, done: p.Done,
		})
	}
	return t, nil
}

func (t *Tail) matches(name string) bool {
	return slices.ContainsFunc(t.o.Patterns, func(p string) bool {
		ok, _ := filepath.Match(p, name)
		return ok
	})
}

// sorted returns the streams by name. The caller holds the lock.
func (t *Tail) sorted() []*stream {
	all := make([]*stream, 0, len(t.streams))
	for _, s := range t.streams {
		all = append(all, s)
	}
	slices.SortFunc(all, func(a, b *stream) int { return cmp.Compare(a.name, b.name) })
	return all
}

// Status returns the state of all names, sorted.
func (t *Tail) Status() []File {
	t.mu.Lock()
	defer t.mu.Unlock()
	var out []File
	for _, s := range t.sorted() {
		f := s.file
		for _, g := range s.gens {
			if g.done {
				continue
			}
			f.Behind += max(g.size-g.pos, 0)
			if g == s.last() && (g.named || g.restored) {
				f.Offset, f.Size = g.pos, g.size
			} else {
				f.Waiting++
			}
		}
		out = append(out, f)
	}
	return out
}

// Run follows the files until ctx ends; then it waits for the handler and
// returns nil.
func (t *Tail) Run(ctx context.Context) error {
	defer t.closeAll()
	defer t.wg.Wait()
	var events chan fsnotify.Event
	var failures chan error
	if w, err := fsnotify.NewWatcher(); err != nil {
		t.log.Warn("no notifications of changed files, they are only polled", "err", err)
	} else {
		defer w.Close()
		t.watcher, events, failures = w, w.Events, w.Errors
	}
	poll := time.NewTicker(t.o.Poll)
	defer poll.Stop()
	// After an event a while passes in which more come, so that a busy writer
	// costs few looks.
	soon := time.NewTimer(0)
	defer soon.Stop()
	<-soon.C
	waiting, match := false, false
	dirty := make(map[string]bool)

	t.look(ctx, true)
	for n := 1; ; {
		select {
		case <-ctx.Done():
			return nil
		case <-poll.C:
			t.look(ctx, n%globEvery == 0)
			if n%sweepEvery == 0 {
				t.sweep()
			}
			n++
		case e := <-events:
			if !t.matches(e.Name) {
				continue // also our own positions file, perhaps
			}
			if e.Op&^fsnotify.Write != 0 {
				match = true
			}
			if len(dirty) < maxDirty {
				dirty[e.Name] = true
			}
			if !waiting {
				waiting = true
				soon.Reset(gap)
			}
		case err := <-failures:
			t.log.Warn("notifications of changed files were lost, the next poll finds them", "err", err)
		case <-soon.C:
			waiting = false
			switch {
			case match || len(dirty) >= maxDirty:
				t.look(ctx, true)
			default:
				t.lookAt(ctx, dirty)
			}
			match = false
			clear(dirty)
		}
	}
}

func (t *Tail) closeAll() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, s := range t.streams {
		for _, g := range s.gens {
			t.shut(g)
		}
	}
}

// shut closes g. The caller holds the lock.
func (t *Tail) shut(g *generation) {
	if g.f != nil {
		g.close()
		t.opened--
	}
}

// lookAt looks at known names that were written to.
func (t *Tail) lookAt(ctx context.Context, names map[string]bool) {
	t.lists = nil
	for name := range names {
		t.mu.Lock()
		s := t.streams[name]
		t.mu.Unlock()
		if s != nil {
			t.visit(s)
		}
	}
	t.dispatch(ctx)
}

// look looks at all known names and, if match is set, for new ones.
func (t *Tail) look(ctx context.Context, match bool) {
	t.lists = make(map[string][]entry)
	t.mu.Lock()
	all := t.sorted()
	t.mu.Unlock()
	// Names that are known come first: what was renamed must be known as such
	// before its new name is looked at.
	for _, s := range all {
		t.visit(s)
	}
	if match {
		t.match()
	}
	t.dispatch(ctx)
	t.lists = nil
}

// match finds new names.
func (t *Tail) match() {
	var names []string
	for _, p := range t.o.Patterns {
		dirs, _ := filepath.Glob(filepath.Dir(p))
		for _, d := range dirs {
			t.watch(d)
		}
		// An error is that of a bad pattern only; a directory that cannot be read
		// was said by watch.
		found, _ := filepath.Glob(p)
		names = append(names, found...)
	}
	slices.Sort(names)
	var links []string
	for _, name := range slices.Compact(names) {
		fi, err := os.Lstat(name)
		if err != nil || compressed(name) {
			continue
		}
		// A file is better known by its own name than by a link's, which may lead
		// elsewhere tomorrow.
		if fi.Mode()&fs.ModeSymlink != 0 {
			links = append(links, name)
		} else if fi.Mode().IsRegular() {
			t.discover(name)
		}
	}
	for _, name := range links {
		t.discover(name)
	}
}

func (t *Tail) discover(name string) {
	t.mu.Lock()
	known := t.streams[name] != nil
	t.mu.Unlock()
	if known {
		return
	}
	fi, err := os.Stat(name)
	if err != nil || !fi.Mode().IsRegular() {
		return
	}
	if _, mine, _ := t.claim(name, fi); mine {
		return
	}
	s := &stream{name: name, file: File{Path: name}}
	t.mu.Lock()
	t.streams[name] = s
	t.mu.Unlock()
	t.visit(s)
}

// watch asks for notifications of a directory.
func (t *Tail) watch(dir string) {
	if t.watcher == nil {
		return
	}
	// Adding again is cheap, and needed when a directory was removed and made
	// anew.
	err := t.watcher.Add(dir)
	if ok, said := t.watched[dir]; err != nil && (ok || !said) {
		t.log.Warn("no notifications of a directory, its files are only polled", "dir", dir, "err", err)
	}
	t.watched[dir] = err == nil
}

// listing is list of the whole directory, once in a look.
func (t *Tail) listing(dir string) ([]entry, error) {
	if l, ok := t.lists[dir]; ok {
		return l, nil
	}
	l, err := list(dir, "")
	if err == nil && t.lists != nil {
		t.lists[dir] = l
	}
	return l, err
}

// visit looks at one name: which file it stands for now and whether there is
// news in that or in older ones.
func (t *Tail) visit(s *stream) {
	t.restore(s)
	fi, err := os.Stat(s.name)
	found := err == nil && fi.Mode().IsRegular()
	var known owned
	ours := false
	if found {
		if known, ours, err = t.claim(s.name, fi); err != nil {
			return
		}
	}
	now := time.Now()
	t.mu.Lock()
	if len(s.gens) > 0 && s.gens[0].restored {
		t.mu.Unlock()
		return // its directory is not there yet
	}
	for _, g := range s.gens {
		g.named = false
	}
	t.mu.Unlock()
	switch {
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		t.fail(s, err)
	case !found:
	case !ours:
		t.succeed(s, fi)
	case known.s == s:
		t.mu.Lock()
		known.g.named = true
		known.g.path = s.name
		t.mu.Unlock()
	}

	t.mu.Lock()
	gens := slices.Clone(s.gens)
	t.mu.Unlock()
	want := false
	for _, g := range gens {
		if g.done {
			continue
		}
		info, err := fi, error(nil)
		if !g.named {
			// Of a file that is read now the descriptor stays open.
			t.mu.Lock()
			f, path, id := g.f, g.path, g.id
			t.mu.Unlock()
			if f != nil {
				info, err = f.Stat()
			} else if info, err = os.Stat(path); err == nil {
				if other, _ := identify(info); other != id {
					err = fs.ErrNotExist
				}
			}
		}
		t.mu.Lock()
		if err == nil {
			want = g.see(info, now) || want
		} else {
			want = want || g.news() // the reader looks for it
		}
		t.mu.Unlock()
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if want || s.failed {
		t.want(s)
	}
	if !s.busy {
		t.retire(s, now)
	}
}

// fail notes what keeps s from being read, and says it once.
func (t *Tail) fail(s *stream, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	s.failed = true
	if s.file.Error != err.Error() {
		s.file.Error = err.Error()
		t.log.Warn("a file cannot be read, trying again", "file", s.name, "err", err)
	}
}

// add makes g one of s, before the generation next, or last if next is nil. The
// caller holds the lock.
func (t *Tail) add(s *stream, g, next *generation) {
	g.changed = time.Now()
	t.owner[g.id] = owned{s, g}
	i := slices.Index(s.gens, next)
	if i < 0 {
		i = len(s.gens)
	}
	s.gens = slices.Insert(s.gens, i, g)
}

// hold opens g, which was found at its path, so that it can be removed without
// being lost, and reports whether it is open. Unless it must be, it is not if
// too many are. Why it cannot be is left to the reader to find.
func (t *Tail) hold(g *generation, must bool) bool {
	t.mu.Lock()
	ok, path := g.f != nil, g.path
	if !ok {
		t.makeRoom()
	}
	full := t.opened >= t.maxOpen
	t.mu.Unlock()
	if ok || full && !must {
		return ok
	}
	f, fi, err := open(path)
	if err != nil {
		return false
	}
	id, _ := identify(fi)
	t.mu.Lock()
	defer t.mu.Unlock()
	if id != g.id || g.f != nil {
		f.Close()
		return g.f != nil
	}
	g.f = f
	t.opened++
	return true
}

func (s *stream) last() *generation {
	if len(s.gens) == 0 {
		return nil
	}
	return s.gens[len(s.gens)-1]
}
