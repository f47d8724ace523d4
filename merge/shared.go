package merge

import (
	"fmt"

	"github.com/loratool/loratool/adapter"
	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/naming"
)

// A Clone is a tensor of the output that takes over some uses of one that the base shares between modules.
type Clone struct {
	Tensor int // in the base
	Name   string
	Uses   []naming.Reader
}

// reader is what an ONNX resolver knows about shared tensors.
type reader interface {
	Readers(naming.Place) []naming.Reader
}

// shared redirects a place in a tensor that other modules read too to a clone of the tensor.
func (p *planner) shared(a *adapter.Adapter, u *adapter.Update, r reader, place naming.Place) (naming.Place, error) {
	readers := r.Readers(place)
	if len(readers) == place.Uses {
		return place, nil
	}
	if len(readers) == 0 {
		f := finding.Errorf("match.shared_initializer", a.Path, "the tensor of module %q is read %d times, and which of the reads are the module's cannot be told", u.Module, place.Uses).In(place.Tensor)
		f.Module = u.Module
		return place, f
	}
	of := p.index[place.Tensor]
	if p.plan.Tensors[of].weight != nil {
		f := finding.Errorf("match.shared_initializer", a.Path, "the weight of module %q is quantized and read by other modules too; it is not stored apart for one of them", u.Module).In(place.Tensor)
		f.Module = u.Module
		if !p.plan.Tensors[of].weight.Stored() {
			return place, f.Hinted("--tensor-type NAME=keep leaves the weight float")
		}
		return place, f.Hinted("loratool inject adds the adapter beside the weights")
	}
	for _, c := range p.plan.clones {
		if c.Tensor == of && c.Uses[0] == readers[0] {
			place.Tensor = c.Name
			return place, nil
		}
	}
	name := u.Target.String()
	for i := 1; ; i++ {
		if _, taken := p.index[name]; !taken {
			break
		}
		name = fmt.Sprintf("%s_%d", u.Target, i)
	}
	p.addTensor(name, of)
	p.plan.clones = append(p.plan.clones, Clone{Tensor: of, Name: name, Uses: readers})
	place.Tensor = name
	return place, nil
}
