package tail

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/cespare/xxhash/v2"
)

// identity of a file while it exists.
type identity struct{ dev, ino uint64 }

func identify(fi fs.FileInfo) (id identity, links uint64) {
	st := fi.Sys().(*syscall.Stat_t)
	return identity{uint64(st.Dev), st.Ino}, uint64(st.Nlink)
}

// fingerprint is the hash of the first n bytes of a file.
type fingerprint struct {
	sum    uint64
	n      int
	digest xxhash.Digest
}

// add takes the bytes at offset off, of which those before n are known.
func (h *fingerprint) add(off int64, b []byte) {
	if h.n >= headSize || off+int64(len(b)) <= int64(h.n) {
		return
	}
	if h.n == 0 {
		h.digest.Reset()
	}
	b = b[int64(h.n)-off:]
	b = b[:min(len(b), headSize-h.n)]
	h.digest.Write(b)
	h.n += len(b)
	h.sum = h.digest.Sum64()
}

// matches reports whether f begins with the bytes of h.
func (h *fingerprint) matches(f *os.File) (bool, error) {
	if h.n == 0 {
		return true, nil
	}
	var b [headSize]byte
	n, err := f.ReadAt(b[:h.n], 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return false, err
	}
	return n == h.n && xxhash.Sum64(b[:n]) == h.sum, nil
}

// resume makes h able to take more bytes if f begins with those of h.
func (h *fingerprint) resume(f *os.File) (bool, error) {
	ok, err := h.matches(f)
	if !ok || err != nil || h.n >= headSize {
		return ok, err
	}
	var b [headSize]byte
	n := h.n
	if _, err := f.ReadAt(b[:n], 0); err != nil && !errors.Is(err, io.EOF) {
		return false, err
	}
	*h = fingerprint{}
	h.add(0, b[:n])
	return true, nil
}

// generation is one file that a name stands or stood for.
type generation struct {
	id    identity
	path  string   // where it was found last
	named bool     // the name still leads to it
	f     *os.File // nil while closed
	head  fingerprint

	pos int64 // everything before it was handed over: the beginning of a line
	at  int64 // where to read on: beyond pos inside a line that is too long

	size  int64 // as seen last
	mtime time.Time
	links uint64

	lookedSize  int64 // when it was read last
	lookedMTime time.Time
	looked      bool
	changed     time.Time // when news was seen last, or the file was found

	restored bool // from a checkpoint and not found yet
	done     bool // rotated and read to its end: remembered so that it is not read again
}

// see notes what the file is like and reports whether there is news.
func (g *generation) see(fi fs.FileInfo, now time.Time) bool {
	_, g.links = identify(fi)
	if fi.Size() != g.size || !fi.ModTime().Equal(g.mtime) {
		g.changed = now
	}
	g.size, g.mtime = fi.Size(), fi.ModTime()
	return g.news()
}

func (g *generation) news() bool {
	return !g.looked || g.size != g.lookedSize || !g.mtime.Equal(g.lookedMTime)
}

// begin makes g stand at the beginning of a file.
func (g *generation) begin() {
	g.pos, g.at, g.looked = 0, 0, false
	g.head = fingerprint{}
}

func (g *generation) close() {
	if g.f != nil {
		g.f.Close()
		g.f = nil
	}
}

var errNotRegular = errors.New("not a regular file")

// open opens a regular file, without waiting for the writer of a pipe.
func open(path string) (*os.File, fs.FileInfo, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, nil, err
	}
	fi, err := f.Stat()
	if err == nil && !fi.Mode().IsRegular() {
		err = fmt.Errorf("%s: %w", path, errNotRegular)
	}
	if err != nil {
		f.Close()
		return nil, nil, err
	}
	return f, fi, nil
}

// entry is a regular file in a directory.
type entry struct {
	base, path string
	id         identity
	info       fs.FileInfo
}

// list returns the regular files of dir whose names begin with prefix, as they
// were at one time: while files are renamed, one look may find a file twice or
// not at all.
func list(dir, prefix string) ([]entry, error) {
	last, err := listOnce(dir, prefix)
	for range 20 {
		if err != nil {
			break
		}
		var next []entry
		next, err = listOnce(dir, prefix)
		if slices.EqualFunc(last, next, func(a, b entry) bool { return a.base == b.base && a.id == b.id }) {
			break
		}
		last = next
	}
	return last, err
}

func listOnce(dir, prefix string) ([]entry, error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	names, err := d.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	slices.Sort(names)
	var out []entry
	for _, name := range names {
		if !strings.HasPrefix(name, prefix) {
			continue
		}
		path := filepath.Join(dir, name)
		fi, err := os.Lstat(path)
		if err != nil || !fi.Mode().IsRegular() {
			continue // gone meanwhile, or none of ours
		}
		id, _ := identify(fi)
		out = append(out, entry{name, path, id, fi})
	}
	return out, nil
}

// related lists what may be what name was rotated to: such names begin like it,
// or like what is before its extension.
func related(name string) ([]entry, error) {
	base := filepath.Base(name)
	return list(filepath.Dir(name), strings.TrimSuffix(base, filepath.Ext(base)))
}

// compressed reports whether a name says that its lines cannot be read.
func compressed(name string) bool {
	switch filepath.Ext(name) {
	case ".gz", ".bz2", ".xz", ".zst", ".lz4", ".Z", ".zip", ".lzma":
		return true
	}
	return false
}

// age is the place of a rotated file among those of its name.
type age struct {
	date  bool
	value string // digits
}

// rotation returns the age that a file called name has if it is what base was
// rotated to: base.1, base-20260101, stem-20260101.ext.
func rotation(base, name string) (age, bool) {
	if suffix, ok := strings.CutPrefix(name, base); ok {
		return parseAge(suffix, 1)
	}
	// With the date inside, fewer digits than a date's may be part of an address
	// or a port: another router's file.
	ext := filepath.Ext(base)
	stem := strings.TrimSuffix(base, ext)
	if ext == "" || stem == "" {
		return age{}, false
	}
	rest, ok := strings.CutPrefix(name, stem)
	if !ok {
		return age{}, false
	}
	if rest, ok = strings.CutSuffix(rest, ext); !ok {
		return age{}, false
	}
	return parseAge(rest, 8)
}

func parseAge(s string, digits int) (age, bool) {
	if s == "" || !strings.ContainsRune(".-_", rune(s[0])) {
		return age{}, false
	}
	s = s[1:]
	first := strings.IndexFunc(s, func(r rune) bool { return r < '0' || r > '9' })
	if first < 0 {
		first = len(s)
	}
	if first < digits || strings.Trim(s, "0123456789-_T:") != "" {
		return age{}, false
	}
	if first == len(s) && len(s) < 6 {
		return age{value: strings.TrimLeft(s, "0")}, true
	}
	return age{date: true, value: s}, true
}

// after reports whether a is younger than b, which has the same form.
func (a age) after(b age) bool {
	switch {
	case a.date:
		return a.value > b.value
	case len(a.value) != len(b.value):
		return len(a.value) < len(b.value)
	default:
		return a.value < b.value
	}
}
