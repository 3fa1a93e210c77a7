package spool

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
)

// pieces are buffers for reading and writing, *[]byte.
var pieces = sync.Pool{New: func() any {
	b := make([]byte, 0, chunk)
	return &b
}}

// giveBack returns a buffer to the pool unless a large entry made it large.
func giveBack(b *[]byte) {
	if b != nil && cap(*b) <= 2*chunk {
		*b = (*b)[:0]
		pieces.Put(b)
	}
}

// A segment is one file of a queue.
type segment struct {
	path    string
	salt    salt
	base    uint64 // number in its queue of the entry with index 0
	first   uint64 // number of the first entry to give back, or less
	off     int64  // where that entry is
	size    int64  // bytes, those in memory included
	written int64  // bytes that the operating system has
	least   uint32 // the least index that the next frame read may have
	entries int64  // to give back that Next has not consumed
	start   uint64 // what the queue's moved was when reading came here
	end     uint64 // and when it left
	created bool   // there may be a file
	dirty   bool   // written to since it was synced

	// Of recovery.
	oldest, newest int64
	named, foreign bool
}

// A Queue is one queue of a spool. It is not safe for concurrent use; different
// queues are.
//
// Entries pass three points: Append puts them in, Next takes them out for the
// caller to keep in memory, and Acked says that they need not come back.
type Queue struct {
	s    *Spool
	name string
	hash string

	segs   []*segment // oldest first
	open   bool       // the last one is being appended to
	next   uint64     // number of the next entry appended
	wbuf   *[]byte    // the end of the last segment, not yet written
	werr   error      // of the last write, until one succeeds
	onDisk bool       // there is a position file
	saved  uint64     // position in it
	trash  []segment  // files that could not be deleted

	r       int     // segment that is read, len(segs) if there is none
	off     int64   // where in it
	rbuf    *[]byte // what was read of it
	roff    int64   // where in it that begins
	cur     Entry   // the next entry, its body in rbuf
	curLen  int
	curIdx  uint32
	have    bool // cur is valid
	len     int64
	bytes   int64
	lost    uint64
	moved   uint64 // entries consumed since Open
	acked   uint64 // of those
	touched bool   // read since the last Flush
}

// Append puts an entry at the end; its body is copied. Without room, on the disk
// or below the limit, the error is an ErrFull. Another error is the disk's, and
// is returned until a Flush succeeds. With an error the entry is not in the
// queue.
func (q *Queue) Append(e *Entry) error {
	switch {
	case q.s.closed.Load():
		return ErrClosed
	case len(e.Body) > MaxBody:
		return ErrTooLarge
	case q.werr != nil:
		return q.werr
	}
	n := frameFixed + len(e.Body)
	fresh := !q.open
	if q.open {
		last := q.segs[len(q.segs)-1]
		fresh = last.size+int64(n) > q.s.o.SegmentBytes && q.next > last.base
	}
	need := int64(n)
	if fresh {
		need += int64(headerLen(q.name))
	}
	if !q.s.reserve(need) {
		return ErrFull
	}
	if q.wbuf != nil && (fresh || len(*q.wbuf)+n > chunk) {
		if err := q.write(); err != nil {
			q.s.used.Add(-need)
			return err
		}
	}
	if fresh {
		q.begin()
	}
	if q.wbuf == nil {
		q.wbuf = pieces.Get().(*[]byte)
	}
	g := q.segs[len(q.segs)-1]
	before := len(*q.wbuf)
	*q.wbuf = appendFrame(*q.wbuf, g.salt, uint32(q.next-g.base), e)
	g.size += int64(n)
	if n > chunk {
		// Not kept in memory: nothing else but a header is with it, and if it
		// cannot be written it was not appended.
		if err := q.write(); err != nil {
			*q.wbuf = (*q.wbuf)[:before]
			g.size -= int64(n)
			q.s.used.Add(-int64(n))
			return err
		}
	}
	g.entries++
	q.next++
	q.len++
	q.bytes += int64(n)
	q.s.entries.Add(1)
	return nil
}

// begin makes a new segment, so far in memory only.
func (q *Queue) begin() {
	g := &segment{salt: newSalt(), base: q.next, first: q.next, off: int64(headerLen(q.name))}
	g.path = filepath.Join(q.s.o.Dir, segmentFile(q.hash, g.base, g.salt))
	g.size = g.off
	if len(q.segs) == 0 {
		q.s.busy.Add(1)
	}
	q.segs = append(q.segs, g)
	q.open = true
	q.s.segments.Add(1)
	q.wbuf = pieces.Get().(*[]byte)
	*q.wbuf = appendHeader((*q.wbuf)[:0], header{name: q.name, base: g.base, salt: g.salt})
	if q.r == len(q.segs)-1 {
		q.enter()
	}
}

// write gives the buffer to the operating system. After an error all of it is
// kept and written again to the same place.
func (q *Queue) write() error {
	g := q.segs[len(q.segs)-1]
	err := func() error {
		if !q.onDisk {
			// First, for it has the queue's name a second time.
			if err := q.savePosition(); err != nil {
				return err
			}
		}
		f, err := os.OpenFile(g.path, os.O_WRONLY|os.O_CREATE, 0o600)
		if err != nil {
			return err
		}
		g.created, g.dirty = true, true
		if _, err := q.s.writeAt(f, *q.wbuf, g.written); err != nil {
			f.Truncate(g.written) // gives back what was not enough; the checksum needs no help
			f.Close()
			return err
		}
		return f.Close()
	}()
	if err != nil {
		return q.fail(err)
	}
	if q.werr != nil {
		q.s.log.Info("spool: can write again", "queue", q.name)
	}
	q.succeed()
	g.written += int64(len(*q.wbuf))
	giveBack(q.wbuf)
	q.wbuf = nil
	return nil
}

// fail notes and returns an error of writing.
func (q *Queue) fail(err error) error {
	first := q.werr == nil
	q.succeed()
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		q.werr = fmt.Errorf("%w: write queue %q: %w", ErrFull, q.name, err)
		q.s.noSpace.Add(1)
	} else {
		q.werr = fmt.Errorf("spool: write queue %q: %w", q.name, err)
	}
	if first {
		q.s.log.Error("spool: cannot write", "queue", q.name, "error", err)
	}
	return q.werr
}

// succeed forgets it.
func (q *Queue) succeed() {
	if errors.Is(q.werr, ErrFull) {
		q.s.noSpace.Add(-1)
	}
	q.werr = nil
}

// Flush gives what was appended to the operating system, so that it survives
// the end of the process, and notes what is acknowledged. Call it every 100 ms
// or so while there is traffic, also after errors: it is what retries. Memory
// that the queue does not need is given back.
func (q *Queue) Flush() error {
	if q.s.closed.Load() {
		return ErrClosed
	}
	q.tidy()
	if q.wbuf != nil && len(*q.wbuf) > 0 {
		if err := q.write(); err != nil {
			return err
		}
	} else {
		q.succeed() // the next Append will tell
	}
	for i := 0; i < len(q.trash); {
		if q.s.remove(q.trash[i].path) != nil {
			i++
			continue
		}
		q.s.used.Add(-q.trash[i].size)
		q.trash = slices.Delete(q.trash, i, i+1)
	}
	if q.onDisk && len(q.segs) == 0 {
		return q.forget()
	}
	if q.onDisk && q.position() != q.saved {
		if err := q.savePosition(); err != nil {
			return fmt.Errorf("spool: note position of queue %q: %w", q.name, err)
		}
	}
	if !q.touched && !q.have {
		q.dropWindow()
	}
	q.touched = false
	return nil
}

// position is the number of the first entry that is not acknowledged, or less if
// entries before it were lost.
func (q *Queue) position() uint64 {
	if len(q.segs) == 0 {
		return q.next
	}
	return q.segs[0].first + q.acked - q.segs[0].start
}

func (q *Queue) savePosition() error {
	position := q.position()
	path := q.s.positionPath(q.hash)
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	_, err = q.s.writeAt(f, appendPosition(make([]byte, 0, 300), q.name, position), 0)
	if err = errors.Join(err, f.Close()); err != nil {
		if !q.onDisk {
			os.Remove(path)
		}
		return err
	}
	q.onDisk, q.saved = true, position
	return nil
}

// forget removes the position file of an empty queue, unless without it the
// entries of files that could not be deleted would come back.
func (q *Queue) forget() error {
	if len(q.trash) > 0 {
		if q.position() == q.saved {
			return nil
		}
		return q.savePosition()
	}
	if err := q.s.remove(q.s.positionPath(q.hash)); err != nil {
		return fmt.Errorf("spool: delete position of queue %q: %w", q.name, err)
	}
	q.onDisk, q.saved = false, 0
	return nil
}

// enter begins to read segment r.
func (q *Queue) enter() {
	g := q.segs[q.r]
	q.off = g.off
	g.start = q.moved
	q.dropWindow()
}

func (q *Queue) dropWindow() {
	giveBack(q.rbuf)
	q.rbuf, q.roff = nil, 0
}

// pass leaves segments that are read to their end and will not grow.
func (q *Queue) pass() {
	for q.r < len(q.segs) && q.off >= q.segs[q.r].size {
		g := q.segs[q.r]
		if g.entries > 0 { // they were in what could not be read
			q.lose(g)
		}
		if q.open && q.r == len(q.segs)-1 {
			return
		}
		g.end = q.moved
		q.r++
		if q.r < len(q.segs) {
			q.enter()
		} else {
			q.dropWindow()
		}
	}
}

func (q *Queue) lose(g *segment) {
	q.s.log.Error("spool: entries are lost", "queue", q.name, "file", filepath.Base(g.path), "entries", g.entries)
	q.len -= g.entries
	q.s.entries.Add(-g.entries)
	q.lost += uint64(g.entries)
	q.s.lost.Add(uint64(g.entries))
	g.entries = 0
}

// read makes cur the oldest entry.
func (q *Queue) read() (bool, error) {
	if q.s.closed.Load() {
		return false, ErrClosed
	}
	q.touched = true
	for want := frameFixed; ; {
		q.pass()
		if q.len == 0 {
			q.dropWindow()
			return false, nil
		}
		g := q.segs[q.r]
		b, err := q.window(g, want)
		if errors.Is(err, fs.ErrNotExist) {
			b, err = nil, nil // somebody deleted the file
		}
		if err != nil {
			return false, fmt.Errorf("spool: read queue %q: %w", q.name, err)
		}
		index, n, err := parseFrame(b, g.salt, &q.cur)
		if err == errShort && n > len(b) && int64(n) <= g.size-q.off && n > want {
			want = n
			continue
		}
		want = frameFixed
		if err == nil && index >= g.least {
			q.curIdx, q.curLen, q.have = index, n, true
			return true, nil
		}
		if err := q.skip(g); err != nil {
			return false, fmt.Errorf("spool: read queue %q: %w", q.name, err)
		}
	}
}

// window returns what follows in segment g, if possible want bytes.
func (q *Queue) window(g *segment, want int) ([]byte, error) {
	if q.rbuf == nil {
		q.rbuf = pieces.Get().(*[]byte)
		q.roff = q.off
	}
	if at := q.off - q.roff; at >= 0 && at+int64(want) <= int64(len(*q.rbuf)) {
		return (*q.rbuf)[at:], nil
	}
	if cap(*q.rbuf) > 2*chunk && want <= chunk {
		q.dropWindow() // after a large entry
		q.rbuf = pieces.Get().(*[]byte)
	}
	q.roff = q.off
	if q.off >= g.written {
		// One entry, from memory.
		b := (*q.wbuf)[q.off-g.written:]
		var e Entry
		_, n, err := parseFrame(b, g.salt, &e)
		if err != nil {
			n = len(b)
		}
		*q.rbuf = append((*q.rbuf)[:0], b[:n]...)
		return *q.rbuf, nil
	}
	n := int(min(int64(max(want, chunk)), g.written-q.off))
	*q.rbuf = slices.Grow((*q.rbuf)[:0], n)[:n]
	f, err := os.Open(g.path)
	if err == nil {
		n, err = q.s.readAt(f, *q.rbuf, q.off)
		f.Close()
		if n > 0 || errors.Is(err, syscall.EIO) || err == io.EOF {
			err = nil
		}
	} else {
		n = 0
	}
	*q.rbuf = (*q.rbuf)[:n]
	return *q.rbuf, err
}

// skip goes past damage in segment g, to the next good frame or to the end of
// what is in the file.
func (q *Queue) skip(g *segment) error {
	limit := max(g.written, q.off) - q.off
	var b []byte
	if at := q.off - q.roff; q.rbuf != nil && at >= 0 && at+limit <= int64(len(*q.rbuf)) {
		b = (*q.rbuf)[at : at+limit] // after other damage
	} else {
		all, err := q.s.load(g.path, nil, q.off, limit)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		q.dropWindow()
		q.rbuf, q.roff, b = &all, q.off, all
	}
	var e Entry
	n := int64(-1)
	if len(b) > 0 {
		if at, _, _ := findFrame(b[1:], g.salt, g.least, &e); at >= 0 {
			n = int64(at) + 1
		}
	}
	if n < 0 {
		n = limit
		if limit == 0 {
			n = g.size - q.off // memory is damaged, not the disk
		}
	}
	q.s.log.Error("spool: damage inside a segment, entries are lost", "queue", q.name, "file", filepath.Base(g.path), "offset", q.off, "bytes", n)
	q.s.lostBytes.Add(uint64(n))
	q.bytes -= n
	q.off += n
	return nil
}

// Peek reads the oldest entry that Next has not consumed. Its body is valid until
// the next call of any method and must not be changed. An error is the disk's;
// the same entry is tried again by the next call. Entries that are damaged or
// whose file is gone are skipped and counted.
func (q *Queue) Peek(e *Entry) (ok bool, err error) {
	if !q.have {
		if ok, err := q.read(); !ok {
			return false, err
		}
	}
	*e = q.cur
	return true, nil
}

// Next consumes the oldest entry. Without one it does nothing.
func (q *Queue) Next() {
	if !q.have {
		if ok, _ := q.read(); !ok {
			return
		}
	}
	g := q.segs[q.r]
	q.have = false
	q.off += int64(q.curLen)
	g.least = q.curIdx + 1
	g.entries--
	q.len--
	q.bytes -= int64(q.curLen)
	q.moved++
	q.s.entries.Add(-1)
}

// Acked says that of all entries that Next consumed since Open the first total
// are acknowledged. Files without others are deleted. Numbers below an earlier
// one change nothing, those above what was consumed mean all of it.
func (q *Queue) Acked(total uint64) {
	if total = min(total, q.moved); total > q.acked {
		q.acked = total
		q.tidy()
	}
}

// Moved returns how many entries Next consumed since Open.
func (q *Queue) Moved() uint64 { return q.moved }

// tidy deletes segments of which nothing is needed any more.
func (q *Queue) tidy() {
	if q.s.closed.Load() {
		return
	}
	if !q.have {
		q.pass()
	}
	k := 0
	for k < q.r && q.segs[k].end <= q.acked {
		k++
	}
	if q.len == 0 && q.acked == q.moved {
		k = len(q.segs)
	}
	if k == 0 {
		return
	}
	for _, g := range q.segs[:k] {
		if g.created {
			if err := q.s.remove(g.path); err != nil {
				q.s.log.Error("spool: cannot delete", "file", filepath.Base(g.path), "error", err)
				q.trash = append(q.trash, *g)
				continue
			}
		}
		q.s.used.Add(-g.size)
	}
	q.s.segments.Add(int64(-k))
	if k < len(q.segs) {
		q.r -= k
		q.segs = slices.Delete(q.segs, 0, k)
		return
	}
	clear(q.segs)
	q.segs, q.r, q.open = q.segs[:0], 0, false
	q.bytes = 0
	giveBack(q.wbuf)
	q.wbuf = nil
	q.dropWindow()
	q.succeed()
	q.s.busy.Add(-1)
	if q.onDisk {
		if err := q.forget(); err != nil {
			q.s.log.Error("spool: cannot delete", "queue", q.name, "error", err)
		}
	}
}

// Name returns the queue's name.
func (q *Queue) Name() string { return q.name }

// Len returns the number of entries that Next has not consumed.
func (q *Queue) Len() int64 { return q.len }

// Bytes returns their size with 29 bytes of frame for each.
func (q *Queue) Bytes() int64 { return q.bytes }

// Lost returns how many entries could not be read back, those found at Open
// included.
func (q *Queue) Lost() uint64 { return q.lost }

// Oldest returns the arrival of the entry that Peek would return, which may read
// from the disk; false if there is none or it cannot be read.
func (q *Queue) Oldest() (arrival int64, ok bool) {
	var e Entry
	ok, _ = q.Peek(&e)
	return e.Arrival, ok
}

// close flushes and returns the files that are to be synced. The position is
// none of them: without it entries only come back.
func (q *Queue) close() (dirty []string, err error) {
	err = q.Flush()
	for _, g := range q.segs {
		if g.dirty {
			dirty = append(dirty, g.path)
			g.dirty = false
		}
	}
	giveBack(q.wbuf)
	q.wbuf = nil
	q.dropWindow()
	q.have = false
	return dirty, err
}
