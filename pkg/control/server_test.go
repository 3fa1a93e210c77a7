package control

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// backend is a collector that says what a test wants.
type backend struct {
	status   func() Status
	maintain func(context.Context, MaintainRequest) (MaintainResult, error)
	healthy  error
	ready    error
}

func (b *backend) Status() Status {
	if b.status != nil {
		return b.status()
	}
	s := *active()
	s.At = time.Now()
	return s
}

func (b *backend) Maintain(ctx context.Context, r MaintainRequest) (MaintainResult, error) {
	return b.maintain(ctx, r)
}

func (b *backend) Healthy() error { return b.healthy }
func (b *backend) Ready() error   { return b.ready }

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// serve runs a server on a socket, and on TCP if http is set, until the test ends.
func serve(t *testing.T, b Backend, http string) (*Server, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "bmpha.sock")
	s, err := Listen(ServerOptions{Backend: b, Socket: path, HTTP: http, Log: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return s, path
}

func client(t *testing.T, path string) *Client {
	c := NewClient(path)
	t.Cleanup(c.Close)
	return c
}

func TestStatusOverTheSocket(t *testing.T) {
	now := time.Now().Round(0).UTC()
	_, path := serve(t, &backend{status: func() Status {
		s := *active()
		s.At = now
		return s
	}}, "")
	got, err := client(t, path).Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	want := *active()
	want.At = now
	want.complete(now)
	for i := range want.Routers { // in the answer nothing is null
		notNil(&want.Routers[i].HeardBy)
	}
	if diff := cmp.Diff(&want, got); diff != "" {
		t.Errorf("status changed on its way (-sent +received):\n%s", diff)
	}
}

// The keys of the document. A key that goes or changes its meaning breaks scripts.
func TestDocument(t *testing.T) {
	s := linked(beside())
	s.Intake.Files = files(beside()).Intake.Files
	s.Dump = dumping()
	s.Redis.State, s.Redis.LastError = RedisFailing, "no answer in time"
	s.complete(at)
	b, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "status.json", string(b)+"\n")

	empty := Status{Intake: &Intake{}, Relay: []RelayTarget{{}}, Spool: &Spool{}, Routers: []Router{{}}}
	empty.complete(time.Time{})
	if b, err = json.Marshal(&empty); err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(b, []byte("null")) {
		t.Errorf("null in the document of an empty status: %s", b)
	}
}

func TestServingDoesNotChangeWhatTheBackendKeeps(t *testing.T) {
	kept := files(beside())
	_, path := serve(t, &backend{status: func() Status { return *kept }}, "")
	if _, err := client(t, path).Status(t.Context()); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(files(beside()), kept); diff != "" {
		t.Errorf("the backend's state was changed:\n%s", diff)
	}
}

func TestANewerDocumentIsRead(t *testing.T) {
	path := answering(t, http.StatusOK, `{"v": 9, "role": "active", "something_new": {"x": 1}}`)
	s, err := client(t, path).Status(t.Context())
	if err != nil || s.Role != RoleActive {
		t.Errorf("status of a later version: %+v, %v", s, err)
	}
	path = answering(t, http.StatusOK, `{"role": "active"}`)
	if _, err := client(t, path).Status(t.Context()); err == nil {
		t.Error("a document without a version was taken")
	}
}

// answering is a server that gives one answer to everything.
func answering(t *testing.T, code int, body string) string {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	hs := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(code)
		io.WriteString(w, body)
	})}
	var done sync.WaitGroup
	done.Go(func() { hs.Serve(l) })
	t.Cleanup(func() { hs.Close(); done.Wait() })
	return path
}

func TestNobodyListens(t *testing.T) {
	dir := t.TempDir()
	left := filepath.Join(dir, "left-behind")
	leaveSocket(t, left)
	for _, path := range []string{filepath.Join(dir, "missing"), left} {
		_, err := client(t, path).Status(t.Context())
		if !errors.Is(err, ErrNotRunning) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v, want ErrNotRunning with the path", path, err)
		}
	}
}

// leaveSocket makes a socket at path on which nobody listens.
func leaveSocket(t *testing.T, path string) {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
}

func TestUnintelligibleAnswers(t *testing.T) {
	for body, code := range map[string]int{
		"":             http.StatusOK,
		"<html>":       http.StatusOK,
		"nothing here": http.StatusNotFound,
		`{"error":{}}`: http.StatusInternalServerError,
		`{"error":{"code":"internal","message":"on fire"}}`: http.StatusInternalServerError,
	} {
		path := answering(t, code, body)
		if _, err := client(t, path).Status(t.Context()); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%d %q: %v, want an error that names the socket", code, body, err)
		}
	}
}

func TestSocketPermissions(t *testing.T) {
	// Whatever the umask lets through, the socket is for owner and group.
	for _, umask := range []int{0, 0o077} {
		old := unix.Umask(umask)
		_, path := serve(t, &backend{}, "")
		unix.Umask(old)
		info, err := os.Lstat(path)
		if err != nil {
			t.Fatal(err)
		}
		if want := fs.ModeSocket | 0o660; info.Mode() != want {
			t.Errorf("umask %03o: socket has mode %v, want %v", umask, info.Mode(), want)
		}
		entries, err := os.ReadDir(filepath.Dir(path))
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			if e.Name() != "bmpha.sock" && e.Name() != "bmpha.sock.lock" {
				t.Errorf("left beside the socket: %s", e.Name())
			}
		}
	}
}

func TestStaleSocketIsReplaced(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	leaveSocket(t, path)
	for range 2 { // and again after a clean end
		s, err := Listen(ServerOptions{Backend: &backend{}, Socket: path, Log: quiet()})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := client(t, path).Status(t.Context()); err != nil {
			t.Error(err)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("the socket is still there after Close: %v", err)
		}
	}
}

func TestLiveSocketIsLeftAlone(t *testing.T) {
	_, path := serve(t, &backend{}, "")
	if _, err := Listen(ServerOptions{Backend: &backend{}, Socket: path, Log: quiet()}); !errors.Is(err, ErrAlreadyRunning) {
		t.Errorf("a second server on the socket: %v, want ErrAlreadyRunning", err)
	}
	// Somebody else's, without our lock.
	other := answering(t, http.StatusOK, `{"v":1}`)
	if _, err := Listen(ServerOptions{Backend: &backend{}, Socket: other, Log: quiet()}); !errors.Is(err, ErrAlreadyRunning) {
		t.Errorf("a server on a socket that answers: %v, want ErrAlreadyRunning", err)
	}
	for _, p := range []string{path, other} {
		if _, err := client(t, p).Status(t.Context()); err != nil {
			t.Errorf("the one that was there: %v", err)
		}
	}
}

// Of many that start at the same time exactly one gets the socket.
func TestOneOfManyGetsTheSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	leaveSocket(t, path)
	var wg sync.WaitGroup
	servers := make(chan *Server, 16)
	for range cap(servers) {
		wg.Go(func() {
			s, err := Listen(ServerOptions{Backend: &backend{}, Socket: path, Log: quiet()})
			switch {
			case err == nil:
				servers <- s
			case !errors.Is(err, ErrAlreadyRunning):
				t.Error(err)
			}
		})
	}
	wg.Wait()
	close(servers)
	n := 0
	for s := range servers {
		n++
		if _, err := client(t, path).Status(t.Context()); err != nil {
			t.Error(err)
		}
		s.Close()
	}
	if n != 1 {
		t.Errorf("%d servers on one socket, want 1", n)
	}
}

func TestWhatIsNoSocketIsLeftAlone(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "precious")
	if err := os.WriteFile(file, []byte("data"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{file, dir} {
		if s, err := Listen(ServerOptions{Backend: &backend{}, Socket: path, Log: quiet()}); err == nil {
			s.Close()
			t.Errorf("listens on %s", path)
		}
	}
	if b, err := os.ReadFile(file); err != nil || string(b) != "data" {
		t.Errorf("the file that was in the way: %q, %v", b, err)
	}
}

func TestSocketWithoutAFolder(t *testing.T) {
	path := filepath.Join(t.TempDir(), "none", "s")
	_, err := Listen(ServerOptions{Backend: &backend{}, Socket: path, Log: quiet()})
	if want := "(make the folder, or set control.socket)"; !errors.Is(err, fs.ErrNotExist) || !strings.HasSuffix(err.Error(), want) {
		t.Errorf("%v, want %s at the end", err, want)
	}
}

func TestLongSocketPaths(t *testing.T) {
	// As many bytes as the system takes must do, one more must be said.
	dir := t.TempDir()
	pad := maxSocketPath - len(dir) - 1
	if pad < 1 || pad > 200 {
		t.Skipf("the directory for tests has a path of %d bytes", len(dir))
	}
	path := filepath.Join(dir, strings.Repeat("s", pad))
	s, err := Listen(ServerOptions{Backend: &backend{}, Socket: path, Log: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := client(t, path).Status(t.Context()); err != nil {
		t.Error(err)
	}
	if _, err := Listen(ServerOptions{Backend: &backend{}, Socket: path + "s", Log: quiet()}); err == nil || !strings.Contains(err.Error(), "at most 107") {
		t.Errorf("a path that is too long: %v", err)
	}
}

func TestAPortThatIsTakenFreesTheSocket(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	path := filepath.Join(t.TempDir(), "s")
	if _, err := Listen(ServerOptions{Backend: &backend{}, Socket: path, HTTP: l.Addr().String(), Log: quiet()}); !errors.Is(err, syscall.EADDRINUSE) {
		t.Fatalf("a port that is taken: %v", err)
	}
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the socket is still there: %v", err)
	}
	s, err := Listen(ServerOptions{Backend: &backend{}, Socket: path, Log: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
}

func TestConcurrentClients(t *testing.T) {
	_, path := serve(t, &backend{maintain: func(_ context.Context, r MaintainRequest) (MaintainResult, error) {
		return MaintainResult{Mode: r.Mode}, nil
	}}, "")
	shared := client(t, path)
	var wg sync.WaitGroup
	for i := range 32 {
		wg.Go(func() {
			c := shared
			if i%2 == 0 {
				c = NewClient(path)
				defer c.Close()
			}
			for range 20 {
				if s, err := c.Status(t.Context()); err != nil || s.Process != "bmp-a" {
					t.Errorf("status: %v", err)
					return
				}
				if r, err := c.Maintain(t.Context(), MaintainRequest{Mode: ModeAuto}); err != nil || r.Mode != ModeAuto {
					t.Errorf("maintenance: %v", err)
					return
				}
			}
		})
	}
	wg.Wait()
}

func TestMaintenance(t *testing.T) {
	b := &backend{}
	_, path := serve(t, b, "")
	c := client(t, path)
	var got MaintainRequest
	b.maintain = func(ctx context.Context, r MaintainRequest) (MaintainResult, error) {
		got = r
		deadline, _ := ctx.Deadline()
		if left := time.Until(deadline); left > r.Timeout.Duration() || left < r.Timeout.Duration()-10*time.Second {
			t.Errorf("the context ends in %s, want the %s of the request", left, r.Timeout.Duration())
		}
		return MaintainResult{Mode: r.Mode, Role: RoleStandby, From: "bmp-a", To: "bmp-b", Took: 0.31, Token: 8}, nil
	}
	r, err := c.Maintain(t.Context(), MaintainRequest{Mode: ModeHandover, Force: true, Timeout: 20})
	if err != nil {
		t.Fatal(err)
	}
	if want := (MaintainRequest{Mode: ModeHandover, Force: true, Timeout: 20}); got != want {
		t.Errorf("the backend got %+v, want %+v", got, want)
	}
	if want := (MaintainResult{Mode: ModeHandover, Role: RoleStandby, From: "bmp-a", To: "bmp-b", Took: 0.31, Token: 8}); *r != want {
		t.Errorf("the client got %+v, want %+v", *r, want)
	}
	if _, err := c.Maintain(t.Context(), MaintainRequest{Mode: ModeHandover}); err != nil || got.Timeout.Duration() != DefaultMaintainTimeout {
		t.Errorf("without a timeout: %v, %v, want the default", got.Timeout, err)
	}

	var refused *Refused
	var late *TimedOut
	b.maintain = func(context.Context, MaintainRequest) (MaintainResult, error) {
		return MaintainResult{}, fmt.Errorf("hand over: %w", &Refused{Reason: "no other member is alive"})
	}
	if _, err := c.Maintain(t.Context(), MaintainRequest{Mode: ModeHandover}); !errors.As(err, &refused) || refused.Reason != "no other member is alive" {
		t.Errorf("refused: %v", err)
	}
	b.maintain = func(context.Context, MaintainRequest) (MaintainResult, error) {
		return MaintainResult{}, &TimedOut{Reason: "bmp-b has not claimed"}
	}
	if _, err := c.Maintain(t.Context(), MaintainRequest{Mode: ModeHandover}); !errors.As(err, &late) || late.Reason != "bmp-b has not claimed" {
		t.Errorf("timed out, in the backend's words: %v", err)
	}
	b.maintain = func(ctx context.Context, _ MaintainRequest) (MaintainResult, error) {
		<-ctx.Done()
		return MaintainResult{}, ctx.Err()
	}
	if _, err := c.Maintain(t.Context(), MaintainRequest{Mode: ModeHandover, Timeout: 0.05}); !errors.As(err, &late) {
		t.Errorf("timed out: %v", err)
	}
	b.maintain = func(context.Context, MaintainRequest) (MaintainResult, error) {
		return MaintainResult{}, errors.New("disk on fire")
	}
	if _, err := c.Maintain(t.Context(), MaintainRequest{Mode: ModeHandover}); err == nil || !strings.Contains(err.Error(), "disk on fire") {
		t.Errorf("any other error: %v", err)
	}
}

// When whoever asked goes away, the backend is told.
func TestLongPollCancelled(t *testing.T) {
	began, ended := make(chan struct{}), make(chan error, 1)
	_, path := serve(t, &backend{maintain: func(ctx context.Context, _ MaintainRequest) (MaintainResult, error) {
		close(began)
		<-ctx.Done()
		ended <- ctx.Err()
		return MaintainResult{}, ctx.Err()
	}}, "")
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		if _, err := client(t, path).Maintain(ctx, MaintainRequest{Mode: ModeHandover, Timeout: 600}); !errors.Is(err, context.Canceled) {
			t.Errorf("the client's error: %v, want context.Canceled", err)
		}
	})
	<-began
	cancel()
	select {
	case err := <-ended:
		if !errors.Is(err, context.Canceled) {
			t.Errorf("the backend's context: %v, want context.Canceled", err)
		}
	case <-time.After(time.Minute):
		t.Error("the backend still waits")
	}
	wg.Wait()
}

func TestCloseEndsWhatWaits(t *testing.T) {
	began := make(chan struct{})
	path := filepath.Join(t.TempDir(), "s")
	s, err := Listen(ServerOptions{Socket: path, Log: quiet(), Backend: &backend{maintain: func(ctx context.Context, _ MaintainRequest) (MaintainResult, error) {
		close(began)
		<-ctx.Done()
		return MaintainResult{}, ctx.Err()
	}}})
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		if _, err := client(t, path).Maintain(t.Context(), MaintainRequest{Mode: ModeHandover, Timeout: 600}); err == nil {
			t.Error("no error although the server has ended")
		}
	})
	<-began
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	wg.Wait()
}

// A collector whose process stands still does not make the client hang.
func TestHungCollector(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path) // nobody accepts
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := client(t, path).Status(ctx); !errors.Is(err, ErrNoAnswer) {
		t.Errorf("status of a collector that hangs: %v", err)
	}
}

func TestBadRequests(t *testing.T) {
	_, path := serve(t, &backend{maintain: func(context.Context, MaintainRequest) (MaintainResult, error) {
		t.Error("a bad request reached the backend")
		return MaintainResult{}, nil
	}}, "")
	for _, tt := range []struct {
		name, method, path, body string
		code                     int
	}{
		{"empty", "POST", "/v1/maintenance", "", 400},
		{"not JSON", "POST", "/v1/maintenance", "mode=handover", 400},
		{"an array", "POST", "/v1/maintenance", "[]", 400},
		{"no mode", "POST", "/v1/maintenance", "{}", 400},
		{"unknown mode", "POST", "/v1/maintenance", `{"mode":"reboot"}`, 400},
		{"unknown key", "POST", "/v1/maintenance", `{"mode":"auto","forced":true}`, 400},
		{"two values", "POST", "/v1/maintenance", `{"mode":"auto"}{"mode":"auto"}`, 400},
		{"wrong type", "POST", "/v1/maintenance", `{"mode":"auto","force":"yes"}`, 400},
		{"negative timeout", "POST", "/v1/maintenance", `{"mode":"auto","timeout_seconds":-1}`, 400},
		{"endless timeout", "POST", "/v1/maintenance", `{"mode":"auto","timeout_seconds":1e9}`, 400},
		{"too large", "POST", "/v1/maintenance", `{"mode":"` + strings.Repeat("x", maxRequest) + `"}`, 413},
		{"wrong method", "GET", "/v1/maintenance", "", 405},
		{"wrong method", "POST", "/v1/status", "", 405},
		{"unknown path", "GET", "/v2/status", "", 404},
		{"metrics are not here", "GET", "/metrics", "", 404},
		{"nor are profiles", "GET", "/debug/pprof/", "", 404},
	} {
		t.Run(tt.name, func(t *testing.T) {
			conn, err := net.Dial("unix", path)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			fmt.Fprintf(conn, "%s %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s", tt.method, tt.path, len(tt.body), tt.body)
			resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			if resp.StatusCode != tt.code {
				t.Errorf("status %d, want %d", resp.StatusCode, tt.code)
			}
			if tt.code == 400 || tt.code == 413 {
				var e apiError
				if err := json.NewDecoder(resp.Body).Decode(&e); err != nil || e.Error.Code != codeBad || e.Error.Message == "" {
					t.Errorf("body %+v, %v: want the code %s and a message", e, err, codeBad)
				}
			}
		})
	}
}

func TestGarbageDoesNotDisturb(t *testing.T) {
	_, path := serve(t, &backend{}, "")
	for _, garbage := range []string{"", "\x00\x01\x02", "\x03\x00\x00\x00\x06\x04", "GET", "GET / HTTP/9.9\r\n\r\n", strings.Repeat("x", 1<<20)} {
		conn, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(conn, garbage)
		conn.Close()
	}
	if _, err := client(t, path).Status(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestStatusThatJSONCannotWrite(t *testing.T) {
	_, path := serve(t, &backend{status: func() Status {
		s := *active()
		s.Uptime = Seconds(math.NaN())
		return s
	}}, "")
	if _, err := client(t, path).Status(t.Context()); err == nil || !strings.Contains(err.Error(), "NaN") {
		t.Errorf("a number that is none: %v, want an error that says so", err)
	}
}

func TestObservation(t *testing.T) {
	b := &backend{}
	s, _ := serve(t, b, "127.0.0.1:0")
	get := func(path string) (int, string) {
		t.Helper()
		tr := &http.Transport{}
		defer tr.CloseIdleConnections()
		resp, err := (&http.Client{Transport: tr}).Get("http://" + s.Addr().String() + path)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(body)
	}
	for path, want := range map[string]string{
		"/healthz": "ok", "/readyz": "ok", "/debug/pprof/": "goroutine", "/debug/pprof/goroutine?debug=1": "goroutine profile", "/debug/pprof/cmdline": "control",
	} {
		if code, body := get(path); code != 200 || !strings.Contains(body, want) {
			t.Errorf("%s: %d %.80q, want 200 and %q", path, code, body, want)
		}
	}
	code, body := get("/metrics")
	for _, want := range []string{`bmpha_role{role="active"} 1`, "go_goroutines", "process_open_fds"} {
		if code != 200 || !strings.Contains(body, want) {
			t.Errorf("/metrics: %d, no %s", code, want)
		}
	}
	if code, _ := get("/v1/status"); code != 404 {
		t.Errorf("the API over TCP: %d, want 404", code)
	}
	b.healthy, b.ready = errors.New("the main loop\nstands still"), errors.New("no election round yet")
	for path, want := range map[string]string{"/healthz": "the main loop?stands still\n", "/readyz": "no election round yet\n"} {
		if code, body := get(path); code != 503 || body != want {
			t.Errorf("%s: %d %q, want 503 and %q", path, code, body, want)
		}
	}
}

// FuzzMaintainRequest: nothing panics, and what is taken is within its limits and
// survives a round trip.
func FuzzMaintainRequest(f *testing.F) {
	for _, s := range []string{
		`{"mode":"handover"}`, `{"mode":"active","force":true,"timeout_seconds":30}`, `{"mode":"auto","timeout_seconds":1e-320}`,
		`{"mode":"standby"} x`, `{"mode":5}`, `{"MODE":"auto"}`, `null`, `{"mode":"auto","timeout_seconds":601}`, "\xef\xbb\xbf{}",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		q, err := parseMaintain(bytes.NewReader(b))
		if err != nil {
			return
		}
		if d := q.Timeout.Duration(); d < 0 || d > MaxMaintainTimeout {
			t.Errorf("timeout %s was taken", d)
		}
		out, err := json.Marshal(q)
		if err != nil {
			t.Fatal(err)
		}
		if again, err := parseMaintain(bytes.NewReader(out)); err != nil || again != q {
			t.Errorf("%+v became %+v, %v", q, again, err)
		}
	})
}
