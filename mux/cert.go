package mux

import (
	"crypto/ed25519"
	"crypto/hkdf"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"errors"
	"fmt"
	"math/big"
	"net"
	"time"
)

// ALPN names the protocol and its version.
const ALPN = "mutualfs/2"

// SecretSize is the length of a ring secret, bytes.
const SecretSize = 32

// Certificates are made anew at every start, and valid so long either way that
// no plausible clock refuses them.
const (
	certBefore = 10 * 365 * 24 * time.Hour
	certAfter  = 30 * 365 * 24 * time.Hour
)

// authority is the ring's CA; everyone who has the ring secret is it.
type authority struct {
	key  ed25519.PrivateKey
	cert *x509.Certificate
	pool *x509.CertPool
}

// newAuthority derives the CA key by HKDF-SHA256 from the ring secret, the
// info string naming purpose and ring.
func newAuthority(ring [20]byte, secret []byte) (*authority, error) {
	if len(secret) != SecretSize {
		return nil, fmt.Errorf("a ring secret has %d bytes, not %d", SecretSize, len(secret))
	}
	seed, err := hkdf.Key(sha256.New, secret, nil, "mutualfs/1 ring CA "+hex.EncodeToString(ring[:]), ed25519.SeedSize)
	if err != nil {
		return nil, fmt.Errorf("derive the ring's CA key: %w", err)
	}
	a := &authority{key: ed25519.NewKeyFromSeed(seed), pool: x509.NewCertPool()}
	template := &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		Subject:               pkix.Name{CommonName: "mutualfs ring " + hex.EncodeToString(ring[:])},
		NotBefore:             time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC),
		NotAfter:              time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC),
		KeyUsage:              x509.KeyUsageCertSign,
		IsCA:                  true,
		BasicConstraintsValid: true,
		MaxPathLenZero:        true,
	}
	der, err := x509.CreateCertificate(nil, template, template, a.key.Public(), a.key)
	if err != nil {
		return nil, fmt.Errorf("make the ring's CA certificate: %w", err)
	}
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		return nil, fmt.Errorf("read the ring's CA certificate: %w", err)
	}
	a.pool.AddCert(a.cert)
	return a, nil
}

// issue makes the peer's own certificate.
func (a *authority) issue(id *Identity, from, to time.Time) (tls.Certificate, error) {
	peer := id.ID()
	template := &x509.Certificate{
		SerialNumber:          new(big.Int).SetBytes(append([]byte{1}, peer[:18]...)), // positive, at most 20 bytes
		Subject:               pkix.Name{CommonName: hex.EncodeToString(peer[:])},
		NotBefore:             from,
		NotAfter:              to,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(nil, template, a.cert, id.Public(), a.key)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("make the peer's certificate: %w", err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: id.key}, nil
}

// verify returns the ID of the peer on the other side, or why it is none of ours.
func (a *authority) verify(cs tls.ConnectionState) ([20]byte, error) {
	if cs.NegotiatedProtocol != ALPN {
		return [20]byte{}, fmt.Errorf("%w: it does not speak %s", ErrRefused, ALPN)
	}
	if len(cs.PeerCertificates) != 1 {
		return [20]byte{}, fmt.Errorf("%w: it shows %d certificates, not 1", ErrRefused, len(cs.PeerCertificates))
	}
	cert := cs.PeerCertificates[0]
	pub, ok := cert.PublicKey.(ed25519.PublicKey)
	if !ok {
		return [20]byte{}, fmt.Errorf("%w: its key is no Ed25519 key", ErrRefused)
	}
	if pub.Equal(a.key.Public()) {
		return [20]byte{}, fmt.Errorf("%w: it shows the ring's CA as its own key", ErrRefused)
	}
	_, err := cert.Verify(x509.VerifyOptions{Roots: a.pool, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
	var invalid x509.CertificateInvalidError
	switch {
	case err == nil:
		return PeerID(pub), nil
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return [20]byte{}, fmt.Errorf("%w: its certificate is valid from %s to %s only; check the clocks", ErrRefused,
			cert.NotBefore.Format(time.DateOnly), cert.NotAfter.Format(time.DateOnly))
	}
	return [20]byte{}, fmt.Errorf("%w: its certificate is not of this ring (another ring, or the wrong secret): %v", ErrRefused, err)
}

// tlsConfig is the part common to both sides. The caller sets
// VerifyConnection, which is all the verification there is.
func tlsConfig(cert tls.Certificate) *tls.Config {
	return &tls.Config{
		MinVersion:                  tls.VersionTLS13,
		MaxVersion:                  tls.VersionTLS13,
		Certificates:                []tls.Certificate{cert},
		NextProtos:                  []string{ALPN},
		ClientAuth:                  tls.RequireAnyClientCert,
		InsecureSkipVerify:          true, // names mean nothing here: VerifyConnection checks the ring's CA and the ID
		SessionTicketsDisabled:      true,
		DynamicRecordSizingDisabled: true,
	}
}

// refusal maps what a handshake or the first read of a session returned to a class.
func refusal(err error) error {
	var op *net.OpError
	switch {
	case errors.Is(err, ErrRefused):
		return err
	case errors.As(err, &op) && op.Op == "remote error":
		return fmt.Errorf("%w by the other side (another ring, or the wrong secret): %v", ErrRefused, err)
	}
	var record tls.RecordHeaderError
	if errors.As(err, &record) {
		return fmt.Errorf("%w: it does not speak TLS: %v", ErrRefused, err)
	}
	return fmt.Errorf("%w: %v", ErrUnreachable, err) // the dial's own context is no business of the caller
}
