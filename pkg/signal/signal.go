// Package signal receives the four signals with which an operator steers a
// collector, as with pmacct: 34, 35, 36 and 37.
//
// What it promises:
//
//   - Linking the package is enough for the four never to end the process, from
//     the moment the C library runs constructors, before main and before Go's
//     runtime. Without a reader they are remembered.
//   - Each one that the kernel delivers is reported, in the order of delivery and
//     without coalescing, also those that came while the runtime was starting.
//     At most 65,536 are remembered unread; later ones are dropped. Of several
//     that are pending at once the kernel delivers the lowest number first.
//
// os/signal cannot do it: Go's runtime leaves 34 to the C library, whose default
// for it is to end the process, and loses 35 to 37 while it starts.
//
// One window remains that no program can close from the inside: between execve
// and the constructor the dynamic loader runs with default actions, and a signal
// ends the process. It lasts a fraction of a millisecond, more if the processor
// is busy elsewhere: of 200 processes each on two busy cores, 185 died of a
// signal sent at once, 10 of one sent after 0.2 ms, 1 of one sent after 2 ms.
// A parent closes it by blocking the four before it starts the program: they
// then wait until the handler is there. (Signals that the parent ignores are not
// fatal either, but lost.)
//
// The signals arrive on a thread of their own, which only waits for them. The
// other threads keep 35 to 37 blocked, and programs that the process starts
// inherit that; [Start] starts one without.
//
// The package needs the GNU C library: others keep 34 for themselves.
package signal

/*
#include "handler.h"
*/
import "C"

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"syscall"
	"time"
)

// A Request is what one signal asks for. Its value is the number of the signal.
type Request int

const (
	Regenerate Request = 34 // take a new timestamp: hand over to the others
	Active     Request = 35 // be active, whatever the election says
	Standby    Request = 36 // be standby, whatever the election says
	Auto       Request = 37 // follow the election again
)

func (r Request) String() string {
	switch r {
	case Regenerate:
		return "regenerate"
	case Active:
		return "active"
	case Standby:
		return "standby"
	case Auto:
		return "auto"
	}
	return fmt.Sprintf("signal %d", int(r))
}

var (
	startup error // why the signals cannot be received

	mu     sync.Mutex // held by the one reader
	pipe   *os.File
	unsent Request // read, but its reader went away before taking it
)

// init takes 35 to 37 back from the runtime, before there is a thread that
// accepts them.
func init() {
	for _, step := range []func() C.int{
		func() C.int { return C.bmpha_signal_error() },
		func() C.int { return C.bmpha_signal_install() },
		func() C.int { return C.bmpha_signal_start() },
	} {
		if errno := step(); errno != 0 {
			startup = fmt.Errorf("install the handler of signals 34 to 37: %w", syscall.Errno(errno))
			return
		}
	}
}

// ErrBusy is returned by Requests while an earlier channel is still in use.
var ErrBusy = errors.New("signals are being received elsewhere")

// Requests returns the channel on which every signal arrives, those first that
// came before the call. The channel is not buffered; what is not taken from it
// waits. It is closed when ctx ends, and nothing that it did not deliver is lost
// to the next caller. There is one receiver at a time.
//
// The error says that the handler could not be installed at the start of the
// process, or is ErrBusy.
func Requests(ctx context.Context) (<-chan Request, error) {
	if startup != nil {
		return nil, startup
	}
	if !mu.TryLock() {
		return nil, ErrBusy
	}
	if pipe == nil {
		pipe = os.NewFile(uintptr(C.bmpha_signal_fd()), "signals 34 to 37")
	}
	if err := pipe.SetReadDeadline(time.Time{}); err != nil {
		mu.Unlock()
		return nil, fmt.Errorf("wait for signals 34 to 37: %w", err)
	}
	requests := make(chan Request)
	go func() {
		// The next caller may start as soon as it sees the channel closed.
		defer close(requests)
		defer mu.Unlock()
		woken := make(chan struct{})
		stop := context.AfterFunc(ctx, func() {
			defer close(woken)
			_ = pipe.SetReadDeadline(time.Unix(1, 0))
		})
		defer func() {
			if !stop() {
				<-woken // else it would end the next reader's wait
			}
		}()
		receive(ctx, requests)
	}()
	return requests, nil
}

// receive passes bytes of the pipe on as requests until ctx ends.
func receive(ctx context.Context, requests chan<- Request) {
	var b [1]byte
	for {
		if unsent == 0 {
			if _, err := pipe.Read(b[:]); err != nil {
				return // only the deadline that the end of ctx sets
			}
			unsent = Request(b[0])
		}
		select {
		case requests <- unsent:
			unsent = 0
		case <-ctx.Done():
			return
		}
	}
}

// Start is cmd.Start for a program that shall receive the four signals even if
// it does nothing about an inherited signal mask, such as pmacct.
func Start(cmd *exec.Cmd) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	// The thread may stay as it is: the handler is in place.
	if errno := C.bmpha_signal_unblock(); errno != 0 {
		return fmt.Errorf("unblock signals 34 to 37: %w", syscall.Errno(errno))
	}
	return cmd.Start()
}
