package dump

import (
	"time"

	"github.com/cespare/xxhash/v2"
)

// A Plan says when each router is dumped.
type Plan struct {
	Period time.Duration // from one dump of a router to the next; whole seconds
	Slots  int           // of a period; divides it into whole seconds
}

// Every returns the time from one slot to the next, which pmacct calls the
// dump_period.
func (p Plan) Every() time.Duration { return p.Period / time.Duration(p.Slots) }

// Slot returns the router's last slot that has begun at now.
func (p Plan) Slot(router string, now time.Time) time.Time {
	period := int64(p.Period / time.Second)
	offset := int64(xxhash.Sum64String(router)%uint64(p.Slots)) * int64(p.Every()/time.Second)
	since := (now.Unix() - offset) % period
	if since < 0 {
		since += period
	}
	return time.Unix(now.Unix()-since, 0)
}

// Due reports whether a router is to be dumped that was first heard at heard and
// of which done is the last slot for which a whole dump is known, and for which
// slot.
func (p Plan) Due(router string, heard, done, now time.Time) (slot time.Time, due bool) {
	slot = p.Slot(router, now)
	return slot, !heard.After(slot) && done.Before(slot)
}

// Patient reports whether a dump that is due since slot should still wait for a
// table that is not settled.
func (p Plan) Patient(slot, now time.Time) bool { return now.Sub(slot) < p.Period/2 }
