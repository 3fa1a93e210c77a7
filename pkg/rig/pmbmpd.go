package rig

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// PmbmpdOptions say how pmacct's collector is set up.
type PmbmpdOptions struct {
	// Program is pmbmpd, or nfacctd with its BMP thread; "" is pmbmpd.
	Program string
	Dir     string   // where it keeps configuration and log; "" is a temporary folder
	Config  []string // further lines "key: value", such as the topic or the file to write to
	// Kafka is the broker that its records go to, host:port; "" leaves that to
	// Config.
	Kafka, Topic string
	// Dump makes it keep a table, which pmbmpd otherwise does not, and dump it on
	// each full minute, see Pmbmpd.Dump.
	Dump bool
}

// A Pmbmpd is pmacct's BMP collector. It is ended by SIGINT, which it heeds also
// when idle, and then by SIGKILL.
type Pmbmpd struct {
	*Process
	dir  folder
	addr string
}

var _ Server = (*Pmbmpd)(nil)

// StartPmbmpd starts pmbmpd and waits until it listens.
func StartPmbmpd(ctx context.Context, o PmbmpdOptions) (*Pmbmpd, error) {
	d := &Pmbmpd{}
	program := cmp.Or(o.Program, "pmbmpd")
	var err error
	if d.dir, err = makeFolder(o.Dir, program); err != nil {
		return nil, fmt.Errorf("start %s: %w", program, err)
	}
	if d.addr, err = freeAddr(); err != nil {
		d.dir.remove()
		return nil, fmt.Errorf("start %s: %w", program, err)
	}
	host, port := hostPort(d.addr)
	lines := []string{
		"daemonize: false",
		"bmp_daemon_ip: " + host,
		"bmp_daemon_port: " + strconv.Itoa(port),
		"bmp_daemon_max_peers: 200",
	}
	if program != "pmbmpd" { // there BMP is a thread beside the flows
		flows, err := FreePort("")
		if err != nil {
			d.dir.remove()
			return nil, fmt.Errorf("start %s: %w", program, err)
		}
		lines = append(lines, "bmp_daemon: true", program+"_ip: "+host, program+"_port: "+strconv.Itoa(flows), "plugins: memory",
			"imt_path: "+filepath.Join(d.dir.path, "pipe"))
	}
	if o.Kafka != "" {
		kafkaHost, kafkaPort, err := net.SplitHostPort(o.Kafka)
		if err != nil {
			d.dir.remove()
			return nil, fmt.Errorf("start %s: kafka: %w", program, err)
		}
		lines = append(lines,
			"bmp_daemon_msglog_kafka_broker_host: "+kafkaHost,
			"bmp_daemon_msglog_kafka_broker_port: "+kafkaPort,
			"bmp_daemon_msglog_kafka_topic: "+o.Topic)
	}
	if o.Dump {
		lines = append(lines,
			"bmp_dump_file: "+filepath.Join(d.dir.path, "dump-%s.json"),
			"bmp_dump_refresh_time: 60", // the least it takes
			"timestamps_since_epoch: true")
	}
	lines = append(lines, o.Config...)
	conf := filepath.Join(d.dir.path, program+".conf")
	if err := os.WriteFile(conf, []byte(strings.Join(lines, "\n")+"\n"), 0o600); err != nil {
		d.dir.remove()
		return nil, fmt.Errorf("start %s: %w", program, err)
	}
	d.Process, err = Start(ctx, Command{
		Name: program, Path: "/usr/sbin/" + program, Args: []string{"-f", conf},
		Log:        filepath.Join(d.dir.path, program+".log"),
		StopSignal: syscall.SIGINT, Grace: 4 * time.Second,
		Ready: func() error { return listening(d.addr) },
	})
	if err != nil {
		d.dir.remove()
		return nil, err
	}
	return d, nil
}

// listening says whether the kernel has a listener at addr, an IPv4 address,
// without connecting: to pmbmpd every connection is a router.
func listening(addr string) error {
	a, err := net.ResolveTCPAddr("tcp4", addr)
	if err != nil {
		return err
	}
	table, err := os.ReadFile("/proc/net/tcp")
	if err != nil {
		return err
	}
	ip := a.IP.To4()
	// local address in host order (little endian), no remote, state LISTEN.
	entry := fmt.Sprintf(" %02X%02X%02X%02X:%04X 00000000:0000 0A ", ip[3], ip[2], ip[1], ip[0], a.Port)
	if !strings.Contains(string(table), entry) {
		return fmt.Errorf("nothing listens on %s", addr)
	}
	return nil
}

// Addr is where routers connect to, host:port.
func (d *Pmbmpd) Addr() string { return d.addr }

// Dump returns the table dump of the first full minute behind after, once it
// is there to the end of that number of sessions, and its slot.
// That takes a minute at most, and a few seconds more.
func (d *Pmbmpd) Dump(ctx context.Context, after time.Time, sessions int) (dump []byte, slot time.Time, err error) {
	err = waitEvery(ctx, 50*time.Millisecond, func() error {
		files, err := filepath.Glob(filepath.Join(d.dir.path, "dump-*.json"))
		if err != nil {
			return err
		}
		for _, file := range files { // in the order of slots
			n, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimPrefix(filepath.Base(file), "dump-"), ".json"), 10, 64)
			if err != nil || n <= after.Unix() {
				continue
			}
			b, err := os.ReadFile(file)
			if err != nil {
				return err
			}
			if n := bytes.Count(b, []byte(`"event_type": "dump_close"`)); n < sessions {
				return fmt.Errorf("%d of %d sessions are in %s", n, sessions, file)
			}
			dump, slot = b, time.Unix(n, 0)
			return nil
		}
		if !d.Alive() {
			return errors.New("it has ended")
		}
		return errors.New("no dump yet")
	})
	if err != nil {
		return nil, time.Time{}, fmt.Errorf("table dump: %w%s", err, d.tail())
	}
	return dump, slot, nil
}

// Close ends it and removes its temporary folder.
func (d *Pmbmpd) Close() error {
	if err := d.Process.Close(); err != nil {
		return err
	}
	return d.dir.remove()
}
