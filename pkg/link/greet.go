package link

import (
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// The greeting: each end sends its hello, the dialling one first; then the dialling
// end proves that it knows the secret, and only then the other, so that who merely
// connects learns nothing that depends on it.
//
// A hello is
//
//	length of what follows      2 bytes
//	"bmpha-link"                10
//	version                     1
//	flags                       1
//	nonce                       32
//	instance                    8
//	cluster, name, address      2 + length, each
//	whatever later versions add

// version is the highest that this end speaks. The lower one of both is spoken.
const version = 1

const flagProbe = 1 // the connection ends after the greeting

const (
	magic     = "bmpha-link"
	nonceSize = 32
	maxText   = 512
	maxHello  = 4 << 10
)

// Labels of what is derived from the secret.
const (
	labelDialler  = "bmpha link 1: I dialled"
	labelAcceptor = "bmpha link 1: I accepted"
	labelForward  = "bmpha link 1: from who dialled"
	labelBackward = "bmpha link 1: from who accepted"
)

// A hello is what one end says of itself.
type hello struct {
	version, flags byte
	nonce          [nonceSize]byte
	instance       uint64
	cluster        string
	name           string
	address        string
}

func (h *hello) peer() Peer { return Peer{Name: h.name, Instance: h.instance, Address: h.address} }

// encode returns it with its length.
func (h *hello) encode() []byte {
	b := make([]byte, 2, 256)
	b = append(b, magic...)
	b = append(b, h.version, h.flags)
	b = append(b, h.nonce[:]...)
	b = binary.BigEndian.AppendUint64(b, h.instance)
	for _, s := range []string{h.cluster, h.name, h.address} {
		b = binary.BigEndian.AppendUint16(b, uint16(len(s)))
		b = append(b, s...)
	}
	binary.BigEndian.PutUint16(b, uint16(len(b)-2))
	return b
}

var (
	errStranger = errors.New("no hello of a collector")
	errProof    = errors.New("another secret")
)

// parseHello reads what follows the length.
func parseHello(b []byte) (hello, error) {
	var h hello
	const fixed = len(magic) + 2 + nonceSize + 8
	if len(b) < fixed || string(b[:len(magic)]) != magic {
		return h, errStranger
	}
	b = b[len(magic):]
	h.version, h.flags = b[0], b[1]
	if h.version < 1 {
		return h, fmt.Errorf("a hello of version %d", h.version)
	}
	b = b[2+copy(h.nonce[:], b[2:]):]
	h.instance = binary.BigEndian.Uint64(b)
	b = b[8:]
	for _, s := range []*string{&h.cluster, &h.name, &h.address} {
		if len(b) < 2 {
			return h, errStranger
		}
		n := int(binary.BigEndian.Uint16(b))
		if n > maxText || len(b) < 2+n {
			return h, errStranger
		}
		*s, b = string(b[2:2+n]), b[2+n:]
	}
	if h.name == "" {
		return h, errStranger
	}
	return h, nil
}

// readHello returns a hello and its bytes, with the length.
func readHello(r io.Reader) (hello, []byte, error) {
	raw := make([]byte, 2, 256)
	if _, err := io.ReadFull(r, raw); err != nil {
		return hello{}, nil, err
	}
	n := int(binary.BigEndian.Uint16(raw))
	if n > maxHello {
		return hello{}, nil, errStranger
	}
	raw = grow(raw, 2+n)
	if _, err := io.ReadFull(r, raw[2:]); err != nil {
		return hello{}, nil, err
	}
	h, err := parseHello(raw[2:])
	return h, raw, err
}

// A session is what both ends know after the greeting.
type session struct {
	peer hello
	out  *sealer
	in   *opener
}

// secrets are what follows from the secret and both hellos.
type secrets struct {
	dialler, acceptor []byte // proofs
	forward, backward []byte // keys
}

// derive makes them of both hellos as they were sent. Nonces, names, cluster and
// roles are in each.
func derive(secret, dialler, acceptor []byte) (secrets, error) {
	hellos := sha256.New()
	hellos.Write(dialler) // begins with its length, so that nothing can move
	hellos.Write(acceptor)
	transcript := hellos.Sum(nil)
	proof := func(label string) []byte {
		mac := hmac.New(sha256.New, secret)
		mac.Write([]byte(label))
		mac.Write(transcript)
		return mac.Sum(nil)
	}
	s := secrets{dialler: proof(labelDialler), acceptor: proof(labelAcceptor)}
	var err, err2 error
	s.forward, err = hkdf.Key(sha256.New, secret, transcript, labelForward, sha256.Size)
	s.backward, err2 = hkdf.Key(sha256.New, secret, transcript, labelBackward, sha256.Size)
	return s, errors.Join(err, err2)
}

// dial greets as the end that has connected. admit says whether to go on with who
// answers.
func dial(rw io.ReadWriter, self hello, secret []byte, admit func(hello) error) (*session, error) {
	rand.Read(self.nonce[:])
	own := self.encode()
	if _, err := rw.Write(own); err != nil {
		return nil, err
	}
	peer, theirs, err := readHello(rw)
	if err != nil {
		return nil, err
	}
	if err := admit(peer); err != nil {
		return nil, err
	}
	s, err := derive(secret, own, theirs)
	if err != nil {
		return nil, err
	}
	if _, err := rw.Write(s.dialler); err != nil {
		return nil, err
	}
	if err := readProof(rw, s.acceptor); err != nil {
		return nil, err
	}
	return &session{peer, newSealer(s.forward), newOpener(s.backward)}, nil
}

// answer greets as the end that was connected to.
func answer(rw io.ReadWriter, self hello, secret []byte, admit func(hello) error) (*session, error) {
	peer, theirs, err := readHello(rw)
	if err != nil {
		return nil, err
	}
	if err := admit(peer); err != nil {
		return nil, err
	}
	rand.Read(self.nonce[:])
	own := self.encode()
	if _, err := rw.Write(own); err != nil {
		return nil, err
	}
	s, err := derive(secret, theirs, own)
	if err != nil {
		return nil, err
	}
	if err := readProof(rw, s.dialler); err != nil {
		return nil, err
	}
	if _, err := rw.Write(s.acceptor); err != nil {
		return nil, err
	}
	return &session{peer, newSealer(s.backward), newOpener(s.forward)}, nil
}

func readProof(r io.Reader, want []byte) error {
	var got [macSize]byte
	if _, err := io.ReadFull(r, got[:]); err != nil {
		return err
	}
	if !hmac.Equal(got[:], want) {
		return errProof
	}
	return nil
}
