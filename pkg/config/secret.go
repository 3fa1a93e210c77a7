package config

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
)

// A Secret is a password. Every way of printing it gives ***, or nothing when it
// is empty.
type Secret string

const mask = "***"

// Reveal returns the secret itself.
func (s Secret) Reveal() string { return string(s) }

func (s Secret) String() string {
	if s == "" {
		return ""
	}
	return mask
}

// Format keeps the secret from verbs that do not ask for a String.
func (s Secret) Format(f fmt.State, verb rune) {
	if verb == 'q' || verb == 'v' && f.Flag('#') {
		fmt.Fprintf(f, "%q", s.String())
		return
	}
	fmt.Fprint(f, s.String())
}

// MarshalText serves JSON, as a value and as a key, and whoever else asks.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// MarshalYAML serves YAML libraries.
func (s Secret) MarshalYAML() (any, error) { return s.String(), nil }

// LogValue serves slog.
func (s Secret) LogValue() slog.Value { return slog.StringValue(s.String()) }

// Properties are configuration properties of librdkafka by name. Those that are
// secrets are printed as ***; an index gives them as they are.
type Properties map[string]string

// Masked returns a copy in which secrets are ***.
func (p Properties) Masked() map[string]string {
	masked := make(map[string]string, len(p))
	for name, value := range p {
		for _, word := range []string{"password", "secret", "oauthbearer.config", "key.pem"} {
			if strings.Contains(strings.ToLower(name), word) {
				value = Secret(value).String()
			}
		}
		masked[name] = value
	}
	return masked
}

func (p Properties) String() string { return fmt.Sprint(p.Masked()) }

// GoString keeps secrets from %#v.
func (p Properties) GoString() string { return fmt.Sprintf("%#v", p.Masked()) }

// MarshalJSON writes the masked properties.
func (p Properties) MarshalJSON() ([]byte, error) { return json.Marshal(p.Masked()) }

// LogValue serves slog.
func (p Properties) LogValue() slog.Value { return slog.AnyValue(p.Masked()) }
