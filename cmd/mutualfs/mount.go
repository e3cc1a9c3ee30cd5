package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"bazil.org/fuse"
	"github.com/spf13/cobra"

	"github.com/mutualfs/mutualfs/fs"
)

func newMountCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "mount MOUNTPOINT", Short: "Mount the ring on a directory", Args: cobra.ExactArgs(1),
		Long: "Mount the ring of the data directory on MOUNTPOINT. A data directory without a ring gets a ring of one.\n" +
			"Goes to the background when the mount answers; -f stays. The storage of the data directory is served too.",
	}
	data := dataFlag(cmd)
	foreground := cmd.Flags().BoolP("foreground", "f", false, "stay in the foreground, log on standard error")
	options := cmd.Flags().StringSliceP("options", "o", nil, "mount options: ro, noatime, nosuid, nodev, allow_other, noallow_other, nonempty; data=DIR; those of /etc/fstab are accepted")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		mo, err := parseMountOptions(*options)
		if err != nil {
			return usageError{err}
		}
		if mo.data != "" && !cmd.Flags().Changed("data") {
			*data = mo.data
		}
		err = mount(cmd.Context(), absolute(*data), absolute(args[0]), mo, *foreground)
		reportReady(err)
		return err
	}
	return cmd
}

type mountOptions struct {
	data string
	raw  []string
	fuse []fuse.MountOption
	// noAtime: reading sets no access times.
	noAtime bool
}

// ignoredOptions are those that mount(8) and /etc/fstab add and that say nothing to a FUSE file system.
var ignoredOptions = []string{"rw", "defaults", "auto", "noauto", "nofail", "_netdev", "user", "nouser", "users", "exec", "relatime", "nodiratime", "lazytime", "async", ""}

func parseMountOptions(list []string) (mountOptions, error) {
	var mo mountOptions
	root := os.Getuid() == 0
	others, dev, suid := root, root, root
	for _, o := range list {
		key, value, _ := strings.Cut(o, "=")
		switch {
		case key == "data":
			mo.data = value
			continue
		case key == "ro":
			mo.fuse = append(mo.fuse, fuse.ReadOnly())
			mo.noAtime = true
		case key == "noatime":
			mo.noAtime = true
		case key == "allow_other":
			others = true
		case key == "noallow_other":
			others = false
		case key == "dev", key == "nodev":
			dev = key == "dev"
		case key == "suid", key == "nosuid":
			suid = key == "suid"
		case key == "nonempty":
			mo.fuse = append(mo.fuse, fuse.AllowNonEmptyMount())
		case strings.HasPrefix(key, "x-") || slices.Contains(ignoredOptions, key):
		default:
			return mo, fmt.Errorf("unknown mount option %q", o)
		}
		mo.raw = append(mo.raw, o)
	}
	if others {
		mo.fuse = append(mo.fuse, fuse.AllowOther())
	}
	if dev && root {
		mo.fuse = append(mo.fuse, fuse.AllowDev())
	}
	if suid && root {
		mo.fuse = append(mo.fuse, fuse.AllowSUID())
	}
	return mo, nil
}

// fsType is how our mounts are named in the mount table.
const fsType = "fuse.mutualfs"

// prepareMountpoint checks the mount point and cleans the mount of a killed process up.
func prepareMountpoint(path string, nonempty bool) error {
	m, mounted, err := fs.FindMount(path)
	if err != nil {
		return err
	}
	if mounted && m.Type == fsType {
		if mountAnswers(path) {
			return fmt.Errorf("%s is mounted already: unmount it with mutualfs unmount %s", path, path)
		}
		if err := fs.Unmount(path, true); err != nil {
			return fmt.Errorf("clean up the mount that a killed process left: %w", err)
		}
	}
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("mount point %s does not exist: make it with mkdir", path)
	case err != nil:
		return fmt.Errorf("mount point %s: %w", path, err)
	case !info.IsDir():
		return fmt.Errorf("mount point %s is not a directory", path)
	}
	if nonempty {
		return nil
	}
	entries, err := os.ReadDir(path)
	if err != nil {
		return fmt.Errorf("mount point %s: %w", path, err)
	}
	if len(entries) > 0 {
		return fmt.Errorf("mount point %s is not empty: its files would be hidden; choose another, or say -o nonempty", path)
	}
	return nil
}

// mountAnswers asks a mount for its attributes; the mount of a killed process says ENOTCONN at once, or ECONNABORTED
// while it is dying.
func mountAnswers(path string) bool {
	var s syscall.Statfs_t
	err := syscall.Statfs(path, &s)
	return !errors.Is(err, syscall.ENOTCONN) && !errors.Is(err, syscall.ECONNABORTED)
}

func mount(ctx context.Context, data, mountpoint string, mo mountOptions, foreground bool) error {
	if err := prepareMountpoint(mountpoint, slices.Contains(mo.raw, "nonempty")); err != nil {
		return err
	}
	d, err := openOrMakeRing(data)
	if err != nil {
		return err
	}
	if d.volumeKey == nil {
		return fmt.Errorf("%s was joined with a storage-only token: it can be served, not mounted", d.path)
	}
	if !foreground {
		args := []string{"mount", "--data", d.path, "-f"}
		if len(mo.raw) > 0 {
			args = append(args, "-o", strings.Join(mo.raw, ","))
		}
		return spawnBackground(ctx, append(args, mountpoint), d.file("log"))
	}
	log := newLogger(os.Stderr, d.config.LogLevel)
	p, err := newPeer(d, log, true)
	if err != nil {
		return err
	}
	return p.Run(ctx, func(ctx context.Context) error { return p.serveMount(ctx, mountpoint, mo) })
}

// openOrMakeRing opens the data directory; one without a ring gets a ring of one.
func openOrMakeRing(data string) (*dataDir, error) {
	has, err := hasRing(data)
	if err != nil || has {
		if err != nil {
			return nil, err
		}
		return openDataDir(data)
	}
	shape := &shapeFlags{capacitySet: func() bool { return false }}
	if _, err := newRing(data, shape, 2, 4); err != nil {
		return nil, fmt.Errorf("make a ring of one in %s: %w", data, err)
	}
	return openDataDir(filepath.Clean(data))
}
