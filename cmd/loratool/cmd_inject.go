package main

import (
	"context"
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/loratool/loratool/branch"
	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/formats"
	"github.com/loratool/loratool/formats/layout"
	"github.com/loratool/loratool/formats/onnx"
	"github.com/loratool/loratool/formats/ortadapter"
	"github.com/loratool/loratool/merge"
	"github.com/loratool/loratool/tensor"
)

func injectCommand(t *terminal) *cli.Command {
	return &cli.Command{
		Name:      "inject",
		Usage:     "add LoRA branches to an ONNX model, so that it serves many adapters",
		ArgsUsage: "BASE.onnx",
		Description: "Every linear layer whose module is known, quantized or not, becomes y = x·W + (x·A)·B, where A and B are optional inputs of the " +
			"graph, named MODULE.lora_A.weight and MODULE.lora_B.weight. Without them the model computes what BASE computes; an adapter file of " +
			"ONNX Runtime gives them. With -a the matching OUT.onnx_adapter is written beside OUT.onnx; several adapters become one.\n\n" +
			"Exit status: 0 done, 2 could not complete, 3 no layer can have a branch, 4 usage, 130 interrupted.",
		Flags: slices.Concat([]cli.Flag{
			adapterFlag(),
			&cli.StringFlag{Name: "output", Aliases: []string{"o"}, Usage: "output `FILE`.onnx"},
			&cli.StringFlag{Name: "include", Usage: "give branches only to modules whose path matches `REGEX`"},
			weightsFlag(),
			&cli.BoolFlag{Name: "provider-safe", Usage: "make the defaults zeros of rank 1, since WebGPU does not bear tensors without elements"},
			&cli.BoolFlag{Name: "force", Usage: "replace existing outputs"},
		}, dialectFlags()),
		Action: func(c *cli.Context) error { return runInject(t, c) },
	}
}

// An injectDocument is what inject prints with --json.
type injectDocument struct {
	SchemaVersion int               `json:"schema_version"`
	Output        string            `json:"output"`
	Adapter       string            `json:"adapter,omitempty"` // the adapter file beside it
	Bytes         int64             `json:"bytes"`
	Layers        []branch.Layer    `json:"layers"`
	Parameters    int               `json:"parameters"` // of the adapter file
	Findings      []finding.Finding `json:"findings"`
}

func runInject(t *terminal, c *cli.Context) error {
	path, err := oneArgument(c, "ONNX model")
	if err != nil {
		return err
	}
	output := c.String("output")
	stem, isONNX := strings.CutSuffix(output, ".onnx")
	switch {
	case output == "":
		return usagef("inject needs an output (-o FILE.onnx)")
	case !isONNX:
		return usagef("-o %q: the output is an ONNX model, whose name ends in .onnx", output)
	}
	var opt branch.Options
	if s := c.String("include"); s != "" {
		if opt.Include, err = regexp.Compile(s); err != nil {
			return usagef("--include: %v", err)
		}
	}
	if c.Bool("provider-safe") {
		opt.Rank = 1
	}
	dialect, err := dialectOptions(c)
	if err != nil {
		return err
	}
	opened, err := formats.Open(path)
	if err != nil {
		return err
	}
	defer opened.Close()
	m, ok := opened.(*onnx.Model)
	if !ok {
		return finding.Errorf("base.unsupported", path, "branches are put into ONNX models only").Expected(opened.Format(), "onnx").
			Hinted("merge bakes adapters into models of every format")
	}
	if err := t.recognise(c, m); err != nil {
		return err
	}
	inputs, closeAdapters, err := openAdapters(c.StringSlice("adapter"), dialect)
	if err != nil {
		return err
	}
	defer closeAdapters()
	plan, err := branch.NewPlan(m, opt)
	if err != nil {
		if plan != nil {
			t.report(plan.Findings)
		}
		return err
	}
	parameters, err := plan.Parameters(inputs)
	if err != nil {
		return err
	}
	doc := injectDocument{SchemaVersion: 1, Output: output, Layers: plan.Layers, Parameters: len(parameters)}
	doc.Findings = slices.Concat([]finding.Finding{}, m.Findings(), plan.Findings)
	for _, in := range inputs {
		doc.Findings = append(doc.Findings, in.Adapter.Findings...)
	}
	if len(inputs) > 0 {
		doc.Adapter = stem + ".onnx_adapter"
	}
	if err := outputIsInput(output, inputPaths(path, inputs)); err != nil {
		return err
	}
	if err := writeInjected(c.Context, plan, parameters, &doc, provenanceOf(path), c.Bool("force")); err != nil {
		return err
	}
	if t.json {
		if err := t.document(doc); err != nil {
			return err
		}
	}
	t.report(doc.Findings)
	fmt.Fprintf(t.text(), "%s: %d layers with branches, %s written\n", finding.Escape(output), len(plan.Layers), formatSize(doc.Bytes))
	if doc.Adapter != "" {
		fmt.Fprintf(t.text(), "%s: %d of their inputs\n", finding.Escape(doc.Adapter), len(parameters))
	}
	return nil
}

func inputPaths(base string, inputs []merge.Input) []string {
	paths := []string{base}
	for _, in := range inputs {
		paths = append(paths, in.Adapter.Path)
	}
	return paths
}

func provenanceOf(base string) [][2]string {
	return [][2]string{{"loratool.base", filepath.Base(filepath.Clean(base))}}
}

// writeInjected writes the model, and the adapter file where there is one. Both are complete before the
// first of them appears.
func writeInjected(ctx context.Context, plan *branch.Plan, parameters []branch.Parameter, doc *injectDocument, origin [][2]string, force bool) error {
	l, err := plan.Layout(doc.Output, layout.Options{Provenance: origin})
	if err != nil {
		return err
	}
	model, err := layout.Create(doc.Output, l, force)
	if err != nil {
		return err
	}
	defer model.Abort()
	if err := model.WriteSpans(ctx); err != nil {
		return err
	}
	for _, f := range l.Files {
		doc.Bytes += f.Size
	}
	if doc.Adapter == "" {
		return model.Commit()
	}
	specs := make([]tensor.Spec, len(parameters))
	for i, p := range parameters {
		specs[i] = p.Spec
	}
	la, err := ortadapter.Layout(ortadapter.Header{}, specs, layout.Options{Name: filepath.Base(doc.Adapter)})
	if err != nil {
		return err
	}
	adapter, err := layout.Create(doc.Adapter, la, force)
	if err != nil {
		return err
	}
	defer adapter.Abort()
	for i, p := range parameters {
		if err := adapter.WriteAt(i, p.Data, 0); err != nil {
			return err
		}
	}
	if err := adapter.WriteSpans(ctx); err != nil {
		return err
	}
	if err := adapter.Commit(); err != nil {
		return err
	}
	return model.Commit()
}
