package config

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// YAML returns the effective configuration, every key with its value, defaults
// included. Secrets are ***; but for them, and for a link's, of which *** is refused,
// Parse reads the same configuration from it.
func (c *Config) YAML() []byte {
	var b strings.Builder
	writeSection(&b, reflect.ValueOf(c).Elem(), "")
	return []byte(b.String())
}

func writeSection(b *strings.Builder, v reflect.Value, indent string) {
	each(v, "", func(name string, l leaf) bool {
		b.WriteString(indent + name + ":")
		switch {
		case isSection(l.value.Type()):
			b.WriteString("\n")
			writeSection(b, l.value, indent+"  ")
		case l.value.Kind() == reflect.Slice:
			items := make([]string, l.value.Len())
			for i := range items {
				items[i] = scalarYAML(l.value.Index(i).Interface())
			}
			b.WriteString(" [" + strings.Join(items, ", ") + "]\n")
		case l.value.Kind() == reflect.Map:
			writeMap(b, l.value.Interface(), indent+"  ")
		case l.value.Type() == reflect.TypeFor[Secret]():
			writeSecret(b, v, name, l.value.Interface().(Secret))
		default:
			b.WriteString(" " + scalarYAML(l.value.Interface()) + "\n")
		}
		return true
	})
}

// writeSecret leaves out what came from a file, which the next key names.
func writeSecret(b *strings.Builder, section reflect.Value, name string, s Secret) {
	file, _ := fieldByName(section.Type(), name+"_file")
	if section.FieldByIndex(file.Index).String() != "" {
		s = ""
	}
	b.WriteString(" " + textYAML(s.String()) + "\n")
}

func writeMap(b *strings.Builder, m any, indent string) {
	switch m := m.(type) {
	case map[netip.Addr]string:
		writeEntries(b, m, netip.Addr.Compare, netip.Addr.String, indent)
	case Properties:
		writeEntries(b, m.Masked(), cmp.Compare[string], func(s string) string { return s }, indent)
	default:
		panic(fmt.Sprintf("config: no rule for maps of type %T", m))
	}
}

func writeEntries[K comparable](b *strings.Builder, m map[K]string, compare func(a, b K) int, text func(K) string, indent string) {
	if len(m) == 0 {
		b.WriteString(" {}\n")
		return
	}
	b.WriteString("\n")
	for _, k := range slices.SortedFunc(maps.Keys(m), compare) {
		b.WriteString(indent + strconv.Quote(text(k)) + ": " + textYAML(m[k]) + "\n")
	}
}

func scalarYAML(v any) string {
	switch v := v.(type) {
	case string:
		return textYAML(v)
	case int64:
		return formatBytes(v)
	case time.Duration:
		return formatDuration(v)
	case netip.Prefix:
		return textYAML(v.String())
	}
	return fmt.Sprint(v) // int, bool
}

// formatDuration leaves out the zeros with which Duration.String ends.
func formatDuration(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = s[:len(s)-2]
	}
	if strings.HasSuffix(s, "h0m") {
		s = s[:len(s)-2]
	}
	return s
}

var (
	plain    = regexp.MustCompile(`^[A-Za-z/$][A-Za-z0-9/$._+-]*$`)
	reserved = regexp.MustCompile(`^(?i:true|false|null|yes|no|on|off|y|n)$`)
)

// textYAML writes plain what cannot be taken for anything but a text.
func textYAML(s string) string {
	if plain.MatchString(s) && !reserved.MatchString(s) {
		return s
	}
	return strconv.Quote(s)
}
