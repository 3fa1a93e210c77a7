package collector

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/bmpha/bmpha/pkg/hold"
)

// TestTwoAddresses: collectors that see a router under different addresses, which the
// configuration says are one router's, repeat no more at a takeover than others.
func TestTwoAddresses(t *testing.T) {
	for _, second := range []string{"127.0.0.1", "127.0.0.2"} {
		t.Run(second, func(t *testing.T) {
			l := newLab(t)
			options := func(o *Options) {
				patient(o)
				o.ReadBackTime = time.Minute
				o.Margin = 2 * time.Second // so that there is something held to be compared
				o.Alias = map[netip.Addr]string{netip.MustParseAddr("127.0.0.1"): "edge", netip.MustParseAddr("127.0.0.2"): "edge"}
			}
			a := l.start("a", options)
			l.role(a, "active")
			b := l.start("b", options)
			l.role(b, "standby")
			var f spoken
			dump := append(append(hello("r"), f.up(1000)...), append(f.route("10.1.0.0/16"), f.end()...)...)
			to, too := speak(t, "127.0.0.1", a, dump), speak(t, second, b, dump)
			times := func(prefix string) (n int) {
				for _, r := range l.sub.Records() {
					if strings.Contains(string(r.Value), prefix) {
						n++
					}
				}
				return n
			}
			l.until("the dump is over, and not held any more", func() error {
				if st := b.Status(); len(st.Routers) != 1 || st.Routers[0].Messages != 4 || st.Hold.Messages != 0 {
					return fmt.Errorf("%d held, %+v", st.Hold.Messages, st.Routers)
				}
				return nil
			})
			// a has sent it, and b holds it, which is so for no longer than the margin.
			var prefix string
			for try, held := 0, uint64(0); held == 0; try++ {
				if try == 20 {
					t.Fatal("b holds nothing")
				}
				prefix = fmt.Sprintf("10.2.%d.0/24", try)
				for _, way := range []net.Conn{to, too} {
					if _, err := way.Write(f.route(prefix)); err != nil {
						t.Fatal(err)
					}
				}
				l.until("both have it, and a has sent it", func() error {
					st := b.Status()
					held = st.Hold.Messages
					if n, heard := times(prefix), st.Routers[0].Messages; n != 1 || heard != uint64(5+try) {
						return fmt.Errorf("%d times in Kafka, b has heard %d messages", n, heard)
					}
					return nil
				})
			}
			if err := a.stop(); err != nil {
				t.Error(err)
			}
			l.role(b, "active")
			if _, err := too.Write(f.route("10.3.0.0/16")); err != nil {
				t.Fatal(err)
			}
			l.until("b sends", func() error {
				if times("10.3.0.0") == 0 {
					return fmt.Errorf("of %d records none says it", l.sub.Count())
				}
				return nil
			})
			if n := times(prefix); n != 1 {
				t.Errorf("what a had sent is in Kafka %d times", n)
			}
		})
	}
}

// TestListsAreBounded: what is known of the logs of all routers together is bounded,
// and has room again when some have gone on.
func TestListsAreBounded(t *testing.T) {
	c := still(t)
	j := &c.join
	j.most = 10
	var f spoken
	var routers []*router
	for i := range byte(3) {
		addr := netip.AddrFrom4([4]byte{192, 0, 2, i})
		r := c.router(addr.String(), addr, false)
		r.mu.Lock()
		now := c.clock.now()
		opened := openedBody(netip.AddrPortFrom(addr, 1))
		r.stream.Append(hold.Opened, 1, now, opened[:])
		r.stream.Append(hold.Message, 1, now, f.up(1000))
		for n := range uint32(4) {
			var b [4]byte
			binary.BigEndian.PutUint32(b[:], 10<<24|n<<8)
			r.stream.Append(hold.Message, 1, now, f.route(netip.PrefixFrom(netip.AddrFrom4(b), 24).String()))
		}
		r.mu.Unlock()
		routers = append(routers, r)
	}
	listed := func() (n []int) {
		for _, r := range routers {
			if r.own != nil {
				n = append(n, r.own.Len())
			}
		}
		return n
	}
	j.list(routers)
	if n := fmt.Sprint(listed()); n != "[6 4 1]" || j.listed != 11 { // one of each at least
		t.Errorf("listed %s, %d in sum", n, j.listed)
	}
	j.let(routers[0], true, false, 0, new(joined))
	j.list(routers[1:])
	if n := fmt.Sprint(listed()); n != "[6 4]" || j.listed != 10 {
		t.Errorf("then listed %s, %d in sum", n, j.listed)
	}
	j.primed = true
	j.most = 100
	j.list(routers[1:])
	if n := fmt.Sprint(listed()); n != "[6 6]" || j.listed != 12 {
		t.Errorf("with more room listed %s, %d in sum", n, j.listed)
	}
}
