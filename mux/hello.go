package mux

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"strconv"
	"time"
)

// maxAddr bounds the address in a hello, bytes.
const maxAddr = 255

// writeHello sends a hello: the lane, this Mux's instance, and where it listens.
func (m *Mux) writeHello(conn net.Conn, l lane, st status) error {
	h := header{typ: typeHello, class: uint8(l), status: st, id: m.instance}
	b := encodeFrame(h, []byte(m.advertised()), nil)
	defer Release(b)
	_, err := conn.Write(b)
	return err
}

type hello struct {
	lane     lane
	status   status
	instance uint64
	addr     string // "" if the peer does not listen
}

// readHello reads the other side's, whose own idea of its address is completed by where
// it is seen from.
func readHello(conn net.Conn) (hello, error) {
	var scratch [headerSize]byte
	h, err := readHeader(conn, &scratch)
	if err != nil {
		return hello{}, err
	}
	if h.typ != typeHello || h.class >= uint8(lanes) {
		return hello{}, fmt.Errorf("%w: type %d, lane %d where a hello should be", ErrMalformed, h.typ, h.class)
	}
	body := make([]byte, h.body)
	if err := readFull(conn, body); err != nil {
		return hello{}, err
	}
	return hello{lane(h.class), h.status, h.id, completeAddr(string(body), conn.RemoteAddr())}, nil
}

// completeAddr puts the address that the peer is seen from in place of an
// unspecified one. What is no host:port is "".
func completeAddr(addr string, seen net.Addr) string {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return ""
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return ""
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		if host, _, err = net.SplitHostPort(seen.String()); err != nil {
			return ""
		}
	}
	return net.JoinHostPort(host, port)
}

// connect dials addr and makes a session of it; to may be zero.
func (m *Mux) connect(ctx context.Context, to [20]byte, addr string, l lane) (*session, error) {
	dialer := net.Dialer{Timeout: m.cfg.DialTimeout}
	tcp, err := dialer.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("%w: %v", ErrUnreachable, err)
	}
	defer context.AfterFunc(ctx, func() { tcp.Close() })()
	s, err := m.greet(ctx, tcp, to, addr, l)
	if err != nil {
		tcp.Close()
		return nil, err
	}
	return s, nil
}

// greet is the dialler's side of the handshake.
func (m *Mux) greet(ctx context.Context, tcp net.Conn, to [20]byte, addr string, l lane) (*session, error) {
	tuneSocket(tcp)
	if err := tcp.SetDeadline(time.Now().Add(m.cfg.HandshakeTimeout)); err != nil {
		return nil, fmt.Errorf("%w: %v", ErrUnreachable, err)
	}
	raw := &gatherConn{Conn: tcp}
	cfg := tlsConfig(m.cert)
	var id [20]byte
	cfg.VerifyConnection = func(cs tls.ConnectionState) (err error) {
		if id, err = m.ca.verify(cs); err != nil {
			return err
		}
		if id == m.self {
			return errSelf
		}
		if to != ([20]byte{}) && id != to {
			return fmt.Errorf("%w: %s is peer %x, not %x", ErrRefused, addr, id[:4], to[:4])
		}
		return nil
	}
	conn := tls.Client(raw, cfg)
	if err := conn.HandshakeContext(ctx); err != nil {
		return nil, refusal(err)
	}
	if err := m.writeHello(conn, l, statusOK); err != nil {
		return nil, refusal(err)
	}
	h, err := readHello(conn)
	switch {
	case err != nil:
		return nil, refusal(err)
	case h.status == statusBusy:
		return nil, fmt.Errorf("%w: the peer has too many sessions", ErrUnreachable)
	case h.status != statusOK:
		return nil, fmt.Errorf("%w: the peer is shutting down", ErrUnreachable)
	case h.lane != l:
		return nil, fmt.Errorf("%w: hello for lane %d instead of %d", ErrUnreachable, h.lane, l)
	}
	if err := tcp.SetDeadline(time.Time{}); err != nil {
		return nil, fmt.Errorf("%w: %v", ErrUnreachable, err)
	}
	s, err := m.newSession(newWireConn(conn, raw), id, l, h.instance, addr, true)
	if err != nil {
		return nil, err
	}
	if err := m.add(s); err != nil {
		s.abort(err)
		return nil, err
	}
	return s, nil
}

// accept takes connections until the listener is closed.
func (m *Mux) accept(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { m.listener.Close() })
	defer stop()
	slots := make(chan struct{}, m.cfg.MaxHandshakes)
	for {
		tcp, err := m.listener.Accept()
		if err != nil {
			if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return nil
			}
			m.log.Warn().Err(err).Msg("cannot accept a connection")
			select { // out of descriptors, most likely: wait for better times
			case <-time.After(acceptPause):
				continue
			case <-ctx.Done():
				return nil
			}
		}
		select {
		case slots <- struct{}{}:
		default:
			tcp.Close()
			m.refuse(tcp.RemoteAddr(), errors.New("too many handshakes at once"))
			continue
		}
		m.wg.Go(func() {
			defer func() { <-slots }()
			if err := m.welcome(ctx, tcp); err != nil {
				tcp.Close()
				if ctx.Err() == nil {
					m.refuse(tcp.RemoteAddr(), err)
				}
			}
		})
	}
}

const acceptPause = 100 * time.Millisecond

// welcome is the acceptor's side of the handshake.
func (m *Mux) welcome(ctx context.Context, tcp net.Conn) error {
	tuneSocket(tcp)
	if err := tcp.SetDeadline(time.Now().Add(m.cfg.HandshakeTimeout)); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { tcp.Close() })
	defer stop()
	raw := &gatherConn{Conn: tcp}
	cfg := tlsConfig(m.cert)
	var id [20]byte
	cfg.VerifyConnection = func(cs tls.ConnectionState) (err error) {
		if id, err = m.ca.verify(cs); err == nil && id == m.self {
			err = errSelf
		}
		return err
	}
	conn := tls.Server(raw, cfg)
	if err := conn.HandshakeContext(ctx); err != nil {
		return err
	}
	h, err := readHello(conn)
	if err != nil {
		return err
	}
	if h.status != statusOK {
		return fmt.Errorf("%w: hello with status %d", ErrMalformed, h.status)
	}
	if st := m.admits(); st != statusOK {
		return errors.Join(ErrBusy, m.writeHello(conn, h.lane, st))
	}
	if err := m.writeHello(conn, h.lane, statusOK); err != nil {
		return err
	}
	if err := tcp.SetDeadline(time.Time{}); err != nil {
		return err
	}
	s, err := m.newSession(newWireConn(conn, raw), id, h.lane, h.instance, h.addr, false)
	if err != nil {
		return err
	}
	if err := m.add(s); err != nil {
		s.abort(err)
		return err
	}
	return nil
}

// admits says whether there is room for another session.
func (m *Mux) admits() status {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case m.closing:
		return statusRefused
	case m.count >= m.cfg.MaxSessions:
		return statusBusy
	}
	return statusOK
}
