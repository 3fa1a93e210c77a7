package rig

import (
	"context"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// A door is a TCP listener in front of something embedded that can behave like
// a server that is down (shut: connections dropped, new ones refused) or hangs
// (frozen: connections stay, nothing moves), and keeps its address throughout.
// It is the net.Listener of that server.
type door struct {
	addr   *net.TCPAddr
	frozen atomic.Bool

	mu     sync.Mutex
	change *sync.Cond // of ln, frozen, gone and of a connection's gone
	ln     *net.TCPListener
	conns  map[*doorConn]struct{}
	gone   bool
}

// openDoor listens on addr, a literal host:port; port 0 is a free one.
func openDoor(addr string) (*door, error) {
	a, err := net.ResolveTCPAddr("tcp", addr)
	if err != nil {
		return nil, err
	}
	if a.Port == 0 {
		if a.Port, err = FreePort(a.IP.String()); err != nil {
			return nil, err
		}
	}
	d := &door{addr: a, conns: make(map[*doorConn]struct{})}
	d.change = sync.NewCond(&d.mu)
	if err := d.open(); err != nil {
		return nil, err
	}
	return d, nil
}

// open undoes shut and freeze.
func (d *door) open() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.gone {
		return net.ErrClosed
	}
	if d.ln == nil {
		// An Accept that has not yet returned keeps the closed listener for a moment.
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		err := WaitFor(ctx, func() (err error) {
			d.ln, err = net.ListenTCP("tcp", d.addr)
			return err
		})
		if err != nil {
			return fmt.Errorf("listen again: %w", err)
		}
	}
	d.frozen.Store(false)
	d.change.Broadcast()
	return nil
}

// shut drops all connections and refuses new ones.
func (d *door) shut() {
	d.mu.Lock()
	if d.ln != nil {
		d.ln.Close()
		d.ln = nil
	}
	d.frozen.Store(false)
	conns := d.conns
	d.conns = make(map[*doorConn]struct{})
	for c := range conns {
		c.gone = true
	}
	d.change.Broadcast()
	d.mu.Unlock()
	for c := range conns {
		c.Conn.Close()
	}
}

// drop closes the present connections; new ones are welcome.
func (d *door) drop() {
	d.mu.Lock()
	conns := d.conns
	d.conns = make(map[*doorConn]struct{})
	for c := range conns {
		c.gone = true
	}
	d.change.Broadcast()
	d.mu.Unlock()
	for c := range conns {
		c.Conn.Close()
	}
}

// freeze lets nothing pass until thaw, open or shut.
func (d *door) freeze() {
	d.mu.Lock()
	d.frozen.Store(true)
	d.mu.Unlock()
}

func (d *door) thaw() {
	d.mu.Lock()
	d.frozen.Store(false)
	d.change.Broadcast()
	d.mu.Unlock()
}

func (d *door) Addr() net.Addr { return d.addr }

func (d *door) Close() error {
	d.mu.Lock()
	d.gone = true
	d.mu.Unlock()
	d.shut()
	return nil
}

// Accept waits for a connection, also while the door is shut or frozen.
func (d *door) Accept() (net.Conn, error) {
	for {
		d.mu.Lock()
		for d.ln == nil && !d.gone {
			d.change.Wait()
		}
		ln := d.ln
		d.mu.Unlock()
		if ln == nil {
			return nil, net.ErrClosed
		}
		c, err := ln.AcceptTCP()
		d.mu.Lock()
		for err == nil && d.ln == ln && d.frozen.Load() {
			d.change.Wait()
		}
		switch {
		case d.gone:
			d.mu.Unlock()
			if err == nil {
				c.Close()
			}
			return nil, net.ErrClosed
		case d.ln != ln: // shut in the meantime
			d.mu.Unlock()
			if err == nil {
				c.Close()
			}
		case err != nil:
			d.mu.Unlock()
			return nil, err
		default:
			dc := &doorConn{Conn: c, door: d}
			d.conns[dc] = struct{}{}
			d.mu.Unlock()
			return dc, nil
		}
	}
}

// A doorConn is a connection that came through a door.
type doorConn struct {
	net.Conn
	door *door
	gone bool // under door.mu
}

// wait returns when nothing holds the connection back: at once, unless frozen.
func (c *doorConn) wait() {
	if !c.door.frozen.Load() {
		return
	}
	c.door.mu.Lock()
	for c.door.frozen.Load() && !c.gone {
		c.door.change.Wait()
	}
	c.door.mu.Unlock()
}

func (c *doorConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.wait()
	return n, err
}

func (c *doorConn) Write(b []byte) (int, error) {
	c.wait()
	return c.Conn.Write(b)
}

// CloseWrite ends the sending half.
func (c *doorConn) CloseWrite() error { return c.Conn.(*net.TCPConn).CloseWrite() }

func (c *doorConn) Close() error {
	c.door.mu.Lock()
	c.gone = true
	delete(c.door.conns, c)
	c.door.change.Broadcast()
	c.door.mu.Unlock()
	return c.Conn.Close()
}
