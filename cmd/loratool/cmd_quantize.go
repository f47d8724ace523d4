package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/urfave/cli/v2"

	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/formats"
	"github.com/loratool/loratool/formats/layout"
	"github.com/loratool/loratool/merge"
	"github.com/loratool/loratool/quant/imatrix"
	"github.com/loratool/loratool/quant/onnxquant"
	"github.com/loratool/loratool/quant/recipe"
	"github.com/loratool/loratool/tensor"
	"github.com/loratool/loratool/verify"
)

func quantizeCommand(t *terminal) *cli.Command {
	return &cli.Command{
		Name:      "quantize",
		Usage:     "store a model's weights in smaller types",
		ArgsUsage: "IN",
		Description: "GGUF to GGUF, byte for byte what llama.cpp's tool writes; safetensors to safetensors for F32, F16, BF16, F8_E4M3 and F8_E5M2 (8 bits: a plain cast of all but vectors, position embeddings and the VAE); a model folder to GGUF where OUTPUT ends in .gguf. " +
			"RECIPE is a type (Q8_0) or a mixture (Q4_K_M), in any case.\n\n" +
			"ONNX to ONNX, byte for byte what ONNX Runtime's quantizers make of the weights: RECIPE is " + strings.Join(onnxquant.Recipes, ", ") +
			"; TYPE of the other flags is one of these, or keep.\n\n" +
			"Exit status: 0 done, 2 could not complete, 4 usage, 130 interrupted.",
		Flags: slices.Concat([]cli.Flag{
			&cli.StringFlag{Name: "output", Aliases: []string{"o"}, Usage: "output `PATH`"},
			&cli.StringFlag{Name: "to", Usage: "`RECIPE` to quantize by"},
			&cli.BoolFlag{Name: "keep-split", Usage: "split the output as IN is split"},
			&cli.BoolFlag{Name: "allow-requantize", Usage: "decode and encode again what is quantized already, which loses quality"},
			&cli.BoolFlag{Name: "dry-run", Usage: "print the plan and write nothing"},
			&cli.BoolFlag{Name: "force", Usage: "replace an existing output"},
		}, recipeFlags(), folderFlags()),
		Action: func(c *cli.Context) error { return runQuantize(t, c) },
	}
}

// recipeFlags are the choices beside a recipe.
func recipeFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "imatrix", Usage: "importance matrix, `FILE`: GGUF or .dat"},
		&cli.BoolFlag{Name: "pure", Usage: "the recipe's base type for all tensors, no mixture"},
		&cli.StringSliceFlag{Name: "tensor-type", Usage: "type of tensors by name, `REGEX=TYPE`; repeatable, the first that matches counts"},
		&cli.StringFlag{Name: "output-tensor-type", Usage: "`TYPE` of output.weight"},
		&cli.StringFlag{Name: "token-embedding-type", Usage: "`TYPE` of the token embeddings"},
		&cli.BoolFlag{Name: "leave-output-tensor", Usage: "keep output.weight as it is"},
		&cli.BoolFlag{Name: "no-fallback", Usage: "refuse tensors whose rows do not divide into the blocks of their type, instead of choosing another type"},
		&cli.BoolFlag{Name: "allow-nan", Usage: "pass NaN and infinity where the type can hold them"},
	}
}

// readQuantization reads a recipe and the flags beside it, and opens the importance matrix.
func readQuantization(c *cli.Context, name string) (*merge.Quantization, error) {
	q := &merge.Quantization{NoFallback: c.Bool("no-fallback"), AllowNaN: c.Bool("allow-nan"), Preview: c.Bool("dry-run")}
	var err error
	if q.Recipe, err = recipe.Of(name); err != nil {
		f := finding.Of(err)
		return nil, f.Hinted(f.Hint + "; for ONNX graphs: " + strings.Join(onnxquant.Recipes, ", "))
	}
	q.Options.Pure, q.Options.LeaveOutputTensor = c.Bool("pure"), c.Bool("leave-output-tensor")
	for _, s := range c.StringSlice("tensor-type") {
		o, err := recipe.ParseOverride(s)
		if err != nil {
			return nil, err
		}
		q.Options.TensorTypes = append(q.Options.TensorTypes, o)
	}
	for flag, to := range map[string]*tensor.DType{"output-tensor-type": &q.Options.OutputTensorType, "token-embedding-type": &q.Options.TokenEmbeddingType} {
		if s := c.String(flag); s != "" {
			if *to, err = recipe.ParseType(s); err != nil {
				return nil, err
			}
		}
	}
	if path := c.String("imatrix"); path != "" {
		if q.Imatrix, err = imatrix.Open(path); err != nil {
			return nil, err
		}
	}
	return q, nil
}

// A quantizeDocument is what quantize prints with --json.
type quantizeDocument struct {
	SchemaVersion int               `json:"schema_version"`
	Output        string            `json:"output"`
	Format        string            `json:"format"`
	Recipe        string            `json:"recipe"`
	Bytes         int64             `json:"bytes"`
	Tensors       []merge.Stored    `json:"tensors"`
	Findings      []finding.Finding `json:"findings"`
}

func runQuantize(t *terminal, c *cli.Context) error {
	in, err := oneArgument(c, "model")
	if err != nil {
		return err
	}
	output := c.String("output")
	switch {
	case c.String("to") == "":
		return usagef("quantize needs a recipe (--to Q4_K_M)")
	case output == "" && !c.Bool("dry-run"):
		return usagef("quantize needs an output (-o PATH)")
	}
	base, opt, name, err := t.openToQuantize(c, in, output)
	if err != nil {
		return err
	}
	defer base.Close()
	plan, err := merge.NewPlan(base, nil, opt)
	plan.Findings = append(append([]finding.Finding{}, base.Findings()...), plan.Findings...)
	if c.Bool("dry-run") {
		plan.Pairs = []merge.Pair{}
		return printPlan(t, plan, err)
	}
	if err != nil {
		return refusePlan(t, plan, err)
	}
	doc := quantizeDocument{SchemaVersion: verify.SchemaVersion, Output: output, Format: base.Format(), Recipe: name, Findings: plan.Findings}
	l, err := plan.Layout(base, output, layout.Options{})
	if err != nil {
		return err
	}
	job := writing{t: t, label: "quantizing", plan: plan, layout: l, output: output, input: in, force: c.Bool("force")}
	if err := job.run(c.Context); err != nil {
		return err
	}
	doc.Bytes, doc.Tensors = job.bytes, job.stored
	if t.json {
		if err := t.document(doc); err != nil {
			return err
		}
	}
	t.report(doc.Findings)
	printStored(t, job.stored)
	fmt.Fprintf(t.text(), "%s: %s written as %s\n", finding.Escape(job.output), formatSize(job.bytes), name)
	return nil
}

// openUnquantized opens a model to quantize. A quantized folder is seen as the float model that it decodes to,
// where that is allowed.
func (t *terminal) openUnquantized(path string, decode bool) (formats.Writable, error) {
	stored, err := t.openWritable(path, "quantized")
	if err != nil {
		return nil, err
	}
	m, err := formats.Decode(stored)
	if err != nil {
		return nil, err
	}
	if d, ok := m.(*formats.Decoded); ok && !decode {
		d.Close()
		return nil, finding.Errorf("quant.requantize", path, "the model is quantized already (%s)", d.Scheme()).
			Hinted("start from the original weights; --allow-requantize decodes it first")
	}
	return m.(formats.Writable), nil
}

// openToQuantize reads the recipe and opens a model, a folder that is to become a GGUF file as one, and an ONNX
// graph as one that the recipe quantizes.
func (t *terminal) openToQuantize(c *cli.Context, in, output string) (base formats.Writable, opt merge.Options, name string, err error) {
	if name = c.String("to"); onnxquant.IsRecipe(name) {
		base, name, err = t.openGraph(c, in, name)
		return base, opt, name, err
	}
	q, err := readQuantization(c, name)
	if err != nil {
		return nil, opt, name, err
	}
	q.KeepSplit, q.RefuseRequantize = c.Bool("keep-split"), !c.Bool("allow-requantize")
	opt.Quantize, name = q, q.Recipe.Name()
	if endingFormat(output) == "gguf" && isModelFolder(in) {
		base, err = openFolder(in, folderOptions(c))
		return base, opt, name, err
	}
	if err := noFolderFlags(c); err != nil {
		return nil, opt, name, err
	}
	base, err = t.openUnquantized(in, c.Bool("allow-requantize"))
	return base, opt, name, err
}

// openWritable opens a model that another one of its kind is made from.
func (t *terminal) openWritable(path, what string) (formats.Writable, error) {
	m, err := formats.OpenWith(path, t.formats)
	if err != nil {
		return nil, err
	}
	w, ok := m.(formats.Writable)
	if ok && m.Format() != "onnx" {
		return w, nil
	}
	m.Close()
	f := finding.Errorf("files.unsupported", path, "%s files are not %s", m.Format(), what).Expected(m.Format(), "GGUF or safetensors")
	if m.Format() == "onnx" && what == "quantized" {
		f = finding.Errorf("quant.unsupported", path, "an ONNX graph is quantized by recipes of its own").Hinted(strings.Join(onnxquant.Recipes, ", "))
	}
	return nil, f
}

// printStored prints how each tensor came out, and the types together.
func printStored(t *terminal, stored []merge.Stored) {
	w := table.NewWriter()
	w.SetStyle(plainTable())
	merged := slices.ContainsFunc(stored, func(s merge.Stored) bool { return s.Retention != nil })
	header := table.Row{"tensor", "from", "to", "size", "rel RMSE"}
	if merged {
		header = append(header, "retention")
	}
	w.AppendHeader(header)
	total := map[string]*storedType{}
	for _, s := range stored {
		row := table.Row{finding.Escape(s.Tensor), s.SourceType, s.Type, formatSize(s.Bytes), formatError(s.RMSE)}
		if s.Retention != nil {
			row = append(row, fmt.Sprintf("%.4f", *s.Retention))
		}
		w.AppendRow(row)
		if total[s.Type] == nil {
			total[s.Type] = &storedType{}
		}
		total[s.Type].add(s)
	}
	fmt.Fprintln(t.text(), w.Render())
	w = table.NewWriter()
	w.SetStyle(plainTable())
	w.AppendHeader(table.Row{"type", "tensors", "size", "largest rel RMSE"})
	for _, name := range sortedKeys(total) {
		x := total[name]
		w.AppendRow(table.Row{name, x.tensors, formatSize(x.bytes), formatError(x.rmse)})
	}
	fmt.Fprintf(t.text(), "\n%s\n", w.Render())
}

// formatError prints a relative error, and nothing where there is none.
func formatError(e float64) string {
	if e == 0 {
		return ""
	}
	return fmt.Sprintf("%.2e", e)
}

// A storedType sums the tensors of one type up.
type storedType struct {
	tensors int
	bytes   int64
	rmse    float64
}

func (x *storedType) add(s merge.Stored) {
	x.tensors++
	x.bytes += s.Bytes
	x.rmse = max(x.rmse, s.RMSE)
}
