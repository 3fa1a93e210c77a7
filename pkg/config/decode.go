package config

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"
)

// A decoder fills a Config and collects what is wrong.
type decoder struct {
	config *Config
	errs   Errors
	// failed has the keys about which something was said; nothing that may only
	// follow from it is added.
	failed map[string]bool
}

func (d *decoder) errorAt(p position, key, hint, format string, args ...any) {
	d.failed[key] = true
	d.errs = append(d.errs, &Error{
		File: p.file, Line: p.line, Column: p.col,
		Key: key, Msg: fmt.Sprintf(format, args...), Hint: hint,
	})
}

// isFailed reports whether key or a section that it is in has an error.
func (d *decoder) isFailed(key string) bool {
	for {
		if d.failed[key] {
			return true
		}
		i := strings.LastIndexAny(key, ".[")
		if i < 0 {
			return d.failed[""]
		}
		key = key[:i]
	}
}

// positionOfNode is where n begins.
func (d *decoder) positionOfNode(n ast.Node) position {
	if m, ok := n.(*ast.MappingNode); ok && !m.IsFlowStyle && len(m.Values) > 0 {
		return d.positionOf(m.Values[0].Key.GetToken()) // its own token is the first colon
	}
	return d.positionOf(n.GetToken())
}

func (d *decoder) positionOf(t *token.Token) position {
	p := position{d.config.name, 1, 1}
	if t != nil && t.Position != nil {
		p.line, p.col = max(1, t.Position.Line), max(1, t.Position.Column)
	}
	return p
}

// file decodes the whole file.
func (d *decoder) file(src []byte) {
	start := position{d.config.name, 1, 1}
	if len(src) > maxFile {
		d.errorAt(start, "", "", "the file is larger than %s", formatBytes(maxFile))
		return
	}
	if i := invalidUTF8(src); i >= 0 {
		line := 1 + strings.Count(string(src[:i]), "\n")
		col := i - strings.LastIndexByte(string(src[:i]), '\n')
		d.errorAt(position{d.config.name, line, col}, "", "", "expected UTF-8, found the byte 0x%02x", src[i])
		return
	}
	parsed, err := parse(src)
	if err != nil {
		var syntax yaml.Error
		if errors.As(err, &syntax) {
			var hint string
			if strings.Contains(syntax.GetMessage(), "key") {
				hint = "a text with colons may need quotes"
			}
			d.errorAt(d.positionOf(syntax.GetToken()), "", hint, "not valid YAML: %s", syntax.GetMessage())
		} else {
			d.errorAt(start, "", "", "not valid YAML: %v", err)
		}
		return
	}
	var body ast.Node
	for _, doc := range parsed.Docs {
		switch {
		case doc.Body == nil || doc.Body.Type() == ast.DirectiveType || doc.Body.Type() == ast.CommentType:
		case body == nil:
			body = doc.Body
		default:
			d.errorAt(d.positionOfNode(doc.Body), "", "", "expected one document, found another")
		}
	}
	if body != nil {
		d.section(body, reflect.ValueOf(d.config).Elem(), "")
	}
}

func invalidUTF8(src []byte) int {
	for i := 0; i < len(src); {
		r, n := utf8.DecodeRune(src[i:])
		if r == utf8.RuneError && n == 1 {
			return i
		}
		i += n
	}
	return -1
}

// parse is the library's parser, whose panics on odd input become errors.
func parse(src []byte) (f *ast.File, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("the parser failed: %v", p)
		}
	}()
	// Duplicate keys are found here, all of them and with their path.
	return parser.ParseBytes(src, 0, parser.AllowDuplicateMapKey())
}

// An entry is one "key: value".
type entry struct {
	key   string
	at    position // of the key
	value ast.Node
}

// entries returns what a mapping has, less what was reported: keys that are
// not scalars, and the second and further ones of the same name.
func (d *decoder) entries(m *ast.MappingNode, path string, unify func(string) string) []entry {
	var entries []entry
	first := map[string]position{}
	for _, v := range m.Values {
		at := d.positionOf(v.Key.GetToken())
		var key string
		switch k := v.Key.(type) {
		case *ast.StringNode:
			key = k.Value
		case *ast.MergeKeyNode, *ast.MappingKeyNode, *ast.AnchorNode, *ast.AliasNode, *ast.TagNode:
			d.errorAt(at, path, "", "expected a plain key, found %s", describe(v.Key))
			continue
		default:
			key = v.Key.GetToken().Value
		}
		if earlier, ok := first[unify(key)]; ok {
			d.errorAt(at, join(path, key), "", "the key is there already, in line %d", earlier.line)
			continue
		}
		first[unify(key)] = at
		entries = append(entries, entry{key, at, v.Value})
	}
	return entries
}

func join(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}

// section decodes a mapping into a struct.
func (d *decoder) section(n ast.Node, v reflect.Value, path string) {
	if n.Type() == ast.NullType {
		return // all keys of a section commented out
	}
	m, ok := n.(*ast.MappingNode)
	if !ok {
		d.errorAt(d.positionOfNode(n), path, "", "expected the keys %s, found %s", strings.Join(names(v.Type()), ", "), describe(n))
		return
	}
	for _, e := range d.entries(m, path, func(k string) string { return k }) {
		key := join(path, e.key)
		field, ok := fieldByName(v.Type(), e.key)
		if !ok {
			d.unknown(e, path, v.Type())
			continue
		}
		d.config.at[key] = e.at
		d.value(e.value, v.FieldByIndex(field.Index), field.Tag, key)
	}
}

// unknown reports a key that does not exist, with the one that was meant: of the
// same section, or else of another.
func (d *decoder) unknown(e entry, path string, section reflect.Type) {
	key := join(path, e.key)
	var hint string
	if near := nearest(e.key, names(section)); near != "" {
		hint = fmt.Sprintf("did you mean %q?", near)
		// Whatever it lacks is explained by this.
		d.failed[join(path, near)] = true
	} else if other := elsewhere(key); other != "" {
		hint = fmt.Sprintf("did you mean %q?", other)
		d.failed[other] = true
	} else {
		hint = "there are " + strings.Join(names(section), ", ")
	}
	d.errorAt(e.at, key, hint, "unknown key")
}

// elsewhere returns a key whose path ends like that of key, or "".
func elsewhere(key string) string {
	last := key[strings.LastIndexByte(key, '.')+1:]
	for k := range leaves(reflect.ValueOf(Config{}), "") {
		if strings.HasSuffix(k, "."+last) || k == last {
			return k
		}
	}
	return ""
}

// value decodes any node into v.
func (d *decoder) value(n ast.Node, v reflect.Value, tag reflect.StructTag, key string) {
	switch v.Kind() {
	case reflect.Struct:
		if v.Type() != reflect.TypeFor[netip.Prefix]() {
			d.section(n, v, key)
			return
		}
	case reflect.Map:
		d.dictionary(n, v, key)
		return
	case reflect.Slice:
		d.list(n, v, tag, key)
		return
	}
	d.config.at[key] = d.positionOfNode(n)
	d.scalar(n, v, tag, key)
}

// scalar decodes a node that is one word into v.
func (d *decoder) scalar(n ast.Node, v reflect.Value, tag reflect.StructTag, key string) {
	w, ok := wordOf(n)
	if !ok {
		var hint string
		if n.Type() == ast.MappingType {
			hint = "a text with colons may need quotes"
		}
		d.errorAt(d.positionOfNode(n), key, hint, "expected %s, found %s", expected(v, tag), describe(n))
		return
	}
	if msg, hint := set(v, tag, w); msg != "" {
		d.errorAt(d.positionOfNode(n), key, hint, "%s", msg)
	}
}

// list decodes a sequence, or a single value in its place.
func (d *decoder) list(n ast.Node, v reflect.Value, tag reflect.StructTag, key string) {
	seq, ok := n.(*ast.SequenceNode)
	if !ok {
		v.Set(reflect.MakeSlice(v.Type(), 1, 1))
		d.value(n, v.Index(0), tag, key)
		return
	}
	v.SetZero() // an empty list is nil, as in Default
	if n := len(seq.Values); n > 0 {
		v.Set(reflect.MakeSlice(v.Type(), n, n))
	}
	for i, n := range seq.Values {
		item := fmt.Sprintf("%s[%d]", key, i)
		d.value(n, v.Index(i), tag, item)
		if d.failed[item] {
			d.failed[key] = true
		}
	}
}

// dictionary decodes a mapping whose keys are the user's own.
func (d *decoder) dictionary(n ast.Node, v reflect.Value, key string) {
	v.SetZero()
	if n.Type() == ast.NullType {
		return
	}
	m, ok := n.(*ast.MappingNode)
	if !ok {
		d.errorAt(d.positionOfNode(n), key, "", "expected %s, found %s", expected(v, ""), describe(n))
		return
	}
	for _, e := range d.entries(m, key, unify(v.Type().Key())) {
		item := join(key, e.key)
		d.config.at[item] = d.positionOfNode(e.value)
		w, ok := wordOf(e.value)
		if !ok {
			d.errorAt(d.positionOfNode(e.value), item, "", "expected a text, found %s", describe(e.value))
			continue
		}
		d.put(v, e.key, w, e.at, d.config.at[item], item)
	}
}

// unify returns the function that makes equal keys of a map the same string.
func unify(key reflect.Type) func(string) string {
	return func(k string) string {
		if key == reflect.TypeFor[netip.Addr]() {
			if addr, err := netip.ParseAddr(k); err == nil {
				return addr.Unmap().String()
			}
		}
		return k
	}
}

// put adds one entry to a map.
func (d *decoder) put(m reflect.Value, name string, w word, nameAt, valueAt position, key string) {
	k := reflect.New(m.Type().Key()).Elem()
	if msg, hint := set(k, "", word{text: name}); msg != "" {
		d.errorAt(nameAt, key, hint, "%s", msg)
		return
	}
	v := reflect.New(m.Type().Elem()).Elem()
	if w.kind == isBool {
		w.kind = isText // true is a text here: the properties have no types
	}
	if msg, hint := set(v, "", w); msg != "" {
		d.errorAt(valueAt, key, hint, "%s", msg)
		return
	}
	if m.IsNil() {
		m.Set(reflect.MakeMap(m.Type()))
	}
	m.SetMapIndex(k, v)
}

// environment decodes the variables.
func (d *decoder) environment(env func(string) (string, bool)) {
	for key, leaf := range leaves(reflect.ValueOf(d.config).Elem(), "") {
		text, ok := env(EnvName(key))
		if !ok || text == "" {
			continue
		}
		at := position{file: "$" + EnvName(key)}
		maps.DeleteFunc(d.config.at, func(k string, _ position) bool { // items in the file
			return strings.HasPrefix(k, key+"[") || strings.HasPrefix(k, key+".")
		})
		d.config.at[key] = at
		switch leaf.value.Kind() {
		case reflect.Slice:
			items := strings.Split(text, ",")
			leaf.value.Set(reflect.MakeSlice(leaf.value.Type(), len(items), len(items)))
			for i, item := range items {
				d.variable(leaf.value.Index(i), leaf.tag, strings.TrimSpace(item), at, key)
			}
		case reflect.Map:
			leaf.value.SetZero()
			for item := range strings.SplitSeq(text, ",") {
				name, value, ok := strings.Cut(strings.TrimSpace(item), "=")
				if !ok {
					d.errorAt(at, key, "", "expected name=value,name=value, found %q", item)
					continue
				}
				d.put(leaf.value, name, word{text: value, kind: isAny}, at, at, join(key, name))
			}
		default:
			d.variable(leaf.value, leaf.tag, text, at, key)
		}
	}
}

func (d *decoder) variable(v reflect.Value, tag reflect.StructTag, text string, at position, key string) {
	if msg, hint := set(v, tag, word{text: text, kind: isAny}); msg != "" {
		d.errorAt(at, key, hint, "%s", msg)
	}
}

// secrets reads the files of the *_file keys.
func (d *decoder) secrets() {
	c := d.config
	for _, s := range []struct {
		key    string
		secret *Secret
		file   *string
	}{
		{"redis.password", &c.Redis.Password, &c.Redis.PasswordFile},
		{"redis.sentinel.password", &c.Redis.Sentinel.Password, &c.Redis.Sentinel.PasswordFile},
		{"link.secret", &c.Link.Secret, &c.Link.SecretFile},
		{"kafka.tls.key_password", &c.Kafka.TLS.KeyPassword, &c.Kafka.TLS.KeyPasswordFile},
		{"kafka.sasl.password", &c.Kafka.SASL.Password, &c.Kafka.SASL.PasswordFile},
	} {
		fileKey := s.key + "_file"
		if *s.file == "" || d.isFailed(fileKey) {
			continue
		}
		if *s.secret != "" {
			inEnv, fileInEnv := c.position(s.key).line == 0, c.position(fileKey).line == 0
			switch {
			case inEnv && !fileInEnv: // the environment wins
				*s.file = ""
				delete(c.at, fileKey)
				continue
			case fileInEnv && !inEnv:
				delete(c.at, s.key)
			default:
				d.errorAt(c.position(fileKey), fileKey, "", "%s is set as well; expected one of the two", s.key)
				continue
			}
		}
		secret, err := readSecret(*s.file)
		if err != nil {
			var hint string
			if errors.Is(err, errReadable) {
				hint = "chmod o-rwx " + *s.file
			}
			d.errorAt(c.position(fileKey), fileKey, hint, "%v", err)
			continue
		}
		*s.secret = secret
	}
}

var errReadable = errors.New("open to all users of this host")

// readSecret returns what is in the file at path, less one newline at the end.
func readSecret(path string) (Secret, error) {
	const most = 64 << 10
	info, err := os.Stat(path)
	if err != nil {
		var path *os.PathError
		if errors.As(err, &path) {
			return "", fmt.Errorf("read the secret: %w", path.Err)
		}
		return "", fmt.Errorf("read the secret: %w", err)
	}
	switch {
	case !info.Mode().IsRegular():
		return "", errors.New("expected a regular file")
	case info.Size() > most:
		return "", fmt.Errorf("expected a secret of at most %s, found a file of %s", formatBytes(most), formatBytes(info.Size()))
	case info.Mode().Perm()&0o007 != 0:
		return "", fmt.Errorf("the file is %w (mode %04o)", errReadable, info.Mode().Perm())
	}
	src, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("read the secret: %w", errors.Unwrap(err))
	}
	text := strings.TrimSuffix(strings.TrimSuffix(string(src), "\n"), "\r")
	if text == "" {
		return "", errors.New("the file has no secret in it")
	}
	return Secret(text), nil
}

// A leaf is a key that has no keys below it that the package knows.
type leaf struct {
	value reflect.Value
	tag   reflect.StructTag
}

// leaves ranges over the keys of the section v, in the order of the struct.
func leaves(v reflect.Value, path string) func(yield func(string, leaf) bool) {
	return func(yield func(string, leaf) bool) {
		each(v, path, func(key string, l leaf) bool {
			if !isSection(l.value.Type()) {
				return yield(key, l)
			}
			for key, l := range leaves(l.value, key) {
				if !yield(key, l) {
					return false
				}
			}
			return true
		})
	}
}

// each calls yield for every direct key of the section v until it returns false.
func each(v reflect.Value, path string, yield func(string, leaf) bool) {
	for _, f := range reflect.VisibleFields(v.Type()) {
		name := f.Tag.Get("yaml")
		if name != "" && !yield(join(path, name), leaf{v.FieldByIndex(f.Index), f.Tag}) {
			return
		}
	}
}

func isSection(t reflect.Type) bool {
	return t.Kind() == reflect.Struct && t != reflect.TypeFor[netip.Prefix]()
}

// names returns the keys of a section.
func names(section reflect.Type) []string {
	var keys []string
	for _, f := range reflect.VisibleFields(section) {
		if name := f.Tag.Get("yaml"); name != "" {
			keys = append(keys, name)
		}
	}
	return keys
}

func fieldByName(section reflect.Type, name string) (reflect.StructField, bool) {
	for _, f := range reflect.VisibleFields(section) {
		if name != "" && f.Tag.Get("yaml") == name {
			return f, true
		}
	}
	return reflect.StructField{}, false
}

// A word is a scalar as it was written.
type word struct {
	text string
	kind kind
}

// A kind is what YAML takes a scalar for.
type kind int

const (
	isText kind = iota
	isNumber
	isBool
	isAny // from the environment, which has no types
)

// wordOf returns the scalar that n is. It keeps numbers as they were written, so
// that dialect: 1.8 and a password of digits need no quotes.
func wordOf(n ast.Node) (word, bool) {
	switch n := n.(type) {
	case *ast.StringNode:
		return word{n.Value, isText}, true
	case *ast.LiteralNode:
		return word{n.Value.Value, isText}, true
	case *ast.IntegerNode, *ast.FloatNode, *ast.InfinityNode, *ast.NanNode:
		return word{n.GetToken().Value, isNumber}, true
	case *ast.BoolNode:
		return word{n.GetToken().Value, isBool}, true
	case *ast.MappingNode:
		return unsplit(n)
	}
	return word{}, false
}

// unsplit puts together what the library's scanner takes for a mapping in a list
// within braces, {brokers: [127.0.0.1:9092]}, although by YAML a colon separates
// a plain key from its value only if something other than text follows it.
func unsplit(m *ast.MappingNode) (word, bool) {
	if m.IsFlowStyle || len(m.Values) != 1 {
		return word{}, false
	}
	v := m.Values[0]
	key, value := v.Key.GetToken(), v.Value.GetToken()
	if key == nil || key.Type == token.SingleQuoteType || key.Type == token.DoubleQuoteType ||
		value == nil || v.Start == nil || value.Position.Offset != v.Start.Position.Offset+1 {
		return word{}, false
	}
	w, ok := wordOf(v.Value)
	return word{key.Value + ":" + w.text, isText}, ok
}

// describe says what was found where something else was expected. It does not
// quote text, which may be a secret.
func describe(n ast.Node) string {
	switch n := n.(type) {
	case *ast.NullNode:
		return "nothing"
	case *ast.MappingNode, *ast.MappingValueNode:
		return "keys"
	case *ast.SequenceNode:
		return "a list"
	case *ast.StringNode, *ast.LiteralNode:
		return "a text"
	case *ast.BoolNode:
		return n.GetToken().Value
	case *ast.IntegerNode, *ast.FloatNode, *ast.InfinityNode, *ast.NanNode:
		return "a number"
	case *ast.AnchorNode:
		return "an anchor, which is not supported"
	case *ast.AliasNode:
		return "an alias, which is not supported"
	case *ast.TagNode:
		return "a tag, which is not supported"
	case *ast.MergeKeyNode:
		return "a merge key, which is not supported"
	}
	return "something else"
}

// expected says what a key takes.
func expected(v reflect.Value, tag reflect.StructTag) string {
	if choices := choicesOf(tag); len(choices) > 0 {
		return "one of " + strings.Join(choices, ", ")
	}
	switch v.Interface().(type) {
	case bool:
		return "true or false"
	case int:
		return "a whole number"
	case int64:
		return "a size such as 512KiB, 64MiB or 1GiB"
	case time.Duration:
		return "a duration such as 500ms, 30s or 2m"
	case netip.Prefix:
		return "a prefix such as 192.0.2.0/24 or 2001:db8::/32"
	case netip.Addr:
		return "an IP address"
	case map[netip.Addr]string:
		return "addresses with an alias each"
	case Properties:
		return "properties with a value each"
	}
	return "a text"
}

func choicesOf(tag reflect.StructTag) []string {
	choices := strings.Fields(tag.Get("oneof"))
	return slices.DeleteFunc(choices, func(c string) bool { return c == "''" })
}

// set parses w into v. It returns what is wrong, or "".
func set(v reflect.Value, tag reflect.StructTag, w word) (msg, hint string) {
	wrong := func() string {
		found := strconv.Quote(w.text)
		if w.kind == isNumber || w.kind == isBool {
			found = w.text
		}
		return fmt.Sprintf("expected %s, found %s", expected(v, tag), found)
	}
	const unquote = "leave the quotes out"
	switch p := v.Addr().Interface().(type) {
	case *string, *Secret:
		return setText(v, tag, w)
	case *bool:
		if w.text != "true" && w.text != "false" {
			return wrong(), ""
		}
		if w.kind == isText {
			return wrong(), unquote
		}
		*p = w.text == "true"
	case *int:
		n, err := strconv.Atoi(w.text)
		if err != nil {
			return wrong(), ""
		}
		if w.kind == isText {
			return wrong(), unquote
		}
		*p = n
	case *int64:
		n, err := parseBytes(w.text)
		if err != nil {
			return wrong(), ""
		}
		*p = n
	case *time.Duration:
		dur, err := time.ParseDuration(w.text)
		if err != nil {
			if _, err := strconv.ParseUint(w.text, 10, 32); err == nil {
				hint = fmt.Sprintf("did you mean %q?", w.text+"s")
			}
			return wrong(), hint
		}
		if dur < 0 {
			return wrong(), ""
		}
		*p = dur
	case *netip.Addr:
		addr, err := netip.ParseAddr(w.text)
		if err != nil {
			return wrong(), ""
		}
		*p = addr.Unmap()
	case *netip.Prefix:
		prefix, err := netip.ParsePrefix(w.text)
		if addr, addrErr := netip.ParseAddr(w.text); addrErr == nil && addr.Zone() == "" {
			prefix, err = netip.PrefixFrom(addr, addr.BitLen()), nil
		}
		if err != nil || prefix.Addr().Is4In6() {
			return wrong(), ""
		}
		if prefix != prefix.Masked() {
			return wrong() + " with bits set after the prefix", fmt.Sprintf("did you mean %q?", prefix.Masked().String())
		}
		*p = prefix
	default:
		panic(fmt.Sprintf("config: no rule for values of type %v", v.Type()))
	}
	return "", ""
}

func setText(v reflect.Value, tag reflect.StructTag, w word) (msg, hint string) {
	if w.kind == isBool {
		return fmt.Sprintf("expected %s, found %s", expected(v, tag), w.text), "quote it if it is meant as a text"
	}
	if strings.ContainsFunc(w.text, func(r rune) bool {
		return r != '\n' && r != '\t' && unicode.IsControl(r)
	}) || !utf8.ValidString(w.text) {
		return "expected a text without control characters", ""
	}
	if choices := strings.Fields(tag.Get("oneof")); len(choices) > 0 {
		ok := slices.Contains(choices, w.text) || w.text == "" && slices.Contains(choices, "''")
		if !ok {
			if near := nearest(w.text, choicesOf(tag)); near != "" {
				hint = fmt.Sprintf("did you mean %q?", near)
			}
			return fmt.Sprintf("expected %s, found %q", expected(v, tag), w.text), hint
		}
	}
	v.SetString(w.text)
	return "", ""
}

var units = []struct {
	name  string
	bytes int64
}{{"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}, {"B", 1}, {"", 1}}

// parseBytes parses a size: a whole number with or without a unit.
func parseBytes(s string) (int64, error) {
	for _, u := range units {
		digits, ok := strings.CutSuffix(s, u.name)
		if !ok {
			continue
		}
		n, err := strconv.ParseUint(strings.TrimSpace(digits), 10, 63)
		if err != nil {
			return 0, err
		}
		if int64(n) > (1<<63-1)/u.bytes {
			return 0, strconv.ErrRange
		}
		return int64(n) * u.bytes, nil
	}
	return 0, strconv.ErrSyntax
}

// formatBytes is the shortest that parseBytes reads back.
func formatBytes(n int64) string {
	for _, u := range units[:3] {
		if n != 0 && n%u.bytes == 0 {
			return strconv.FormatInt(n/u.bytes, 10) + u.name
		}
	}
	return strconv.FormatInt(n, 10)
}
