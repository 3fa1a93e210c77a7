// Package spool is disk space for what memory has no room for: many independent
// queues, one for each router, first in first out, under one limit of bytes.
//
// What it promises:
//
//   - Entries of a queue come back in the order in which they were appended, each
//     with the bytes that were appended or not at all.
//   - What was flushed survives the end of the process. An entry is gone from disk
//     only after it was acknowledged; after a crash some that were acknowledged
//     may come back, none that was not is missing.
//   - A torn tail is cut, damage in the middle costs the entries that it hit;
//     both are said in the log and counted.
//   - A full disk is like a reached limit: ErrFull, and everything goes on when
//     there is space again.
//
// It does not promise that what was flushed survives a power failure: files are
// synced by Close only. Files are open only while a piece of them is written or
// read, so that a thousand queues need no thousand descriptors. A queue has at
// most 64 KiB of memory for writing, given back by Flush, and as much for
// reading, given back when it is empty; or one entry if that is larger.
//
// Files of its own, because no library has all of it. tidwall/wal and
// nsqio/go-diskqueue have no checksums, rosedblabs/wal cannot delete from the
// front, hashicorp/raft-wal syncs every append and preallocates every file; and
// none of them shares a limit among queues.
package spool

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"unicode/utf8"
)

const (
	// MaxBody is the largest body of an entry in bytes.
	MaxBody = 64<<20 + 64<<10
	// MaxName is the longest name of a queue in bytes.
	MaxName = 255

	defaultSegment = 16 << 20
	maxSegment     = 1 << 30
	chunk          = 64 << 10 // written and read at once
)

var (
	// ErrFull says that there is no room: MaxBytes is reached or the disk is
	// full. It is wrapped; use errors.Is.
	ErrFull = errors.New("spool: full")
	// ErrTooLarge says that an entry's body is larger than MaxBody.
	ErrTooLarge = errors.New("spool: entry too large")
	// ErrClosed is returned after Close.
	ErrClosed = errors.New("spool: closed")
)

// Options say where a spool is and how large it may become.
type Options struct {
	Dir string // created with mode 0700 if it does not exist
	// MaxBytes bounds the size of all segment files together, at least 1. The
	// position files, one small one for each queue on disk, come on top.
	MaxBytes int64
	// SegmentBytes is the size at which a queue begins a new file; a larger entry
	// has one for itself. 0 means 16 MiB, or a sixteenth of MaxBytes if that is
	// less; at most 1 GiB. Space is given back in files.
	SegmentBytes int64
	Log          *slog.Logger // nil: none
}

// An Entry is one element of a queue. The spool gives no meaning to Kind and
// Session.
type Entry struct {
	Kind    uint8
	Session uint32
	Arrival int64 // µs on a clock of the caller that survives restarts
	Body    []byte
}

// Recovered is what an earlier process left in one queue.
type Recovered struct {
	Name    string
	Entries int64
	Bytes   int64 // with 29 bytes of frame for each entry
	Oldest  int64 // arrival of the first entry
	Newest  int64 // arrival of the last
}

// Status is a spool's state. Counters count since Open.
type Status struct {
	Used, Max int64 // bytes, as with Spool.Used
	Entries   int64 // that no Next has consumed
	Queues    int64 // that occupy space
	Segments  int64
	Full      bool
	// Lost are entries that could not be read back and are known to have been
	// there. LostBytes were skipped or cut as damaged or torn; a torn tail is in
	// LostBytes only, for nobody knows what it was to become.
	Lost      uint64
	LostBytes uint64
}

// A Spool is a directory of queues. Its methods are safe for concurrent use,
// except that Close must come after the last call of any queue's method.
type Spool struct {
	o         Options
	log       *slog.Logger
	lock      *os.File
	recovered []Recovered

	used, entries, busy, segments atomic.Int64
	noSpace                       atomic.Int64 // queues that wait for space on the disk
	lost, lostBytes               atomic.Uint64
	closed                        atomic.Bool

	mu     sync.Mutex
	queues map[string]*Queue

	// Replaced in tests.
	writeAt func(f *os.File, b []byte, off int64) (int, error)
	readAt  func(f *os.File, b []byte, off int64) (int, error)
	unlink  func(path string) error
	sync    func(path string) error
}

// Open opens the spool in a directory and locks it: a second Open, in this
// process or another, fails. It reads every segment that an earlier process
// left, which takes as long as the disk needs for that.
func Open(o Options) (*Spool, error) {
	s, err := newSpool(o)
	if err != nil {
		return nil, err
	}
	if err := s.open(); err != nil {
		return nil, err
	}
	return s, nil
}

func newSpool(o Options) (*Spool, error) {
	if o.MaxBytes < 1 {
		return nil, fmt.Errorf("open spool %s: a limit of %d bytes", o.Dir, o.MaxBytes)
	}
	if o.SegmentBytes <= 0 {
		o.SegmentBytes = min(defaultSegment, max(o.MaxBytes/16, chunk))
	}
	o.SegmentBytes = min(o.SegmentBytes, maxSegment)
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &Spool{
		o: o, log: o.Log, queues: make(map[string]*Queue),
		writeAt: (*os.File).WriteAt, readAt: (*os.File).ReadAt, unlink: os.Remove, sync: syncFile,
	}, nil
}

func (s *Spool) open() error {
	if err := os.MkdirAll(s.o.Dir, 0o700); err != nil {
		return fmt.Errorf("open spool: %w", err)
	}
	if err := s.acquire(); err != nil {
		return err
	}
	if err := s.recover(); err != nil {
		s.lock.Close()
		return fmt.Errorf("recover spool %s: %w", s.o.Dir, err)
	}
	return nil
}

// acquire takes the directory's lock, which the kernel gives back when the
// process ends in whatever way. Making its file shows that the directory can be
// written.
func (s *Spool) acquire() error {
	path := filepath.Join(s.o.Dir, "lock")
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return fmt.Errorf("open spool: directory cannot be written: %w", err)
	}
	for {
		err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err != syscall.EINTR {
			break
		}
	}
	if err != nil {
		defer f.Close()
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			return fmt.Errorf("open spool: lock %s: %w", path, err)
		}
		var b [32]byte
		n, _ := f.ReadAt(b[:], 0)
		if pid := strings.TrimSpace(string(b[:n])); pid != "" {
			return fmt.Errorf("open spool: %s is in use by process %s", s.o.Dir, pid)
		}
		return fmt.Errorf("open spool: %s is in use by another process", s.o.Dir)
	}
	// The number is for people; without it the lock is as good.
	f.WriteAt(fmt.Appendf(nil, "%-10d\n", os.Getpid()), 0)
	s.lock = f
	return nil
}

// Recovered returns what earlier processes left, by name.
func (s *Spool) Recovered() []Recovered { return slices.Clone(s.recovered) }

// Queue returns the queue of a name, always the same one. The name is any UTF-8
// of at most MaxName bytes. Nothing is written before the first Flush.
func (s *Spool) Queue(name string) (*Queue, error) {
	if len(name) > MaxName || !utf8.ValidString(name) {
		return nil, fmt.Errorf("spool: name of a queue with %d bytes is too long or no UTF-8", len(name))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	q := s.queues[name]
	if q == nil {
		q = &Queue{s: s, name: name, hash: fileHash(name)}
		s.queues[name] = q
	}
	return q, nil
}

// Used returns the bytes that entries occupy, acknowledged ones included while
// their file is there, and the limit.
func (s *Spool) Used() (bytes, max int64) { return s.used.Load(), s.o.MaxBytes }

// Full reports whether nearly nothing more fits: less than 64 KiB, or than a
// sixteenth of the limit, are left, or the disk was full when a queue was last
// flushed.
func (s *Spool) Full() bool {
	return s.used.Load() > s.o.MaxBytes-min(chunk, s.o.MaxBytes/16) || s.noSpace.Load() > 0
}

// Status returns the spool's state.
func (s *Spool) Status() Status {
	return Status{
		Used: s.used.Load(), Max: s.o.MaxBytes,
		Entries: s.entries.Load(), Queues: s.busy.Load(), Segments: s.segments.Load(),
		Full: s.Full(), Lost: s.lost.Load(), LostBytes: s.lostBytes.Load(),
	}
}

// Close flushes all queues, syncs what was written to the disk and gives the
// directory free. Entries that are not acknowledged stay for the next Open. An
// error says which were not stored. Further calls do nothing.
func (s *Spool) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed.Load() {
		return nil
	}
	var errs []error
	var dirty []string
	for _, q := range s.queues {
		paths, err := q.close()
		dirty = append(dirty, paths...)
		if err != nil {
			errs = append(errs, err)
		}
	}
	s.closed.Store(true)
	if err := s.syncAll(append(dirty, s.o.Dir)); err != nil {
		errs = append(errs, err)
	}
	if err := s.lock.Close(); err != nil {
		errs = append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("close spool: %w", err)
	}
	return nil
}

// syncAll syncs files, several at a time: a file system writes its journal once
// for all that wait, which is seconds with a thousand queues.
func (s *Spool) syncAll(paths []string) error {
	work := make(chan string)
	errs := make([]error, 16)
	var wg sync.WaitGroup
	for i := range errs {
		wg.Go(func() {
			for path := range work {
				errs[i] = errors.Join(errs[i], s.sync(path))
			}
		})
	}
	for _, path := range paths {
		work <- path
	}
	close(work)
	wg.Wait()
	return errors.Join(errs...)
}

func syncFile(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// reserve takes n bytes of the limit, if there are as many.
func (s *Spool) reserve(n int64) bool {
	if s.used.Add(n) <= s.o.MaxBytes {
		return true
	}
	s.used.Add(-n)
	return false
}

// load reads a file from an offset to its end, at most limit bytes. Pieces that
// the disk cannot give are zeros.
func (s *Spool) load(path string, b []byte, off, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	n := int(max(0, min(limit, st.Size()-off)))
	b = slices.Grow(b[:0], n)[:n]
	const page = 4 << 10
	for at := 0; at < n; {
		m, err := s.readAt(f, b[at:], off+int64(at))
		at += m
		switch {
		case at >= n:
		case errors.Is(err, syscall.EIO):
			// At the same pages as the disk, as far as it is known.
			end := min(n, at+page-int((off+int64(at))%page))
			clear(b[at:end])
			at = end
		case m == 0: // it became shorter
			return b[:at], nil
		case err != nil:
			return nil, err
		}
	}
	return b, nil
}

// recover finds what is in the directory.
func (s *Spool) recover() error {
	list, err := os.ReadDir(s.o.Dir)
	if err != nil {
		return err
	}
	type found struct {
		name     string
		named    bool
		position uint64
		placed   bool // there is a position file
		segments []*segment
	}
	queues := make(map[string]*found)
	of := func(hash string) *found {
		if queues[hash] == nil {
			queues[hash] = new(found)
		}
		return queues[hash]
	}
	for _, d := range list {
		file, ext := d.Name(), filepath.Ext(d.Name())
		hash, base, key, ok := parseSegmentFile(file)
		switch {
		case ok:
			of(hash).segments = append(of(hash).segments, &segment{path: filepath.Join(s.o.Dir, file), base: base, salt: key, created: true})
		case ext == positionExt && isHash(strings.TrimSuffix(file, ext)):
			of(strings.TrimSuffix(file, ext)).placed = true
		case ext != segmentExt && ext != positionExt && (strings.HasPrefix(ext, ".seg") || strings.HasPrefix(ext, ".pos")):
			return fmt.Errorf("%s was written by another version of bmpha", file)
		}
	}
	var b []byte
	for hash, f := range queues {
		if f.placed {
			path := s.positionPath(hash)
			p, err := os.ReadFile(path)
			if err != nil && !errors.Is(err, syscall.EIO) {
				return err
			}
			f.name, f.position, err = parsePosition(p)
			if f.named = err == nil && fileHash(f.name) == hash; !f.named {
				f.name, f.position = "", 0
				s.log.Warn("spool: position unreadable, acknowledged entries may come back", "file", path)
			}
		}
		slices.SortFunc(f.segments, func(a, b *segment) int {
			if a.base != b.base {
				if a.base < b.base {
					return -1
				}
				return 1
			}
			return strings.Compare(a.path, b.path)
		})
		q := &Queue{s: s, hash: hash, onDisk: f.placed, saved: f.position, next: f.position}
		for _, g := range f.segments {
			if b, err = s.load(g.path, b, 0, maxSegment+MaxBody); err != nil {
				return err
			}
			name, err := s.scan(q, g, b)
			if err != nil {
				return err
			}
			if g.named {
				f.name, f.named = name, true
			}
		}
		q.name = f.name
		if err := s.adopt(q, f.named); err != nil {
			return err
		}
	}
	slices.SortFunc(s.recovered, func(a, b Recovered) int { return strings.Compare(a.Name, b.Name) })
	return nil
}

// scan reads one segment of a queue from b and cuts what does not belong to it.
// Segments of a queue are scanned in their order.
func (s *Spool) scan(q *Queue, g *segment, b []byte) (name string, err error) {
	file := filepath.Base(g.path)
	h, off, err := parseHeader(b)
	if err == nil && segmentFile(fileHash(h.name), h.base, h.salt) == file {
		g.named = true
	} else {
		off = 0
		s.log.Warn("spool: header of a segment is damaged", "file", file)
	}
	q.segs = append(q.segs, g)
	var (
		e        Entry
		least    uint32 // index of the next frame
		position = q.saved
		end      = off // of the last good frame
		lost     uint64
	)
	if len(q.segs) > 1 && g.base > q.next {
		lost = g.base - q.next
	}
	g.first, g.off = max(g.base, position), int64(off)
	for off < len(b) {
		index, n, err := parseFrame(b[off:], g.salt, &e)
		if err != nil || index < least {
			at, i, m := findFrame(b[off+1:], g.salt, least, &e)
			if at < 0 {
				break
			}
			s.lostBytes.Add(uint64(at + 1))
			s.log.Error("spool: damage inside a segment, entries are lost", "file", file, "offset", off, "bytes", at+1)
			off, index, n = off+1+at, i, m
		}
		number := g.base + uint64(index)
		if number < position {
			g.off = int64(off + n)
		} else {
			if g.entries == 0 {
				g.first, g.off, g.oldest = number, int64(off), e.Arrival
			}
			g.newest = e.Arrival
			g.entries++
			if missing := number - max(g.base+uint64(least), position); missing > 0 {
				lost += missing
			}
		}
		least = index + 1
		off += n
		end = off
	}
	s.lost.Add(lost)
	q.lost += lost
	q.next = max(q.next, g.base+uint64(least))
	g.size, g.written = int64(end), int64(end)
	g.least = uint32(max(g.first, g.base) - g.base)
	if cut := len(b) - end; cut > 0 && (g.entries > 0 || g.named) {
		s.lostBytes.Add(uint64(cut))
		s.log.Warn("spool: torn or damaged end of a segment is cut", "file", file, "offset", end, "bytes", cut)
		if g.entries > 0 {
			if err := os.Truncate(g.path, int64(end)); err != nil {
				return "", err
			}
		}
	}
	// Nothing of it was read, not even a name: it is kept for somebody to look.
	g.foreign = least == 0 && !g.named && len(b) > 0
	if g.foreign {
		s.lostBytes.Add(uint64(len(b)))
	}
	return h.name, nil
}

// adopt makes a scanned queue one of the spool's, or removes its files if
// nothing is left in it.
func (s *Spool) adopt(q *Queue, named bool) error {
	keep := q.segs[:0]
	for _, g := range q.segs {
		switch {
		case g.foreign || !named && g.entries > 0:
			// Counted as lost now, for it cannot be given to anybody.
			s.lost.Add(uint64(g.entries))
			s.log.Error("spool: unreadable segment is set aside", "file", filepath.Base(g.path), "to", filepath.Base(g.path)+".bad")
			if err := os.Rename(g.path, g.path+".bad"); err != nil {
				return err
			}
		case g.entries == 0:
			if err := os.Remove(g.path); err != nil {
				return err
			}
		default:
			keep = append(keep, g)
		}
	}
	q.segs = keep
	if len(keep) == 0 {
		if q.onDisk {
			return os.Remove(s.positionPath(q.hash))
		}
		return nil
	}
	for _, g := range keep {
		q.len += g.entries
		q.bytes += g.size - g.off
		s.used.Add(g.size)
	}
	s.segments.Add(int64(len(keep)))
	s.entries.Add(q.len)
	s.busy.Add(1)
	q.enter()
	s.queues[q.name] = q
	s.recovered = append(s.recovered, Recovered{
		Name: q.name, Entries: q.len, Bytes: q.bytes, Oldest: keep[0].oldest, Newest: keep[len(keep)-1].newest,
	})
	return nil
}

func (s *Spool) positionPath(hash string) string {
	return filepath.Join(s.o.Dir, hash+positionExt)
}

// remove deletes a file that may be gone already.
func (s *Spool) remove(path string) error {
	if err := s.unlink(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
