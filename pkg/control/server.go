package control

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// ServerOptions say what a Server serves, and where.
type ServerOptions struct {
	Backend Backend
	// Socket is the path of the Unix socket; "" for none.
	Socket string
	// HTTP is the host:port of the TCP listener for metrics, health and profiles;
	// "" for none. It has no access control: keep it on loopback or behind a
	// firewall.
	HTTP string
	// Tables returns the tables of all routers, for the looking glass; nil when the
	// collector keeps none. It is called concurrently, once for each query, and
	// what it returns is not changed afterwards. Routes are shown on the socket
	// only, like the status.
	Tables func() []RouterTable
	// Log takes what goes wrong while serving; nil for slog.Default.
	Log *slog.Logger
}

// How long a client may take to say what it wants and to take the answer.
const (
	headerPatience  = 5 * time.Second
	requestPatience = 10 * time.Second
	answerPatience  = 10 * time.Second
	profilePatience = 5 * time.Minute
	idlePatience    = time.Minute
)

// closePatience is how long Close lets requests finish that do not wait.
const closePatience = 3 * time.Second

// A Server serves the API on a Unix socket and metrics on TCP.
type Server struct {
	backend Backend
	tables  func() []RouterTable
	queries chan struct{} // those being answered
	log     *slog.Logger

	socket *socket
	tcp    net.Listener
	stop   context.CancelFunc // ends the requests that wait
	https  []*http.Server
	done   sync.WaitGroup
}

// Listen listens and serves until Close. The error wraps ErrAlreadyRunning when
// another process listens on the socket; then nothing is served.
func Listen(opts ServerOptions) (*Server, error) {
	s := &Server{backend: opts.Backend, tables: opts.Tables, queries: make(chan struct{}, maxQueries), log: cmp.Or(opts.Log, slog.Default())}
	if opts.Socket != "" {
		var err error
		if s.socket, err = listenSocket(opts.Socket); err != nil {
			return nil, err
		}
	}
	if opts.HTTP != "" {
		var err error
		if s.tcp, err = net.Listen("tcp", opts.HTTP); err != nil {
			if s.socket != nil {
				err = errors.Join(err, s.socket.Close(), s.socket.remove())
			}
			return nil, fmt.Errorf("listen for metrics: %w", err)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	s.stop = cancel
	if s.socket != nil {
		s.serve(ctx, s.socket, s.api())
	}
	if s.tcp != nil {
		s.serve(ctx, s.tcp, s.observation())
	}
	return s, nil
}

// Addr returns the address of the TCP listener, nil if there is none.
func (s *Server) Addr() net.Addr {
	if s.tcp == nil {
		return nil
	}
	return s.tcp.Addr()
}

func (s *Server) serve(ctx context.Context, l net.Listener, h http.Handler) {
	hs := &http.Server{
		Handler:           h,
		ReadHeaderTimeout: headerPatience,
		ReadTimeout:       requestPatience,
		IdleTimeout:       idlePatience,
		MaxHeaderBytes:    16 << 10,
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
	}
	s.https = append(s.https, hs)
	s.done.Go(func() {
		if err := hs.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			s.log.Error("control listener has failed", "error", err)
		}
	})
}

// Close ends requests that wait, lets the others finish for a few seconds,
// removes the socket and returns when nothing runs any more. It is called once.
func (s *Server) Close() error {
	s.stop()
	ctx, cancel := context.WithTimeout(context.Background(), closePatience)
	defer cancel()
	var errs []error
	for _, hs := range s.https {
		if err := hs.Shutdown(ctx); err != nil {
			errs = append(errs, hs.Close())
		}
	}
	s.done.Wait()
	if s.socket != nil {
		errs = append(errs, s.socket.remove())
	}
	return errors.Join(errs...)
}

// api is what the Unix socket serves.
func (s *Server) api() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /v1/status", within(answerPatience, s.serveStatus))
	mux.Handle("GET /v1/routes", within(answerPatience, s.serveRoutes))
	mux.Handle("GET /v1/peers", within(answerPatience, s.servePeers))
	mux.Handle("POST /v1/maintenance", within(answerPatience, s.serveMaintenance))
	mux.Handle("GET /v1/healthz", within(answerPatience, probe(s.backend.Healthy)))
	return mux
}

// observation is what the TCP listener serves. Nothing there changes anything.
func (s *Server) observation() http.Handler {
	registry := prometheus.NewRegistry()
	registry.MustRegister(NewMetrics(s.backend.Status), collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	mux := http.NewServeMux()
	metrics := promhttp.HandlerFor(registry, promhttp.HandlerOpts{
		ErrorLog:            slog.NewLogLogger(s.log.Handler(), slog.LevelWarn),
		ErrorHandling:       promhttp.ContinueOnError,
		MaxRequestsInFlight: 4,
	})
	mux.Handle("GET /metrics", within(answerPatience, metrics.ServeHTTP))
	mux.Handle("GET /healthz", within(answerPatience, probe(s.backend.Healthy)))
	mux.Handle("GET /readyz", within(answerPatience, probe(s.backend.Ready)))
	mux.Handle("GET /debug/pprof/", within(profilePatience, pprof.Index))
	mux.Handle("GET /debug/pprof/cmdline", within(answerPatience, pprof.Cmdline))
	mux.Handle("GET /debug/pprof/profile", within(profilePatience, pprof.Profile))
	mux.Handle("GET /debug/pprof/symbol", within(answerPatience, pprof.Symbol))
	mux.Handle("GET /debug/pprof/trace", within(profilePatience, pprof.Trace))
	return mux
}

// within bounds the body and gives the client d from the start of the request to
// take the answer.
func within(d time.Duration, h http.HandlerFunc) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.Body = http.MaxBytesReader(w, r.Body, maxRequest)
		// Not supported by test recorders only.
		_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(d))
		h(w, r)
	})
}

// probe answers 200 or 503 with the reason.
func probe(check func() error) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		w.Header().Set("Cache-Control", "no-store")
		if err := check(); err != nil {
			w.WriteHeader(http.StatusServiceUnavailable)
			fmt.Fprintln(w, clean(err.Error()))
			return
		}
		io.WriteString(w, "ok\n")
	}
}

func (s *Server) serveStatus(w http.ResponseWriter, _ *http.Request) {
	status := s.backend.Status()
	status.complete(time.Now())
	answer(w, http.StatusOK, &status)
}

func (s *Server) serveMaintenance(w http.ResponseWriter, r *http.Request) {
	q, err := parseMaintain(r.Body)
	if err != nil {
		code := http.StatusBadRequest
		if tooLarge := (*http.MaxBytesError)(nil); errors.As(err, &tooLarge) {
			code = http.StatusRequestEntityTooLarge
		}
		fail(w, code, codeBad, err)
		return
	}
	// The answer may take as long as was asked for. Until then the connection is
	// read from, so that we notice when nobody waits any more.
	wait := q.Timeout.Duration()
	rc := http.NewResponseController(w)
	_ = rc.SetReadDeadline(time.Time{})
	_ = rc.SetWriteDeadline(time.Now().Add(wait + answerPatience))
	ctx, cancel := context.WithTimeout(r.Context(), wait)
	defer cancel()

	result, err := s.backend.Maintain(ctx, q)
	var refused *Refused
	var late *TimedOut
	switch {
	case err == nil:
		answer(w, http.StatusOK, &result)
	case errors.As(err, &refused):
		fail(w, http.StatusConflict, codeRefused, errors.New(refused.Reason))
	case errors.As(err, &late):
		fail(w, http.StatusGatewayTimeout, codeTimedOut, late)
	case errors.Is(err, context.DeadlineExceeded):
		fail(w, http.StatusGatewayTimeout, codeTimedOut, fmt.Errorf("not seen to happen within %s", span(q.Timeout)))
	default:
		fail(w, http.StatusInternalServerError, codeInternal, err)
	}
}

func answer(w http.ResponseWriter, code int, v any) {
	b, err := json.Marshal(v)
	if err != nil { // numbers that JSON cannot write
		fail(w, http.StatusInternalServerError, codeInternal, err)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(code)
	w.Write(append(b, '\n'))
}

func fail(w http.ResponseWriter, code int, name string, err error) {
	var e apiError
	e.Error.Code, e.Error.Message = name, err.Error()
	answer(w, code, &e)
}

// complete makes s what readers get: with its problems, and with empty lists and
// maps instead of null.
func (s *Status) complete(now time.Time) {
	s.Version = StatusVersion
	s.Problems = Problems(s, now)
	notNil(&s.Degraded)
	notNil(&s.Problems)
	notNil(&s.Members)
	s.Routers = append([]Router{}, s.Routers...) // they belong to the backend
	for i := range s.Routers {
		r := &s.Routers[i]
		notNil(&r.HeardBy)
		notNilMap(&r.Freed)
		notNilMap(&r.Dropped)
	}
	if s.Intake != nil && s.Intake.Producers == nil {
		intake := *s.Intake
		notNil(&intake.Producers)
		s.Intake = &intake
	}
	if s.Link != nil && s.Link.Peers == nil {
		s.Link = &Link{Holds: s.Link.Holds, Peers: []LinkPeer{}}
	}
	for _, m := range []*map[string]uint64{&s.RoleChanges, &s.TakeoversTotal, &s.Hold.Dropped, &s.Sessions.Refused, &s.Sessions.Closed, &s.Messages, &s.LeftOut} {
		notNilMap(m)
	}
}

func notNil[T any](s *[]T) {
	if *s == nil {
		*s = []T{}
	}
}

func notNilMap(m *map[string]uint64) {
	if *m == nil {
		*m = map[string]uint64{}
	}
}
