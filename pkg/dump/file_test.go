package dump_test

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/bmpha/bmpha/pkg/dump"
)

func always() bool { return true }

// lines returns what is in a file, and fails unless the owner and the group alone
// may read it.
func lines(t *testing.T, path string) []string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o640 {
		t.Errorf("%s: mode %v, %v; want 0640", path, info.Mode(), err)
	}
	return strings.Split(strings.TrimSuffix(string(b), "\n"), "\n")
}

// files returns the names of all files below dir.
func files(t *testing.T, dir string) []string {
	t.Helper()
	var list []string
	err := filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		if err == nil && !e.IsDir() {
			name, _ := filepath.Rel(dir, path)
			list = append(list, name)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func TestFiles(t *testing.T) {
	dir := t.TempDir()
	first, second := filepath.Join(dir, "2026", "r-1000.json"), filepath.Join(dir, "2026", "r-1100.json")
	beside, elsewhere := filepath.Join(dir, "2026", "latest"), filepath.Join(dir, "latest", "r")
	for _, latest := range []string{beside, elsewhere, ""} {
		for path, name := range map[string]string{first: "a", second: "b"} {
			if err := dump.WriteFile(newDump(name, 1200), path, latest, always); err != nil {
				t.Fatal(err)
			}
			if got := lines(t, path); !slices.Equal(got, whole(name, 1200, true)) {
				t.Fatalf("%s: %d lines: %q", path, len(got), got)
			}
			if latest != "" {
				if got := lines(t, latest); got[0] != name+" init settled=true" {
					t.Errorf("%s leads to %q after the dump %s", latest, got[0], name)
				}
			}
		}
	}
	if got := files(t, dir); !slices.Equal(got, []string{"2026/latest", "2026/r-1000.json", "2026/r-1100.json", "latest/r"}) {
		t.Errorf("there are %q", got)
	}
	if target, err := os.Readlink(beside); err != nil || strings.Contains(target, "/") {
		t.Errorf("the link in the directory leads to %q, %v; want a name", target, err)
	}
}

// A file is whole or is not there, and what was there before stays.
func TestHalfFiles(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "r.json")
	if err := dump.WriteFile(newDump("a", 3), path, "", always); err != nil {
		t.Fatal(err)
	}
	for turns := range 5 {
		left := turns
		err := dump.WriteFile(newDump("b", 1200), path, "", func() bool { left--; return left >= 0 })
		if wantErr := turns < 4; wantErr != errors.Is(err, dump.ErrInterrupted) {
			t.Errorf("after %d turns: %v", turns, err)
		}
		if turns < 4 && lines(t, path)[0] != "a init settled=true" {
			t.Errorf("after %d turns the file has changed", turns)
		}
		if got := files(t, dir); !slices.Equal(got, []string{"r.json"}) {
			t.Errorf("after %d turns there are %q", turns, got)
		}
	}
}

func TestFilesInTheWay(t *testing.T) {
	dir := t.TempDir()
	file, directory := filepath.Join(dir, "file"), filepath.Join(dir, "directory")
	if err := os.WriteFile(file, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(directory, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct{ path, latest, want string }{
		{filepath.Join(file, "r"), "", "not a directory"},
		{directory, "", "file exists"},
		{filepath.Join(dir, "r"), file, "something else than a symbolic link"},
		{filepath.Join(dir, "r"), filepath.Join(file, "r"), "not a directory"},
	} {
		err := dump.WriteFile(newDump("a", 3), test.path, test.latest, always)
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s, latest %s: %v, want %q", test.path, test.latest, err, test.want)
		}
	}
	if b, err := os.ReadFile(file); err != nil || string(b) != "mine" {
		t.Errorf("the file is %q, %v", b, err)
	}
	if got := files(t, dir); !slices.Equal(got, []string{"file", "r"}) {
		t.Errorf("there are %q", got)
	}
}
