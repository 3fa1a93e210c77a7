package control

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// socketMode lets the owner and the group connect.
const socketMode = 0o660

// maxSocketPath is what Linux takes, without the closing zero.
const maxSocketPath = 107

// A socket is a listener on a Unix socket that nobody else holds.
type socket struct {
	net.Listener
	path string
	lock *os.File
}

// listenSocket listens at path. A lock beside the socket, held as long as the
// process lives, decides between two that start at the same time, and tells a
// socket left behind by a dead process, which is replaced, from a live one.
// The socket is made in a directory that only we can enter and moved to its place
// with its final permissions, so that at no time anyone else can connect, and the
// umask, which belongs to the whole process, is left alone.
func listenSocket(path string) (_ *socket, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("control socket %s: %w", path, err)
		}
	}()
	lock, err := lockFile(path + ".lock")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w (make the folder, or set control.socket)", err)
	}
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			lock.Close()
		}
	}()
	if err := replaceable(path); err != nil {
		return nil, err
	}
	if n := len(path); n > maxSocketPath {
		return nil, fmt.Errorf("the path has %d bytes, the system takes at most %d", n, maxSocketPath)
	}
	cradle, err := os.MkdirTemp(filepath.Dir(path), ".bmpha")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(cradle)
	dir, err := os.Open(cradle)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	// The way over the descriptor is short, however long the path.
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: fmt.Sprintf("/proc/self/fd/%d/s", dir.Fd()), Net: "unix"})
	if err != nil {
		return nil, err
	}
	born := filepath.Join(cradle, "s")
	l.SetUnlinkOnClose(false) // it moves
	if err := errors.Join(os.Chmod(born, socketMode), os.Rename(born, path)); err != nil {
		l.Close()
		return nil, err
	}
	return &socket{Listener: l, path: path, lock: lock}, nil
}

// remove takes the socket away and gives up the lock. The listener is closed
// before.
func (s *socket) remove() error {
	err := os.Remove(s.path)
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return errors.Join(err, s.lock.Close())
}

func lockFile(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, ErrAlreadyRunning
		}
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return f, nil
}

// replaceable returns nil if nothing is at path, or a socket on which nobody
// listens.
func replaceable(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.Mode().Type() != fs.ModeSocket {
		return errors.New("something that is not a socket is in the way")
	}
	c, err := net.DialTimeout("unix", path, time.Second)
	if err == nil {
		c.Close()
		return ErrAlreadyRunning
	}
	if errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
