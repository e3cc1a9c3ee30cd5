package blocks

import "slices"

// change is a step of the index that has happened for all who ask, and that the
// index itself will hold after the next sync: so the index never names what
// is not durable.
type change struct {
	key     blockKey
	h       *blockHeader // nil: the block is deleted
	garbage []garbage    // what is free when the change is durable
	fresh   bool         // the index has nothing under the key
	taken   bool         // by the running sync
}

// pending holds the changes since the last sync. The Drive's mutex guards it.
type pending struct {
	stripes map[StripeID][]*change
	count   int
}

func (p *pending) get(k *blockKey) *change {
	for _, c := range p.stripes[k.stripe] {
		if c.key == *k {
			return c
		}
	}
	return nil
}

func (p *pending) put(c *change) {
	list := p.stripes[c.key.stripe]
	for i, old := range list {
		if old.key == c.key {
			list[i] = c
			return
		}
	}
	p.stripes[c.key.stripe] = append(list, c)
	p.count++
}

// remove takes out c, unless another change has taken its place.
func (p *pending) remove(c *change) {
	list := p.stripes[c.key.stripe]
	i := slices.Index(list, c)
	if i < 0 {
		return
	}
	p.count--
	if len(list) == 1 {
		delete(p.stripes, c.key.stripe)
		return
	}
	p.stripes[c.key.stripe] = slices.Delete(list, i, i+1)
}

// take returns all changes that no sync has taken, and marks them.
func (p *pending) take() []*change {
	list := make([]*change, 0, p.count)
	for _, changes := range p.stripes {
		for _, c := range changes {
			if !c.taken {
				c.taken = true
				list = append(list, c)
			}
		}
	}
	slices.SortFunc(list, func(a, b *change) int { return a.key.compare(&b.key) })
	return list
}

// within returns the changes of the keys from <= key < to, in order. A range within one
// stripe costs no walk over the others.
func (p *pending) within(from, to []byte) []*change {
	var list []*change
	add := func(changes []*change) {
		for _, c := range changes {
			k := c.key.encode()
			if string(k) >= string(from) && (to == nil || string(k) < string(to)) {
				list = append(list, c)
			}
		}
	}
	const prefix = 1 + IDSize
	if last := prefixEnd(from[:min(len(from), prefix)]); len(from) >= prefix && to != nil && string(to) <= string(last) {
		var s StripeID
		copy(s.ID[:], from[1:])
		add(p.stripes[s])
	} else {
		for _, changes := range p.stripes {
			add(changes)
		}
	}
	slices.SortFunc(list, func(a, b *change) int { return a.key.compare(&b.key) })
	return list
}
