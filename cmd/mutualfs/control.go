package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// The control socket is a Unix socket in the data directory that speaks HTTP with JSON. Who may
// open the directory may use it.

// maxSocketPath is how long the path of a Unix socket may be, bytes.
const maxSocketPath = 107

// socketPath is where the control socket lies: in the data directory or, where its path is too long
// for a socket, in the system's temporary directory under a name that follows from it.
func socketPath(dir string) string {
	path := filepath.Join(dir, "control.sock")
	if len(path) <= maxSocketPath {
		return path
	}
	return filepath.Join(os.TempDir(), fmt.Sprintf("mutualfs-%x.sock", crc(path)))
}

func listenControl(dir string) (net.Listener, error) {
	path := socketPath(dir)
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("control socket: %w", err)
	}
	return l, os.Chmod(path, 0o600)
}

// serveControl answers until ctx ends.
func serveControl(ctx context.Context, l net.Listener, h http.Handler) error {
	srv := &http.Server{Handler: h, BaseContext: func(net.Listener) context.Context { return ctx }, ReadHeaderTimeout: 10 * time.Second}
	stop := context.AfterFunc(ctx, func() { srv.Close() })
	defer stop()
	if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// answer writes what f returns as JSON, or its error as text.
func answer[T any](f func(r *http.Request) (T, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		v, err := f(r)
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(v)
	}
}

// stream writes one JSON line for each value that f emits.
func stream[T any](f func(r *http.Request, emit func(T)) error) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		enc := json.NewEncoder(w)
		started := false
		err := f(r, func(v T) {
			started = true
			_ = enc.Encode(v)
			if fl, ok := w.(http.Flusher); ok {
				fl.Flush()
			}
		})
		if err != nil && !started {
			http.Error(w, err.Error(), http.StatusInternalServerError)
		}
	}
}

// controlClient talks to the peer that runs in a data directory.
type controlClient struct {
	dir  string
	http http.Client
}

func newControlClient(dir string) *controlClient {
	path := socketPath(absolute(dir))
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", path)
	}
	return &controlClient{dir: dir, http: http.Client{Transport: &http.Transport{DialContext: dial}}}
}

func absolute(path string) string {
	if abs, err := filepath.Abs(path); err == nil {
		return abs
	}
	return path
}

// errNotRunning says that no process serves the data directory.
var errNotRunning = errors.New("no peer runs")

// open sends a request and returns the body of a good answer.
func (c *controlClient) open(ctx context.Context, method, path string, query url.Values) (io.ReadCloser, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://control"+path+"?"+query.Encode(), nil)
	if err != nil {
		return nil, err
	}
	resp, err := c.http.Do(req)
	if errors.Is(err, syscall.ENOENT) || errors.Is(err, syscall.ECONNREFUSED) {
		if has, _ := hasRing(c.dir); !has {
			return nil, fmt.Errorf("%w in %s: it holds no ring", errNotRunning, c.dir)
		}
		return nil, fmt.Errorf("%w in %s: start it with mutualfs mount or mutualfs serve --data %s", errNotRunning, c.dir, c.dir)
	}
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		defer resp.Body.Close()
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 4<<10))
		return nil, errors.New(trimLine(text))
	}
	return resp.Body, nil
}

// get decodes one JSON value into v.
func (c *controlClient) get(ctx context.Context, method, path string, query url.Values, v any) error {
	body, err := c.open(ctx, method, path, query)
	if err != nil {
		return err
	}
	defer body.Close()
	return json.NewDecoder(body).Decode(v)
}

// each decodes the JSON lines of a stream and calls f for each.
func each[T any](ctx context.Context, c *controlClient, method, path string, query url.Values, f func(T)) error {
	body, err := c.open(ctx, method, path, query)
	if err != nil {
		return err
	}
	defer body.Close()
	dec := json.NewDecoder(body)
	for {
		var v T
		err := dec.Decode(&v)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		f(v)
	}
}
