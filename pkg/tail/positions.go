package tail

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"time"
)

const (
	positionsVersion = 1
	maxPositions     = 64 << 20 // bytes of a positions file
	headSize         = 1 << 10  // bytes that a fingerprint covers at most
)

// A Checkpoint is where all files stood at one time. It does not change.
type Checkpoint struct{ files []position }

// position is one file in a checkpoint. The files of one name follow each other,
// the oldest first.
type position struct {
	Name    string    `json:"name"`           // that is followed
	Path    string    `json:"path,omitempty"` // where the file was, if elsewhere
	Device  uint64    `json:"device"`
	Inode   uint64    `json:"inode"`
	Offset  int64     `json:"offset"` // everything before it was handed over
	Head    sum       `json:"head"`   // xxhash64 of the first HeadLen bytes
	HeadLen int       `json:"head_len"`
	MTime   time.Time `json:"mtime"`
	Done    bool      `json:"done,omitempty"` // rotated, and read to its end
}

// sum is a hash that is written in hex: as a number JSON tools would round it.
type sum uint64

func (s sum) MarshalText() ([]byte, error) { return fmt.Appendf(nil, "%016x", uint64(s)), nil }

func (s *sum) UnmarshalText(b []byte) error {
	if len(b) != 16 {
		return fmt.Errorf("fingerprint %.20q: want 16 hex digits", b)
	}
	v, err := strconv.ParseUint(string(b), 16, 64)
	if err != nil {
		return fmt.Errorf("fingerprint %.20q: want 16 hex digits", b)
	}
	*s = sum(v)
	return nil
}

type positionsFile struct {
	Version int        `json:"version"`
	Files   []position `json:"files"`
}

func appendPositions(files []position) ([]byte, error) {
	var b bytes.Buffer
	fmt.Fprintf(&b, "{\"version\": %d, \"files\": [", positionsVersion)
	for i := range files {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString("\n")
		line, err := json.Marshal(&files[i])
		if err != nil {
			return nil, err
		}
		b.Write(line)
	}
	b.WriteString("\n]}\n")
	return b.Bytes(), nil
}

// parsePositions is strict: a position that is not understood would become a
// file read twice or not at all.
func parsePositions(b []byte) ([]position, error) {
	var v struct {
		Version int `json:"version"`
	}
	if err := json.Unmarshal(b, &v); err != nil {
		return nil, err
	}
	if v.Version != positionsVersion {
		return nil, fmt.Errorf("version %d, want %d", v.Version, positionsVersion)
	}
	var p positionsFile
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&p); err != nil {
		return nil, err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("something follows the positions")
	}
	seen := make(map[string]int, len(p.Files)) // name to its last index
	for i := range p.Files {
		f := &p.Files[i]
		last, again := seen[f.Name]
		switch {
		case !filepath.IsAbs(f.Name) || filepath.Clean(f.Name) != f.Name:
			return nil, fmt.Errorf("file %d: name %.200q, want a clean absolute path", i, f.Name)
		case f.Path != "" && (!filepath.IsAbs(f.Path) || filepath.Clean(f.Path) != f.Path):
			return nil, fmt.Errorf("file %d: path %.200q, want a clean absolute path", i, f.Path)
		case f.Offset < 0:
			return nil, fmt.Errorf("file %d: offset %d", i, f.Offset)
		case f.HeadLen < 0 || f.HeadLen > headSize:
			return nil, fmt.Errorf("file %d: head_len %d, want 0 to %d", i, f.HeadLen, headSize)
		case f.HeadLen < headSize && int64(f.HeadLen) < f.Offset:
			return nil, fmt.Errorf("file %d: head_len %d, want at least the offset %d", i, f.HeadLen, f.Offset)
		case f.MTime.Year() < 1 || f.MTime.Year() > 9999:
			return nil, fmt.Errorf("file %d: mtime %v", i, f.MTime)
		case again && last != i-1:
			return nil, fmt.Errorf("file %d: the files of %.200q do not follow each other", i, f.Name)
		}
		seen[f.Name] = i
	}
	return p.Files, nil
}

// readPositions returns nothing if there is no file.
func readPositions(path string) ([]position, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("positions file: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxPositions+1))
	if err != nil {
		return nil, fmt.Errorf("positions file: %w", err)
	}
	var p []position
	if len(b) > maxPositions {
		err = fmt.Errorf("larger than %d bytes", maxPositions)
	} else {
		p, err = parsePositions(b)
	}
	if err != nil {
		return nil, fmt.Errorf("positions file %s is broken: %w; put back an older one to read again from there, or move it away to read all files from their beginning", path, err)
	}
	return p, nil
}

// Checkpoint returns where all files stand: everything before it was handed to
// the handler, which took it. It may be called at any time, also after Run.
func (t *Tail) Checkpoint() Checkpoint {
	t.mu.Lock()
	defer t.mu.Unlock()
	var c Checkpoint
	for _, s := range t.sorted() {
		for _, g := range s.gens {
			p := position{
				Name: s.name, Device: g.id.dev, Inode: g.id.ino, Offset: g.pos,
				Head: sum(g.head.sum), HeadLen: g.head.n, MTime: g.mtime, Done: g.done,
			}
			if g.path != s.name {
				p.Path = g.path
			}
			c.files = append(c.files, p)
		}
	}
	return c
}

// Save makes c what the next start continues from. The caller does so once
// everything that was handed over before c is safe. It replaces the positions
// file as a whole, mode 0600, and returns when that is on the disk.
func (t *Tail) Save(c Checkpoint) error {
	t.save.Lock()
	defer t.save.Unlock()
	b, err := appendPositions(c.files)
	if err == nil && bytes.Equal(b, t.saved) {
		return nil
	}
	if err == nil {
		err = replace(t.o.Positions, b)
	}
	if err != nil {
		return fmt.Errorf("saving positions: %w", err)
	}
	t.saved = b
	return nil
}

func replace(path string, b []byte) error {
	next := path + ".new"
	f, err := os.OpenFile(next, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err == nil {
		err = f.Chmod(0o600) // of one that was left behind
	}
	if err == nil {
		err = f.Sync()
	}
	if e := f.Close(); err == nil {
		err = e
	}
	if err == nil {
		err = os.Rename(next, path)
	}
	if err != nil {
		os.Remove(next)
		return err
	}
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
