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
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// statusPatience bounds a call of Client.Status whose context has no end.
const statusPatience = 5 * time.Second

// A Client talks to the collector behind a Unix socket. It is safe for concurrent
// use. Close it.
type Client struct {
	path string
	http *http.Client
}

// NewClient returns a client for the socket at path. It does no I/O.
func NewClient(path string) *Client {
	var d net.Dialer
	return &Client{path: path, http: &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return d.DialContext(ctx, "unix", path)
		},
		DisableCompression: true,
	}}}
}

// Close releases idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Status returns the collector's state. It waits 5 s at most. The error wraps
// ErrNotRunning when nobody listens, and ErrNoAnswer when the collector hangs.
func (c *Client) Status(ctx context.Context) (*Status, error) {
	ctx, cancel := context.WithTimeout(ctx, statusPatience)
	defer cancel()
	var s Status
	if err := c.call(ctx, http.MethodGet, "/v1/status", nil, &s); err != nil {
		return nil, err
	}
	if s.Version < 1 {
		return nil, fmt.Errorf("status from %s: version %d, want 1 or later", c.path, s.Version)
	}
	return &s, nil
}

// Maintain asks for a change and waits until it is seen to have happened, at most
// r.Timeout. The error wraps ErrNotRunning when nobody listens, is a *Refused when
// nothing was changed, a *TimedOut when it was begun and not seen in time, and wraps
// ErrNoAnswer when the collector hangs.
// When ctx ends first, what was begun stays.
func (c *Client) Maintain(ctx context.Context, r MaintainRequest) (*MaintainResult, error) {
	wait := r.Timeout.Duration()
	if wait == 0 {
		wait = DefaultMaintainTimeout
	}
	// The server answers in time, unless it hangs.
	ctx, cancel := context.WithTimeout(ctx, wait+statusPatience)
	defer cancel()
	var result MaintainResult
	if err := c.call(ctx, http.MethodPost, "/v1/maintenance", r, &result); err != nil {
		return nil, err
	}
	return &result, nil
}

// An Answer is what there is to say about the routes that a query got.
type Answer struct {
	Found int  // routes
	More  bool // there are more than the query's limit
	// Without are the routers that were asked and keep no table, with the reason, in
	// words.
	Without string
	// Telling are the routers that have not ended telling their table, in words, where
	// nothing was found.
	Telling string
}

// Routes asks for routes and calls each with the JSON of every one as it comes, a
// line without its line feed that is valid during the call. An answer that does not
// begin within 5 s is an error that wraps ErrNoAnswer; from then on only ctx bounds
// it. Other errors are those of Status, of each, a *NotFound, or wrap ErrNoTable.
func (c *Client) Routes(ctx context.Context, q *Query, each func(line []byte) error) (Answer, error) {
	end, err := c.lines(ctx, "/v1/routes?"+q.Values().Encode(), each)
	if err != nil {
		return Answer{}, err
	}
	found, _ := strconv.Atoi(end.Get(trailerFound))
	return Answer{found, end.Get(trailerMore) == "true", end.Get(headerWithout), end.Get(trailerTold)}, nil
}

// Peers asks for the peers of a router, all routers if it is "", and calls each with
// the JSON of every router, a RouterPeers, as Routes does.
func (c *Client) Peers(ctx context.Context, router string, each func(line []byte) error) error {
	path := "/v1/peers"
	if router != "" {
		path += "?" + url.Values{"router": {router}}.Encode()
	}
	_, err := c.lines(ctx, path, each)
	return err
}

// lines does one request whose answer is a stream, and returns its headers and
// trailers.
func (c *Client) lines(ctx context.Context, path string, each func([]byte) error) (http.Header, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://bmpha"+path, nil)
	if err != nil {
		return nil, fmt.Errorf("ask the collector at %s: %w", c.path, err)
	}
	late := time.AfterFunc(statusPatience, func() { cancel(ErrNoAnswer) })
	resp, err := c.http.Do(req)
	late.Stop()
	if err != nil {
		if errors.Is(context.Cause(ctx), ErrNoAnswer) {
			return nil, fmt.Errorf("%w: no answer on %s in time", ErrNoAnswer, c.path)
		}
		return nil, c.explain(ctx, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		b, _ := io.ReadAll(io.LimitReader(resp.Body, maxRequest))
		return nil, c.failure(resp, b)
	}
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, maxResponse)
	for lines.Scan() {
		if err := each(lines.Bytes()); err != nil {
			return nil, err
		}
	}
	err = lines.Err()
	switch {
	case ctx.Err() != nil:
		return nil, context.Cause(ctx)
	case err == nil && resp.Trailer.Get(trailerFound) == "":
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return nil, fmt.Errorf("the answer from %s has broken off: %w", c.path, err)
	}
	for key, v := range resp.Trailer {
		resp.Header[key] = v
	}
	return resp.Header, nil
}

// call does one request. in is sent as JSON unless it is nil.
func (c *Client) call(ctx context.Context, method, path string, in, out any) error {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return fmt.Errorf("ask the collector at %s: %w", c.path, err)
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://bmpha"+path, body)
	if err != nil {
		return fmt.Errorf("ask the collector at %s: %w", c.path, err)
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := c.http.Do(req)
	if err != nil {
		return c.explain(ctx, err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxResponse+1))
	switch {
	case err != nil:
		return c.explain(ctx, err)
	case len(b) > maxResponse:
		return fmt.Errorf("answer from %s: more than %d bytes", c.path, maxResponse)
	}
	if resp.StatusCode != http.StatusOK {
		return c.failure(resp, b)
	}
	if err := json.Unmarshal(b, out); err != nil {
		return fmt.Errorf("answer from %s: %w", c.path, err)
	}
	return nil
}

// failure makes an error of an answer that is not a success.
func (c *Client) failure(resp *http.Response, body []byte) error {
	var e apiError
	if json.Unmarshal(body, &e) != nil || e.Error.Code == "" {
		return fmt.Errorf("answer from %s: %s", c.path, resp.Status)
	}
	switch e.Error.Code {
	case codeRefused:
		return &Refused{Reason: e.Error.Message}
	case codeTimedOut:
		return &TimedOut{Reason: e.Error.Message}
	case codeNotFound:
		return &NotFound{Reason: e.Error.Message}
	case codeNoTable:
		return fmt.Errorf("%w%s", ErrNoTable, strings.TrimPrefix(e.Error.Message, ErrNoTable.Error()))
	}
	return fmt.Errorf("answer from %s: %s", c.path, e.Error.Message)
}

// explain says in plain words why there was no answer.
func (c *Client) explain(ctx context.Context, err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("%w: nobody listens on %s", ErrNotRunning, c.path)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("connect to %s: %w (be its owner or in its group)", c.path, fs.ErrPermission)
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return fmt.Errorf("%w: no answer on %s in time", ErrNoAnswer, c.path)
	case ctx.Err() != nil:
		return ctx.Err()
	}
	return fmt.Errorf("ask the collector at %s: %w", c.path, errors.Unwrap(err))
}
