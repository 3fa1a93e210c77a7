package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/bmpha/bmpha/pkg/spool"
)

// spool measures the disk spool: into it, out of it, and Open after a process
// that ended without Close.
func (r *run) spool(ctx context.Context) ([]*table, error) {
	t := &table{Title: "6. The disk spool", Columns: []string{
		"body, bytes", "entries", "in, entries/s", "in, MB/s", "out, entries/s", "out, MB/s"}}
	total := int64(1 << 30)
	if r.quick {
		total /= 8
	}
	dir := filepath.Join(r.dir, "spool")
	t.note("one queue on one core, %d MiB of segments below %s; flushed every 1000 entries, never synced, so the page cache takes part", total>>20, os.TempDir())
	t.note("in: Append and Flush; out: Peek, Next and Acked, until every file is deleted; %d run(s) of each, medians", r.repeats)
	var recovery []float64
	for _, size := range []int{145, 600} {
		var in, out []float64
		var entries int64
		for range r.repeats {
			if err := ctx.Err(); err != nil {
				return []*table{t}, err
			}
			n, fill, open, drain, err := spoolTurn(dir, size, total)
			if err = errors.Join(err, os.RemoveAll(dir)); err != nil {
				return []*table{t}, fmt.Errorf("bodies of %d bytes: %w", size, err)
			}
			entries = n
			in = append(in, float64(n)/fill.Seconds())
			out = append(out, float64(n)/drain.Seconds())
			recovery = append(recovery, open.Seconds()*float64(1<<30)/float64(total))
		}
		mb := float64(size) / 1e6
		t.row(float64(size), float64(entries), median(in), median(in)*mb, median(out), median(out)*mb)
	}
	t.result("recovery: %s s for 1 GiB (at most: 10), every entry found", number(median(recovery)))
	r.promise(median(recovery) <= 10, "recovery of 1 GiB in 10 s")
	return []*table{t}, nil
}

// spoolTurn fills a spool, opens what a process killed then would have left, and
// empties it.
func spoolTurn(dir string, size int, total int64) (entries int64, fill, open, drain time.Duration, err error) {
	fail := func(err error) (int64, time.Duration, time.Duration, time.Duration, error) { return 0, 0, 0, 0, err }
	s, err := spool.Open(spool.Options{Dir: dir, MaxBytes: total})
	if err != nil {
		return fail(err)
	}
	q, err := s.Queue("192.0.2.1")
	if err != nil {
		return fail(errors.Join(err, s.Close()))
	}
	e := spool.Entry{Body: bytes.Repeat([]byte{0xa5}, size)}
	start := time.Now()
	for ; err == nil; entries++ {
		e.Arrival = entries
		if err = q.Append(&e); err == nil && entries%1000 == 0 {
			err = q.Flush()
		}
	}
	entries-- // was not taken
	if err == spool.ErrFull {
		err = q.Flush()
	}
	fill = time.Since(start)
	if err != nil {
		return fail(errors.Join(err, s.Close()))
	}
	// The lock is a file, and links to all others are what is left without it.
	left := dir + "/left"
	if err := linkAll(dir, left); err != nil {
		return fail(errors.Join(err, s.Close()))
	}
	start = time.Now()
	again, err := spool.Open(spool.Options{Dir: left, MaxBytes: total})
	open = time.Since(start)
	if err != nil {
		return fail(errors.Join(err, s.Close()))
	}
	found := again.Status().Entries
	if err := again.Close(); err != nil {
		return fail(errors.Join(err, s.Close()))
	}
	if found != entries {
		return fail(errors.Join(fmt.Errorf("%d entries of %d after recovery", found, entries), s.Close()))
	}
	defer func() { err = errors.Join(err, s.Close()) }() // empty: nothing to sync
	start = time.Now()
	for n := int64(0); ; n++ {
		ok, err := q.Peek(&e)
		if err != nil {
			return fail(err)
		}
		if !ok {
			if n != entries {
				return fail(fmt.Errorf("%d entries of %d came back", n, entries))
			}
			break
		}
		if e.Arrival != n || len(e.Body) != size {
			return fail(fmt.Errorf("entry %d came back as %d with %d bytes", n, e.Arrival, len(e.Body)))
		}
		q.Next()
		if n%1000 == 0 {
			q.Acked(q.Moved())
		}
	}
	q.Acked(q.Moved())
	drain = time.Since(start)
	if used, _ := s.Used(); used != 0 {
		return fail(fmt.Errorf("%d bytes are left", used))
	}
	return entries, fill, open, drain, nil
}

// linkAll makes links in a new folder to the files of another but for its lock.
func linkAll(from, to string) error {
	list, err := os.ReadDir(from)
	if err != nil {
		return err
	}
	if err := os.Mkdir(to, 0o700); err != nil {
		return err
	}
	for _, d := range list {
		if d.Name() == "lock" {
			continue
		}
		if err := os.Link(filepath.Join(from, d.Name()), filepath.Join(to, d.Name())); err != nil {
			return err
		}
	}
	return nil
}
