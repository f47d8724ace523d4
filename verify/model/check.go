// Package model checks whole ONNX models: it runs a base with its adapters, as LoRA branches beside the layers, and
// the merged model on the same inputs, and compares what comes out. The base runs without the adapters too, so that a
// comparison of nothing with nothing cannot pass.
package model

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/loratool/loratool/branch"
	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/formats/layout"
	"github.com/loratool/loratool/formats/onnx"
	"github.com/loratool/loratool/merge"
	"github.com/loratool/loratool/onnxruntime"
	"github.com/loratool/loratool/tensor"
	"github.com/loratool/loratool/verify"
)

// A Check is a prepared comparison. It holds what can be known before anything runs: where the branches go and what
// the inputs are.
type Check struct {
	base, merged *onnx.Model
	plan         *branch.Plan
	parameters   []branch.Parameter
	inputs       []input
	seed         uint64

	onCPU, onDevice int // operators that ran, where the provider is not the CPU's
}

// New prepares the check of a merged model. Errors say what cannot be run: updates that a branch cannot express, inputs
// that have to be given. The models must stay open.
func New(base, merged *onnx.Model, adapters []merge.Input, provider onnxruntime.Provider, how Making) (*Check, error) {
	var opt branch.Options
	if provider == onnxruntime.WebGPU { // which does not bear tensors without elements
		opt.Rank, how.Past = 1, 1
	}
	plan, err := branch.NewPlan(base, opt)
	if err != nil {
		return nil, err
	}
	c := &Check{base: base, merged: merged, plan: plan, seed: how.Seed}
	if c.parameters, err = plan.Parameters(adapters); err != nil {
		if f := finding.Of(err); f != nil {
			f.Hint = "without --whole-model the merge is checked all the same, layer by layer"
		}
		return nil, err
	}
	plan.Keep(c.parameters)
	if c.inputs, err = how.inputs(base); err != nil {
		return nil, err
	}
	return c, c.agree()
}

// agree requires that the merged model takes the base's inputs and gives its outputs.
func (c *Check) agree() error {
	has := func(vs []onnx.Value, want onnx.Value) bool {
		for _, v := range vs {
			if v.Name == want.Name {
				return v.Kind == want.Kind && v.DType == want.DType
			}
		}
		return false
	}
	for _, in := range c.inputs {
		for _, v := range c.base.Graph().Inputs {
			if v.Name == in.ModelInput.Name && !has(c.merged.Graph().Inputs, v) {
				return finding.Errorf("merge.whole_model", c.merged.Path(), "the merged model has no input %q of the base's type", v.Name)
			}
		}
	}
	for _, v := range c.base.Graph().Outputs {
		if !has(c.merged.Graph().Outputs, v) {
			return finding.Errorf("merge.whole_model", c.merged.Path(), "the merged model has no output %q of the base's type", v.Name)
		}
	}
	return nil
}

// An output that is compared.
type output struct {
	onnx.Value
	name string // under which it is read
}

// Run runs the models and adds what it finds to a report, whose modules say what the merged layers are stored as.
func (c *Check) Run(ctx context.Context, rt *onnxruntime.Runtime, r *verify.Report) error {
	w := &verify.WholeModel{Provider: string(rt.Provider()), Seed: c.seed, Branches: len(c.plan.Layers), Inputs: []verify.ModelInput{}, Outputs: []verify.ModelOutput{}}
	given := map[string]onnxruntime.Value{}
	for _, in := range c.inputs {
		v, err := in.value()
		if err != nil {
			return finding.Errorf("runtime.bad_input", c.base.Path(), "input %q: %v", in.ModelInput.Name, err)
		}
		given[in.ModelInput.Name] = v
		w.Inputs = append(w.Inputs, in.ModelInput)
	}
	outputs, dummy := c.outputs()
	if len(outputs) == 0 {
		return finding.Errorf("runtime.run_failed", c.base.Path(), "the model has no output that is a tensor of numbers")
	}
	if len(given) > 0 {
		dummy = ""
	} else {
		given[dummy] = onnxruntime.Floats(make([]float32, 1), 1)
	}
	base, with, err := c.runBase(ctx, rt, given, outputs, dummy)
	if err != nil {
		return err
	}
	merged, err := c.runMerged(ctx, rt, given, outputs, dummy)
	if err != nil {
		return err
	}
	w.OnCPU, w.OnDevice = c.onCPU, c.onDevice
	t := c.tolerance(r.Modules)
	for i, o := range outputs {
		w.Outputs = append(w.Outputs, compare(o.Name, o.DType, merged[i], with[i], base[i], t))
	}
	c.conclude(w, r)
	return nil
}

// conclude turns the comparisons into findings.
func (c *Check) conclude(w *verify.WholeModel, r *verify.Report) {
	w.Pass = true
	proven, unclear := 0, 0
	for _, o := range w.Outputs {
		switch {
		case !o.Pass:
			w.Pass = false
			f := finding.Errorf("merge.whole_model", c.merged.Path(), "ONNX Runtime on %s, output of the whole model: %s", w.Provider, o.Why)
			r.Findings = append(r.Findings, *f.In(o.Name))
			if w.Why == "" {
				w.Why = fmt.Sprintf("output %q: %s", o.Name, o.Why)
			}
		case o.Why == inconclusive:
			unclear++
		case o.Why == "":
			proven++
		}
	}
	if w.Pass && proven == 0 {
		var f *finding.Finding
		if w.Pass = false; unclear > 0 {
			w.Why = inconclusive
			f = finding.Warnf("merge.whole_model_inconclusive", c.merged.Path(), "running the whole models proves nothing: %s", inconclusive).
				Hinted("the exact check and the check by modules are finer; other inputs may show a larger effect")
		} else {
			w.Why = "the adapter changes no output"
			f = finding.Errorf("merge.whole_model_no_effect", c.merged.Path(), "running the whole models proves nothing: with these inputs the adapter changes no output at all").
				Hinted("give inputs on which the adapter has an effect, with --inputs")
		}
		r.Findings = append(r.Findings, *f)
	}
	r.WholeModel = w
	r.Verdict = verify.Judge(r.Findings)
}

// outputs are those that can be compared, and a name that no value of the graph has, for a graph without inputs.
func (c *Check) outputs() (all []output, dummy string) {
	taken := map[string]bool{}
	for _, m := range []*onnx.Model{c.base, c.merged} {
		g := m.Graph()
		for _, vs := range [][]onnx.Value{g.Inputs, g.Outputs} {
			for _, v := range vs {
				taken[v.Name] = true
			}
		}
		for _, n := range g.Nodes {
			for _, v := range n.Outputs {
				taken[v] = true
			}
		}
	}
	fresh := func(name string) string {
		for taken[name] {
			name += "_"
		}
		taken[name] = true
		return name
	}
	for _, v := range c.base.Graph().Outputs {
		if v.Kind != "tensor" || !v.DType.IsFloat() && !integers(v.DType) {
			continue
		}
		o := output{v, v.Name}
		if v.DType != tensor.F32 && v.DType != tensor.I64 {
			o.name = fresh(v.Name + ".read")
		}
		all = append(all, o)
	}
	return all, fresh("loratool.unused")
}

// extension is what is appended to a model so that its outputs can be read.
func extension(outputs []output, dummy string) []byte {
	var casts []onnxruntime.Readable
	for _, o := range outputs {
		if o.name != o.Name {
			casts = append(casts, onnxruntime.Readable{Output: o.Name, Name: o.name, Float: o.DType.IsFloat()})
		}
	}
	return onnxruntime.Extend(casts, dummy)
}

func names(outputs []output) (all []string) {
	for _, o := range outputs {
		all = append(all, o.name)
	}
	return all
}

// runBase runs the base without and with the adapters. Both are runs of one session: without them, their factors are
// zeros.
func (c *Check) runBase(ctx context.Context, rt *onnxruntime.Runtime, given map[string]onnxruntime.Value, outputs []output, dummy string) (base, with []onnxruntime.Value, err error) {
	m, cleanup, err := c.injected(ctx, extension(outputs, dummy))
	if err != nil {
		return nil, nil, err
	}
	defer cleanup()
	in := map[string]onnxruntime.Value{}
	var order []string
	for n, v := range given {
		in[n] = v
		order = append(order, n)
	}
	for _, p := range c.parameters {
		shape := append(tensor.Shape(nil), p.Shape...)
		if shape[0]*shape[1] == 0 {
			return nil, nil, finding.Errorf("adapter.rank_zero", "", "the factor has no elements").In(p.Name)
		}
		for i, l := range []string{".lora_A.weight", ".lora_B.weight"} {
			if strings.HasSuffix(p.Name, l) {
				shape[1-i] = 1 // A [in, 1], B [1, out]
			}
		}
		zero, err := onnxruntime.Bytes(p.DType, make([]byte, shape[0]*shape[1]*int64(p.DType.BlockBytes())), shape...)
		if err != nil {
			return nil, nil, err
		}
		in[p.Name] = zero
		order = append(order, p.Name)
	}
	s, err := rt.LoadMixed(ctx, m, order, names(outputs))
	if err != nil {
		return nil, nil, refused(err, c.base.Path(), "the base with the adapters beside its layers")
	}
	defer s.Close()
	if base, err = s.Run(ctx, in); err != nil {
		return nil, nil, refused(err, c.base.Path(), "the base")
	}
	for _, p := range c.parameters {
		if in[p.Name], err = onnxruntime.Bytes(p.DType, p.Data, p.Shape...); err != nil {
			return nil, nil, err
		}
	}
	if with, err = s.Run(ctx, in); err != nil {
		return nil, nil, refused(err, c.base.Path(), "the base with the adapters beside its layers")
	}
	return base, with, c.placed(s, c.base.Path())
}

// products are the operators that a device was asked for to run.
var products = []string{"MatMul", "Gemm", "FusedMatMul", "FusedGemm", "MatMulNBits", "MatMulBnb4", "Conv", "FusedConv"}

// placed closes a session and requires that the device computed the products.
func (c *Check) placed(s *onnxruntime.Session, path string) error {
	where, err := s.Placement()
	if err != nil || where.Device == nil {
		return err
	}
	here, there := 0, 0
	for _, op := range products {
		here, there = here+where.CPU[op], there+where.Device[op]
	}
	if there == 0 || here > 0 {
		return finding.Errorf("runtime.no_device", path, "%d of the model's %d products ran on the CPU, since the device cannot run them", here, here+there).
			Hinted("--device cpu runs all of them there")
	}
	for _, n := range where.CPU {
		c.onCPU += n
	}
	for _, n := range where.Device {
		c.onDevice += n
	}
	return nil
}

// injected is the base with its branches, in memory where the external data can stay where it is, else in a temporary
// folder.
func (c *Check) injected(ctx context.Context, extension []byte) (m onnxruntime.Model, cleanup func(), err error) {
	b, ok, err := c.plan.Bytes()
	if err != nil {
		return m, nil, err
	}
	if ok {
		return onnxruntime.Model{Path: c.base.Path(), Bytes: append(b, extension...), Folder: filepath.Dir(c.base.File())}, func() {}, nil
	}
	dir, err := os.MkdirTemp("", "loratool-")
	if err != nil {
		return m, nil, finding.Errorf("output.io", c.base.Path(), "no temporary folder for the base with its branches: %v", err)
	}
	cleanup = func() { os.RemoveAll(dir) }
	path := filepath.Join(dir, "base.onnx")
	if err := c.write(ctx, path, extension); err != nil {
		cleanup()
		if finding.Of(err) != nil || ctx.Err() != nil {
			return m, nil, err
		}
		return m, nil, finding.Errorf("output.io", path, "the base with its branches cannot be written: %v", err).
			Hinted("TMPDIR names another folder for temporary files")
	}
	return onnxruntime.Model{Path: path}, cleanup, nil
}

// write writes the base with its branches, and behind it the extension.
func (c *Check) write(ctx context.Context, path string, extension []byte) error {
	l, err := c.plan.Layout(path, layout.Options{})
	if err != nil {
		return err
	}
	w, err := layout.Create(path, l, false)
	if err != nil {
		return err
	}
	defer w.Abort()
	if err := w.WriteSpans(ctx); err != nil {
		return err
	}
	if err := w.Commit(); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	_, err = f.Write(extension)
	return errors.Join(err, f.Close())
}

// runMerged runs the merged model, from its file where nothing has to be appended.
func (c *Check) runMerged(ctx context.Context, rt *onnxruntime.Runtime, given map[string]onnxruntime.Value, outputs []output, dummy string) ([]onnxruntime.Value, error) {
	m := onnxruntime.Model{Path: c.merged.File()}
	if e := extension(outputs, dummy); e != nil {
		b, err := os.ReadFile(c.merged.File())
		if err != nil {
			return nil, finding.Errorf("files.unreadable", c.merged.Path(), "the file cannot be read")
		}
		m.Bytes, m.Folder = append(b, e...), filepath.Dir(c.merged.File())
	}
	var order []string
	for n := range given {
		order = append(order, n)
	}
	s, err := rt.LoadMixed(ctx, m, order, names(outputs))
	if err != nil {
		return nil, refused(err, c.merged.Path(), "the merged model")
	}
	defer s.Close()
	ys, err := s.Run(ctx, given)
	if err != nil {
		return nil, refused(err, c.merged.Path(), "the merged model")
	}
	return ys, c.placed(s, c.merged.Path())
}

// refused puts what the runtime says into context.
func refused(err error, path, what string) error {
	f := finding.Of(err)
	if f == nil || f.Code != "runtime.run_failed" {
		return err
	}
	said := strings.TrimPrefix(f.Message, "ONNX Runtime: ")
	g := finding.Errorf("runtime.model_refused", path, "ONNX Runtime does not run %s: %s", what, said)
	switch {
	case strings.Contains(said, "fallback to CPU EP has been explicitly disabled"):
		g.Hint = "the device does not have all of the model's operators; --device cpu runs it on the CPU"
	case strings.Contains(said, "Got invalid dimensions"), strings.Contains(said, "broadcast"), strings.Contains(said, "indices element out of data bounds"):
		g.Hint = "the inputs that were made up do not suit the model; give them with --inputs FILE.npz or .json, or sizes with --dim NAME=N"
	}
	return g
}

// tolerance is what rounding may make of the outputs.
func (c *Check) tolerance(modules []verify.Module) tolerance {
	var compute []tensor.DType
	for _, l := range c.plan.Layers {
		compute = append(compute, l.DType)
	}
	activations := 0
	for _, n := range c.merged.Graph().Nodes {
		switch n.OpType {
		case "DynamicQuantizeLinear", "DynamicQuantizeMatMul", "QuantizeLinear":
			activations++
		case "MatMulNBits":
			if n.Int("accuracy_level", 0) == 4 {
				activations++
			}
		}
	}
	return tolerate(modules, compute, activations)
}
