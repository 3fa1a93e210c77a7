package link

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/bmpha/bmpha/pkg/rig"
)

// childName makes the test binary a collector of that name, that speaks until it
// is told to end.
const childName = "BMPHA_LINK_TEST_NAME"

func TestMain(m *testing.M) {
	if name := os.Getenv(childName); name != "" {
		beChild(name)
		return
	}
	goleak.VerifyTestMain(m)
}

var secret = []byte("0123456789abcdef")

func beChild(name string) {
	o := options(name, uint64(os.Getpid()))
	l, err := New(o)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	peer, at, _ := strings.Cut(os.Getenv("BMPHA_LINK_TEST_PEER"), "=")
	l.Peers([]Peer{{Name: peer, Instance: 1, Address: at}})
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	go func() {
		for i := 0; ; i++ {
			l.Say(fmt.Append(nil, i))
			time.Sleep(10 * time.Millisecond)
		}
	}()
	fmt.Println(l.Advertise())
	l.Run(ctx)
	fmt.Println("over")
}

// options have an expiry that no busy machine makes pass: a connection that is given up
// for silence is none when a process ends. See silent.
func options(name string, instance uint64) Options {
	return Options{
		Name: name, Instance: instance, Cluster: "lab+0", Listen: "127.0.0.1:0", Secret: secret,
		Heartbeat: 40 * time.Millisecond, Expiry: time.Minute,
	}
}

// silent makes silence be noticed soon.
func silent(o Options) Options {
	o.Expiry = 1500 * time.Millisecond
	return o
}

// A mate is a Link in this process with what it was told.
type mate struct {
	*Link
	t    *testing.T
	stop func()

	mu    sync.Mutex
	heard map[string][]string // by name
	dead  []string            // name/instance
	when  time.Time           // of the last of them
}

func start(t *testing.T, o Options, peers ...Peer) *mate {
	t.Helper()
	m := &mate{t: t, heard: map[string][]string{}}
	o.Heard = func(p Peer, body []byte) {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.heard[p.Name] = append(m.heard[p.Name], string(body))
	}
	o.Dead = func(name string, instance uint64) {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.dead, m.when = append(m.dead, fmt.Sprintf("%s/%d", name, instance)), time.Now()
	}
	l, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	m.Link = l
	l.Peers(peers)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		l.Run(ctx)
	}()
	m.stop = sync.OnceFunc(func() {
		cancel()
		<-done
	})
	t.Cleanup(m.stop)
	return m
}

func (m *mate) self() Peer {
	return Peer{Name: m.o.Name, Instance: m.o.Instance, Address: m.Advertise()}
}

func (m *mate) deaths() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return append([]string(nil), m.dead...)
}

func (m *mate) words(name string) []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return append([]string(nil), m.heard[name]...)
}

func (m *mate) status(name string) PeerStatus {
	for _, s := range m.Status() {
		if s.Name == name {
			return s
		}
	}
	return PeerStatus{}
}

func wait(t *testing.T, what string, cond func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := rig.WaitFor(ctx, func() error {
		if !cond() {
			return errors.New("not so")
		}
		return nil
	}); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

// hears waits until m has heard something of name that it had not heard before.
func (m *mate) hears(name string) {
	m.t.Helper()
	before := m.status(name).Heard
	n := len(m.words(name))
	wait(m.t, m.o.Name+" hears "+name, func() bool {
		return len(m.words(name)) > n && m.status(name).Heard.After(before)
	})
}

func (m *mate) connected(name string) {
	m.t.Helper()
	wait(m.t, m.o.Name+" is connected to "+name, func() bool { return m.status(name).Connected })
}

// answers waits until m knows where name answers, so that a refusal there means
// something.
func (m *mate) answers(name string) {
	m.t.Helper()
	wait(m.t, name+" has answered "+m.o.Name, func() bool {
		m.Link.mu.Lock()
		defer m.Link.mu.Unlock()
		p := m.peers[name]
		return p != nil && p.conn != nil && p.proof.peer == p.conn.peer
	})
}

func TestEachHearsEach(t *testing.T) {
	a, b, c := start(t, options("a", 1)), start(t, options("b", 2)), start(t, options("c", 3))
	all := []*mate{a, b, c}
	everybody := []Peer{a.self(), b.self(), c.self(), {Name: "d", Instance: 4}}
	for _, m := range all {
		if err := m.Say([]byte("first of " + m.o.Name)); err != nil {
			t.Fatal(err)
		}
		m.Peers(everybody)
	}
	for _, m := range all {
		for _, p := range all {
			if p == m {
				continue
			}
			m.connected(p.o.Name)
		}
	}
	large := bytes.Repeat([]byte("x"), maxBody)
	for i, body := range [][]byte{[]byte("second"), {}, large, []byte("last")} {
		if err := a.Say(body); err != nil {
			t.Fatal(err)
		}
		for _, m := range []*mate{b, c} {
			wait(t, fmt.Sprintf("%s hears no. %d", m.o.Name, i), func() bool {
				words := m.words("a")
				return len(words) > 0 && words[len(words)-1] == string(body)
			})
		}
	}
	if err := a.Say(append(large, 'x')); err == nil {
		t.Error("too much was taken")
	}
	for _, m := range all {
		status := m.Status()
		if len(status) != 2 {
			t.Fatalf("%s has %d peers: %+v", m.o.Name, len(status), status)
		}
		for _, s := range status {
			wait(t, "all is well, and a round trip is measured", func() bool {
				s = m.status(s.Name)
				return s.RoundTrip > 0 && s.Error == ""
			})
			if s.Since.IsZero() || s.Address == "" {
				t.Errorf("%s sees %+v", m.o.Name, s)
			}
		}
		if d := m.deaths(); len(d) != 0 {
			t.Errorf("%s: dead: %v", m.o.Name, d)
		}
	}
}

// One connection for each pair, whoever learns of the other first.
func TestSmallerNameDials(t *testing.T) {
	a, b := start(t, options("a", 1)), start(t, options("b", 2))
	b.Peers([]Peer{a.self()})
	a.Peers([]Peer{b.self()})
	a.connected("b")
	b.connected("a")
	for _, m := range []*mate{a, b} {
		m.Link.mu.Lock()
		n := len(m.conns)
		m.Link.mu.Unlock()
		if n != 1 {
			t.Errorf("%s has %d connections", m.o.Name, n)
		}
	}
}

// A child is a collector in a process of its own.
type child struct {
	*exec.Cmd
	address string
	out     *bufio.Reader
	once    sync.Once
}

func startChild(t *testing.T, name string, peer Peer) *child {
	t.Helper()
	c := &child{Cmd: exec.Command(os.Args[0])}
	c.Env = append(os.Environ(), childName+"="+name, "BMPHA_LINK_TEST_PEER="+peer.Name+"="+peer.Address)
	c.Stderr = os.Stderr
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.kill)
	c.out = bufio.NewReader(out)
	line, err := c.out.ReadString('\n')
	if err != nil {
		t.Fatalf("child: %v", err)
	}
	c.address = strings.TrimSpace(line)
	return c
}

// proxy passes on what comes to it until the test is over.
func proxy(t *testing.T, target string) *rig.Proxy {
	t.Helper()
	p, err := rig.NewProxy(target)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

func (c *child) peer(name string) Peer {
	return Peer{Name: name, Instance: uint64(c.Process.Pid), Address: c.address}
}

func (c *child) kill() {
	c.once.Do(func() {
		c.Process.Kill()
		c.Wait()
	})
}

// eachSide runs a test with a child that dials, and one that is dialled.
func eachSide(t *testing.T, o Options, test func(t *testing.T, m *mate, c *child, name string)) {
	for side, name := range map[string]string{"which has dialled": "a", "which was dialled": "z"} {
		t.Run(side, func(t *testing.T) {
			m := start(t, o)
			c := startChild(t, name, m.self())
			m.Peers([]Peer{c.peer(name)})
			m.hears(name)
			m.answers(name)
			test(t, m, c, name)
		})
	}
}

func TestDeathOfAProcess(t *testing.T) {
	eachSide(t, options("m", 1), func(t *testing.T, m *mate, c *child, name string) {
		killed := time.Now()
		c.kill()
		wait(t, "it is told dead", func() bool { return len(m.deaths()) > 0 })
		m.mu.Lock()
		took := m.when.Sub(killed)
		m.mu.Unlock()
		t.Logf("told dead %v after SIGKILL", took)
		if want := name + "/" + strconv.Itoa(c.Process.Pid); m.deaths()[0] != want {
			t.Errorf("dead: %v, want %s", m.deaths(), want)
		}
		// And once. Redis still lists it.
		wait(t, "it is tried again or left alone", func() bool { return !m.status(name).Connected })
		again := startChild(t, name, m.self())
		m.Peers([]Peer{again.peer(name)})
		m.hears(name)
		if d := m.deaths(); len(d) != 1 {
			t.Errorf("dead: %v", d)
		}
	})
}

// A process that stands still is not dead, however long.
func TestStandstill(t *testing.T) {
	eachSide(t, silent(options("m", 1)), func(t *testing.T, m *mate, c *child, name string) {
		if err := c.Process.Signal(syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		wait(t, "the silence is noticed", func() bool { return !m.status(name).Connected })
		if got := m.status(name).Error; name < "m" && !strings.Contains(got, errSilent.Error()) {
			t.Errorf("error %q", got)
		}
		if name > "m" { // our turn to connect: its kernel takes it, and nobody answers
			wait(t, "it does not answer", func() bool { return strings.Contains(m.status(name).Error, "no answer in time") })
		}
		if d := m.deaths(); len(d) != 0 {
			t.Fatalf("dead: %v", d)
		}
		if err := c.Process.Signal(syscall.SIGCONT); err != nil {
			t.Fatal(err)
		}
		m.hears(name)
		if d := m.deaths(); len(d) != 0 {
			t.Fatalf("dead: %v", d)
		}
		c.kill()
		wait(t, "it is told dead", func() bool { return len(m.deaths()) == 1 })
	})
}

// Who says goodbye is not told dead, though its host refuses afterwards.
func TestGoodbye(t *testing.T) {
	eachSide(t, options("m", 1), func(t *testing.T, m *mate, c *child, name string) {
		begin := time.Now()
		if err := c.Process.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		if line, err := c.out.ReadString('\n'); err != nil || line != "over\n" {
			t.Fatalf("%q, %v", line, err)
		}
		t.Logf("left within %v", time.Since(begin))
		wait(t, "the goodbye is heard", func() bool { return m.status(name).Error == errBye.Error() })
		c.kill()
		// Were it looked for, it would have been by now.
		again := startChild(t, name, m.self())
		m.Peers([]Peer{again.peer(name)})
		m.hears(name)
		if d := m.deaths(); len(d) != 0 {
			t.Errorf("dead: %v", d)
		}
	})
}

// Connections that end, with both processes well, are made again.
func TestConnectionEnds(t *testing.T) {
	b := start(t, options("b", 2))
	p := proxy(t, b.Advertise())
	a := start(t, options("a", 1), Peer{Name: "b", Instance: 2, Address: p.Addr()})
	for range 3 {
		a.connected("b")
		b.connected("a")
		since := a.status("b").Since
		p.Drop()
		wait(t, "it is connected anew", func() bool { s := a.status("b"); return s.Connected && s.Since.After(since) })
	}
	if d := append(a.deaths(), b.deaths()...); len(d) != 0 {
		t.Errorf("dead: %v", d)
	}
}

// A network that carries one direction only: both hear of it, nobody is dead, and it
// goes on afterwards.
func TestOneWay(t *testing.T) {
	for name, d := range map[string]rig.Direction{"to who was dialled": rig.ToTarget, "to who has dialled": rig.ToClient, "both": rig.Both} {
		t.Run(name, func(t *testing.T) {
			b := start(t, silent(options("b", 2)))
			p := proxy(t, b.Advertise())
			a := start(t, silent(options("a", 1)), Peer{Name: "b", Instance: 2, Address: p.Addr()})
			a.connected("b")
			b.connected("a")
			p.Hang(d)
			wait(t, "both notice", func() bool { return !a.status("b").Connected && !b.status("a").Connected })
			if err := p.Restore(); err != nil {
				t.Fatal(err)
			}
			a.connected("b")
			b.connected("a")
			wait(t, "b hears a", func() bool {
				if err := a.Say([]byte("there?")); err != nil {
					t.Fatal(err)
				}
				return len(b.words("a")) > 0
			})
			if d := append(a.deaths(), b.deaths()...); len(d) != 0 {
				t.Errorf("dead: %v", d)
			}
		})
	}
}

// Another process at the address of a lost one: the lost one is dead.
func TestSuccessor(t *testing.T) {
	first, second := start(t, options("b", 2)), start(t, options("b", 3))
	p := proxy(t, first.Advertise())
	a := start(t, options("a", 1), Peer{Name: "b", Instance: 2, Address: p.Addr()})
	a.connected("b")
	p.SetTarget(second.Advertise())
	p.Drop()
	wait(t, "the first is told dead", func() bool { return len(a.deaths()) > 0 })
	wait(t, "the second is connected", func() bool { s := a.status("b"); return s.Connected && s.Instance == 3 })
	if d := a.deaths(); len(d) != 1 || d[0] != "b/2" {
		t.Errorf("dead: %v", d)
	}
}

// Who was never connected is not told dead.
func TestNobodyThere(t *testing.T) {
	port, err := rig.FreePort("")
	if err != nil {
		t.Fatal(err)
	}
	a := start(t, options("a", 1), Peer{Name: "b", Instance: 2, Address: net.JoinHostPort("127.0.0.1", strconv.Itoa(port))})
	wait(t, "it is refused", func() bool { return strings.Contains(a.status("b").Error, "refused") })
	a.Peers(nil)
	if s := a.Status(); len(s) != 0 {
		t.Errorf("who is not listed any more is kept: %+v", s)
	}
	if d := a.deaths(); len(d) != 0 {
		t.Errorf("dead: %v", d)
	}
}

// A logbook counts what is logged, by message.
type logbook struct {
	mu   sync.Mutex
	said map[string]int
}

func (b *logbook) logger() *slog.Logger { return slog.New(slog.NewTextHandler(b, nil)) }

func (b *logbook) Write(line []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.said == nil {
		b.said = map[string]int{}
	}
	b.said[string(line)]++
	return len(line), nil
}

// count returns how many lines hold text.
func (b *logbook) count(text string) (n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for line, times := range b.said {
		if strings.Contains(line, text) {
			n += times
		}
	}
	return n
}

// An address that a collector advertises, and where it never answered: a refusal there
// says nothing of it. Who was connected to warns, once, and says so for as long as it
// lasts.
func TestNeverAnswered(t *testing.T) {
	for _, tt := range []struct {
		name string
		at   func(t *testing.T) string
		want string
	}{
		{"refused", func(t *testing.T) string {
			port, err := rig.FreePort("")
			if err != nil {
				t.Fatal(err)
			}
			return net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
		}, "refused"},
		{"another collector", func(t *testing.T) string { return start(t, options("c", 3)).Advertise() }, errName.Error()},
		{"another process of the name", func(t *testing.T) string { return start(t, options("a", 9)).Advertise() }, errOther.Error()},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var log logbook
			o := options("b", 2)
			o.Log = log.logger()
			b := start(t, o)
			o = options("a", 1)
			o.Advertise = tt.at(t)
			a := start(t, o, b.self())
			wait(t, "b says what is wrong", func() bool {
				s := b.status("a")
				return s.Connected && strings.Contains(s.Error, "does not answer") && strings.Contains(s.Error, tt.want)
			})
			if tt.name == "another process of the name" {
				return // whichever of the two is lost
			}
			const warning = "does not answer; its death would be noticed late"
			wait(t, "it is logged", func() bool { return log.count(warning) > 0 })
			// It is asked again and again, and a connection that ends is no death.
			for range 3 {
				a.connected("b") // the end that has dialled knows last
				since := b.status("a").Since
				a.Link.mu.Lock()
				for c := range a.conns {
					c.end(errSilent)
				}
				a.Link.mu.Unlock()
				wait(t, "it is connected anew", func() bool { s := b.status("a"); return s.Connected && s.Since.After(since) })
			}
			wait(t, "b says so still", func() bool { s := b.status("a"); return s.Connected && s.Error != "" })
			a.stop()
			wait(t, "a has gone", func() bool { return !b.status("a").Connected })
			if d := b.deaths(); len(d) != 0 {
				t.Errorf("dead: %v", d)
			}
			if n := log.count(warning); n != 1 {
				t.Errorf("logged %d times", n)
			}
		})
	}
}

// An address that answers later is believed from then on, without another connection.
func TestAnswersLate(t *testing.T) {
	var log logbook
	o := options("b", 2)
	o.Log = log.logger()
	b := start(t, o)
	p := proxy(t, "127.0.0.1:1") // where nobody is
	o = options("a", 1)
	o.Advertise = p.Addr()
	a := start(t, o, b.self())
	wait(t, "b says what is wrong", func() bool { return strings.Contains(b.status("a").Error, "does not answer") })
	since := b.status("a").Since
	p.SetTarget(a.Addr().String())
	b.answers("a")
	wait(t, "all is well", func() bool { s := b.status("a"); return s.Connected && s.Error == "" && s.Since == since })
	wait(t, "it is logged", func() bool { return log.count("answers now") == 1 })
}

// Others than members of the cluster are not heard.
func TestStrangers(t *testing.T) {
	for name, change := range map[string]func(o *Options){
		"another secret":  func(o *Options) { o.Secret = []byte("another secret of length") },
		"another cluster": func(o *Options) { o.Cluster = "lab+1" },
		"our own name":    func(o *Options) { o.Name = "b" },
	} {
		t.Run(name, func(t *testing.T) {
			b := start(t, options("b", 2))
			o := options("a", 1)
			change(&o)
			at := b.self()
			if name == "our own name" {
				at.Name = "c"
			}
			a := start(t, o, at)
			wait(t, "it fails", func() bool { return a.status(at.Name).Error != "" && b.Rejected() > 0 })
			if a.status(at.Name).Connected || len(b.Status()) != 0 {
				t.Errorf("connected: %+v, %+v", a.Status(), b.Status())
			}
		})
	}
	t.Run("that keep connections", func(t *testing.T) {
		b := start(t, options("b", 2))
		for range 10 * maxStrangers {
			nc, err := net.Dial("tcp", b.Advertise())
			if err != nil {
				t.Fatal(err)
			}
			defer nc.Close()
		}
		a := start(t, options("a", 1), b.self())
		a.connected("b")
		b.connected("a")
		b.Link.mu.Lock()
		n := len(b.strangers)
		b.Link.mu.Unlock()
		if n > maxStrangers {
			t.Errorf("%d strangers, want at most %d", n, maxStrangers)
		}
	})
}

func TestNewErrors(t *testing.T) {
	for name, change := range map[string]func(o *Options){
		"no secret":                   func(o *Options) { o.Secret = nil },
		"no name":                     func(o *Options) { o.Name = "" },
		"a long name":                 func(o *Options) { o.Name = strings.Repeat("x", maxText+1) },
		"no heartbeat":                func(o *Options) { o.Heartbeat = 0 },
		"no such address":             func(o *Options) { o.Listen = "192.0.2.1:1" },
		"an address that is no-one's": func(o *Options) { o.Listen = ":0" },
	} {
		o := options("a", 1)
		change(&o)
		if l, err := New(o); err == nil {
			l.Close()
			t.Errorf("%s: no error", name)
		}
	}
}

// What waits for a peer that does not read is its latest word.
func TestSlowPeerHearsTheLatest(t *testing.T) {
	b := start(t, options("b", 2))
	p := proxy(t, b.Advertise())
	a := start(t, options("a", 1), Peer{Name: "b", Instance: 2, Address: p.Addr()})
	a.connected("b")
	b.connected("a")
	p.Hang(rig.ToTarget)
	const words = 200
	for i := range words {
		body := make([]byte, 1<<20)
		copy(body, strconv.Itoa(i))
		if err := a.Say(body); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.Restore(); err != nil {
		t.Fatal(err)
	}
	wait(t, "the last is heard", func() bool {
		w := b.words("a")
		return len(w) > 0 && strings.HasPrefix(w[len(w)-1], strconv.Itoa(words-1)+"\x00")
	})
	t.Logf("%d of %d were sent", len(b.words("a")), words)
}
