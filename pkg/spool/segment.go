package spool

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"strconv"
	"strings"
)

// A segment file is a header and then frames, all numbers big endian.
//
//	header  magic 8, version 1, name length 1, base 8, salt 8, name, CRC-32C 4
//	frame   marker 4, CRC-32C 4, body length 4, index 4, session 4, arrival 8, kind 1, body
//
// base is the number of the segment's first entry in its queue, and a frame's
// index counts from there, so that what is missing can be counted and a position
// stays right beside it.
//
// The salt is random. Its one half is the marker that each frame begins with,
// its other half is where the checksum starts. After damage the next frame is
// found by its marker, and what a router put into a body cannot pose as one.
const (
	version      = 1
	magic        = "BMPHASEG"
	headerFixed  = 8 + 1 + 1 + 8 + 8 + 4 // without the name
	frameFixed   = 29
	positionName = "BMPHAPOS"
)

// Files carry the version at the end of their names: a damaged byte inside must
// not look like a file of another version.
const (
	segmentExt  = ".seg1"
	positionExt = ".pos1"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

var (
	errShort   = errors.New("more bytes needed")
	errDamaged = errors.New("damaged")
)

// A salt is one segment's. See above.
type salt uint64

func newSalt() salt {
	var b [8]byte
	rand.Read(b[:]) // never fails
	return salt(binary.BigEndian.Uint64(b[:]))
}

func (s salt) marker() uint32 { return uint32(s >> 32) }
func (s salt) seed() uint32   { return uint32(s) }

// A header is what a segment says about itself.
type header struct {
	name string
	base uint64
	salt salt
}

func headerLen(name string) int { return headerFixed + len(name) }

func appendHeader(b []byte, h header) []byte {
	start := len(b)
	b = append(b, magic...)
	b = append(b, version, byte(len(h.name)))
	b = binary.BigEndian.AppendUint64(b, h.base)
	b = binary.BigEndian.AppendUint64(b, uint64(h.salt))
	b = append(b, h.name...)
	return binary.BigEndian.AppendUint32(b, crc32.Checksum(b[start:], castagnoli))
}

// parseHeader reads the header at the beginning of b and returns its length.
func parseHeader(b []byte) (header, int, error) {
	if len(b) < headerFixed || string(b[:8]) != magic || b[8] != version {
		return header{}, 0, errDamaged
	}
	n := headerFixed + int(b[9])
	if len(b) < n || crc32.Checksum(b[:n-4], castagnoli) != binary.BigEndian.Uint32(b[n-4:]) {
		return header{}, 0, errDamaged
	}
	return header{
		name: string(b[26 : n-4]),
		base: binary.BigEndian.Uint64(b[10:]),
		salt: salt(binary.BigEndian.Uint64(b[18:])),
	}, n, nil
}

// appendFrame appends entry e of the given index.
func appendFrame(b []byte, s salt, index uint32, e *Entry) []byte {
	start := len(b)
	b = binary.BigEndian.AppendUint32(b, s.marker())
	b = append(b, 0, 0, 0, 0)
	b = binary.BigEndian.AppendUint32(b, uint32(len(e.Body)))
	b = binary.BigEndian.AppendUint32(b, index)
	b = binary.BigEndian.AppendUint32(b, e.Session)
	b = binary.BigEndian.AppendUint64(b, uint64(e.Arrival))
	b = append(b, e.Kind)
	b = append(b, e.Body...)
	binary.BigEndian.PutUint32(b[start+4:], crc32.Update(s.seed(), castagnoli, b[start+8:]))
	return b
}

// parseFrame reads the frame at the beginning of b into e, whose body is then
// part of b, and returns its index and length. With errShort the length is what
// would be enough to go on.
func parseFrame(b []byte, s salt, e *Entry) (index uint32, n int, err error) {
	if len(b) < frameFixed {
		return 0, frameFixed, errShort
	}
	body := binary.BigEndian.Uint32(b[8:])
	if binary.BigEndian.Uint32(b) != s.marker() || body > MaxBody {
		return 0, 0, errDamaged
	}
	n = frameFixed + int(body)
	if len(b) < n {
		return 0, n, errShort
	}
	if crc32.Update(s.seed(), castagnoli, b[8:n]) != binary.BigEndian.Uint32(b[4:]) {
		return 0, 0, errDamaged
	}
	*e = Entry{
		Kind:    b[28],
		Session: binary.BigEndian.Uint32(b[16:]),
		Arrival: int64(binary.BigEndian.Uint64(b[20:])),
		Body:    b[frameFixed:n:n],
	}
	return binary.BigEndian.Uint32(b[12:]), n, nil
}

// findFrame returns where in b the first good frame with an index of least at
// least begins, -1 if there is none, and reads it into e.
func findFrame(b []byte, s salt, least uint32, e *Entry) (at int, index uint32, n int) {
	marker := binary.BigEndian.AppendUint32(make([]byte, 0, 4), s.marker())
	for at < len(b) {
		i := bytes.Index(b[at:], marker)
		if i < 0 {
			break
		}
		at += i
		if index, n, err := parseFrame(b[at:], s, e); err == nil && index >= least {
			return at, index, n
		}
		at++
	}
	return -1, 0, 0
}

// fileHash is how files name their queue: what a router calls itself is no name
// for a file.
func fileHash(name string) string {
	sum := sha256.Sum256([]byte(name))
	return hex.EncodeToString(sum[:16])
}

// segmentFile is the name of a segment's file. Base and salt are in it so that a
// damaged header costs no entries.
func segmentFile(hash string, base uint64, s salt) string {
	return fmt.Sprintf("%s-%016x-%016x%s", hash, base, uint64(s), segmentExt)
}

// parseSegmentFile is its inverse.
func parseSegmentFile(file string) (hash string, base uint64, s salt, ok bool) {
	rest, ok := strings.CutSuffix(file, segmentExt)
	parts := strings.Split(rest, "-")
	if !ok || len(parts) != 3 {
		return "", 0, 0, false
	}
	base, err1 := strconv.ParseUint(parts[1], 16, 64)
	key, err2 := strconv.ParseUint(parts[2], 16, 64)
	if err1 != nil || err2 != nil || segmentFile(parts[0], base, salt(key)) != file || !isHash(parts[0]) {
		return "", 0, 0, false
	}
	return parts[0], base, salt(key), true
}

func isHash(s string) bool {
	b, err := hex.DecodeString(s)
	return err == nil && len(b) == 16 && strings.ToLower(s) == s
}

// A position file holds the queue's name and the number of its first entry that
// is not acknowledged: magic 8, name length 1, number 8, name, CRC-32C 4. It is
// overwritten in place, which needs no space on a full disk. If it is damaged,
// entries come back that were acknowledged.
func appendPosition(b []byte, name string, position uint64) []byte {
	start := len(b)
	b = append(b, positionName...)
	b = append(b, byte(len(name)))
	b = binary.BigEndian.AppendUint64(b, position)
	b = append(b, name...)
	return binary.BigEndian.AppendUint32(b, crc32.Checksum(b[start:], castagnoli))
}

func parsePosition(b []byte) (name string, position uint64, err error) {
	const fixed = 8 + 1 + 8 + 4
	if len(b) < fixed || string(b[:8]) != positionName || len(b) != fixed+int(b[8]) ||
		crc32.Checksum(b[:len(b)-4], castagnoli) != binary.BigEndian.Uint32(b[len(b)-4:]) {
		return "", 0, errDamaged
	}
	return string(b[17 : len(b)-4]), binary.BigEndian.Uint64(b[9:]), nil
}
