package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"sort"
	"strings"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/urfave/cli/v2"

	"github.com/loratool/loratool/adapter"
	"github.com/loratool/loratool/adapter/dialect"
	"github.com/loratool/loratool/adapter/evidence"
	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/formats"
	"github.com/loratool/loratool/formats/gguf"
	"github.com/loratool/loratool/formats/onnx"
	"github.com/loratool/loratool/formats/safetensors"
	"github.com/loratool/loratool/tensor"
)

func inspectCommand(t *terminal) *cli.Command {
	return &cli.Command{
		Name:        "inspect",
		Usage:       "say what files are: format, tensors, types, metadata; of an adapter ranks, scales and targets",
		ArgsUsage:   "PATH…",
		Description: "Reads headers only.\n\nExit status: 0 sound, 1 a file is broken, 2 could not read, 4 usage.",
		Flags: append([]cli.Flag{
			&cli.BoolFlag{Name: "tensors", Usage: "list every tensor"},
			&cli.StringFlag{Name: "base", Usage: "base model, `PATH`, of an adapter whose rows are in the order of its own framework"},
		}, dialectFlags()...),
		Action: func(c *cli.Context) error { return runInspect(t, c) },
	}
}

// An inspectDocument is what inspect prints with --json.
type inspectDocument struct {
	Files []inspected `json:"files"`
}

type inspected struct {
	Path       string            `json:"path"`
	Format     string            `json:"format"`
	Kind       string            `json:"kind"` // model, adapter, other
	Dialect    string            `json:"dialect,omitempty"`
	Size       int64             `json:"size"` // bytes of tensor data
	Parameters int64             `json:"parameters"`
	Types      map[string]int    `json:"types"`
	Tensors    []inspectedTensor `json:"tensors"`
	Metadata   orderedMap        `json:"metadata"`
	Adapter    *inspectedAdapter `json:"adapter,omitempty"`
	Findings   []finding.Finding `json:"findings"`
}

type inspectedTensor struct {
	Name  string       `json:"name"`
	Type  string       `json:"type"`
	Shape tensor.Shape `json:"shape"`
	Bytes int64        `json:"bytes"`
}

type inspectedAdapter struct {
	// One number where all low-rank modules agree, else null; the lists hold the distinct ones.
	Rank      *int              `json:"rank"`
	Alpha     *float64          `json:"alpha"`
	Scale     *float64          `json:"scale"` // effective
	Ranks     []int             `json:"ranks"`
	Alphas    []float64         `json:"alphas"`
	Scales    []float64         `json:"scales"`
	BaseModel string            `json:"base_model,omitempty"`
	Modules   []inspectedModule `json:"modules"`
}

type inspectedModule struct {
	Module string       `json:"module"`
	Param  string       `json:"param"`
	Kind   adapter.Kind `json:"kind"`
	Rank   int          `json:"rank,omitempty"`
	Alpha  float64      `json:"alpha,omitempty"`
	Scale  float64      `json:"scale,omitempty"`
	Source string       `json:"source,omitempty"` // where the scale came from
}

// orderedMap marshals to an object whose keys keep their order.
type orderedMap [][2]string

func (m orderedMap) MarshalJSON() ([]byte, error) {
	b := []byte{'{'}
	for i, kv := range m {
		if i > 0 {
			b = append(b, ',')
		}
		k, err := json.Marshal(kv[0])
		if err != nil {
			return nil, err
		}
		v, err := json.Marshal(kv[1])
		if err != nil {
			return nil, err
		}
		b = append(append(append(b, k...), ':'), v...)
	}
	return append(b, '}'), nil
}

func runInspect(t *terminal, c *cli.Context) error {
	if c.NArg() == 0 {
		return usagef("inspect needs a path")
	}
	opt, err := dialectOptions(c)
	if err != nil {
		return err
	}
	doc := inspectDocument{}
	broken := false
	for _, path := range c.Args().Slice() {
		in, err := t.inspect(path, opt)
		if err != nil {
			f := finding.Of(err)
			if f == nil || f.Code == "files.missing" || f.Code == "files.unreadable" {
				return err
			}
			in.Findings = append(in.Findings, *f)
			broken = true
		}
		if in.Findings == nil {
			in.Findings = []finding.Finding{}
		}
		doc.Files = append(doc.Files, in)
		if !t.json && in.Format != "" {
			printInspected(t, in, c.Bool("tensors"))
		}
		t.report(in.Findings)
	}
	if t.json {
		if err := t.document(doc); err != nil {
			return err
		}
	}
	if broken {
		return status(exitFound)
	}
	return nil
}

// inspect opens a path. With an error it returns what was learned before it.
func (t *terminal) inspect(path string, opt dialect.Options) (inspected, error) {
	in := inspected{Path: path, Kind: "other", Types: map[string]int{}, Tensors: []inspectedTensor{}, Metadata: orderedMap{}}
	if d := dialect.Detect(path); d != "" {
		in.Kind, in.Dialect = "adapter", d
		a, err := dialect.Open(path, opt)
		if err != nil {
			return in, err
		}
		defer a.Close()
		in.Format = weightsFormat(path)
		in.Findings = append(in.Findings, a.Findings...)
		if a.NoMerge != nil {
			f := *a.NoMerge
			f.Level = finding.Warning
			in.Findings = append(in.Findings, f)
		}
		in.Metadata = append(in.Metadata, a.Metadata...)
		in.Adapter = describeAdapter(a)
		in.addTensors(adapterTensors(path, a))
		return in, nil
	}
	m, err := formats.OpenWith(path, t.formats)
	if err != nil {
		return in, err
	}
	defer m.Close()
	in.Format, in.Kind = m.Format(), "model"
	in.Findings = append(in.Findings, m.Findings()...)
	in.addTensors(m.Tensors())
	switch m := m.(type) {
	case *gguf.Model:
		for _, kv := range m.KVs() {
			in.Metadata = append(in.Metadata, [2]string{kv.Key, kv.Value.String()})
		}
	case *safetensors.Model:
		in.Metadata = append(in.Metadata, m.Metadata()...)
	case *onnx.Model:
		h := m.Header()
		in.Metadata = append(in.Metadata, [2]string{"ir_version", fmt.Sprint(h.IRVersion)}, [2]string{"producer", strings.TrimSpace(h.Producer + " " + h.ProducerVersion)})
		for _, o := range h.Opsets {
			in.Metadata = append(in.Metadata, [2]string{"opset " + cmp.Or(o.Domain, "ai.onnx"), fmt.Sprint(o.Version)})
		}
		in.Metadata = append(in.Metadata, h.Metadata...)
	}
	return in, nil
}

// weightsFormat names the format of an adapter's weights: a PEFT folder without safetensors holds a pickle.
func weightsFormat(path string) string {
	return cmp.Or(evidence.Look(path).Format, "safetensors")
}

// adapterTensors lists the tensors in an adapter's weight file; where that is no file of tensors, those that
// the factors are.
func adapterTensors(path string, a *adapter.Adapter) []tensor.Tensor {
	if file := evidence.Look(path).File; file != "" {
		if m, err := formats.Open(file); err == nil {
			defer m.Close()
			return m.Tensors()
		}
	}
	seen := map[string]bool{}
	var ts []tensor.Tensor
	for _, u := range a.Updates {
		for _, f := range []adapter.Factor{u.A, u.B, u.Magnitude, u.Value} {
			if f.Stored != nil && !seen[f.Stored.Name] {
				seen[f.Stored.Name] = true
				ts = append(ts, *f.Stored)
			}
		}
	}
	return ts
}

func (in *inspected) addTensors(ts []tensor.Tensor) {
	for _, t := range ts {
		n, _ := t.Shape.Elements()
		in.Parameters += n
		in.Size += t.Size
		in.Types[t.DType.String()]++
		shape := t.Shape
		if shape == nil {
			shape = tensor.Shape{}
		}
		in.Tensors = append(in.Tensors, inspectedTensor{t.Name, t.DType.String(), shape, t.Size})
	}
}

func describeAdapter(a *adapter.Adapter) *inspectedAdapter {
	out := &inspectedAdapter{BaseModel: a.BaseModel, Modules: []inspectedModule{}}
	ranks, alphas, scales := map[int]bool{}, map[float64]bool{}, map[float64]bool{}
	for _, u := range a.Updates {
		m := inspectedModule{Module: u.Module, Param: u.Param, Kind: u.Kind}
		if u.Kind == adapter.LowRank || u.Kind == adapter.DoRA {
			m.Rank, m.Alpha, m.Scale, m.Source = u.Rank, u.Scale.Alpha, u.Scale.Value, u.Scale.Source
			ranks[u.Rank], alphas[u.Scale.Alpha], scales[u.Scale.Value] = true, true, true
		}
		out.Modules = append(out.Modules, m)
	}
	out.Rank, out.Ranks = distinct(ranks)
	out.Alpha, out.Alphas = distinct(alphas)
	out.Scale, out.Scales = distinct(scales)
	return out
}

// distinct sorts the keys of a set; one is the key of a set that has a single one.
func distinct[N int | float64](set map[N]bool) (one *N, all []N) {
	all = slices.AppendSeq([]N{}, maps.Keys(set))
	slices.Sort(all)
	if len(all) == 1 {
		one = &all[0]
	}
	return one, all
}

func printInspected(t *terminal, in inspected, tensors bool) {
	out := t.text()
	fmt.Fprintf(out, "%s: %s %s", finding.Escape(in.Path), in.Format, in.Kind)
	if in.Dialect != "" {
		fmt.Fprintf(out, " (%s)", in.Dialect)
	}
	fmt.Fprintf(out, ", %d tensors, %d parameters, %s", len(in.Tensors), in.Parameters, formatSize(in.Size))
	for _, name := range sortedKeys(in.Types) {
		fmt.Fprintf(out, ", %d %s", in.Types[name], name)
	}
	fmt.Fprintln(out)
	for _, kv := range in.Metadata {
		v := []rune(finding.Escape(kv[1]))
		if len(v) > 100 {
			v = append(v[:97], []rune("...")...)
		}
		fmt.Fprintf(out, "  %s = %s\n", finding.Escape(kv[0]), string(v))
	}
	if a := in.Adapter; a != nil {
		fmt.Fprintf(out, "  base model %q, rank %v, alpha %v, effective scale %v\n", a.BaseModel, a.Ranks, a.Alphas, a.Scales)
		w := table.NewWriter()
		w.SetStyle(plainTable())
		w.AppendHeader(table.Row{"module", "kind", "rank", "scale", "from"})
		for _, m := range a.Modules {
			name := m.Module
			if m.Param != "weight" {
				name += "." + m.Param
			}
			row := table.Row{finding.Escape(name), m.Kind, "", "", ""}
			if m.Rank > 0 {
				row = table.Row{row[0], m.Kind, m.Rank, fmt.Sprintf("%g", m.Scale), m.Source}
			}
			w.AppendRow(row)
		}
		fmt.Fprintln(out, w.Render())
	}
	if tensors {
		w := table.NewWriter()
		w.SetStyle(plainTable())
		w.AppendHeader(table.Row{"tensor", "type", "shape", "bytes"})
		for _, x := range in.Tensors {
			w.AppendRow(table.Row{finding.Escape(x.Name), x.Type, x.Shape.String(), x.Bytes})
		}
		fmt.Fprintln(out, w.Render())
	}
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	return keys
}
