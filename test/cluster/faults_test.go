package cluster

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// TestKilledMount kills the mounting process while rsync runs. What was fsynced must be there, and the tree must be
// consistent: every file is whole or a temporary of rsync's.
func TestKilledMount(t *testing.T) {
	src := realTree(t, "net", "os")
	p := Init(t, Options{})
	p.Mnt = filepath.Join(t.TempDir(), "mnt")
	p.Start()
	synced := map[string][32]byte{}
	for i := range 20 {
		name := filepath.Join(p.Mnt, fmt.Sprintf("synced%d", i))
		content := []byte(strings.Repeat(fmt.Sprintf("line %d\n", i), 1+i*i*50))
		f, err := os.Create(name)
		if err == nil {
			_, err = f.Write(content)
		}
		if err == nil {
			err = f.Sync()
		}
		if err == nil {
			err = f.Close()
		}
		if err != nil {
			t.Fatal(err)
		}
		synced[name] = sha256.Sum256(content)
	}
	unsynced := filepath.Join(p.Mnt, "acknowledged")
	if err := os.WriteFile(unsynced, []byte("written, not synced"), 0o644); err != nil {
		t.Fatal(err)
	}
	rsync := exec.Command("rsync", "-aH", src+"/", p.Mnt+"/tree/")
	rsync.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := rsync.Start(); err != nil {
		t.Fatal(err)
	}
	Eventually(t, time.Minute, func() error {
		if n := countFiles(t, p.Mnt+"/tree"); n < 100 {
			return fmt.Errorf("%d files", n)
		}
		return nil
	})
	p.Kill()
	// With its target gone rsync's three processes may wait for each other for ever.
	_ = syscall.Kill(-rsync.Process.Pid, syscall.SIGKILL)
	if err := rsync.Wait(); err == nil {
		t.Fatal("rsync ended before the kill")
	}
	p.Start() // cleans the dead mount up
	checkAll(t, synced)
	if text, err := os.ReadFile(unsynced); err != nil || string(text) != "written, not synced" {
		t.Errorf("what write acknowledged before kill -9 reads %q, %v", text, err)
	}
	err := filepath.WalkDir(p.Mnt+"/tree", func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() || strings.HasPrefix(d.Name(), ".") {
			return err // rsync's temporaries begin with a dot
		}
		rel, err := filepath.Rel(p.Mnt+"/tree", path)
		if err != nil {
			return err
		}
		if diff := compareContent(filepath.Join(src, rel), path); diff != "" {
			return fmt.Errorf("%s: %s", rel, diff)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	sh(t, "", "rsync -aH --delete "+src+"/ "+p.Mnt+"/tree/") // the killed rsync left a temporary
	Same(t, src, p.Mnt+"/tree")
}

func diskFiles(t *testing.T, p *Peer) []string {
	t.Helper()
	var files []string
	err := filepath.WalkDir(p.Dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && strings.HasSuffix(path, ".disk") {
			files = append(files, path)
		}
		return err
	})
	if err != nil || len(files) == 0 {
		t.Fatalf("virtual disks of %s: %v, %v", p.Name, files, err)
	}
	return files
}

// flip changes bytes of a file where it has data, and returns how many.
func flip(t *testing.T, path string, seed uint64) int {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(seed, 3))
	buf := make([]byte, 4096)
	flipped := 0
	for off := int64(8 << 10); off < info.Size() && flipped < 50; off += 4096 {
		if _, err := f.ReadAt(buf, off); err != nil {
			break
		}
		if i := rng.IntN(len(buf)); buf[i] != 0 && rng.IntN(3) == 0 {
			if _, err := f.WriteAt([]byte{buf[i] ^ 0x55}, off+int64(i)); err != nil {
				t.Fatal(err)
			}
			flipped++
		}
	}
	t.Logf("flipped %d bytes of %s", flipped, path)
	return flipped
}

func TestDamagedDisks(t *testing.T) {
	peers, client := six(t)
	src := realTree(t, "os", "encoding")
	sh(t, "", "cp -a "+src+" "+client.Mnt+"/tree && head -c 40000000 /dev/urandom >"+client.Mnt+"/big && sync")
	big := sh(t, "", "sha256sum <"+client.Mnt+"/big")
	client.Unmount()

	peers[1].Stop()
	if err := os.Remove(diskFiles(t, peers[1])[0]); err != nil {
		t.Fatal(err)
	}
	peers[1].Start()
	flipped := 0
	for i, d := range diskFiles(t, peers[3]) {
		flipped += flip(t, d, uint64(i))
	}
	if flipped == 0 {
		t.Fatal("nothing to flip")
	}
	client.Start()
	Same(t, src, client.Mnt+"/tree")
	if got := sh(t, "", "sha256sum <"+client.Mnt+"/big"); got != big {
		t.Fatal("a big file reads wrong")
	}
	// Exit code 1 is allowed: stripes this young are left to their writer for half a minute.
	out, err := TryRun("", "scrub", "--data", peers[3].Dir)
	if !strings.Contains(out, "blocks verified") || strings.Contains(out, " 0 damaged") {
		t.Fatalf("scrub says %q, %v", out, err)
	}
	t.Log(out)
	client.Wait(2 * time.Minute)
	if out := Run(t, "", "scrub", "--data", peers[3].Dir); !strings.Contains(out, " 0 damaged") {
		t.Fatalf("a second scrub says %q", out)
	}
	if s := client.Status(); s.Health != "ok" || s.MayFail < 2 {
		t.Fatalf("after the repair: %+v", s)
	}
}

func TestTwoMounts(t *testing.T) {
	_, a := six(t)
	b := a.Join(t, "client2", Options{Capacity: "0"})
	b.Mnt = filepath.Join(t.TempDir(), "mnt2")
	b.Start()

	// What one closes, the other opens and sees.
	for i := range 50 {
		from, to := a, b
		if i%2 == 1 {
			from, to = b, a
		}
		name := fmt.Sprintf("file%d", i%5)
		want := strings.Repeat(fmt.Sprintf("%d ", i), 1+i*1000)
		if err := os.WriteFile(filepath.Join(from.Mnt, name), []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(filepath.Join(to.Mnt, name))
		if err != nil || string(got) != want {
			t.Fatalf("round %d: %d bytes, %v; want %d", i, len(got), err, len(want))
		}
		info, err := os.Stat(filepath.Join(to.Mnt, name))
		if err != nil || info.Size() != int64(len(want)) {
			t.Fatalf("round %d: stat says %v, %v; want %d bytes", i, info, err, len(want))
		}
	}

	// mkdir of the same name from both at once succeeds exactly once.
	const rounds = 1000
	for _, m := range []*Peer{a, b} {
		if err := os.MkdirAll(filepath.Join(m.Mnt, "race"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	errs := [2][rounds]error{}
	var wg sync.WaitGroup
	var gate [rounds]sync.WaitGroup
	for i := range gate {
		gate[i].Add(2)
	}
	for m, p := range []*Peer{a, b} {
		wg.Go(func() {
			for i := range rounds {
				gate[i].Done()
				gate[i].Wait()
				errs[m][i] = os.Mkdir(filepath.Join(p.Mnt, "race", fmt.Sprint(i)), 0o755)
			}
		})
	}
	wg.Wait()
	won := [2]int{}
	for i := range rounds {
		ea, eb := errs[0][i], errs[1][i]
		if ea == nil {
			won[0]++
		}
		if eb == nil {
			won[1]++
		}
		if (ea == nil) == (eb == nil) || ea != nil && !errors.Is(ea, fs.ErrExist) || eb != nil && !errors.Is(eb, fs.ErrExist) {
			t.Errorf("round %d: %v and %v", i, ea, eb)
		}
	}
	t.Logf("mkdir won %d times on one mount, %d on the other", won[0], won[1])
	for _, m := range []*Peer{a, b} {
		if entries, err := os.ReadDir(filepath.Join(m.Mnt, "race")); err != nil || len(entries) != rounds {
			t.Errorf("%s: %d directories, %v; want %d", m.Name, len(entries), err, rounds)
		}
	}
}
