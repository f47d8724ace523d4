package verify

import (
	"bytes"
	"context"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"runtime"
	"sort"

	"golang.org/x/sync/errgroup"

	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/formats/gguf"
	"github.com/loratool/loratool/merge"
	"github.com/loratool/loratool/onnxruntime"
	"github.com/loratool/loratool/quant"
	"github.com/loratool/loratool/quant/scheme"
	"github.com/loratool/loratool/tensor"
)

// MergeOptions say how thoroughly a merge is checked.
type MergeOptions struct {
	All     bool   // every row of every tensor, and every module with the runtime
	Modules int    // modules the runtime checks otherwise; the exact check visits all of them
	Seed    uint64 // of the rows and modules that are chosen, and of the runtime's inputs
	Jobs    int
	// Runtime does the runtime check; nil skips it, and NoRuntime says why.
	Runtime   *onnxruntime.Runtime
	NoRuntime string
	// Retention below Low is a warning, below Lost an error. The zero values mean 0.9 and 0.5.
	Low, Lost float64
	// AnyRetention leaves retention to the caller, who has measured it already.
	AnyRetention bool
	Progress     func(done int64) // called for every tensor checked
}

// sampledRows is how many rows of a tensor the exact check reads when it does not read all.
const sampledRows = 32

// Merge checks that merged is what the plan says. The plan must have been made from the base and the
// adapters that the merge claims to be of.
func Merge(ctx context.Context, plan *merge.Plan, merged merge.Base, opt MergeOptions) (*Report, error) {
	if opt.Low == 0 {
		opt.Low = 0.9
	}
	if opt.Lost == 0 {
		opt.Lost = 0.5
	}
	if opt.Jobs <= 0 {
		opt.Jobs = runtime.GOMAXPROCS(0)
	}
	c := &mergeCheck{opt: opt, merged: merged, report: &Report{Unchanged: &Unchanged{Whole: opt.All}}}
	c.pair(plan)
	if opt.Runtime != nil {
		c.checker = opt.Runtime.NewChecker(onnxruntime.CheckOptions{Seed: opt.Seed, RunBytes: 8 << 20})
		defer c.checker.Close()
	}
	if err := c.run(ctx); err != nil {
		return nil, err
	}
	c.summarize()
	return c.report.conclude(), nil
}

type mergeCheck struct {
	opt     MergeOptions
	merged  merge.Base
	report  *Report
	checker *onnxruntime.Checker
	work    []work
}

// work is one tensor to check, and what came of it.
type work struct {
	out       *merge.Output
	stored    tensor.Tensor  // decoded, where it is packed
	packed    *scheme.Weight // nil where it is not
	byRuntime bool

	module   *Module
	rounded  bool // the module is W + ΔW, as far as its type holds that
	matched  bool // it seems to be stored by matched rounding
	bytes    int64
	findings []finding.Finding
}

// storedAs says how the merged model stores the tensor.
func (w *work) storedAs() string {
	if w.packed != nil {
		return w.packed.Scheme
	}
	return w.stored.DType.String()
}

// baseAs says how the base stores it.
func (w *work) baseAs() string {
	if p := w.out.Weight(); p != nil {
		return p.Scheme
	}
	return w.out.Source().DType.String()
}

// shares reports whether the elements that the merged model stores share scales.
func (w *work) shares() bool { return w.packed != nil || w.stored.DType.IsBlock() }

// pair finds every planned tensor in the merged model and reports what is missing, strange or misshapen.
func (c *mergeCheck) pair(plan *merge.Plan) {
	stored := map[string]tensor.Tensor{}
	for _, t := range c.merged.Tensors() {
		stored[t.Name] = t
	}
	model, _ := c.merged.(interface{ Weight(string) *scheme.Weight })
	var updated []int
	for i := range plan.Tensors {
		out := &plan.Tensors[i]
		t, ok := stored[out.Name]
		delete(stored, out.Name)
		var packed *scheme.Weight
		if model != nil && out.Weight() != nil {
			if packed = model.Weight(out.Name); packed != nil {
				t = packed.Exact
			}
		}
		switch {
		case !ok:
			c.report.add(finding.Errorf("merge.completeness", c.merged.Path(), "a tensor of the base is missing").In(out.Name))
			continue
		case !t.Shape.Equal(out.Shape):
			c.report.add(finding.Errorf("merge.completeness", c.merged.Path(), "tensor has another shape than in the base").In(out.Name).Expected(t.Shape, out.Shape))
			continue
		}
		if len(out.Updates) > 0 {
			updated = append(updated, len(c.work))
		}
		c.work = append(c.work, work{out: out, stored: t, packed: packed})
	}
	extra := make([]string, 0, len(stored))
	for name := range stored {
		extra = append(extra, name)
	}
	sort.Strings(extra)
	for _, name := range extra {
		c.report.add(finding.Errorf("merge.completeness", c.merged.Path(), "tensor is not in the base").In(name))
	}
	c.chooseModules(updated)
}

// chooseModules marks the tensors the runtime checks: all, or an even spread that the seed moves.
func (c *mergeCheck) chooseModules(updated []int) {
	use := &RuntimeUse{Of: len(updated)}
	c.report.Runtime = use
	if c.opt.Runtime == nil {
		use.Reason = c.opt.NoRuntime
		return
	}
	use.Version, use.Provider = c.opt.Runtime.Version(), string(c.opt.Runtime.Provider())
	n := min(c.opt.Modules, len(updated))
	if c.opt.All {
		n = len(updated)
	}
	shift := rand.New(rand.NewPCG(c.opt.Seed, 1)).Float64()
	for i := range n {
		c.work[updated[int((float64(i)+shift)*float64(len(updated))/float64(n))]].byRuntime = true
	}
}

func (c *mergeCheck) run(ctx context.Context) error {
	g, inner := errgroup.WithContext(ctx)
	g.SetLimit(c.opt.Jobs)
	for i := range c.work {
		if inner.Err() != nil {
			break
		}
		w := &c.work[i]
		g.Go(func() error {
			err := c.one(inner, w)
			if c.opt.Progress != nil {
				c.opt.Progress(1)
			}
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	return ctx.Err()
}

func (c *mergeCheck) one(ctx context.Context, w *work) error {
	if ops, _ := w.out.Ops(); len(ops) == 0 {
		return c.same(w)
	}
	return c.updated(ctx, w)
}

// summarize collects the results in plan order.
func (c *mergeCheck) summarize() {
	var names []string
	var values []float64
	for _, w := range c.work {
		c.report.Findings = append(c.report.Findings, w.findings...)
		if w.module == nil {
			c.report.Unchanged.Tensors++
			c.report.Unchanged.Bytes += w.bytes
			continue
		}
		c.report.Modules = append(c.report.Modules, *w.module)
		names, values = append(names, w.module.Module), append(values, w.module.Retention)
		if w.module.Runtime != nil {
			c.report.Runtime.Modules++
		}
	}
	c.report.Retention = SummarizeRetention(names, values)
	if !c.opt.AnyRetention {
		c.judgeRetention()
	}
}

// judgeRetention reports adapters that rounding to the stored type has eaten.
func (c *mergeCheck) judgeRetention() {
	var kept []Kept
	lost := 0
	for _, w := range c.work {
		if !w.rounded {
			continue
		}
		m := w.module
		kept = append(kept, Kept{m.Module, m.Tensor, m.Type, m.Retention})
		if m.Retention < c.opt.Lost {
			lost++
		}
	}
	f := LowRetention(c.merged.Path(), kept, c.opt.Low)
	if f == nil {
		return
	}
	if lost > 0 {
		f.Level, f.Code = finding.Error, "merge.retention_lost"
		f.Message += fmt.Sprintf("; less than %.0f %% in %d", 100*c.opt.Lost, lost)
	}
	c.report.add(f)
}

// fail records an error about a tensor.
func (c *mergeCheck) fail(w *work, code, format string, a ...any) *finding.Finding {
	w.findings = append(w.findings, *finding.Errorf(code, c.merged.Path(), format, a...).In(w.out.Name))
	return &w.findings[len(w.findings)-1]
}

// same checks a tensor without ops: its bytes are the source's, or its values are when the type changed.
func (c *mergeCheck) same(w *work) error {
	switch {
	case w.packed != nil && !w.out.Weight().Stored():
		return c.sameRounding(w)
	case w.packed != nil:
		return c.sameParts(w)
	}
	source := w.out.Source()
	if len(w.out.Updates) > 0 {
		w.module = &Module{Module: w.out.Updates[0].Module, Tensor: w.out.Name, Type: w.stored.DType.String(), Retention: 1, Pass: true}
	}
	// A piece is a byte where bytes are compared, and a whole number of blocks where values are.
	unit, expect := int64(1), func(in []byte, _ int64) ([]byte, error) { return in, nil }
	if w.stored.DType != source.DType {
		from, okFrom := quant.Of(source.DType)
		to, okTo := quant.Of(w.stored.DType)
		if !okFrom || !okTo || !to.CanEncode() || to.NeedsImportance() && !w.out.Weighed() {
			c.fail(w, "merge.equivalence", "tensor has another type than the base's, and cannot be compared").Expected(w.stored.DType, source.DType).
				Hinted("a type that needs an importance matrix is compared with --imatrix FILE")
			return nil
		}
		unit = int64(max(source.DType.BlockLen(), w.stored.DType.BlockLen()))
		if _, frame := w.out.Ops(); w.out.Weighed() {
			unit = frame.Cols
		}
		expect = func(in []byte, first int64) ([]byte, error) { return convert(w.out, from, to, in, first) }
	}
	inUnit, outUnit := int64(1), int64(1)
	if w.stored.DType != source.DType {
		var err error
		if inUnit, err = source.DType.Bytes(unit); err != nil {
			return err
		}
		if outUnit, err = w.stored.DType.Bytes(unit); err != nil {
			return err
		}
	}
	units := source.Size / inUnit
	step := max(1, (1<<20)/max(inUnit, outUnit))
	for _, first := range c.stretches(w, units, step) {
		in := make([]byte, min(step, units-first)*inUnit)
		if _, err := source.ReadAt(in, first*inUnit); err != nil {
			return err
		}
		want, err := expect(in, first)
		if err != nil {
			return err
		}
		got := make([]byte, len(want))
		if _, err := w.stored.ReadAt(got, first*outUnit); err != nil {
			c.fail(w, "merge.equivalence", "%v", err)
			return nil
		}
		w.bytes += int64(len(got))
		if !bytes.Equal(got, want) && !c.otherEncoder(w, in, got, want) {
			c.fail(w, "merge.equivalence", "the adapters do not touch this tensor, but it differs from its source").
				Expected("other bytes", source.Name)
			if w.module != nil {
				w.module.Pass, w.module.Why = false, "differs from the adapter's replacement"
			}
			return nil
		}
	}
	return nil
}

// sameParts checks a packed tensor without ops: it is stored as the base stores it.
func (c *mergeCheck) sameParts(w *work) error {
	parts := w.out.Weight().Parts
	same := len(parts) == len(w.packed.Parts)
	for i := 0; same && i < len(parts); i++ {
		source, stored := parts[i], w.packed.Parts[i]
		if same = source.Name == stored.Name && source.DType == stored.DType && source.Shape.Equal(stored.Shape); !same {
			break
		}
		step := int64(1 << 20)
		for _, first := range c.stretches(w, source.Size, step) {
			want := make([]byte, min(step, source.Size-first))
			if _, err := source.ReadAt(want, first); err != nil {
				return err
			}
			got := make([]byte, len(want))
			if _, err := stored.ReadAt(got, first); err != nil {
				return err
			}
			w.bytes += int64(len(got))
			same = same && bytes.Equal(got, want)
		}
	}
	if !same {
		c.fail(w, "merge.equivalence", "the adapters do not touch this tensor, but it is not packed as in its source").
			Expected(w.packed.Scheme, w.out.Weight().Scheme)
	}
	return nil
}

// otherEncoder reports whether stored bytes are as near to their source as another encoder of the type might
// bring them: one that knew an importance matrix which the plan does not have.
func (c *mergeCheck) otherEncoder(w *work, in, got, want []byte) bool {
	if !c.unknownImatrix(w) || w.stored.DType == w.out.Source().DType {
		return false
	}
	from, _ := quant.Of(w.out.Source().DType)
	to, _ := quant.Of(w.stored.DType)
	x := make([]float32, len(in)/from.DType().BlockBytes()*from.DType().BlockLen())
	from.Decode(x, in)
	noise := func(b []byte) (sum float64) {
		v := make([]float32, len(x))
		to.Decode(v, b)
		for i := range v {
			d := float64(v[i]) - float64(x[i])
			sum += float64(d * d)
		}
		return sum
	}
	return noise(got) <= imatrixNoise*noise(want)
}

// imatrixNoise bounds the error, squared, of an encoder that weighs columns by that of one that does not.
const imatrixNoise = 4

// unknownImatrix reports whether the file says that it was stored by an importance matrix, and the plan
// has none.
func (c *mergeCheck) unknownImatrix(w *work) bool {
	g, ok := c.merged.(*gguf.Model)
	if !ok || !w.stored.DType.IsBlock() || w.out.Weighed() {
		return false
	}
	_, has := g.Get("quantize.imatrix.entries_count")
	return has
}

// convert re-encodes whole blocks, or rows where the columns weigh.
func convert(out *merge.Output, from, to quant.Codec, in []byte, first int64) ([]byte, error) {
	d := from.DType()
	n := int64(len(in)) / int64(d.BlockBytes()) * int64(d.BlockLen())
	v := make([]float32, n)
	from.Decode(v, in)
	size, err := to.DType().Bytes(n)
	if err != nil {
		return nil, err
	}
	dst := make([]byte, size)
	if out.Weighed() {
		return dst, out.EncodeRows(to.DType(), dst, v, first)
	}
	return dst, to.Encode(dst, v)
}

// stretches chooses the units at which an untouched tensor is compared: everywhere, or at its ends and
// one place between.
func (c *mergeCheck) stretches(w *work, units, step int64) []int64 {
	var at []int64
	if c.opt.All || units <= 3*step {
		for first := int64(0); first < units; first += step {
			at = append(at, first)
		}
		return at
	}
	middle := c.random(w.out.Name).Int64N(units - step)
	return []int64{0, middle, units - step}
}

// random is a generator that depends on the seed and a name only.
func (c *mergeCheck) random(name string) *rand.Rand {
	h := fnv.New64a()
	fmt.Fprint(h, name)
	return rand.New(rand.NewPCG(c.opt.Seed, h.Sum64()))
}
