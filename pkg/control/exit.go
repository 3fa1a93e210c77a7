package control

import "time"

// Exit codes of `bmpha status`, `bmpha maintenance`, `bmpha routes` and `bmpha
// peers`. The last two end with 0 when something was found.
const (
	ExitActive     = 0 // active and well; for maintenance: done
	ExitError      = 1 // usage, or no answer that could be understood
	ExitStandby    = 3 // standby and well
	ExitDegraded   = 4 // something is wrong, or there is no answer
	ExitNotRunning = 5 // no collector listens on the socket
	ExitRefused    = 6 // maintenance only: refused, nothing was changed
	ExitTimeout    = 7 // maintenance only: asked for, not seen to happen in time
	// 8 is of `bmpha verify`.
	ExitNotFound = 9  // routes and peers: nothing was found
	ExitNoTable  = 10 // routes and peers: the collector keeps no table
)

// ExitCode returns the exit code for what s says at now, a time on the clock of
// the collector's host. Notices do not count.
func ExitCode(s *Status, now time.Time) int {
	switch {
	case degraded(Problems(s, now)):
		return ExitDegraded
	case s.Role == RoleActive:
		return ExitActive
	case s.Role == RoleStandby:
		return ExitStandby
	}
	return ExitDegraded
}

// ClusterExitCode returns ExitActive when exactly one member is active, or a
// native one may be, and ExitDegraded otherwise.
func ClusterExitCode(v *ClusterView) int {
	if c := v.count(); c.active == 1 || c.active == 0 && c.native > 0 {
		return ExitActive
	}
	return ExitDegraded
}

type census struct{ live, active, native int }

func (v *ClusterView) count() (c census) {
	for i := range v.Members {
		m := &v.Members[i]
		if m.Gone {
			continue
		}
		c.live++
		if m.Kind == KindNative && m.Role == "" {
			c.native++
		}
		if m.Role == RoleActive {
			c.active++
		}
	}
	return c
}
