package main

import (
	"bytes"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"text/template"
	"time"

	"github.com/bmpha/bmpha/pkg/config"
	"github.com/bmpha/bmpha/pkg/control"
	"github.com/bmpha/bmpha/pkg/rig"
)

// options are what both kinds of runs are told.
type options struct {
	bmpha  string   // the binary
	config string   // a template in place of collector.yaml; "" is that
	set    settings // keys of the configuration
	links  bool     // give the collectors direct links
	keep   string   // folder for logs; "" removes them
	json   string   // file for the results; "" writes none
}

// settings are keys and values of the configuration, as a flag.
type settings []string

// String is for package flag.
func (s *settings) String() string { return strings.Join(*s, " ") }

// Set takes key=value.
func (s *settings) Set(text string) error {
	key, _, ok := strings.Cut(text, "=")
	if !ok || key == "" {
		return fmt.Errorf("want key=value, as in redis.expiry=500ms")
	}
	*s = append(*s, text)
	return nil
}

// env says the settings as the environment does.
func (s settings) env() []string {
	var env []string
	for _, text := range s {
		key, value, _ := strings.Cut(text, "=")
		env = append(env, config.EnvName(key)+"="+value)
	}
	return env
}

//go:embed collector.yaml
var collectorTemplate string

// A world is a cluster of collectors with what they need.
type world struct {
	o       *options
	dir     string // for configurations and logs
	cluster string // its name, and that of the topic
	dumps   string // topic of table dumps, "" for none
	redis   *rig.RedisServer
	kafka   *rig.KafkaServer
	members []*member
}

// A member is one collector process, and its ways to the others.
type member struct {
	*rig.Process
	name    string
	listen  string
	dir     string
	control *control.Client
	redis   *rig.Proxy // nil: no proxies
	kafka   *rig.Proxy
	link    *rig.Proxy // of those who connect to it; nil without links
}

// start adds a collector and waits until it answers. With proxied, its ways to
// Redis and Kafka, and those of the others to it, go through proxies; Kafka then
// has a path for it.
func (w *world) start(ctx context.Context, name string, proxied bool) (*member, error) {
	m := &member{name: name}
	w.members = append(w.members, m) // what has been opened is closed with the world
	fail := func(err error) (*member, error) { return nil, fmt.Errorf("start collector %s: %w", name, err) }
	var err error
	// The path of a Unix socket has 107 bytes at most.
	if m.dir, err = os.MkdirTemp(w.dir, name+"-"); err != nil {
		return fail(err)
	}
	if m.listen, err = freeAddr(); err != nil {
		return fail(err)
	}
	v := values{
		Process: name, Cluster: w.cluster, Listen: m.listen, Redis: w.redis.Addr(), Kafka: w.kafka.Brokers(),
		Topic: w.cluster, Dumps: w.dumps, Dir: m.dir, Secret: "only for this run, and for no other",
	}
	if proxied {
		if m.redis, err = rig.NewProxy(w.redis.Addr()); err != nil {
			return fail(err)
		}
		v.Redis = m.redis.Addr()
		v.Kafka, m.kafka = w.kafka.Via(len(w.members) - 1)
	}
	if w.o.links {
		if v.Link, err = freeAddr(); err != nil {
			return fail(err)
		}
		v.Advertise = v.Link
		if proxied {
			if m.link, err = rig.NewProxy(v.Link); err != nil {
				return fail(err)
			}
			v.Advertise = m.link.Addr()
		}
	}
	text := collectorTemplate
	if w.o.config != "" {
		b, err := os.ReadFile(w.o.config)
		if err != nil {
			return fail(err)
		}
		text = string(b)
	}
	b, err := v.fill(text)
	if err != nil {
		return fail(err)
	}
	file := filepath.Join(m.dir, "bmpha.yaml")
	if err := os.WriteFile(file, b, 0o600); err != nil {
		return fail(err)
	}
	m.control = control.NewClient(filepath.Join(m.dir, "s"))
	m.Process, err = rig.Start(ctx, rig.Command{
		Name: name, Path: w.o.bmpha, Args: []string{"run", "-c", file}, Log: m.log(), Env: w.o.set.env(), Grace: 30 * time.Second,
		Ready: func() error {
			_, err := m.status(ctx)
			return err
		},
	})
	return m, err
}

// values are what a template of the configuration can name. Dumps and Link are
// empty where there are none.
type values struct {
	Process, Cluster, Listen, Redis, Kafka, Topic, Dumps, Dir string
	Link, Advertise, Secret                                   string
}

func (v *values) fill(text string) ([]byte, error) {
	t, err := template.New("configuration").Parse(text)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	err = t.Execute(&b, v)
	return b.Bytes(), err
}

func (m *member) log() string { return filepath.Join(m.dir, "log") }

// statusPatience bounds the answer of a collector that may stand still.
const statusPatience = 2 * time.Second

func (m *member) status(ctx context.Context) (*control.Status, error) {
	ctx, cancel := context.WithTimeout(ctx, statusPatience)
	defer cancel()
	return m.control.Status(ctx)
}

// role waits until the collector has a role.
func (m *member) role(ctx context.Context, want string) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	return rig.WaitFor(ctx, func() error {
		s, err := m.status(ctx)
		if err == nil && s.Role != want {
			err = fmt.Errorf("collector %s is %s (%s), want %s", m.name, s.Role, s.Reason, want)
		}
		return err
	})
}

// crashed returns what no log may have, "" if it is not there.
func (m *member) crashed() string {
	b, err := os.ReadFile(m.log())
	if err != nil {
		return ""
	}
	for _, bad := range []string{"panic:", "DATA RACE", "fatal error:", "SIGSEGV"} {
		if i := bytes.Index(b, []byte(bad)); i >= 0 {
			line, _, _ := strings.Cut(string(b[i:]), "\n")
			return line
		}
	}
	return ""
}

// close ends the collectors; Redis and Kafka belong to the caller.
func (w *world) close() error {
	var errs []error
	for _, m := range w.members {
		if m.Process != nil {
			errs = append(errs, m.Kill())
		}
		if m.control != nil {
			m.control.Close()
		}
		for _, p := range []*rig.Proxy{m.redis, m.link} {
			if p != nil {
				errs = append(errs, p.Close())
			}
		}
	}
	return errors.Join(errs...)
}

// logs copies the collectors' logs into a folder.
func (w *world) logs(folder string) error {
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return fmt.Errorf("keep the logs: %w", err)
	}
	for _, m := range w.members {
		if err := copyFile(filepath.Join(folder, w.cluster+"-"+m.name+".log"), m.log()); err != nil {
			return fmt.Errorf("keep the logs: %w", err)
		}
	}
	return nil
}

func copyFile(to, from string) error {
	r, err := os.Open(from)
	if err != nil {
		return err
	}
	defer r.Close()
	f, err := os.Create(to)
	if err != nil {
		return err
	}
	if _, err = io.Copy(f, r); err != nil {
		f.Close()
		return err
	}
	return f.Close()
}

func freeAddr() (string, error) {
	port, err := rig.FreePort("")
	if err != nil {
		return "", err
	}
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)), nil
}

// requireParts says which real parts are missing: nothing may stand in for them
// here.
func requireParts(names ...string) error {
	var missing []string
	for _, p := range rig.Parts() {
		for _, name := range names {
			if p.Name == name && p.Missing != "" {
				missing = append(missing, name+": "+p.Missing)
			}
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("missing real parts: %s (scripts/install-parts installs them)", strings.Join(missing, ", "))
	}
	return nil
}

// sleep waits for d or the end of ctx.
func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-t.C:
		return nil
	}
}
