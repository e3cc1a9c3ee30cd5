package blocks

import (
	"context"
	"errors"
	"time"
)

// run does what need not be done at once, until ctx ends.
func (d *drive) run(ctx context.Context) {
	tick := time.NewTicker(housekeeping)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if d.gate.enter() != nil {
			return
		}
		d.mu.Lock()
		last := d.syncs.last
		d.mu.Unlock()
		if err := d.waitSync(ctx, last); err == nil {
			for _, vd := range d.disks {
				d.punchDisk(vd)
			}
		}
		d.gate.leave()
	}
}

// close syncs what is left and closes everything.
func (d *drive) close() error {
	if !d.gate.close() {
		return nil
	}
	d.mu.Lock()
	last := d.syncs.last
	d.mu.Unlock()
	err := d.waitSync(context.Background(), last)
	d.syncer.Wait()
	if err == nil {
		for _, vd := range d.disks {
			d.punchDisk(vd)
		}
	}
	return errors.Join(err, d.closeFiles())
}

func (d *drive) closeFiles() error {
	d.closeIndex()
	var errs []error
	for _, vd := range d.disks {
		errs = append(errs, vd.file.Close())
	}
	return errors.Join(append(errs, d.lock.Close())...)
}
