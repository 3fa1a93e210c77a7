// Package cluster is what collectors tell each other through Redis.
//
// It is the thin shell of package election: one Round writes what we say of
// ourselves and reads what all members say, within a deadline. It decides
// nothing.
//
// In Redis there are, for a cluster N with id I:
//
//	N+I+PROCESS+ha_daemon_startup_time   the timestamp, native pmacct's own layout
//	bmpha:N+I:members                    a hash, one field per bmpha process
//	bmpha:N+I:token                      counter of takeovers
//	bmpha:N+I:changed                    a channel: look again, now
//
// The timestamp key expires and so is the sign of life. The field in the hash
// says the rest (version, instance, role, routers heard and sent, low-water
// marks) and stays for a while after its process has died, because the last
// low-water marks are what its successor begins with. Members that are native
// pmacct have a timestamp only and are looked for with SCAN, in the background,
// at most once a second.
//
// Redis is one server, the master that sentinels name, or a Redis Cluster, where the
// keys of one cluster lie on different nodes: every command has one key, and nothing
// relies on two of them being done together. A replica that is promoted may lack the
// last of what was written, and the clock after that is another host's; rounds fail
// until it is promoted, and [View] tells what it has lost.
//
// Everything read is untrusted: values that are not numbers, keys of another
// type, fields that are not ours and any number of keys under our pattern are
// skipped and counted, never fatal.
package cluster
