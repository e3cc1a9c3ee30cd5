package content

import (
	"context"
	"sync"
	"time"
)

// pipeline holds the jobs between freezing and commit. Its queues are bounded by the
// memory that dirty data may take.
type pipeline struct {
	mu      sync.Mutex
	more    *sync.Cond // there is something to write, or the end
	urgent  []*job     // somebody waits for them
	normal  []*job
	delayed []delayed // failed, tried again later
	writing int
	written []*job    // waiting for a sync
	bytes   int64     // of written
	since   time.Time // when the first of written was written
	syncing int
	kick    chan struct{} // look at written again
}

// delayed is a job to be written, or with no job a file to be committed, at a time.
type delayed struct {
	at time.Time
	f  *file
	j  *job
}

func newPipeline() *pipeline {
	p := &pipeline{kick: make(chan struct{}, 1)}
	p.more = sync.NewCond(&p.mu)
	return p
}

// put queues jobs for writing.
func (p *pipeline) put(jobs ...*job) {
	if len(jobs) == 0 {
		return
	}
	p.mu.Lock()
	for _, j := range jobs {
		if j.f.urgent.Load() > 0 {
			p.urgent = append(p.urgent, j)
		} else {
			p.normal = append(p.normal, j)
		}
	}
	p.mu.Unlock()
	p.more.Broadcast()
}

// next waits for a job to write; nil at the end of ctx (and wake).
func (p *pipeline) next(ctx context.Context) *job {
	p.mu.Lock()
	defer p.mu.Unlock()
	for ctx.Err() == nil {
		for _, q := range []*[]*job{&p.urgent, &p.normal} {
			if len(*q) > 0 {
				j := (*q)[0]
				*q = (*q)[1:]
				p.writing++
				return j
			}
		}
		p.more.Wait()
	}
	return nil
}

// wake makes every next look at its context.
func (p *pipeline) wake() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.more.Broadcast()
}

// wrote moves a job that next returned to those that wait for a sync.
func (p *pipeline) wrote(j *job) {
	p.mu.Lock()
	p.writing--
	if len(p.written) == 0 {
		p.since = time.Now()
	}
	p.written = append(p.written, j)
	p.bytes += int64(j.size)
	p.mu.Unlock()
	p.hurrySync()
}

// gone ends the stay of a job that next returned.
func (p *pipeline) gone() {
	p.mu.Lock()
	p.writing--
	p.mu.Unlock()
}

// later tries a job (or, with nil, a file's commit) again after a pause that grows with the failures.
func (p *pipeline) later(f *file, j *job, failures int) {
	pause := min(backoffMax, backoffMin<<min(failures, 10))
	p.mu.Lock()
	p.delayed = append(p.delayed, delayed{time.Now().Add(pause), f, j})
	p.mu.Unlock()
}

// due takes out what is to be tried again now; all of one file if f is not nil.
func (p *pipeline) due(now time.Time, f *file) (out []delayed) {
	p.mu.Lock()
	defer p.mu.Unlock()
	keep := p.delayed[:0]
	for _, d := range p.delayed {
		if (f == nil && !d.at.After(now)) || (f != nil && d.f == f) {
			out = append(out, d)
		} else {
			keep = append(keep, d)
		}
	}
	clear(p.delayed[len(keep):])
	p.delayed = keep
	return out
}

// hurry moves the file's queued jobs to the urgent ones, and starts a sync of those written.
func (p *pipeline) hurry(f *file) {
	p.mu.Lock()
	keep := make([]*job, 0, len(p.normal))
	for _, j := range p.normal {
		if j.f == f {
			p.urgent = append(p.urgent, j)
		} else {
			keep = append(keep, j)
		}
	}
	p.normal = keep
	p.mu.Unlock()
	p.hurrySync()
}

func (p *pipeline) hurrySync() {
	select {
	case p.kick <- struct{}{}:
	default:
	}
}

// batch takes all that waits for a sync if it is worth one: somebody waits for it, enough has
// gathered, it is old, or memory is short. Else wait says when to ask again at
// the latest, 0 if there is nothing.
func (p *pipeline) batch(enough int64, short bool) (jobs []*job, wait time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.written) == 0 {
		return nil, 0
	}
	age := time.Since(p.since)
	now := short || p.bytes >= enough || age >= syncAge
	for _, j := range p.written {
		now = now || j.f.urgent.Load() > 0
	}
	if !now {
		return nil, syncAge - age
	}
	jobs, p.written, p.bytes = p.written, nil, 0
	p.syncing = len(jobs)
	return jobs, 0
}

func (p *pipeline) synced() {
	p.mu.Lock()
	p.syncing = 0
	p.mu.Unlock()
}

// count returns how many jobs there are.
func (p *pipeline) count() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.urgent) + len(p.normal) + len(p.delayed) + p.writing + len(p.written) + p.syncing
}
