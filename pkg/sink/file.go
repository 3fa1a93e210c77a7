package sink

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/bmpha/bmpha/pkg/record"
)

// fileSink writes values, one a line, for looking at. A record counts as
// acknowledged when it is written.
type fileSink struct {
	path  string
	out   io.Writer
	file  *os.File // nil if out is none that can be synced and closed
	whole bool     // a torn line can be cut off again

	mu      sync.Mutex
	closed  bool
	torn    bool // out ends in the middle of a line
	topics  map[string]uint32
	streams map[uint32]*fileStream
	moved   []*fileStream
	news    chan struct{}
	buf     []byte
	ends    []int // in buf, of lines
	stats   Stats
}

type fileStream struct {
	report Report
	moved  bool
}

// NewFile returns a Sink that appends one value a line to a file, or to the
// standard output if path is "-". Topics, keys, headers and timestamps are not
// written, and a null value is an empty line. The file is synced by Close.
func NewFile(path string) (Sink, error) {
	if path == "-" {
		return newFile(path, os.Stdout), nil
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o644)
	if err != nil {
		return nil, fmt.Errorf("output file: %w", err)
	}
	info, err := f.Stat()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("output file: %w", err), f.Close())
	}
	s := newFile(path, f)
	s.file = f
	s.whole = info.Mode().IsRegular()
	return s, nil
}

func newFile(path string, out io.Writer) *fileSink {
	return &fileSink{
		path: path, out: out, topics: map[string]uint32{}, streams: map[uint32]*fileStream{},
		news: make(chan struct{}, 1), stats: Stats{Connected: true},
	}
}

func (s *fileSink) Topic(name string) (uint32, error) {
	if err := checkTopic(name); err != nil {
		return 0, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return 0, ErrClosed
	}
	h, ok := s.topics[name]
	if !ok {
		h = uint32(len(s.topics))
		s.topics[name] = h
	}
	return h, nil
}

func (s *fileSink) Hand(stream uint32, pos uint64, b *record.Batch, from int) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.streams[stream]
	switch {
	case s.closed:
		return 0, ErrClosed
	case st == nil:
		return 0, fmt.Errorf("stream %d was never Reset", stream)
	case st.report.Err != nil:
		return 0, ErrStopped
	case pos != st.report.Acked:
		return 0, fmt.Errorf("stream %d: position %d does not follow the last one", stream, pos)
	}
	if b.Len() == from {
		return 0, nil
	}
	s.buf, s.ends = s.buf[:0], s.ends[:0]
	if s.torn {
		s.buf = append(s.buf, '\n')
	}
	for i := from; i < b.Len(); i++ {
		s.buf = append(append(s.buf, b.Value(i)...), '\n')
		s.ends = append(s.ends, len(s.buf))
	}
	written, err := s.out.Write(s.buf)
	n := 0
	for n < len(s.ends) && s.ends[n] <= written {
		n++
	}
	s.stats.Handed += uint64(n)
	s.stats.Acked += uint64(n)
	s.stats.Bytes += uint64(written)
	st.report.Acked += uint64(n)
	if n < len(s.ends) {
		if err == nil {
			err = io.ErrShortWrite
		}
		st.report.Err = fmt.Errorf("write to %s: %w", s.path, err)
		s.stats.Failed++
		s.stats.LastError, s.stats.LastErrorAt = st.report.Err.Error(), time.Now()
	}
	s.stats.Connected = n == len(s.ends)
	if written > 0 {
		s.torn = s.buf[written-1] != '\n' && !s.cut(s.buf[:written])
	}
	if !st.moved {
		st.moved = true
		s.moved = append(s.moved, st)
	}
	select {
	case s.news <- struct{}{}:
	default:
	}
	return n, nil
}

// cut takes the incomplete line at the end of what was written out of the file
// and tells whether that went well.
func (s *fileSink) cut(written []byte) bool {
	if !s.whole {
		return false
	}
	info, err := s.file.Stat()
	if err != nil {
		return false
	}
	line := 0
	for line < len(written) && written[len(written)-1-line] != '\n' {
		line++
	}
	return s.file.Truncate(info.Size()-int64(line)) == nil
}

func (s *fileSink) Poll(d time.Duration, dst []Report) []Report {
	timeout := time.NewTimer(d)
	defer timeout.Stop()
	had := len(dst)
	for {
		s.mu.Lock()
		for _, st := range s.moved {
			st.moved = false
			dst = append(dst, st.report)
		}
		s.moved = s.moved[:0]
		closed := s.closed
		s.mu.Unlock()
		if len(dst) > had || closed {
			return dst
		}
		select {
		case <-s.news:
		case <-timeout.C:
			return dst
		}
	}
}

func (s *fileSink) Reset(stream uint32, pos uint64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return ErrClosed
	}
	st := s.streams[stream]
	if st == nil {
		st = &fileStream{}
		s.streams[stream] = st
	}
	st.report = Report{Stream: stream, Acked: pos}
	return nil
}

func (s *fileSink) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stats
}

func (s *fileSink) Close(time.Duration) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return ErrClosed
	}
	s.closed = true
	select {
	case s.news <- struct{}{}:
	default:
	}
	if s.file == nil {
		return nil
	}
	var err error
	if s.whole { // a pipe or a device cannot be synced
		err = s.file.Sync()
	}
	if err := errors.Join(err, s.file.Close()); err != nil {
		return fmt.Errorf("close %s: %w", s.path, err)
	}
	return nil
}
