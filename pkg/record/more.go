package record

import (
	"encoding/binary"
	"errors"
	"math"
)

// nullValue is the length that stands for a null value.
const nullValue = math.MaxUint32

var errMore = errors.New("further headers: cut short")

// AppendMore appends one Kafka header to dst. A nil value is null, one of no
// bytes is empty; Kafka tells them apart.
//
// Layout, big endian: name length u32, name, value length u32 or 0xffffffff for
// null, value. Headers follow each other in their order.
func AppendMore(dst, name, value []byte) []byte {
	dst = binary.BigEndian.AppendUint32(dst, uint32(len(name)))
	dst = append(dst, name...)
	if value == nil {
		return binary.BigEndian.AppendUint32(dst, nullValue)
	}
	dst = binary.BigEndian.AppendUint32(dst, uint32(len(value)))
	return append(dst, value...)
}

// EachMore calls f for each header of what AppendMore wrote, in their order, with
// slices of more; the value is nil if it is null. It returns an error at the
// first header that does not lie within more, after the calls for those before.
func EachMore(more []byte, f func(name, value []byte)) error {
	for len(more) > 0 {
		name, rest, ok := cut(more)
		if !ok || name == nil {
			return errMore
		}
		value, rest, ok := cut(rest)
		if !ok {
			return errMore
		}
		f(name, value)
		more = rest
	}
	return nil
}

// cut takes a length and as many bytes from the front of b; none for null.
func cut(b []byte) (field, rest []byte, ok bool) {
	if len(b) < 4 {
		return nil, nil, false
	}
	n := binary.BigEndian.Uint32(b)
	b = b[4:]
	if n == nullValue {
		return nil, b, true
	}
	if uint64(n) > uint64(len(b)) {
		return nil, nil, false
	}
	return b[:n:n], b[n:], true
}
