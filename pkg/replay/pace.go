package replay

import "time"

// A pacer says when messages are due so that they flow at a steady rate. The
// zero rate is no limit. It has no clock of its own.
type pacer struct {
	rate  float64 // messages per second
	begin time.Time
	sent  float64 // since begin
}

const (
	// mostDue bounds what is sent at once, so that no lock is held for long.
	mostDue = 256
	// mostLate is how far a pacer may fall behind and still catch up; what is
	// later than that is not made up for.
	mostLate = 100 * time.Millisecond
)

// due returns how many messages may be sent at the time now, and takes them as
// sent; if none, how long to wait for the next.
func (p *pacer) due(now time.Time) (n int, wait time.Duration) {
	if p.rate <= 0 {
		return mostDue, 0
	}
	if p.begin.IsZero() {
		p.begin = now
	}
	late := now.Sub(p.begin).Seconds() - p.sent/p.rate
	if late > mostLate.Seconds() {
		p.begin, p.sent = now.Add(-mostLate), 0
		late = mostLate.Seconds()
	}
	// A message is due at the instant 0, 1/rate, 2/rate ... of the clock.
	n = min(int(late*p.rate+1+1e-6), mostDue)
	if n <= 0 {
		// One nanosecond more than it takes, against rounding.
		return 0, time.Duration(-late*float64(time.Second)) + 1
	}
	p.sent += float64(n)
	return n, 0
}
