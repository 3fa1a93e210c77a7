package rig

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// NfacctdOptions say how pmacct's flow collector is set up to hear BMP and to
// keep a table of routes.
type NfacctdOptions struct {
	Dir string // where it keeps configuration, log and dumps; "" is a temporary folder
	// Sessions is how many routers it takes, 200 by default. Each costs it about
	// 2 MB, and more than about 1000 it cannot take.
	Sessions int
}

// A Nfacctd is pmacct's flow collector with its BMP thread, which keeps a table
// and dumps it on each full minute.
type Nfacctd struct {
	*Pmbmpd
	dumps folder
}

var _ Server = (*Nfacctd)(nil)

// StartNfacctd starts nfacctd and waits until it listens.
func StartNfacctd(ctx context.Context, o NfacctdOptions) (*Nfacctd, error) {
	dir, err := makeFolder(o.Dir, "nfacctd")
	if err != nil {
		return nil, fmt.Errorf("start nfacctd: %w", err)
	}
	p, err := StartPmbmpd(ctx, PmbmpdOptions{Program: "nfacctd", Dir: dir.path, Config: []string{
		"bmp_daemon_max_peers: " + strconv.Itoa(cmp.Or(o.Sessions, 200)),
		"bmp_dump_file: " + filepath.Join(dir.path, "dump-%s.json"),
		"bmp_dump_refresh_time: 60", // the least it takes
		"timestamps_since_epoch: true",
	}})
	if err != nil {
		return nil, errors.Join(err, dir.remove())
	}
	d := &Nfacctd{p, dir}
	// It forks for its plugin when it listens already: a session accepted before
	// would stay open in the child, and its end not be seen.
	ctx, cancel := context.WithTimeout(ctx, 90*time.Second)
	defer cancel()
	err = WaitFor(ctx, func() error {
		log, err := os.ReadFile(p.LogFile())
		if err == nil && !bytes.Contains(log, []byte("memory ): waiting for data on")) {
			err = errors.New("its plugin does not run yet")
		}
		return err
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("start nfacctd: %w", err), d.Close())
	}
	return d, nil
}

// Idle returns nil if it has read all that was sent to it and has taken all
// connections: what a next dump says of them is complete.
func (d *Nfacctd) Idle() error {
	if !d.Alive() {
		return errors.New("nfacctd has ended")
	}
	_, port := hostPort(d.Addr())
	table, err := os.ReadFile("/proc/net/tcp")
	if err != nil {
		return err
	}
	local := fmt.Sprintf(":%04X", port)
	for line := range strings.Lines(string(table)) {
		f := strings.Fields(line)
		if len(f) < 5 {
			continue
		}
		sent, received, _ := strings.Cut(f[4], ":")
		const closed = "07"
		switch {
		case f[3] == closed || f[3] == "06": // TIME_WAIT
		case strings.HasSuffix(f[1], local) && received != "00000000":
			return fmt.Errorf("nfacctd has 0x%s bytes or connections to read", received)
		case strings.HasSuffix(f[2], local) && sent != "00000000":
			return fmt.Errorf("0x%s bytes are on their way to nfacctd", sent)
		}
	}
	return nil
}

// Dump waits for the first table dump that begins after the call and is there to
// the end of that number of sessions, and returns it. That takes a minute at
// most, and a few seconds more.
func (d *Nfacctd) Dump(ctx context.Context, sessions int) ([]byte, error) {
	after := time.Now().Unix()
	var dump []byte
	err := waitEvery(ctx, 50*time.Millisecond, func() error {
		files, err := filepath.Glob(filepath.Join(d.dumps.path, "dump-*.json"))
		if err != nil {
			return err
		}
		for _, file := range files {
			slot, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimPrefix(filepath.Base(file), "dump-"), ".json"), 10, 64)
			if err != nil || slot <= after {
				continue
			}
			b, err := os.ReadFile(file)
			if err != nil {
				return err
			}
			if n := bytes.Count(b, []byte(`"event_type": "dump_close"`)); n < sessions {
				return fmt.Errorf("%d of %d sessions are in %s", n, sessions, file)
			}
			dump = b
			return nil
		}
		if !d.Alive() {
			return errors.New("nfacctd has ended")
		}
		return errors.New("no dump yet")
	})
	if err != nil {
		return nil, fmt.Errorf("table dump of nfacctd: %w%s", err, d.tail())
	}
	return dump, nil
}

// Close ends it and removes its temporary folder.
func (d *Nfacctd) Close() error {
	if err := d.Pmbmpd.Close(); err != nil {
		return err
	}
	return d.dumps.remove()
}
