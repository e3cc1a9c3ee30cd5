package main

import (
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/mutualfs/mutualfs/blocks"
)

// firstPort is where a peer listens unless told otherwise; taken ones are passed over.
const (
	firstPort  = 7440
	portsTried = 100
)

// shapeFlags are the flags that init, join and a first mount share.
type shapeFlags struct {
	listen      string
	capacity    Size
	capacitySet func() bool
}

func addShapeFlags(cmd *cobra.Command) *shapeFlags {
	f := &shapeFlags{}
	cmd.Flags().StringVar(&f.listen, "listen", "", "HOST:PORT that other peers dial (default: the first free port from 7440 of 127.0.0.1)")
	cmd.Flags().Var(&f.capacity, "capacity", "how much to store, as in 500GiB; 0 stores nothing (default: four fifths of what is free)")
	f.capacitySet = func() bool { return cmd.Flags().Changed("capacity") }
	return f
}

// config fills the defaults that depend on the machine in. A default address is none of known, the peers of the ring.
func (f *shapeFlags) config(dir string, known []string) (Config, error) {
	c := DefaultConfig()
	var err error
	c.Listen = f.listen
	if c.Listen == "" {
		if c.Listen, err = freeAddress(append(neighbours(dir), known...)); err != nil {
			return c, err
		}
	}
	if host, port, err := net.SplitHostPort(c.Listen); err == nil {
		if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
			return c, usageError{fmt.Errorf("--listen %s: name the address that other peers dial, as in 192.168.1.5:%s", c.Listen, port)}
		}
	}
	c.Capacity = f.capacity
	if !f.capacitySet() {
		if c.Capacity, err = defaultCapacity(dir); err != nil {
			return c, err
		}
	}
	if err := c.Validate(); err != nil {
		return c, usageError{err}
	}
	return c, nil
}

// maxNeighbours bounds how many directories neighbours looks at.
const maxNeighbours = 1000

// neighbours are the addresses of the data directories beside dir: their peers may not be running now.
func neighbours(dir string) []string {
	var addrs []string
	entries, err := os.ReadDir(filepath.Dir(dir))
	if err != nil {
		return nil
	}
	for _, e := range entries[:min(len(entries), maxNeighbours)] {
		beside := filepath.Join(filepath.Dir(dir), e.Name())
		if has, _ := hasRing(beside); !has {
			continue
		}
		if c, err := readConfig(filepath.Join(beside, "config.toml")); err == nil {
			addrs = append(addrs, c.Listen)
		}
	}
	return addrs
}

// freeAddress is the first address from firstPort that nobody listens on, and that is not among taken.
func freeAddress(taken []string) (string, error) {
	for port := firstPort; port < firstPort+portsTried; port++ {
		addr := net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
		if slices.Contains(taken, addr) {
			continue
		}
		l, err := net.Listen("tcp", addr)
		if err == nil {
			return addr, l.Close()
		}
	}
	return "", fmt.Errorf("no free port on 127.0.0.1 from %d to %d: choose one with --listen", firstPort, firstPort+portsTried-1)
}

// defaultCapacity is four fifths of what is free on the drive, in whole MiB.
func defaultCapacity(dir string) (Size, error) {
	for {
		var s unix.Statfs_t
		err := unix.Statfs(dir, &s)
		if errors.Is(err, unix.ENOENT) && dir != filepath.Dir(dir) {
			dir = filepath.Dir(dir)
			continue
		}
		if err != nil {
			return 0, fmt.Errorf("free space of %s: %w", dir, err)
		}
		return Size(s.Bavail * uint64(s.Bsize) / 5 * 4 >> 20 << 20), nil
	}
}

func newInitCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "init", Short: "Make a new ring, with this machine as its first peer", Args: cobra.NoArgs}
	data := dataFlag(cmd)
	shape := addShapeFlags(cmd)
	tolerate := cmd.Flags().Int("tolerate", 2, "how many peers may be gone at once")
	shards := cmd.Flags().Int("data-shards", 4, "data shards of a stripe")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		d, err := newRing(*data, shape, *tolerate, *shards)
		if err != nil {
			return err
		}
		fmt.Fprintf(cmd.OutOrStdout(), "Made ring %s in %s: %s of capacity, listening on %s, up to %d peers may be gone.\n",
			d.ring.Ring.Short(), d.path, d.config.Capacity.Human(), d.config.Listen, d.ring.Tolerate)
		fmt.Fprintf(cmd.OutOrStdout(), "Next: mutualfs mount --data %s MOUNTPOINT, and mutualfs invite --data %s for another peer.\n", d.path, d.path)
		return nil
	}
	return cmd
}

// newRing makes a ring in a data directory.
func newRing(path string, shape *shapeFlags, tolerate, shards int) (*dataDir, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	d := &dataDir{path: path}
	if d.config, err = shape.config(path, nil); err != nil {
		return nil, err
	}
	if d.config.Capacity == 0 {
		return nil, usageError{errors.New("--capacity 0: the first peer of a ring must store something")}
	}
	id, err := blocks.RandomID(rand.Reader)
	if err != nil {
		return nil, err
	}
	d.ring = ringFile{
		Format: ringFormat, Ring: id, DataShards: shards, Tolerate: tolerate, StripeSize: stripeSize,
		VnodeSize: max(uint64(d.config.Capacity)/16, minCapacity/minVnodes), Bootstrap: []string{d.config.AdvertiseAddr()}, MakeRoot: true,
	}
	if err := d.ring.validate(); err != nil {
		return nil, usageError{err}
	}
	if d.secret, err = newKey(); err != nil {
		return nil, err
	}
	if d.volumeKey, err = newKey(); err != nil {
		return nil, err
	}
	return d, createDataDir(d)
}
