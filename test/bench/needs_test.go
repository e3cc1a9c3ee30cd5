package bench

import (
	"fmt"
	"strings"

	"github.com/mutualfs/mutualfs/test/cluster"
)

// need is what one run took of the processes of a place: CPU in seconds, memory in MiB at its end.
type need struct{ mountCPU, peerCPU, mountRSS, peerRSS float64 }

// needs are those of all runs, by work and place.
type needs map[string][]need

func usage(p place) []cluster.Usage {
	list := make([]cluster.Usage, len(p.procs))
	for i, proc := range p.procs {
		list[i] = proc.Usage()
	}
	return list
}

// add notes a run; of the peers the mean CPU and the largest memory.
func (n needs) add(key string, before, after []cluster.Usage) {
	if len(after) == 0 {
		return
	}
	var x need
	for i := range after {
		cpu, rss := (after[i].CPU - before[i].CPU).Seconds(), float64(after[i].RSS)/(1<<20)
		if i == 0 {
			x.mountCPU, x.mountRSS = cpu, rss
			continue
		}
		x.peerCPU += cpu / float64(len(after)-1)
		x.peerRSS = max(x.peerRSS, rss)
	}
	n[key] = append(n[key], x)
}

// render is a table in Markdown of the medians of one place.
func (n needs) render(list []work, p place) string {
	var b strings.Builder
	b.WriteString("| " + p.name + " | CPU of the mount, s | CPU of each peer, s | memory of the mount, MiB | largest memory of a peer, MiB |\n|---|---:|---:|---:|---:|\n")
	for _, w := range list {
		runs := n[w.name+p.name]
		if w.amount == 0 || len(runs) == 0 {
			continue
		}
		column := func(of func(need) float64) float64 {
			v := make([]float64, len(runs))
			for i, x := range runs {
				v[i] = of(x)
			}
			return median(v)
		}
		fmt.Fprintf(&b, "| %s | %.2f | %.2f | %.0f | %.0f |\n", w.name,
			column(func(x need) float64 { return x.mountCPU }), column(func(x need) float64 { return x.peerCPU }),
			column(func(x need) float64 { return x.mountRSS }), column(func(x need) float64 { return x.peerRSS }))
	}
	return b.String()
}
