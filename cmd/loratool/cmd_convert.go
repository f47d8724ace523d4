package main

import (
	"fmt"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"
	"golang.org/x/sync/errgroup"

	"github.com/loratool/loratool/adapter"
	"github.com/loratool/loratool/adapter/dialect"
	"github.com/loratool/loratool/adapter/lowrank"
	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/formats"
	"github.com/loratool/loratool/formats/gguf"
	"github.com/loratool/loratool/formats/layout"
	"github.com/loratool/loratool/hf/metadata"
	"github.com/loratool/loratool/tensor"
	"github.com/loratool/loratool/verify/target"
)

func convertCommand(t *terminal) *cli.Command {
	return &cli.Command{
		Name:      "convert",
		Usage:     "write a model or an adapter in another ecosystem's form",
		ArgsUsage: "IN",
		Description: "A Hugging Face model folder to GGUF, byte for byte what llama.cpp's converter writes; a GGUF model back to a folder.\n" +
			"An adapter to any ecosystem's form, with the same ΔW on the base's tensors; what the form cannot hold is refused. " +
			"BASE gives the architecture and its geometry: a folder that holds config.json is enough. For ONNX Runtime it is the .onnx model " +
			"whose inputs the names are fitted to. For torchtune, an output that ends in .pt or .safetensors is that file, with adapter_config.json " +
			"beside it. With --for, what the server will not do with the adapter is said first.\n\n" +
			"Exit status: 0 done, 2 could not convert, 4 usage.",
		Flags: slices.Concat([]cli.Flag{
			&cli.StringFlag{Name: "output", Aliases: []string{"o"}, Usage: "output `PATH`"},
			&cli.StringFlag{Name: "to", Usage: "`FORMAT`: gguf of a model folder, safetensors of a GGUF model; of an adapter " + strings.Join(dialect.Written(), ", ")},
			&cli.StringFlag{Name: "for", Usage: "write an adapter for `TARGET` and check its limits: " + strings.Join(target.Names(), ", ")},
			&cli.StringFlag{Name: "base", Usage: "base model of an adapter, `PATH`: a folder with config.json, a GGUF file, or an ONNX model with LoRA inputs"},
			&cli.StringFlag{Name: "dtype", Usage: "`TYPE`. Of a model's matrices: auto (the folder's own; default), f32, f16, bf16, q8_0, tq1_0, tq2_0. Of an adapter's factors: f32, f16, bf16, q8_0 (GGUF only); default: f32 for gguf, as they are for peft"},
			&cli.IntFlag{Name: "rank", Usage: "of an adapter, make every update a product of at most this `RANK`; what is lost is printed"},
			energyFlag(),
			&cli.BoolFlag{Name: "vocab-only", Usage: "of a model, only metadata and tokenizer"},
			&cli.StringFlag{Name: "max-shard-size", Usage: "split a model into files of at most `SIZE` of tensors"},
			&cli.BoolFlag{Name: "allow-unmatched", Usage: "leave out, with a warning, what no table knows, the target has no name for, or it cannot hold because the base ties its embeddings"},
			&cli.BoolFlag{Name: "force", Usage: "replace an existing output"},
		}, folderFlags(), dialectFlags()),
		Action: func(c *cli.Context) error { return runConvert(t, c) },
	}
}

func runConvert(t *terminal, c *cli.Context) error {
	in, err := oneArgument(c, "model or adapter")
	if err != nil {
		return err
	}
	output := c.String("output")
	if output == "" {
		return usagef("convert needs an output (-o PATH)")
	}
	if !isAdapter(in) {
		switch format, _ := formats.Sniff(in); {
		case isModelFolder(in):
			return convertModel(t, c, in, output)
		case format == "gguf":
			return restoreModel(t, c, in, output)
		case format == "onnx":
			return finding.Errorf("convert.unsupported", in, "ONNX models are not converted to other containers").
				Hinted("merge, quantize and inject write ONNX; the folder that the model was exported from becomes a GGUF")
		}
	}
	if err := noFolderFlags(c); err != nil {
		return err
	}
	dtype := tensor.Invalid
	if s := c.String("dtype"); s != "" && !strings.EqualFold(s, "keep") {
		d, ok := tensor.ParseDType(s)
		if !ok {
			return usagef("--dtype %q is not a type", s)
		}
		dtype = d
	}
	opt, err := dialectOptions(c)
	if err != nil {
		return err
	}
	a, err := dialect.Open(in, opt)
	if err != nil {
		return err
	}
	defer a.Close()
	if err := outputIsInput(output, []string{in}); err != nil {
		return err
	}
	to, server, err := adapterTarget(c)
	if err != nil {
		return err
	}
	if dtype.IsBlock() && to != "gguf" {
		return usagef("--dtype %s: only GGUF adapters hold blocks", dtype)
	}
	place := dialect.Target{
		Name: filepath.Base(filepath.Clean(output)), Base: c.String("base"), DType: dtype, AllowUnmatched: c.Bool("allow-unmatched"),
	}
	findings := slices.Clone(a.Findings)
	if to == "gguf" && len(a.General()) == 0 {
		keys, warnings, err := cardOf(a)
		if err != nil {
			return err
		}
		place.General, findings = keys, append(findings, warnings...)
	}
	a, losses, err := lowered(c, a)
	if err != nil {
		return err
	}
	findings = append(findings, losses...)
	var out *dialect.Output
	if server != nil {
		findings = append(findings, server.Check(a)...)
		out, err = server.Encode(a, place)
	} else {
		out, err = dialect.Encode(a, to, place)
	}
	if err != nil {
		return err
	}
	if err := writeAdapter(output, out, c.Bool("force")); err != nil {
		return err
	}
	findings = append(findings, out.Findings...)
	if t.json {
		if findings == nil {
			findings = []finding.Finding{}
		}
		doc := map[string]any{"schema_version": 1, "output": output, "dialect": to, "tensors": len(out.Weights), "findings": findings}
		if err := t.document(doc); err != nil {
			return err
		}
	}
	t.report(findings)
	fmt.Fprintf(t.text(), "%s: %d tensors written from %d updates\n", finding.Escape(output), len(out.Weights), len(a.Updates))
	return nil
}

// cardOf is what the model card in an adapter's folder says.
func cardOf(a *adapter.Adapter) (gguf.KVs, []finding.Finding, error) {
	dir := a.Path
	if !formats.IsFolder(dir) {
		dir = filepath.Dir(dir)
	}
	n := int64(0)
	for i := range a.Updates {
		u := &a.Updates[i]
		n += u.A.Rows*u.A.Cols + u.B.Rows*u.B.Cols
	}
	return metadata.Adapter(dir, n)
}

// lowered is the adapter with low-rank updates only, where a rank or energy was asked for, and one finding
// for every update that lost something.
func lowered(c *cli.Context, a *adapter.Adapter) (*adapter.Adapter, []finding.Finding, error) {
	limits, err := rankLimits(c)
	if err != nil || !limits.Any() {
		return a, nil, err
	}
	low, losses, err := lowrank.Convert(c.Context, a, lowrank.Options{Limits: limits, Jobs: runtime.GOMAXPROCS(0)})
	if err != nil {
		return nil, nil, err
	}
	var out []finding.Finding
	for _, l := range losses {
		if l.Lost > 0 {
			f := finding.Finding{Code: "convert.energy_lost", Level: finding.Info, File: a.Path, Module: l.Module, Message: l.String()}
			out = append(out, f)
		}
	}
	return low, out, nil
}

// adapterTarget reads --to and --for, of which the second decides the first.
func adapterTarget(c *cli.Context) (to string, server *target.Target, err error) {
	to = strings.ToLower(c.String("to"))
	if name := strings.ToLower(c.String("for")); name != "" {
		if server = target.Find(name); server == nil {
			return "", nil, usagef("--for %q: the targets are %s", name, strings.Join(target.Names(), ", "))
		}
		if to != "" && to != server.Dialect {
			return "", nil, usagef("--to %s --for %s: %s reads %s", to, name, server.Title, server.Dialect)
		}
		to = server.Dialect
	}
	if !slices.Contains(dialect.Written(), to) {
		return "", nil, usagef("--to %q: an adapter is written as %s", to, strings.Join(dialect.Written(), ", "))
	}
	return to, server, nil
}

// writeAdapter puts the weights of an encoded adapter where its layout wants them, several at a time. The heap
// holds a few of them and little else, so that collecting it less often costs little memory and saves much
// time.
func writeAdapter(output string, out *dialect.Output, force bool) error {
	w, err := layout.Create(output, out.Layout, force)
	if err != nil {
		return err
	}
	defer w.Abort()
	defer debug.SetGCPercent(debug.SetGCPercent(400))
	var g errgroup.Group
	g.SetLimit(runtime.GOMAXPROCS(0))
	for i, x := range out.Weights {
		g.Go(func() error {
			b, err := x.Bytes()
			if err != nil {
				return err
			}
			defer adapter.Recycle(b)
			return w.WriteAt(i, b, 0)
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	return w.Commit()
}
