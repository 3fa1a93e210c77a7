package link

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"time"
)

var anyone = func(hello) error { return nil }

func testHello(name string, instance uint64) hello {
	return hello{version: version, instance: instance, cluster: "lab+0", name: name, address: "192.0.2.1:1792"}
}

// greeting is one greeting, and what each end has sent.
type greeting struct {
	dialler, acceptor *session
	diallerErr        error
	acceptorErr       error
	sent, answered    bytes.Buffer
}

// tap notes what is written.
type tap struct {
	io.ReadWriter
	to *bytes.Buffer
}

func (t tap) Write(b []byte) (int, error) {
	t.to.Write(b)
	return t.ReadWriter.Write(b)
}

func greet(t *testing.T, dialSecret, answerSecret []byte) *greeting {
	t.Helper()
	var g greeting
	a, b := net.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		g.acceptor, g.acceptorErr = answer(tap{b, &g.answered}, testHello("b", 2), answerSecret, anyone)
		if g.acceptorErr != nil {
			b.Close()
		}
	}()
	g.dialler, g.diallerErr = dial(tap{a, &g.sent}, testHello("a", 1), dialSecret, anyone)
	<-done
	a.Close()
	b.Close()
	return &g
}

func TestGreeting(t *testing.T) {
	g := greet(t, secret, secret)
	if g.diallerErr != nil || g.acceptorErr != nil {
		t.Fatalf("%v, %v", g.diallerErr, g.acceptorErr)
	}
	for _, tt := range []struct {
		got  hello
		want Peer
	}{
		{g.dialler.peer, Peer{"b", 2, "192.0.2.1:1792"}},
		{g.acceptor.peer, Peer{"a", 1, "192.0.2.1:1792"}},
	} {
		if tt.got.peer() != tt.want {
			t.Errorf("greeted %+v, want %+v", tt.got.peer(), tt.want)
		}
	}
	for _, way := range []struct{ from, to *session }{{g.dialler, g.acceptor}, {g.acceptor, g.dialler}} {
		var wire bytes.Buffer
		for _, body := range []string{"one", "", "three"} {
			wire.Write(way.from.out.seal(kindSay, []byte(body)))
		}
		for _, want := range []string{"one", "", "three"} {
			kind, body, err := way.to.in.next(&wire)
			if err != nil || kind != kindSay || string(body) != want {
				t.Errorf("kind %d, %q, %v; want %q", kind, body, err, want)
			}
		}
	}
	// A frame that comes back to who has sent it.
	if _, _, err := g.dialler.in.next(bytes.NewReader(g.dialler.out.seal(kindSay, nil))); !errors.Is(err, errForged) {
		t.Errorf("reflected: %v", err)
	}
}

func TestGreetingWithAnotherSecret(t *testing.T) {
	g := greet(t, secret, []byte("another"))
	if !errors.Is(g.acceptorErr, errProof) || g.diallerErr == nil {
		t.Errorf("%v, %v", g.diallerErr, g.acceptorErr)
	}
	// Nothing that depends on the secret was told to who did not know it.
	h := testHello("b", 2)
	if n := len(h.encode()); g.answered.Len() != n {
		t.Errorf("%d bytes were answered, want a hello of %d", g.answered.Len(), n)
	}
}

// canned answers with what was recorded.
type canned struct {
	io.Reader
	io.Writer
}

// What was said in one greeting is of no use in another.
func TestGreetingReplayed(t *testing.T) {
	g := greet(t, secret, secret)
	if _, err := answer(canned{&g.sent, io.Discard}, testHello("b", 2), secret, anyone); !errors.Is(err, errProof) {
		t.Errorf("the dialling end's: %v", err)
	}
	if _, err := dial(canned{&g.answered, io.Discard}, testHello("a", 1), secret, anyone); !errors.Is(err, errProof) {
		t.Errorf("the accepting end's: %v", err)
	}
}

// Who sends everything back to us, as if it were we.
func TestGreetingReflected(t *testing.T) {
	var wire bytes.Buffer
	if _, err := dial(&wire, testHello("a", 1), secret, anyone); !errors.Is(err, errProof) {
		t.Errorf("it has greeted itself: %v", err)
	}
}

func TestGreetingTampered(t *testing.T) {
	for _, end := range []string{"dialler", "acceptor"} {
		h := testHello("a", 1)
		for i := range len(h.encode()) + macSize {
			a, b := net.Pipe()
			for _, c := range []net.Conn{a, b} { // a longer hello never comes
				c.SetDeadline(time.Now().Add(50 * time.Millisecond))
			}
			da, db := io.ReadWriter(a), io.ReadWriter(b)
			if end == "dialler" {
				da = &flip{ReadWriter: a, at: i}
			} else {
				db = &flip{ReadWriter: b, at: i}
			}
			var acceptorErr error
			done := make(chan struct{})
			go func() {
				defer close(done)
				if _, acceptorErr = answer(db, testHello("b", 2), secret, anyone); acceptorErr != nil {
					b.Close()
				}
			}()
			_, diallerErr := dial(da, testHello("a", 1), secret, anyone)
			a.Close()
			<-done
			b.Close()
			if diallerErr == nil {
				t.Fatalf("byte %d of what the %s sends: not noticed", i, end)
			}
		}
	}
}

// flip changes one byte of what is written.
type flip struct {
	io.ReadWriter
	at, n int
}

func (f *flip) Write(b []byte) (int, error) {
	if i := f.at - f.n; i >= 0 && i < len(b) {
		b = slices.Clone(b)
		b[i] ^= 0x10
	}
	f.n += len(b)
	return f.ReadWriter.Write(b)
}

func TestFramesTampered(t *testing.T) {
	key := []byte("key")
	frames := func() [][]byte {
		s := newSealer(key)
		var all [][]byte
		for _, body := range []string{"one", "two", "three"} {
			all = append(all, slices.Clone(s.seal(kindSay, []byte(body))))
		}
		return all
	}
	read := func(wire []byte) (int, error) {
		o, r := newOpener(key), bytes.NewReader(wire)
		for n := 0; ; n++ {
			if _, _, err := o.next(r); err != nil {
				return n, err
			}
		}
	}
	f := frames()
	if n, err := read(bytes.Join(f, nil)); n != 3 || err != io.EOF {
		t.Fatalf("%d frames, %v", n, err)
	}
	for name, wire := range map[string][]byte{
		"replayed":     bytes.Join([][]byte{f[0], f[0]}, nil),
		"out of order": bytes.Join([][]byte{f[0], f[2], f[1]}, nil),
		"left out":     bytes.Join([][]byte{f[0], f[2]}, nil),
	} {
		if n, err := read(wire); n != 1 || !errors.Is(err, errForged) {
			t.Errorf("%s: %d frames, %v", name, n, err)
		}
	}
	for i := range f[0] {
		wire := slices.Clone(f[0])
		wire[i] ^= 1
		if n, err := read(wire); n != 0 || err == io.EOF {
			t.Errorf("byte %d changed: %d frames, %v", i, n, err)
		}
		if n, err := read(f[0][:i]); n != 0 || i > 0 && err != io.ErrUnexpectedEOF {
			t.Errorf("cut at byte %d: %d frames, %v", i, n, err)
		}
	}
	large := binary.BigEndian.AppendUint32(nil, maxBody+1)
	if _, err := read(append(large, make([]byte, 100)...)); !errors.Is(err, errSize) {
		t.Errorf("too long: %v", err)
	}
	if _, err := read(f[0][:frameHead]); err != io.ErrUnexpectedEOF {
		t.Errorf("cut behind the head: %v", err)
	}
}

// A length that is not followed by as much takes no memory.
func TestFrameLengthAlone(t *testing.T) {
	head := binary.BigEndian.AppendUint32(nil, maxBody)
	o := newOpener([]byte("key"))
	if _, _, err := o.next(bytes.NewReader(append(head, make([]byte, 1000)...))); err != io.ErrUnexpectedEOF {
		t.Error(err)
	}
	if cap(o.buf) > 1<<20 {
		t.Errorf("%d bytes were taken", cap(o.buf))
	}
}

func TestHellos(t *testing.T) {
	good := testHello("a", 1)
	rand.Read(good.nonce[:])
	body := good.encode()[2:]
	for _, tt := range []struct {
		name string
		body []byte
		ok   bool
	}{
		{"as it is", body, true},
		{"with what a later version adds", append(slices.Clone(body), "more"...), true},
		{"of a later version", append(append([]byte(magic), 9), body[len(magic)+1:]...), true},
		{"of no version", append(append([]byte(magic), 0), body[len(magic)+1:]...), false},
		{"nothing", nil, false},
		{"HTTP", []byte("GET / HTTP/1.1\r\nHost: collector-a\r\nUser-Agent: something that is long enough\r\n\r\n"), false},
		{"cut", body[:len(body)-1], false},
	} {
		h, err := parseHello(tt.body)
		if (err == nil) != tt.ok {
			t.Errorf("%s: %v", tt.name, err)
		}
		if tt.ok && h.peer() != good.peer() {
			t.Errorf("%s: %+v", tt.name, h)
		}
	}
	for _, change := range []func(h *hello){
		func(h *hello) { h.name = "" },
		func(h *hello) { h.address = strings.Repeat("x", maxText+1) },
	} {
		h := good
		change(&h)
		if _, err := parseHello(h.encode()[2:]); err == nil {
			t.Errorf("no error for %+v", h)
		}
	}
}

func FuzzHello(f *testing.F) {
	h := testHello("a", 1)
	f.Add(h.encode())
	f.Add([]byte("\x00\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, raw, err := readHello(bytes.NewReader(b))
		if err != nil {
			return
		}
		if !bytes.Equal(raw, b[:len(raw)]) {
			t.Fatal("not the bytes that were read")
		}
		if again, err := parseHello(h.encode()[2:]); err != nil || again != h {
			t.Fatalf("%+v is read as %+v, %v", h, again, err)
		}
	})
}

// No bytes of one who does not know the secret are a greeting.
func FuzzGreeting(f *testing.F) {
	h := testHello("a", 1)
	f.Add(append(h.encode(), make([]byte, macSize)...))
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, err := answer(canned{bytes.NewReader(b), io.Discard}, testHello("b", 2), secret, anyone); err == nil {
			t.Error("answered")
		}
		if _, err := dial(canned{bytes.NewReader(b), io.Discard}, testHello("b", 2), secret, anyone); err == nil {
			t.Error("dialled")
		}
	})
}

// Whatever is taken for a frame is what was sealed, in order.
func FuzzFrames(f *testing.F) {
	key := []byte("key")
	s := newSealer(key)
	sealed := slices.Concat(slices.Clone(s.seal(kindSay, []byte("words"))), slices.Clone(s.seal(kindPing, make([]byte, 8))))
	f.Add(sealed)
	f.Add(sealed[:40])
	f.Add([]byte("\x00\x40\x00\x00\x01"))
	f.Fuzz(func(t *testing.T, b []byte) {
		o, r := newOpener(key), bytes.NewReader(b)
		again := newSealer(key)
		var wire []byte
		for {
			kind, body, err := o.next(r)
			if err != nil {
				break
			}
			wire = append(wire, again.seal(kind, body)...)
		}
		if !bytes.Equal(wire, b[:len(wire)]) {
			t.Error("other frames than those that were sent")
		}
	})
}

// What is said every quarter of a heartbeat costs no garbage.
func TestFramesAllocateNothing(t *testing.T) {
	s, o := newSealer([]byte("key")), newOpener([]byte("key"))
	body := make([]byte, 10_000)
	r := bytes.NewReader(nil)
	if n := testing.AllocsPerRun(100, func() {
		r.Reset(s.seal(kindSay, body))
		if _, _, err := o.next(r); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
