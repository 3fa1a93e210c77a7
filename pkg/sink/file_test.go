package sink

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/bmpha/bmpha/pkg/record"
)

func lines(values ...string) *record.Batch {
	b := &record.Batch{}
	for _, v := range values {
		b.Recs = append(b.Recs, record.Rec{ValueOff: uint32(len(b.Data)), ValueLen: uint32(len(v))})
		b.Data = append(b.Data, v...)
	}
	return b
}

func TestFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "out.jsonl")
	if err := os.WriteFile(path, []byte("before\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := NewFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Topic("routes"); err != nil {
		t.Fatal(err)
	}
	if err := s.Reset(7, 100); err != nil {
		t.Fatal(err)
	}
	b := lines("one", "two", "three")
	if n, err := s.Hand(7, 100, b, 1); n != 2 || err != nil {
		t.Fatal(n, err)
	}
	got := s.Poll(time.Minute, nil)
	if len(got) != 1 || got[0] != (Report{Stream: 7, Acked: 102}) {
		t.Errorf("%+v", got)
	}
	if n, err := s.Hand(7, 100, b, 0); n != 0 || err == nil {
		t.Errorf("the same position again: %d, %v", n, err)
	}
	if n, err := s.Hand(8, 0, b, 0); n != 0 || err == nil {
		t.Errorf("a stream that was never Reset: %d, %v", n, err)
	}
	if err := s.Close(0); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Hand(7, 102, b, 0); !errors.Is(err, ErrClosed) {
		t.Error(err)
	}
	if text, _ := os.ReadFile(path); string(text) != "before\ntwo\nthree\n" {
		t.Errorf("%q", text)
	}
	if st := s.Stats(); st.Handed != 2 || st.Acked != 2 || st.Bytes != 10 {
		t.Errorf("%+v", st)
	}
}

// fullWriter has room for so many bytes.
type fullWriter struct {
	room int
	out  strings.Builder
}

func (w *fullWriter) Write(p []byte) (int, error) {
	n := min(len(p), w.room)
	w.room -= n
	w.out.Write(p[:n])
	if n < len(p) {
		return n, syscall.ENOSPC
	}
	return n, nil
}

// A full disk stops the stream; what was written whole counts, and no line is
// joined to a torn one.
func TestFileFull(t *testing.T) {
	w := &fullWriter{room: 10}
	s := newFile("test", w)
	if err := s.Reset(1, 0); err != nil {
		t.Fatal(err)
	}
	b := lines("first", "second", "third")
	if n, err := s.Hand(1, 0, b, 0); n != 1 || err != nil {
		t.Fatal(n, err)
	}
	got := s.Poll(0, nil)
	if len(got) != 1 || got[0].Acked != 1 || !errors.Is(got[0].Err, syscall.ENOSPC) {
		t.Fatalf("%+v", got)
	}
	if _, err := s.Hand(1, 1, b, 1); !errors.Is(err, ErrStopped) {
		t.Error(err)
	}
	if s.Stats().Connected || s.Stats().LastError == "" {
		t.Errorf("%+v", s.Stats())
	}
	w.room = 1000
	if err := s.Reset(1, 1); err != nil {
		t.Fatal(err)
	}
	if n, err := s.Hand(1, 1, b, 1); n != 2 || err != nil {
		t.Fatal(n, err)
	}
	if got := w.out.String(); got != "first\nseco\nsecond\nthird\n" {
		t.Errorf("%q", got)
	}
}

// shortFile writes to a file no more than it is told to.
type shortFile struct {
	*os.File
	room int
}

func (w *shortFile) Write(p []byte) (int, error) {
	n, err := w.File.Write(p[:min(len(p), w.room)])
	w.room -= n
	if err == nil && n < len(p) {
		err = io.ErrShortWrite
	}
	return n, err
}

// In a regular file the torn line is cut off.
func TestFileCutsTornLine(t *testing.T) {
	path := filepath.Join(t.TempDir(), "out.jsonl")
	made, err := NewFile(path)
	if err != nil {
		t.Fatal(err)
	}
	s := made.(*fileSink)
	w := &shortFile{s.file, 10}
	s.out = w
	if err := s.Reset(1, 0); err != nil {
		t.Fatal(err)
	}
	b := lines("first", "second")
	if n, err := s.Hand(1, 0, b, 0); n != 1 || err != nil {
		t.Fatal(n, err)
	}
	w.room = 100
	if err := s.Reset(1, 1); err != nil {
		t.Fatal(err)
	}
	if n, err := s.Hand(1, 1, b, 1); n != 1 || err != nil {
		t.Fatal(n, err)
	}
	if err := s.Close(0); err != nil {
		t.Fatal(err)
	}
	if text, _ := os.ReadFile(path); string(text) != "first\nsecond\n" {
		t.Errorf("%q", text)
	}
}
