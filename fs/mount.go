package fs

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"bazil.org/fuse"
	"github.com/rs/zerolog"
)

// readAheadKiB is how far the kernel reads ahead on a mount by root; by itself it stops at 128.
const readAheadKiB = 1024

// mountError says what to do about a mount that failed.
func mountError(mountpoint string, err error) error {
	var missing *fuse.MountpointDoesNotExistError
	switch {
	case errors.As(err, &missing):
		return fmt.Errorf("mount point %s does not exist: make it with mkdir", mountpoint)
	}
	if _, lookErr := exec.LookPath("fusermount3"); lookErr != nil {
		return fmt.Errorf("mount on %s: the program fusermount3 is missing: install the package fuse3", mountpoint)
	}
	dev, devErr := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	switch {
	case errors.Is(devErr, os.ErrNotExist):
		return fmt.Errorf("mount on %s: /dev/fuse is missing: load the kernel module with modprobe fuse", mountpoint)
	case devErr != nil:
		return fmt.Errorf("mount on %s: %w: this user or container may not use FUSE", mountpoint, devErr)
	}
	dev.Close()
	return fmt.Errorf("mount on %s: %w", mountpoint, err)
}

// Mounted is a line of the kernel's mount table.
type Mounted struct {
	Device string // major:minor
	Type   string // fuse.mutualfs for ours
	Source string // the data directory for ours
}

// FindMount returns the topmost mount on exactly this path. It asks the kernel's table and does
// not touch the mount, which may be dead.
func FindMount(path string) (Mounted, bool, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return Mounted{}, false, err
	}
	file, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return Mounted{}, false, err
	}
	defer file.Close()
	var found Mounted
	var ok bool
	lines := bufio.NewScanner(file)
	for lines.Scan() {
		// 36 35 98:0 /root /mountpoint options… - type source options
		before, after, sep := strings.Cut(lines.Text(), " - ")
		fields, typ := strings.Fields(before), strings.Fields(after)
		if !sep || len(fields) < 5 || len(typ) < 2 || unescape(fields[4]) != path {
			continue
		}
		found, ok = Mounted{Device: fields[2], Type: typ[0], Source: unescape(typ[1])}, true
	}
	return found, ok, lines.Err()
}

// unescape undoes the octal escapes of the mount table.
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

// raiseReadAhead lets the kernel read ahead further. Only root may; without it reads are slower, not wrong.
func raiseReadAhead(mountpoint string, log zerolog.Logger) {
	m, ok, err := FindMount(mountpoint)
	if err != nil || !ok {
		return
	}
	path := filepath.Join("/sys/class/bdi", m.Device, "read_ahead_kb")
	if err := os.WriteFile(path, fmt.Append(nil, readAheadKiB), 0); err != nil {
		log.Debug().Err(err).Msg("the kernel's read-ahead stays at its default")
	}
}

// Unmount detaches the mount; lazily: at once, even if files are open on it.
func Unmount(mountpoint string, lazy bool) error {
	args := []string{"-u", "--", mountpoint}
	if lazy {
		args[0] = "-uz"
	}
	out, err := exec.Command("fusermount3", args...).CombinedOutput()
	if errors.Is(err, exec.ErrNotFound) {
		return fmt.Errorf("unmount %s: the program fusermount3 is missing: install the package fuse3", mountpoint)
	}
	if err != nil {
		return fmt.Errorf("unmount %s: %s", mountpoint, strings.TrimSpace(string(out)+" "+err.Error()))
	}
	return nil
}
