package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/loratool/loratool/adapter"
	"github.com/loratool/loratool/adapter/dialect"
	"github.com/loratool/loratool/adapter/gguflora"
	"github.com/loratool/loratool/adapter/peft"
	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/formats/gguf"
	"github.com/loratool/loratool/formats/layout"
	"github.com/loratool/loratool/formats/safetensors"
	"github.com/loratool/loratool/merge"
	"github.com/loratool/loratool/naming"
	"github.com/loratool/loratool/tensor"
)

func convertCommand(t *terminal) *cli.Command {
	return &cli.Command{
		Name:      "convert",
		Usage:     "write a model or an adapter in another ecosystem's form",
		ArgsUsage: "IN",
		Description: "A Hugging Face model folder to GGUF, byte for byte what llama.cpp's converter writes.\n" +
			"Of adapters, PEFT and MLX to GGUF LoRA, and GGUF LoRA to PEFT. ΔW on the base's tensors stays the same. " +
			"BASE gives the architecture and its geometry: a folder that holds config.json is enough.\n\n" +
			"Exit status: 0 done, 2 could not convert, 4 usage.",
		Flags: slices.Concat([]cli.Flag{
			&cli.StringFlag{Name: "output", Aliases: []string{"o"}, Usage: "output `PATH`"},
			&cli.StringFlag{Name: "to", Usage: "`FORMAT`: peft, gguf"},
			&cli.StringFlag{Name: "base", Usage: "base model of an adapter, `PATH`: a folder with config.json, or a GGUF file"},
			&cli.StringFlag{Name: "dtype", Usage: "`TYPE`. Of a model's matrices: auto (the folder's own; default), f32, f16, bf16, q8_0, tq1_0, tq2_0. Of an adapter's factors: f32, f16, bf16, q8_0 (GGUF only); default: f32 for gguf, as they are for peft"},
			&cli.BoolFlag{Name: "vocab-only", Usage: "of a model, only metadata and tokenizer"},
			&cli.StringFlag{Name: "max-shard-size", Usage: "split a model into files of at most `SIZE` of tensors"},
			&cli.BoolFlag{Name: "allow-unmatched", Usage: "leave out what the target cannot hold because the base ties its embeddings"},
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
	if !isAdapter(in) && isModelFolder(in) {
		return convertModel(t, c, in, output)
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
	job := conversion{t: t, a: a, output: output, base: c.String("base"), dtype: dtype, force: c.Bool("force"), skipTied: c.Bool("allow-unmatched")}
	switch to := strings.ToLower(c.String("to")); to {
	case "gguf":
		err = job.toGGUF()
	case "peft":
		err = job.toPEFT()
	case "":
		return usagef("convert needs --to peft or --to gguf")
	default:
		return usagef("--to %q: peft and gguf are offered", to)
	}
	if err != nil {
		return err
	}
	findings := append(a.Findings, job.findings...)
	if t.json {
		if findings == nil {
			findings = []finding.Finding{}
		}
		doc := map[string]any{"schema_version": 1, "output": output, "dialect": strings.ToLower(c.String("to")), "tensors": job.tensors, "findings": findings}
		if err := t.document(doc); err != nil {
			return err
		}
	}
	t.report(findings)
	fmt.Fprintf(t.text(), "%s: %d tensors written from %d updates\n", finding.Escape(output), job.tensors, len(a.Updates))
	return nil
}

// A conversion is one run of the command.
type conversion struct {
	t            *terminal
	a            *adapter.Adapter
	output, base string
	dtype        tensor.DType
	force        bool
	skipTied     bool

	tensors  int
	findings []finding.Finding
}

// geometry reads what names and row orders depend on from the base.
func (j *conversion) geometry() (arch string, hp naming.HyperParameters, tied bool, err error) {
	if j.base == "" {
		return "", hp, false, finding.Errorf("convert.needs_base", j.a.Path, "names and row orders depend on the base model's architecture").
			Hinted("--base BASE: a folder with the base's config.json, or its GGUF file")
	}
	if gguf := strings.EqualFold(filepath.Ext(j.base), ".gguf"); gguf {
		return ggufGeometry(j.base)
	}
	path := filepath.Join(j.base, "config.json")
	if filepath.Base(j.base) == "config.json" {
		path = j.base
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return "", hp, false, finding.Errorf("files.missing", path, "the base has no readable config.json")
	}
	var config map[string]any
	if err := json.Unmarshal(b, &config); err != nil {
		return "", hp, false, finding.Errorf("base.bad_json", path, "%v", err)
	}
	arch, hp, err = naming.FromConfig(config)
	if err != nil {
		return "", hp, false, finding.Errorf("base.unsupported", path, "%v", err)
	}
	return arch, hp, config["tie_word_embeddings"] == true, nil
}

func ggufGeometry(path string) (arch string, hp naming.HyperParameters, tied bool, err error) {
	m, err := gguf.Open(path)
	if err != nil {
		return "", hp, false, err
	}
	defer m.Close()
	if hp, err = merge.GGUFParameters(m); err != nil {
		return "", hp, false, finding.Errorf("base.unsupported", path, "%v", err)
	}
	tied = true
	for _, t := range m.Tensors() {
		if t.Name == "output.weight" {
			tied = false
		}
	}
	return m.Arch(), hp, tied, nil
}

func (j *conversion) toGGUF() error {
	if j.a.Space == naming.GGUF {
		return finding.Errorf("convert.same", j.a.Path, "the adapter is a GGUF LoRA already")
	}
	arch, hp, tied, err := j.geometry()
	if err != nil {
		return err
	}
	name := filepath.Base(filepath.Clean(j.a.Path))
	if st, err := os.Stat(j.a.Path); err == nil && !st.IsDir() {
		abs, err := filepath.Abs(j.a.Path)
		if err != nil {
			return err
		}
		name = filepath.Base(filepath.Dir(abs))
	}
	f, err := gguflora.Encode(j.a, gguflora.Options{Arch: arch, HP: hp, Tied: tied, SkipTied: j.skipTied, DType: j.dtype, Name: gguflora.NameOf(name)})
	if err != nil {
		return err
	}
	j.findings = f.Findings
	specs := make([]tensor.Spec, len(f.Weights))
	for i, w := range f.Weights {
		specs[i] = w.Spec
	}
	l, err := gguf.NewLayout(f.Header, specs, layout.Options{Name: filepath.Base(j.output)})
	if err != nil {
		return err
	}
	return j.write(l, f.Weights)
}

func (j *conversion) toPEFT() error {
	a := j.a
	if a.Space == naming.GGUF {
		arch, hp, _, err := j.geometry()
		if err != nil {
			return err
		}
		if a.Arch != "" && a.Arch != arch {
			return finding.Errorf("base.mismatch", a.Path, "the adapter was made for another architecture").Expected(a.Arch, arch)
		}
		if a, err = gguflora.ToHF(a, arch, hp); err != nil {
			return err
		}
	}
	if j.dtype.IsBlock() {
		return usagef("--dtype %s: PEFT adapters hold plain floats", j.dtype)
	}
	f, err := peft.Encode(a, peft.EncodeOptions{DType: j.dtype, BaseModel: a.BaseModel})
	if err != nil {
		return err
	}
	specs := make([]tensor.Spec, len(f.Weights))
	for i, w := range f.Weights {
		specs[i] = w.Spec
	}
	l, err := safetensors.NewLayout(specs, safetensors.Output{
		Metadata: [][2]string{{"format", "pt"}}, Dir: true, Stem: "adapter_model",
		Extra: []layout.File{safetensors.NewFile(peft.ConfigName, f.Config)},
	}, layout.Options{Name: filepath.Base(filepath.Clean(j.output))})
	if err != nil {
		return err
	}
	return j.write(l, f.Weights)
}

// write puts the weights where the layout wants them.
func (j *conversion) write(l *layout.Layout, weights []adapter.Weight) error {
	w, err := layout.Create(j.output, l, j.force)
	if err != nil {
		return err
	}
	defer w.Abort()
	for i, x := range weights {
		b, err := x.Bytes()
		if err != nil {
			return err
		}
		if err := w.WriteAt(i, b, 0); err != nil {
			return err
		}
	}
	j.tensors = len(weights)
	return w.Commit()
}
