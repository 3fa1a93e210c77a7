package dump

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/bmpha/bmpha/pkg/record"
)

// ErrInterrupted is returned by WriteFile when it was not to go on.
var ErrInterrupted = errors.New("interrupted")

const (
	fileMode    = 0o640
	dirMode     = 0o750
	fileRecords = 500 // at a time
)

// WriteFile writes d to a file, a record in each line, and makes latest, unless it
// is empty, a symbolic link to it. The file is written beside path, under a name
// that begins with a dot and ends with .tmp, and has its name once it is whole and
// on disk; one that is there already is replaced. Directories are made as needed.
// Between steps goOn says whether it may go on; d is of no use after an error.
func WriteFile(d *Dump, path, latest string, goOn func() bool) error {
	if err := writeFile(d, path, goOn); err != nil {
		return fmt.Errorf("write the dump %s: %w", path, err)
	}
	if latest == "" {
		return nil
	}
	if err := link(path, latest); err != nil {
		return fmt.Errorf("link the dump %s to %s: %w", latest, path, err)
	}
	return nil
}

func writeFile(d *Dump, path string, goOn func() bool) (err error) {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, dirMode); err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, "."+filepath.Base(path)+".*.tmp")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			f.Close() // a second time does no harm
			os.Remove(f.Name())
		}
	}()
	w := bufio.NewWriterSize(f, batchBytes)
	var b record.Batch
	for !d.Ended() {
		if !goOn() {
			return ErrInterrupted
		}
		b.Reset()
		d.Fill(&b, fileRecords, batchBytes)
		for i := range b.Recs {
			w.Write(b.Value(i))
			w.WriteByte('\n')
		}
		if err := w.Flush(); err != nil {
			return err
		}
	}
	if err := f.Chmod(fileMode); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	if !goOn() {
		return ErrInterrupted
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	return syncDir(dir)
}

func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// link makes name a symbolic link to path, in one step for those that look. It
// is relative where both are in one directory, so that they can be moved together.
func link(path, name string) error {
	dir := filepath.Dir(name)
	if err := os.MkdirAll(dir, dirMode); err != nil {
		return err
	}
	if there, err := os.Lstat(name); err == nil && there.Mode()&os.ModeSymlink == 0 {
		return errors.New("there is something else than a symbolic link")
	}
	target := path
	if filepath.Dir(path) == dir {
		target = filepath.Base(path)
	}
	temporary := filepath.Join(dir, "."+filepath.Base(name)+".tmp")
	if err := os.Remove(temporary); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := os.Symlink(target, temporary); err != nil {
		return err
	}
	return os.Rename(temporary, name)
}
