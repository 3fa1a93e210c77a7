package rig

import (
	"bytes"
	"os"
	"runtime"
	"strconv"
	"sync"
	"time"
)

// Stalls notes when the machine kept those waiting that had something to do: a test
// that bounds a time can then leave out what was the machine's.
//
// Two things are looked at every few milliseconds. How late the look itself is: all
// that runs here stood still as long. And the kernel's own account, where it keeps
// one, of the time in which some process waited for a processor, for memory or for a
// disk (/proc/pressure): a machine that has too much to do is slow without standing
// still. That account is a mean of all processors; here it counts as if all the
// waiting had been at one of them, the one that mattered. It is safe for concurrent use.
type Stalls struct {
	stop, done chan struct{}
	pressure   []*os.File

	mu    sync.Mutex
	looks []look
}

// A look is what was found out at a time about the time since the look before.
type look struct {
	at   time.Time
	late time.Duration // that the look was
	lost time.Duration // in which somebody waited, late included
}

// lookEvery is the time from one look to the next. What is lost is known as exactly.
const lookEvery = 20 * time.Millisecond

// WatchStalls begins to look, until Close.
func WatchStalls() *Stalls {
	s := &Stalls{stop: make(chan struct{}), done: make(chan struct{})}
	for _, name := range []string{"cpu", "memory", "io"} {
		if f, err := os.Open("/proc/pressure/" + name); err == nil {
			s.pressure = append(s.pressure, f)
		}
	}
	go s.run()
	return s
}

// Close ends the looking. What has been seen can still be asked for.
func (s *Stalls) Close() {
	close(s.stop)
	<-s.done
}

func (s *Stalls) run() {
	defer close(s.done)
	defer func() {
		for _, f := range s.pressure {
			f.Close()
		}
	}()
	tick := time.NewTimer(lookEvery)
	defer tick.Stop()
	before, waited := time.Now(), s.waited()
	for {
		select {
		case <-s.stop:
			return
		case <-tick.C:
		}
		now, w := time.Now(), s.waited()
		passed := now.Sub(before)
		l := look{at: now, late: max(0, passed-lookEvery)}
		l.lost = min(max(l.late, w-waited), passed)
		s.mu.Lock()
		s.looks = append(s.looks, l)
		s.mu.Unlock()
		before, waited = now, w
		tick.Reset(lookEvery)
	}
}

// waited returns for how long since the start of the machine some process has waited
// at most at one processor, 0 where nobody tells.
func (s *Stalls) waited() (sum time.Duration) {
	var b [512]byte
	for _, f := range s.pressure {
		n, _ := f.ReadAt(b[:], 0) // ends with io.EOF
		sum += pressure(b[:n])
	}
	return sum * time.Duration(runtime.NumCPU())
}

// pressure reads the total of the line "some avg10=… avg60=… avg300=… total=…", which
// is in microseconds.
func pressure(text []byte) time.Duration {
	line, _, _ := bytes.Cut(text, []byte("\n"))
	_, total, ok := bytes.Cut(line, []byte("total="))
	if !ok || !bytes.HasPrefix(line, []byte("some ")) {
		return 0
	}
	n, err := strconv.ParseInt(string(total), 10, 64)
	if err != nil {
		return 0
	}
	return time.Duration(n) * time.Microsecond
}

// Lost returns how much of the time between from and to somebody had to wait.
func (s *Stalls) Lost(from, to time.Time) (sum time.Duration) {
	s.each(from, to, func(l look) { sum += l.lost })
	return min(sum, max(0, to.Sub(from)))
}

// Longest returns for how long everything stood still at most, at one go, at any time
// between from and to.
func (s *Stalls) Longest(from, to time.Time) (longest time.Duration) {
	s.each(from, to, func(l look) { longest = max(longest, l.late) })
	return longest
}

// each calls f with what was found out about the time between from and to, and the
// time of the looks at both its ends.
func (s *Stalls) each(from, to time.Time, f func(look)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := len(s.looks) - 1; i >= 0; i-- {
		l := s.looks[i]
		if !l.at.After(from) {
			return
		}
		if begin := l.at.Add(-lookEvery - l.late); begin.Before(to) {
			f(l)
		}
	}
}
