package main

import (
	"fmt"
	"path/filepath"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/formats"
	"github.com/loratool/loratool/formats/gguf"
	"github.com/loratool/loratool/formats/layout"
	"github.com/loratool/loratool/formats/onnx"
	"github.com/loratool/loratool/hf"
	"github.com/loratool/loratool/hf/metadata"
	"github.com/loratool/loratool/merge"
	"github.com/loratool/loratool/tensor"
	"github.com/loratool/loratool/verify"
)

// folderFlags are the choices in reading a Hugging Face folder as a GGUF model.
func folderFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "pre", Usage: "`NAME` of the pre-tokenizer of a model folder, where the folder does not tell it"},
		&cli.StringFlag{Name: "model-name", Usage: "general.name of a GGUF made from a folder, `NAME`"},
		&cli.StringFlag{Name: "metadata", Usage: "general.* keys of a GGUF made from a folder, JSON `FILE`"},
		&cli.BoolFlag{Name: "fill-config", Usage: "add what transformers fills into config.json (head_dim of llama and mistral), as the reference does where transformers is installed"},
	}
}

func folderOptions(c *cli.Context) hf.Options {
	return hf.Options{Metadata: metadata.Options{
		Pre: c.String("pre"), ModelName: c.String("model-name"), Override: c.String("metadata"), Filled: c.Bool("fill-config"),
	}}
}

// noFolderFlags refuses the flags of folderFlags where no folder becomes a GGUF file.
func noFolderFlags(c *cli.Context) error {
	for _, f := range folderFlags() {
		if name := f.Names()[0]; c.IsSet(name) {
			return usagef("--%s goes with a model folder that becomes a GGUF file", name)
		}
	}
	return nil
}

// isModelFolder reports whether a path is a Hugging Face model: a folder with weights, or their index.
func isModelFolder(path string) bool {
	if strings.HasSuffix(path, ".safetensors.index.json") {
		return true
	}
	format, err := formats.Sniff(path)
	return err == nil && format == "safetensors" && formats.IsFolder(path)
}

// openFolder sees a model folder as a GGUF model.
func openFolder(path string, opt hf.Options) (*hf.Model, error) {
	if !formats.IsFolder(path) {
		path = filepath.Dir(path)
	}
	return hf.Open(path, opt)
}

// openComparedBase opens the base of a merged model as what that is: where it is a GGUF file, a folder is seen as
// one, and where it is quantized by a scheme, so is the base.
func (t *terminal) openComparedBase(path, merged string) (formats.Writable, error) {
	if merged == "" {
		return t.openBase(path)
	}
	if format, err := formats.Sniff(merged); err != nil || format != "gguf" || !isModelFolder(path) {
		base, err := t.openBase(path)
		switch m := base.(type) {
		case *formats.Decoded:
			if t.isPacked(merged) {
				return m.Packed(), nil
			}
		case *onnx.Model:
			return t.quantizedLike(m, merged)
		}
		return base, err
	}
	// Only tensors are compared, so it does not matter how the folder's text is cut.
	return openFolder(path, hf.Options{Metadata: metadata.Options{Pre: "default"}})
}

// isPacked reports whether a merged model is quantized by a scheme. One that cannot be opened is not, and is
// reported when it is checked.
func (t *terminal) isPacked(path string) bool {
	m, err := t.openMerged(path)
	if err != nil {
		return false
	}
	defer m.Close()
	_, packed := m.(*formats.Packed)
	return packed
}

// A modelDocument is what convert prints with --json for a model.
type modelDocument struct {
	SchemaVersion int               `json:"schema_version"`
	Output        string            `json:"output"`
	Format        string            `json:"format"`
	Type          string            `json:"type"`
	Tensors       int               `json:"tensors"`
	Bytes         int64             `json:"bytes"`
	Findings      []finding.Finding `json:"findings"`
}

// convertModel writes a model folder as GGUF.
func convertModel(t *terminal, c *cli.Context, in, output string) error {
	if to := strings.ToLower(c.String("to")); to != "gguf" && !(to == "" && endingFormat(output) == "gguf") {
		return usagef("--to %q: a model folder becomes gguf", to)
	}
	opt := folderOptions(c)
	opt.VocabOnly = c.Bool("vocab-only")
	if s := c.String("dtype"); s != "" && !strings.EqualFold(s, "auto") {
		d, ok := tensor.ParseDType(s)
		if !ok || !hf.Converts(d) {
			return usagef("--dtype %q: auto, f32, f16, bf16, q8_0, tq1_0 or tq2_0", s)
		}
		opt.DType = d
	}
	m, err := openFolder(in, opt)
	if err != nil {
		return err
	}
	defer m.Close()
	return writeModel(t, c, m, in, output, m.Type, m.DType())
}

// restoreModel writes a GGUF model as a folder.
func restoreModel(t *terminal, c *cli.Context, in, output string) error {
	if err := noFolderFlags(c); err != nil {
		return err
	}
	switch to := strings.ToLower(c.String("to")); {
	case c.Bool("vocab-only"):
		return usagef("--vocab-only goes with a model folder that becomes a GGUF file")
	case to == "safetensors", to == "hf", to == "" && endingFormat(output) == "":
	default:
		return usagef("--to %q: a GGUF model becomes a folder, safetensors", to)
	}
	dtype := tensor.Invalid
	if s := c.String("dtype"); s != "" && !strings.EqualFold(s, "auto") {
		var err error
		if dtype, err = parseDType(s); err != nil || dtype == tensor.Invalid {
			return usagef("--dtype %q: auto, f32, f16 or bf16", s)
		}
	}
	m, err := gguf.Open(in)
	if err != nil {
		return err
	}
	defer m.Close()
	hp, err := merge.GGUFParameters(m)
	if err != nil {
		return finding.Errorf("base.unsupported", in, "%v", err)
	}
	f, err := hf.Restore(m, hp, dtype)
	if err != nil {
		return err
	}
	return writeModel(t, c, f, in, output, f.Type, f.DType())
}

// writeModel writes a model in the types that typeOf chooses.
func writeModel(t *terminal, c *cli.Context, m formats.Writable, in, output string, typeOf func(tensor.Spec) tensor.DType, main tensor.DType) error {
	if err := outputIsInput(output, []string{in}); err != nil {
		return err
	}
	shard, err := shardSize(c)
	if err != nil {
		return err
	}
	plan, err := merge.NewPlan(m, nil, merge.Options{TypeOf: typeOf})
	plan.Findings = append(append([]finding.Finding{}, m.Findings()...), plan.Findings...)
	if err != nil {
		return refusePlan(t, plan, err)
	}
	l, err := plan.Layout(m, output, layout.Options{MaxShardSize: shard})
	if err != nil {
		return err
	}
	job := writing{t: t, label: "converting", plan: plan, layout: l, output: output, force: c.Bool("force")}
	if err := job.run(c.Context); err != nil {
		return err
	}
	doc := modelDocument{
		SchemaVersion: verify.SchemaVersion, Output: job.output, Format: m.Format(), Type: main.String(),
		Tensors: len(plan.Tensors), Bytes: job.bytes, Findings: plan.Findings,
	}
	if t.json {
		if err := t.document(doc); err != nil {
			return err
		}
	}
	t.report(doc.Findings)
	fmt.Fprintf(t.text(), "%s: %d tensors, %s written as %s\n", finding.Escape(job.output), doc.Tensors, formatSize(job.bytes), main)
	return nil
}

// shardSize reads --max-shard-size, 0 without it.
func shardSize(c *cli.Context) (int64, error) {
	s := c.String("max-shard-size")
	if s == "" {
		return 0, nil
	}
	n, err := parseSize(s)
	if err != nil {
		return 0, usagef("--max-shard-size: %v", err)
	}
	return n, nil
}
