package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/bmpha/bmpha/pkg/cluster"
	"github.com/bmpha/bmpha/pkg/control"
)

// collectorStub is a collector that says what a test wants.
type collectorStub struct {
	status control.Status
	asked  control.MaintainRequest
	result control.MaintainResult
	err    error
}

func (s *collectorStub) Status() control.Status { return s.status }
func (s *collectorStub) Maintain(_ context.Context, r control.MaintainRequest) (control.MaintainResult, error) {
	s.asked = r
	return s.result, s.err
}
func (s *collectorStub) Healthy() error { return nil }
func (s *collectorStub) Ready() error   { return nil }

// standbyStatus is a healthy standby.
func standbyStatus() control.Status {
	now := time.Now()
	return control.Status{
		Version: control.StatusVersion, At: now, Process: "bmp-b", Cluster: control.Cluster{Name: "core"}, Uptime: 100,
		Role: control.RoleStandby, Reason: "bmp-a is older", Since: now,
		Members: []control.Member{
			{Name: "bmp-a", Kind: control.KindBMPHA, Role: control.RoleActive, Timestamp: 1},
			{Name: "bmp-b", Kind: control.KindBMPHA, Role: control.RoleStandby, Timestamp: 2, Self: true},
		},
		Sink:  control.Sink{Kind: "kafka", Connected: true},
		Redis: control.Redis{State: control.RedisOK},
	}
}

// stub serves a collector on a socket.
func stub(t *testing.T) (*collectorStub, string) {
	t.Helper()
	s := &collectorStub{status: standbyStatus()}
	path := filepath.Join(t.TempDir(), "bmpha.sock")
	server, err := control.Listen(control.ServerOptions{Backend: s, Socket: path, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Close() })
	return s, path
}

// command runs bmpha and returns what it prints and its exit code.
func command(args ...string) (stdout, stderr string, code int) {
	var out, err bytes.Buffer
	code = run(append([]string{"bmpha"}, args...), &out, &err)
	return out.String(), err.String(), code
}

func TestStatusCommand(t *testing.T) {
	s, path := stub(t)
	out, _, code := command("status", "--socket", path)
	if code != control.ExitStandby || !strings.HasPrefix(out, "STANDBY bmp-b of cluster core/0") {
		t.Errorf("a standby: exit code %d, output\n%s", code, out)
	}
	if strings.Contains(out, "\x1b") {
		t.Error("colours although the output is no terminal")
	}
	out, _, code = command("status", "--json", "--socket", path)
	var got control.Status
	if err := json.Unmarshal([]byte(out), &got); err != nil || got.Process != "bmp-b" || code != control.ExitStandby {
		t.Errorf("--json: exit code %d, %v, output\n%s", code, err, out)
	}
	t.Setenv("BMPHA_SOCKET", path)
	if _, _, code = command("status"); code != control.ExitStandby {
		t.Errorf("the socket by the environment: exit code %d", code)
	}
	s.status.Role, s.status.Members = control.RoleActive, s.status.Members[1:]
	if _, _, code = command("status"); code != control.ExitActive {
		t.Errorf("an active: exit code %d", code)
	}
	s.status.Takeovers = []control.TakenOver{{At: time.Now(), From: "bmp-a", How: control.HowDead, Routers: 7}}
	if out, _, _ = command("status"); !strings.Contains(out, "from bmp-a, whose process had died: 7 routers") {
		t.Errorf("no takeover in\n%s", out)
	}
	s.status.Degraded = []string{"it burns"}
	if out, _, code = command("status"); code != control.ExitDegraded || !strings.Contains(out, "! it burns") {
		t.Errorf("degraded: exit code %d, output\n%s", code, out)
	}
}

func TestStatusWithoutAnAnswer(t *testing.T) {
	dir := t.TempDir()
	missing := filepath.Join(dir, "missing.sock")
	out, msg, code := command("status", "--socket", missing)
	if code != control.ExitNotRunning || out != "" || !strings.Contains(msg, missing) {
		t.Errorf("nobody there: exit code %d, output %q, message %q", code, out, msg)
	}
	for _, args := range [][]string{
		{"status", "surplus"},
		{"status", "--redis", "redis://user:secret@%zz"},
		{"status", "--no-such-flag"},
		{"status", "-c", filepath.Join(dir, "missing.yaml")},
	} {
		_, msg, code := command(args...)
		if code != control.ExitError || msg == "" || strings.Contains(msg, "secret") {
			t.Errorf("%v: exit code %d, message %q", args, code, msg)
		}
	}
}

func TestSocketFromTheConfiguration(t *testing.T) {
	s, path := stub(t)
	s.result = control.MaintainResult{Mode: control.ModeAuto, Role: control.RoleStandby, From: "bmp-a", To: "bmp-a"}
	file := filepath.Join(t.TempDir(), "bmpha.yaml")
	text := "process: bmp-b\nredis: {address: '127.0.0.1:6379'}\nkafka: {brokers: '127.0.0.1:9092'}\ncontrol: {socket: " + path + "}\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"status", "-c", file}, {"maintenance", "-c", file, "auto"}, {"maintenance", "auto", "--config", file}} {
		if _, msg, code := command(args...); code == control.ExitNotRunning || code == control.ExitError {
			t.Errorf("%v: exit code %d, message %q", args, code, msg)
		}
	}
}

func TestMaintenanceCommand(t *testing.T) {
	for _, tt := range []struct {
		args string
		want control.MaintainRequest
	}{
		{"", control.MaintainRequest{Mode: control.ModeHandover, Timeout: 10}},
		{"--force --timeout 30s", control.MaintainRequest{Mode: control.ModeHandover, Force: true, Timeout: 30}},
		{"active", control.MaintainRequest{Mode: control.ModeActive, Timeout: 10}},
		{"standby --force", control.MaintainRequest{Mode: control.ModeStandby, Force: true, Timeout: 10}},
		{"--force --timeout 1500ms standby", control.MaintainRequest{Mode: control.ModeStandby, Force: true, Timeout: 1.5}},
		{"auto -f", control.MaintainRequest{Mode: control.ModeAuto, Force: true, Timeout: 10}},
	} {
		s, path := stub(t)
		s.result = control.MaintainResult{Mode: tt.want.Mode, Role: control.RoleStandby, From: "bmp-a", To: "bmp-b", Took: 0.31}
		args := append([]string{"maintenance", "--socket", path}, strings.Fields(tt.args)...)
		out, msg, code := command(args...)
		if code != 0 || s.asked != tt.want {
			t.Errorf("%q: exit code %d, message %q, asked for %+v, want %+v", tt.args, code, msg, s.asked, tt.want)
		}
		if !strings.Contains(out, "bmp-b is active; it took over from bmp-a in 310ms") {
			t.Errorf("%q: output %q", tt.args, out)
		}
		// Behind the role the same flags do the same, also against the environment.
		t.Setenv("BMPHA_SOCKET", "/nowhere")
		if _, msg, code := command(args...); code != 0 {
			t.Errorf("%q with another socket in the environment: exit code %d, message %q", tt.args, code, msg)
		}
		t.Setenv("BMPHA_SOCKET", "")
	}
}

func TestMaintenanceThatIsNotDone(t *testing.T) {
	s, path := stub(t)
	for _, tt := range []struct {
		err  error
		code int
		want string
	}{
		{&control.Refused{Reason: "no other member is alive"}, control.ExitRefused, "no other member is alive"},
		{context.DeadlineExceeded, control.ExitTimeout, "10 s"},
		{&control.TimedOut{Reason: "nobody took over"}, control.ExitTimeout, "nobody took over"},
		{errors.New("it burns"), control.ExitError, "it burns"},
	} {
		s.err = tt.err
		out, msg, code := command("maintenance", "--socket", path)
		if code != tt.code || out != "" || !strings.Contains(msg, tt.want) {
			t.Errorf("%v: exit code %d, output %q, message %q", tt.err, code, out, msg)
		}
	}
	for _, args := range [][]string{{"passive"}, {"--timeout", "0s"}, {"--timeout", "11m"}, {"auto", "surplus"}} {
		s.asked = control.MaintainRequest{}
		_, msg, code := command(append([]string{"maintenance", "--socket", path}, args...)...)
		if code != control.ExitError || msg == "" || s.asked.Mode != "" {
			t.Errorf("%v: exit code %d, message %q, asked for %+v", args, code, msg, s.asked)
		}
	}
	if _, msg, code := command("maintenance", "--socket", path+".missing"); code != control.ExitNotRunning || msg == "" {
		t.Errorf("nobody there: exit code %d, message %q", code, msg)
	}
}

// A watch goes on when the collector goes away, and ends with its context.
func TestWatch(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	status := standbyStatus()
	n := 0
	var out bytes.Buffer
	v := &viewer{w: &out, every: time.Millisecond}
	err := v.watch(ctx, func(context.Context) (sight, error) {
		switch n++; n {
		case 1:
			return sight{status: &status}, nil
		case 2:
			return sight{}, control.ErrNotRunning
		case 3:
			return sight{status: &status}, nil
		}
		cancel()
		return sight{}, ctx.Err()
	})
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	if len(lines) != 3 || !strings.Contains(lines[0], "STANDBY") || !strings.Contains(lines[1], "not running") || !strings.Contains(lines[2], "STANDBY") {
		t.Errorf("output:\n%s", out.String())
	}
}

func TestRedisOptions(t *testing.T) {
	named := cluster.Options{
		Username: "named-user", Password: "named-password", Database: 2, TLS: &tls.Config{ServerName: "named"},
		Sentinel: cluster.Sentinel{Master: "m", Addresses: []string{"s:26379"}}, Cluster: []string{"n:6379"},
	}
	for _, tt := range []struct {
		in, address, user, password string
		db                          int
		tls                         bool
		from                        cluster.Options
	}{
		{in: "redis", address: "redis:6379"},
		{in: "redis:7000", address: "redis:7000", user: "named-user", password: "named-password", db: 2, tls: true, from: named},
		{in: "::1", address: net.JoinHostPort("::1", "6379")},
		{in: "[::1]:7000", address: "[::1]:7000"},
		{in: "redis://h:1/3", address: "h:1", user: "named-user", password: "named-password", db: 3, from: named},
		{in: "rediss://u:p@h", address: "h:6379", user: "u", password: "p", tls: true},
		{in: "rediss://u:p@h", address: "h:6379", user: "u", password: "p", db: 2, tls: true, from: named},
	} {
		o, err := redisOptions(tt.in, tt.from)
		if err != nil || o.Where() != tt.address || o.Username != tt.user || o.Password != tt.password || o.Database != tt.db || (o.TLS != nil) != tt.tls {
			t.Errorf("%s: %+v, %v, want %+v", tt.in, o, err, tt)
		}
		// The certificates are those of the configuration.
		if tt.tls && tt.from.TLS != nil && o.TLS != tt.from.TLS {
			t.Errorf("%s: TLS is not the one named", tt.in)
		}
	}
}
