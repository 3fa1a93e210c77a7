package sink

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
)

// Over TLS with a certificate that a file vouches for, and with a password.
func TestSecureConnection(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := x509.Certificate{
		SerialNumber: big.NewInt(1), IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage:    x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, &template, &template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	secured := []kfake.Opt{
		kfake.TLS(&tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}),
		kfake.EnableSASL(), kfake.Superuser("SCRAM-SHA-256", "collector", "sesame"),
	}
	both(t, func(t *testing.T, m maker) {
		for _, c := range []struct {
			name string
			tls  TLS
			sasl SASL
			ok   bool
		}{
			{"trusted", TLS{Enable: true, CAFile: ca}, SASL{"SCRAM-SHA-256", "collector", "sesame"}, true},
			{"unchecked", TLS{Enable: true, SkipVerify: true}, SASL{"SCRAM-SHA-256", "collector", "sesame"}, true},
			{"not trusted", TLS{Enable: true}, SASL{"SCRAM-SHA-256", "collector", "sesame"}, false},
			{"wrong password", TLS{Enable: true, CAFile: ca}, SASL{"SCRAM-SHA-256", "collector", "parsley"}, false},
		} {
			t.Run(c.name, func(t *testing.T) {
				b := newBroker(t, secured...)
				b.topic(t, "routes", 1, nil)
				s := newSink(t, m, b, Options{TLS: c.tls, SASL: c.sasl})
				f := filled(1, topicOf(t, s, "routes"), 100, 100)
				d := newDriver(t, s, f)
				if c.ok {
					d.finish()
					if n := b.PartitionInfo("routes", 0).HighWatermark; n < 100 || n > 100 && m.name != "fenced" { // which has markers
						t.Errorf("%d records", n)
					}
					return
				}
				d.until("the refusal is told", func() bool { return s.Stats().LastError != "" })
				if s.Stats().Connected || f.report.Err != nil {
					t.Errorf("%+v, %v", s.Stats(), f.report.Err)
				}
				_ = s.Close(0) // with what cannot be sent
			})
		}
	})
}
