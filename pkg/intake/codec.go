package intake

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"

	"github.com/bmpha/bmpha/pkg/record"
)

// An entry is a fixed part, then topic, key, headers and, to its end, the value.
const (
	entryVersion = 1
	// version u8, flags u8, topic length u16, partition u32, timestamp u64,
	// key length u32, headers length u32
	entryHead = 24

	entryKeyNull   = 1
	entryValueNull = 2
)

// AppendEntry appends r as it lies in a log. Of the topic, the first 65535 bytes
// are kept; a legal one has at most 249.
func AppendEntry(dst []byte, r *Record) []byte {
	var flags byte
	key, value := r.Key, r.Value
	if r.KeyNull {
		flags, key = flags|entryKeyNull, nil
	}
	if r.ValueNull {
		flags, value = flags|entryValueNull, nil
	}
	topic := r.Topic[:min(len(r.Topic), math.MaxUint16)]
	dst = append(dst, entryVersion, flags)
	dst = binary.BigEndian.AppendUint16(dst, uint16(len(topic)))
	dst = binary.BigEndian.AppendUint32(dst, uint32(r.Partition))
	dst = binary.BigEndian.AppendUint64(dst, uint64(r.Timestamp))
	dst = binary.BigEndian.AppendUint32(dst, uint32(len(key)))
	dst = binary.BigEndian.AppendUint32(dst, uint32(len(r.Headers)))
	dst = append(dst, topic...)
	dst = append(dst, key...)
	dst = append(dst, r.Headers...)
	return append(dst, value...)
}

// ParseEntry returns the record in b, which is one whole entry. Its slices are
// parts of b. It fails on anything that AppendEntry does not make; the headers are
// good for record.EachMore.
func ParseEntry(b []byte) (Record, error) {
	if len(b) < entryHead {
		return Record{}, fmt.Errorf("entry of %d bytes, at least %d", len(b), entryHead)
	}
	if b[0] != entryVersion || b[1] > entryKeyNull|entryValueNull {
		return Record{}, fmt.Errorf("entry of version %d with flags %#x", b[0], b[1])
	}
	r := Record{
		KeyNull:   b[1]&entryKeyNull != 0,
		ValueNull: b[1]&entryValueNull != 0,
		Partition: int32(binary.BigEndian.Uint32(b[4:])),
		Timestamp: int64(binary.BigEndian.Uint64(b[8:])),
	}
	topic := uint64(binary.BigEndian.Uint16(b[2:]))
	key := uint64(binary.BigEndian.Uint32(b[16:]))
	headers := uint64(binary.BigEndian.Uint32(b[20:]))
	rest := b[entryHead:]
	if topic+key+headers > uint64(len(rest)) {
		return Record{}, fmt.Errorf("entry of %d bytes has a topic of %d, a key of %d and headers of %d", len(b), topic, key, headers)
	}
	r.Topic, rest = rest[:topic:topic], rest[topic:]
	r.Key, rest = rest[:key:key], rest[key:]
	r.Headers, rest = rest[:headers:headers], rest[headers:]
	r.Value = rest
	if r.KeyNull && key > 0 || r.ValueNull && len(rest) > 0 {
		return Record{}, errors.New("entry with a null that has bytes")
	}
	if err := record.EachMore(r.Headers, func(_, _ []byte) {}); err != nil {
		return Record{}, fmt.Errorf("entry: %w", err)
	}
	return r, nil
}
