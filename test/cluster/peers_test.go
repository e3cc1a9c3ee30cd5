package cluster

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// six starts six peers and a client with a mount.
func six(t *testing.T) (peers []*Peer, client *Peer) {
	t.Helper()
	first := Init(t, Options{})
	peers = append(peers, first)
	for i := 1; i < 6; i++ {
		peers = append(peers, first.Join(t, fmt.Sprintf("peer%d", i), Options{}))
	}
	client = first.Join(t, "client", Options{Capacity: "0"})
	client.Mnt = filepath.Join(t.TempDir(), "mnt")
	for _, p := range peers {
		p.Start()
	}
	client.Start()
	client.Wait(time.Minute)
	return peers, client
}

// longestCall is what no call on the mount may take.
const longestCall = 10 * time.Second

// load reads and writes on a mount until stopped, checks every byte, and keeps the longest call.
type load struct {
	t    *testing.T
	dir  string
	stop atomic.Bool
	wg   sync.WaitGroup

	mu      sync.Mutex
	errs    []error
	longest time.Duration
	written map[string][32]byte
	reads   int
}

func startLoad(t *testing.T, dir string, readers, writers int, known map[string][32]byte) *load {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	l := &load{t: t, dir: dir, written: map[string][32]byte{}}
	for name, sum := range known {
		l.written[name] = sum
	}
	for i := range writers {
		l.wg.Go(func() { l.write(i) })
	}
	for i := range readers {
		l.wg.Go(func() { l.read(uint64(i)) })
	}
	return l
}

// timed runs one call and notes how long it took.
func (l *load) timed(what string, f func() error) bool {
	start := time.Now()
	err := f()
	took := time.Since(start)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.longest = max(l.longest, took)
	if err != nil {
		l.errs = append(l.errs, fmt.Errorf("%s after %v: %w", what, took, err))
	}
	return err == nil
}

func (l *load) write(id int) {
	rng := rand.New(rand.NewPCG(uint64(id), 1))
	for n := 0; !l.stop.Load(); n++ {
		name := filepath.Join(l.dir, fmt.Sprintf("w%d-%d", id, n))
		content := make([]byte, 1+rng.IntN(3<<20))
		for i := 0; i < len(content); i += 8 {
			copy(content[i:], fmt.Appendf(nil, "%08x", rng.Uint32()))
		}
		var f *os.File
		if !l.timed("create", func() (err error) { f, err = os.Create(name); return err }) {
			return
		}
		ok := true
		for rest := content; ok && len(rest) > 0; {
			chunk := rest[:min(len(rest), 128<<10)]
			rest = rest[len(chunk):]
			ok = l.timed("write", func() error { _, err := f.Write(chunk); return err })
		}
		ok = ok && l.timed("fsync", f.Sync)
		if !l.timed("close", f.Close) || !ok {
			return
		}
		l.mu.Lock()
		l.written[name] = sha256.Sum256(content)
		l.mu.Unlock()
	}
}

func (l *load) pick(rng *rand.Rand) (string, [32]byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := rng.IntN(max(len(l.written), 1))
	for name, sum := range l.written {
		if n == 0 {
			return name, sum
		}
		n--
	}
	return "", [32]byte{}
}

func (l *load) read(seed uint64) {
	rng := rand.New(rand.NewPCG(seed, 2))
	for !l.stop.Load() {
		name, sum := l.pick(rng)
		if name == "" {
			continue
		}
		if err := l.readOne(name, sum); err != nil {
			return
		}
	}
}

func (l *load) readOne(name string, sum [32]byte) error {
	var f *os.File
	if !l.timed("open", func() (err error) { f, err = os.Open(name); return err }) {
		return errors.New("open")
	}
	defer f.Close()
	h := sha256.New()
	buf := make([]byte, 128<<10)
	for {
		var n int
		var end bool
		if !l.timed("read", func() (err error) {
			n, err = f.Read(buf)
			if end = errors.Is(err, io.EOF); end {
				err = nil
			}
			return err
		}) {
			return errors.New("read")
		}
		h.Write(buf[:n])
		if end {
			break
		}
	}
	if !bytes.Equal(h.Sum(nil), sum[:]) {
		l.timed("check", func() error { return fmt.Errorf("%s has wrong content", name) })
		return errors.New("content")
	}
	l.mu.Lock()
	l.reads++
	l.mu.Unlock()
	return nil
}

// end stops the load, fails the test on any error or slow call, and returns what was written.
func (l *load) end() map[string][32]byte {
	l.t.Helper()
	l.stop.Store(true)
	l.wg.Wait()
	for _, err := range l.errs {
		l.t.Error(err)
	}
	if l.longest > longestCall {
		l.t.Errorf("a call took %v", l.longest)
	}
	l.t.Logf("%d files written, %d read; the longest call took %v", len(l.written), l.reads, l.longest)
	if len(l.errs) > 0 || len(l.written) == 0 || l.reads == 0 {
		l.t.FailNow()
	}
	return l.written
}

// work waits until the load has done some more, so that what follows happens in the middle of it.
func (l *load) work(files int) {
	l.t.Helper()
	l.mu.Lock()
	goal := len(l.written) + files
	l.mu.Unlock()
	Eventually(l.t, time.Minute, func() error {
		l.mu.Lock()
		defer l.mu.Unlock()
		if len(l.errs) > 0 {
			return fatalError{l.errs[0]}
		}
		if len(l.written) < goal {
			return fmt.Errorf("%d files written, want %d", len(l.written), goal)
		}
		return nil
	})
}

func checkAll(t *testing.T, written map[string][32]byte) {
	t.Helper()
	for name, sum := range written {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if sha256.Sum256(text) != sum {
			t.Fatalf("%s has wrong content", name)
		}
	}
}

func TestAnyTwoOfSixMayBeGone(t *testing.T) {
	peers, client := six(t)
	src := realTree(t, "os", "encoding", "text")
	useTree(t, src, client.Mnt)
	gitTree(t, filepath.Join(src, "text"), client.Mnt)

	// Two die in the middle of reading and writing.
	l := startLoad(t, client.Mnt+"/load", 2, 2, nil)
	l.work(10)
	peers[2].Kill()
	l.work(5)
	peers[4].Kill()
	l.work(10)
	written := l.end()
	sh(t, "", "cp -a "+src+" "+client.Mnt+"/during && rsync -aH "+src+"/ "+client.Mnt+"/during2/")
	Same(t, src, client.Mnt+"/during")
	Same(t, src, client.Mnt+"/copied")
	if s := client.Status(); s.Health == "ok" {
		t.Errorf("with two peers dead the health is %q", s.Health)
	}

	// They return; hand-off and repair end by themselves.
	peers[2].Start()
	peers[4].Start()
	client.Wait(3 * time.Minute)
	if s := client.Status(); s.MayFail < 2 || s.Health != "ok" {
		t.Fatalf("after the repair: %+v", s)
	}

	// Then two others die, the very first among them.
	l = startLoad(t, client.Mnt+"/load2", 2, 1, written)
	l.work(3)
	peers[0].Kill()
	peers[3].Kill()
	l.work(10)
	written = l.end()
	checkAll(t, written)
	Same(t, src, client.Mnt+"/copied")
	Same(t, src, client.Mnt+"/moved")
	Same(t, src, client.Mnt+"/during2")
	gitSound(t, client.Mnt+"/clone")

	// A new mount sees the same.
	client.Unmount()
	client.Start()
	checkAll(t, written)
	Same(t, src, client.Mnt+"/during")
}
