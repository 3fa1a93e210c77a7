package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"time"
)

// DefaultSocket is where a collector listens unless it is told otherwise.
const DefaultSocket = "/run/bmpha/bmpha.sock"

// Modes of a MaintainRequest.
const (
	ModeHandover = "handover" // become the youngest, so that another takes over
	ModeActive   = "active"   // be active whatever the election says
	ModeStandby  = "standby"  // be standby whatever the election says
	ModeAuto     = "auto"     // follow the election again
)

// Limits of a request for maintenance.
const (
	DefaultMaintainTimeout = 10 * time.Second
	MaxMaintainTimeout     = 10 * time.Minute
	maxRequest             = 4 << 10  // bytes
	maxResponse            = 64 << 20 // bytes
)

// A MaintainRequest asks a collector to change its part in the cluster.
type MaintainRequest struct {
	Mode string `json:"mode"`
	// Force does it even if no other member is alive to take over.
	Force bool `json:"force,omitempty"`
	// Timeout is how long to wait until the change is seen; 0 means
	// DefaultMaintainTimeout, MaxMaintainTimeout is the most.
	Timeout Seconds `json:"timeout_seconds,omitempty"`
}

// A MaintainResult tells what was seen to happen.
type MaintainResult struct {
	Mode string `json:"mode"`
	// Role and Forced are those of the collector afterwards.
	Role   string `json:"role"`
	Forced string `json:"forced,omitempty"`
	// From and To are the members that were active before and are active now.
	// They are equal when nothing changed, and empty when nobody was.
	From string `json:"from,omitempty"`
	To   string `json:"to,omitempty"`
	// Took is the time from the request until To was seen active.
	Took  Seconds `json:"took_seconds"`
	Token uint64  `json:"token,omitempty"`
}

// Errors that a client can tell apart.
var (
	// ErrNotRunning says that nobody listens on the socket.
	ErrNotRunning = errors.New("bmpha is not running")
	// ErrNoAnswer says that a collector is there and does not answer in time.
	ErrNoAnswer = errors.New("the collector hangs")
	// ErrAlreadyRunning says that another process listens on the socket.
	ErrAlreadyRunning = errors.New("already running")
	// ErrNoTable says that a collector keeps no table of routes.
	ErrNoTable = errors.New("no table")
)

// Refused says that a collector did not do what it was asked to, and why.
// Nothing was changed.
type Refused struct{ Reason string }

func (r *Refused) Error() string { return "refused: " + r.Reason }

// TimedOut says that what was asked for was begun and not seen to happen in time.
type TimedOut struct{ Reason string }

func (t *TimedOut) Error() string { return t.Reason }

// NotFound says that a query names a router that a collector has no table of.
type NotFound struct{ Reason string }

func (n *NotFound) Error() string { return n.Reason }

// A Backend is the collector behind a Server. Its methods are called
// concurrently.
type Backend interface {
	// Status returns the state of now. The maps and slices in it are not changed
	// afterwards.
	Status() Status
	// Maintain does what is asked for and waits until it is seen to have
	// happened. ctx ends when the request's time is over or nobody waits any
	// more; what was begun then stays. The error is a *Refused when nothing was
	// changed.
	Maintain(ctx context.Context, r MaintainRequest) (MaintainResult, error)
	// Healthy returns nil while the main loop turns.
	Healthy() error
	// Ready returns nil when the collector listens for routers and has had its
	// first election round, or has given up on Redis for now.
	Ready() error
}

// parseMaintain reads a request strictly: a key that is not known might be a wish
// that would silently not be followed.
func parseMaintain(r io.Reader) (MaintainRequest, error) {
	var q MaintainRequest
	d := json.NewDecoder(r)
	d.DisallowUnknownFields()
	if err := d.Decode(&q); err != nil {
		return q, fmt.Errorf("request for maintenance: %w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return q, errors.New("request for maintenance: more than one JSON value")
	}
	switch q.Mode {
	case ModeHandover, ModeActive, ModeStandby, ModeAuto:
	default:
		return q, fmt.Errorf("request for maintenance: mode %q, want %s, %s, %s or %s", q.Mode, ModeHandover, ModeActive, ModeStandby, ModeAuto)
	}
	switch {
	case q.Timeout == 0:
		q.Timeout = Seconds(DefaultMaintainTimeout.Seconds())
	case math.IsNaN(float64(q.Timeout)) || q.Timeout < 0 || q.Timeout > Seconds(MaxMaintainTimeout.Seconds()):
		return q, fmt.Errorf("request for maintenance: timeout_seconds %v, want 0 to %v", q.Timeout, MaxMaintainTimeout.Seconds())
	}
	return q, nil
}

// apiError is the body of every answer that is not a success.
type apiError struct {
	Error struct {
		Code    string `json:"code"` // one of those below
		Message string `json:"message"`
	} `json:"error"`
}

// Codes of an apiError.
const (
	codeRefused  = "refused"
	codeTimedOut = "timed_out"
	codeBad      = "bad_request"
	codeInternal = "internal"
	codeNotFound = "not_found"
	codeNoTable  = "no_table"
	codeBusy     = "busy"
)
