package blocks

import (
	"context"
	"errors"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// A full disk says so, keeps what it has, and takes more after a deletion.
func TestFullDisk(t *testing.T) {
	s := mustOpen(t, memConfig(NewMemFS(), 2, 1<<20))
	defer s.Close()
	var all []Shard
	for i := 0; ; i++ {
		shard := testShard(testStripe(i), 0, 60_000)
		if _, err := s.Put(testVnode(0), shard); err != nil {
			wantError(t, err, ErrNoSpace)
			if !strings.Contains(err.Error(), disk0) {
				t.Errorf("error %q does not name the disk", err)
			}
			break
		}
		all = append(all, shard)
	}
	if len(all) < 15 {
		t.Fatalf("full after %d shards", len(all))
	}
	mustPut(t, s, testVnode(1), testShard(testStripe(100), 0, 60_000)) // the other disk is not
	for round := range 5 {
		if err := s.Delete(all[round].Stripe); err != nil {
			t.Fatal(err)
		}
		shard := testShard(testStripe(200+round), 0, 60_000)
		mustPut(t, s, testVnode(0), shard)
		all[round] = shard
	}
	for _, shard := range all {
		wantShard(t, s, testVnode(0), shard)
	}
	u, err := s.VnodeUsage(testVnode(0))
	if err != nil || u.Capacity != 1<<20 || u.Shards != int64(len(all)) || u.Used != int64(2+len(all)*15)*unitSize || u.Free != u.Capacity-u.Used {
		t.Fatalf("usage %+v, %v", u, err)
	}
}

// hostConfig is a store in a directory of the host, with the index in memory.
func hostConfig(t testing.TB, vnodes int, capacity int64) Config {
	c := memConfig(NewMemFS(), vnodes, capacity)
	c.FS = nil
	c.Drives[0].Dir = filepath.Join(t.TempDir(), "drive")
	return c
}

// What is deleted goes back to the host; the file stays sparse and as long.
func TestPunchHolesOnTheHost(t *testing.T) {
	c := hostConfig(t, 1, 64<<20)
	s := mustOpen(t, c)
	f := s.drives[0].disks[testVnode(0)].file
	allocated := func() int64 {
		if err := f.Sync(); err != nil {
			t.Fatal(err)
		}
		n, err := f.Allocated()
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	empty := allocated()
	var e Epoch
	for i := range 20 {
		e = mustPut(t, s, testVnode(0), testShard(testStripe(i), 0, 250_000))
	}
	if err := s.Sync(context.Background(), 0, e); err != nil {
		t.Fatal(err)
	}
	if full := allocated(); full < empty+20*250_000 || empty > 1<<20 {
		t.Fatalf("allocated %d empty, %d with 5 MB", empty, full)
	}
	for i := range 19 {
		if err := s.Delete(testStripe(i)); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { s.Run(ctx); close(done) }()
	for deadline := time.Now().Add(20 * time.Second); allocated() > empty+600_000; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d bytes are still allocated", allocated())
		}
	}
	cancel()
	<-done
	wantShard(t, s, testVnode(0), testShard(testStripe(19), 0, 250_000))
	if size, err := f.Size(); err != nil || size != 64<<20 {
		t.Fatalf("size %d, %v", size, err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

// A drive does not go below its reserve.
func TestReserve(t *testing.T) {
	for name, c := range map[string]struct {
		drive DriveConfig
		free  int64
		full  bool
	}{
		"default, above":  {DriveConfig{}, 51 << 30, false},
		"default, below":  {DriveConfig{}, 49 << 30, true},
		"fraction, above": {DriveConfig{Reserve: 0.01}, 11 << 30, false},
		"fraction, below": {DriveConfig{Reserve: 0.01}, 9 << 30, true},
		"bytes, above":    {DriveConfig{ReserveBytes: 1 << 30, Reserve: 0.5}, 2 << 30, false},
		"bytes, below":    {DriveConfig{ReserveBytes: 1 << 30}, 1 << 30, true},
		"none":            {DriveConfig{Reserve: -1}, 17 << 20, false},
		"none, full":      {DriveConfig{Reserve: -1}, indexRoom + 100, true},
	} {
		t.Run(name, func(t *testing.T) {
			m := NewMemFS()
			m.SetSpace(c.free, 1000<<30)
			conf := memConfig(m, 1, 4<<20)
			c.drive.Dir = conf.Drives[0].Dir
			conf.Drives[0] = c.drive
			s := mustOpen(t, conf)
			defer s.Close()
			_, err := s.Put(testVnode(0), testShard(testStripe(0), 0, 100))
			if errors.Is(err, ErrNoSpace) != c.full || (err != nil) != c.full {
				t.Fatalf("got %v", err)
			}
			change := []KVChange{{Key: []byte("k"), Value: make([]byte, 200)}}
			if err := s.Registers().Apply(change, true); errors.Is(err, ErrNoSpace) != (name == "none, full") {
				t.Fatalf("register: %v", err)
			}
			change[0].Delete = true
			if err := s.Registers().Apply(change, true); err != nil {
				t.Fatal(err)
			}
			if u := s.Usage(); (u.Free < unitSize) != c.full || u.HostFree != c.free {
				t.Fatalf("usage %+v", u)
			}
		})
	}
}

// An error of the host at a write has its class, loses nothing else and leaks no space.
func TestHostErrorsAtPut(t *testing.T) {
	for class, host := range map[error]error{ErrNoSpace: syscall.ENOSPC, ErrUnavailable: syscall.EIO} {
		m := NewMemFS()
		s := mustOpen(t, memConfig(m, 1, 1<<20))
		good := testShard(testStripe(0), 0, 60_000)
		mustPut(t, s, testVnode(0), good)
		m.Fail(disk0, host)
		for i := range 50 { // more than would fit
			_, err := s.Put(testVnode(0), testShard(testStripe(1+i), 0, 60_000))
			wantError(t, err, class)
		}
		m.Fail(disk0, nil)
		wantShard(t, s, testVnode(0), good)
		for i := range 15 {
			mustPut(t, s, testVnode(0), testShard(testStripe(1+i), 0, 60_000))
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestLock(t *testing.T) {
	host := hostConfig(t, 1, 1<<20)
	for _, c := range []Config{host, memConfig(NewMemFS(), 1, 1<<20)} {
		s := mustOpen(t, c)
		_, err := Open(c)
		wantError(t, err, ErrBusy)
		if text := err.Error(); !strings.Contains(text, c.Drives[0].Dir) || !strings.Contains(text, "another mutualfs process") {
			t.Errorf("error %q", text)
		}
		mustPut(t, s, testVnode(0), testShard(testStripe(0), 0, 100)) // the first one is not disturbed
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if err := mustOpen(t, c).Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestConfigErrors(t *testing.T) {
	for name, change := range map[string]func(*Config){
		"no ring":        func(c *Config) { c.Ring = ID{} },
		"no index":       func(c *Config) { c.Indexes = nil },
		"no drive":       func(c *Config) { c.Drives = nil },
		"no directory":   func(c *Config) { c.Drives[0].Dir = "" },
		"same directory": func(c *Config) { c.Drives = append(c.Drives, DriveConfig{Dir: "/drive/"}) },
		"reserve":        func(c *Config) { c.Drives[0].Reserve = 5 },
		"same vnode":     func(c *Config) { c.Vnodes[1].ID = c.Vnodes[0].ID },
		"same number":    func(c *Config) { c.Vnodes[1].Number = 0 },
		"drive":          func(c *Config) { c.Vnodes[1].Drive = 1 },
		"capacity":       func(c *Config) { c.Vnodes[1].Capacity = 100 },
	} {
		c := memConfig(NewMemFS(), 2, 1<<20)
		change(&c)
		if _, err := Open(c); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
