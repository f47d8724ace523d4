package peft

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"weak"

	"github.com/loratool/loratool/adapter"
	"github.com/loratool/loratool/tensor"
)

// registered is the usual order in which model classes register the parameters of an experts module.
var registered = []string{"gate_up_proj", "gate_proj", "w1", "up_proj", "w3", "down_proj", "w2"}

// mostExperts bounds the experts of a stack, each of which becomes an update.
const mostExperts = 1 << 16

// parametersOf lists the distinct parameter names that target_parameters names on a module.
func (d *decoder) parametersOf(module string) []string {
	var out []string
	for _, t := range d.parameters {
		owner, param := "", t
		if i := strings.LastIndexByte(t, '.'); i >= 0 {
			owner, param = t[:i], t[i+1:]
		}
		if (owner == "" || endsWith(module, owner)) && !slices.Contains(out, param) {
			out = append(out, param)
		}
	}
	return out
}

// parameter makes the updates of a parameter that PEFT wraps directly. Several wrapped parameters of one
// module nest: the one registered first is innermost, and the file does not name it.
func (d *decoder) parameter(s *site, params []string) ([]adapter.Update, error) {
	levels := 0
	for d.byPath[siteID{s.module, levels}] != nil {
		levels++
	}
	if levels != len(params) || s.depth >= levels {
		return nil, d.errorf("unmatched_target", s.first, "target_parameters names %d parameters of %q, but the file has factors for %d", len(params), s.module, levels)
	}
	param, err := d.parameterAt(s, params, levels-1-s.depth)
	if err != nil {
		return nil, err
	}
	u := adapter.Update{Target: adapter.Target{Module: s.module, Param: param}, Kind: adapter.LowRank, Layer: adapter.Linear, Tensors: []string{s.a.Name, s.b.Name}}
	path := s.module + "." + param
	if s.mag != nil || s.bias != nil || len(s.a.Shape) != 2 || len(s.b.Shape) != 2 {
		return nil, d.errorf("unsupported_feature", s.first, "factors of parameter %q must be two plain matrices", path)
	}
	if u.A, u.B, err = d.pair(s, &u); err != nil {
		return nil, err
	}
	allowed := d.ranksOf(path)
	if len(allowed) == 0 {
		return nil, d.errorf("missing_rank", s.first, "r is needed to tell how many experts %q has", path)
	}
	rank := allowed[0]
	if int64(u.Rank)%rank != 0 || int64(u.Rank)/rank > mostExperts {
		return nil, d.errorf("rank_mismatch", s.a.Name, "the rows of A are no multiple of the rank").Expected(u.Rank, fmt.Sprintf("a multiple of %d", rank))
	}
	u.Scale = d.scale(path, int(rank))
	experts := int64(u.Rank) / rank
	if experts == 1 {
		return []adapter.Update{u}, d.checkRank(path, s.a.Name, &u)
	}
	return d.experts(s, u, int(rank), int(experts)), nil
}

// parameterAt names the parameter that was registered at a position among those wrapped.
func (d *decoder) parameterAt(s *site, params []string, at int) (string, error) {
	if len(params) == 1 {
		return params[0], nil
	}
	order := d.opt.ParameterOrder
	if len(order) == 0 {
		order = registered
	}
	sorted := slices.SortedFunc(slices.Values(params), func(a, b string) int {
		return cmp.Compare(slices.Index(order, a), slices.Index(order, b))
	})
	for _, p := range params {
		if !slices.Contains(order, p) {
			return "", d.errorf("unsupported_feature", s.first, "the order in which %q registers its parameters %s is not known, and the file does not name them", s.module, strings.Join(params, ", ")).
				Hinted("state the order of the parameters")
		}
	}
	return sorted[at], nil
}

// experts splits stacked factors: A is [E·r, in] with the expert slowest, B is [out, r·E] with the expert
// fastest (or, packed by Unsloth, slowest).
func (d *decoder) experts(s *site, u adapter.Update, rank, experts int) []adapter.Update {
	swapped, unsure := d.orientation()
	whole := shared(u.B.Load)
	ups := make([]adapter.Update, experts)
	for e := range experts {
		v := u
		v.Rank, v.Expert, v.Experts, v.Swapped, v.Unsure = rank, e, experts, swapped, unsure
		v.A = d.rowsOf(s.a, int64(e*rank), int64(rank))
		step, from := experts, e
		if d.opt.MoEB == UnslothLayout {
			step, from = 1, e*rank
		}
		v.B = columns(u.B.Rows, u.B.Cols, rank, step, from, whole)
		ups[e] = v
	}
	if d.opt.MoEB == UnslothLayout {
		d.warn("moe_layout", "lora_B of %q is read in Unsloth's order, expert by expert", u.Target)
	}
	return ups
}

// rowsOf is rows [first, first+n) of a matrix, read on their own.
func (d *decoder) rowsOf(t *tensor.Tensor, first, n int64) adapter.Factor {
	part := *t
	part.Shape = tensor.Shape{n, t.Shape[1]}
	row := t.Size / t.Shape[0]
	part.Off, part.Size = t.Off+first*row, n*row
	return adapter.FromTensor(part, n, t.Shape[1], adapter.ReadFloats)
}

// columns is the matrix of n columns from, from+step, … of a rows × cols matrix.
func columns(rows, cols int64, n, step, from int, load func() ([]float32, error)) adapter.Factor {
	return adapter.FromFunc(rows, int64(n), func() ([]float32, error) {
		v, err := load()
		if err != nil {
			return nil, err
		}
		out := make([]float32, 0, rows*int64(n))
		for i := range rows {
			row := v[i*cols : (i+1)*cols]
			for k := range n {
				out = append(out, row[from+k*step])
			}
		}
		return out, nil
	})
}

// shared lets the experts of a stack share one read of it: the values are kept until memory is wanted back.
func shared(load func() ([]float32, error)) func() ([]float32, error) {
	var mu sync.Mutex
	var kept weak.Pointer[[]float32]
	return func() ([]float32, error) {
		mu.Lock()
		defer mu.Unlock()
		if v := kept.Value(); v != nil {
			return *v, nil
		}
		v, err := load()
		if err != nil {
			return nil, err
		}
		kept = weak.Make(&v)
		return v, nil
	}
}

// orientation says whether the stored matrix of an expert is [in, out]. PEFT changed its mind twice:
// before 0.19 A always lies over the first dimension; 0.19.0 turned only x·W modules round; from 0.19.1
// A lies over the input of the module as it computes. Shapes decide where the dimensions differ.
func (d *decoder) orientation() (swapped bool, unsure string) {
	v := d.release()
	if v < 19_00 {
		return true, ""
	}
	if d.opt.Transposed == nil {
		return v == 19_00, "PEFT " + d.version + " orients the factors by the experts module's is_transposed, which the files do not say"
	}
	return *d.opt.Transposed != (v == 19_00), ""
}

// release is the PEFT version as minor·100 + patch, 0 for the versions before 0.18, which state none.
func (c *config) release() int {
	var n [3]int
	for i, p := range strings.SplitN(c.version, ".", 3) {
		digits := strings.IndexFunc(p, func(r rune) bool { return r < '0' || r > '9' })
		if digits < 0 {
			digits = len(p)
		}
		n[i], _ = strconv.Atoi(p[:digits])
	}
	return n[0]*100_00 + n[1]*100 + min(n[2], 99)
}
