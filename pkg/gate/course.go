package gate

import "time"

const (
	// A table dump is over when its last End-of-RIB was this long ago, or nothing
	// has come for as long; and some time after its first one, because those of peers
	// that come up are no end of a dump. Some routers never send one, and never pause.
	courseRest  = int64(time.Second / time.Microsecond)
	courseFirst = 10 * courseRest
	courseMost  = 30 * courseRest
)

// A Course is how far a session has come with its table dump, as far as can be told.
// Times are 0 for never. The zero value is that of no session.
type Course struct {
	Begun         int64 // when it opened
	last          int64 // when something came last
	first, marker int64 // End-of-RIB
	Done          int64 // when it was found whole
}

// Begin follows the opening of a session.
func (c *Course) Begin(now int64) { *c = Course{Begun: now, last: now} }

// Take follows a message, which may be an End-of-RIB (RFC 4724, 2).
func (c *Course) Take(now int64, endOfRIB bool) {
	c.last = now
	if endOfRIB {
		c.marker = now
		if c.first == 0 {
			c.first = now
		}
	}
}

// End follows the end of the session. A dump that was not over then never is.
func (c *Course) End() {
	if c.Done == 0 {
		*c = Course{}
	}
}

// Whole reports whether the dump is over, as far as can be told. behind says that more
// has come than was taken.
func (c *Course) Whole(now int64, behind bool) bool {
	if c.Done == 0 && !behind && c.over(now) {
		c.Done = now
	}
	return c.Done != 0
}

func (c *Course) over(now int64) bool {
	return c.Begun != 0 && (c.marker != 0 && (now-c.marker >= courseRest || now-c.first >= courseFirst) ||
		now-c.last >= courseRest || now-c.Begun >= courseMost)
}
