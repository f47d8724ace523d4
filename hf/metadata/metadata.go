// Package metadata turns what a Hugging Face model folder says beside its weights into the key-values of
// a GGUF file, in the order and with the types that llama.cpp's convert_hf_to_gguf.py writes.
package metadata

import (
	"errors"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/formats/gguf"
	"github.com/loratool/loratool/hf/config"
	"github.com/loratool/loratool/hf/tokenizer"
	"github.com/loratool/loratool/naming"
)

// Options are the choices in reading a folder's metadata. The zero value converts as the reference does
// without transformers' defaults.
type Options struct {
	// FolderName is the name that general.name and its relatives come from; "" means the last element of
	// the folder's path.
	FolderName string
	// ModelName replaces general.name.
	ModelName string
	// Override is the path of a JSON file of general.* keys that go before all other sources; "" means none.
	Override string
	// Pre names the pre-tokenizer (tokenizer.ggml.pre); "" finds it out.
	Pre string
	// Filled adds what transformers' configuration class fills in (config.Read).
	Filled bool
}

// A Folder is the metadata of a model folder, read and checked. It holds no open files.
type Folder struct {
	// Arch is the GGUF architecture.
	Arch string
	// Config is config.json.
	Config *config.Config
	// HyperParameters are what the geometry of the tensors depends on.
	HyperParameters naming.HyperParameters
	// Tokenizer is the vocabulary. Its Count is the number of tokens the GGUF file will list.
	Tokenizer *tokenizer.Tokenizer

	dir      string
	opt      Options
	findings []finding.Finding
}

// Parameters are the sums over the tensors of the output that names and size labels depend on. Total
// counts the elements of all tensors; of tensors with "_exps." in their names and three dimensions or
// more, Experts counts the elements of one expert (the size divided by the outermost dimension), and
// Shared is the total of the other tensors. ExpertCount is the average number of experts of these
// tensors, truncated; 0 without any. The zero value is a file without tensors (a vocabulary only).
type Parameters struct {
	Total, Shared, Experts, ExpertCount int64
}

// Read reads config.json and the tokenizer of a model folder. Errors are findings: an architecture that is
// not supported (config.unknown_architecture) names the nearest.
func Read(dir string, opt Options) (*Folder, error) {
	cfg, err := config.Read(dir, opt.Filled)
	if err != nil {
		return nil, err
	}
	f := &Folder{Config: cfg, dir: dir, opt: opt}
	if f.opt.FolderName == "" {
		abs, err := filepath.Abs(dir)
		if err != nil {
			return nil, err
		}
		f.opt.FolderName = filepath.Base(abs)
	}
	if f.Arch, f.HyperParameters, err = naming.FromConfig(cfg.Map()); err != nil {
		code := "config.bad_value"
		if unknown := (*naming.UnknownArchitecture)(nil); errors.As(err, &unknown) {
			code = "config.unknown_architecture"
		}
		return nil, finding.Errorf(code, cfg.File, "%v", err)
	}
	if f.Arch == "nomic-bert" && config.Truthy(cfg.Get("moe_every_n_layers")) {
		return nil, finding.Errorf("config.unsupported_architecture", cfg.File, "nomic-bert models with experts are not supported").
			Hinted("nearest: nomic-bert without experts (moe_every_n_layers 0)")
	}
	if recipes[f.Arch] == nil {
		return nil, f.unsupported()
	}
	if f.reranker() {
		f.findings = append(f.findings, *finding.Warnf("config.reranker", cfg.File,
			"the reranker is converted as the language model it is made of, without a head that ranks"))
	}
	if f.Tokenizer, err = tokenizer.Read(dir, cfg, tokenizer.Options{Arch: f.Arch, Pre: opt.Pre}); err != nil {
		return nil, err
	}
	f.findings = append(f.findings, f.Tokenizer.Findings...)
	return f, nil
}

// KVs are the key-values of the output in the reference's order. fileType is the value of
// general.file_type (0 F32, 1 F16, 7 Q8_0, 32 BF16 …). Errors are findings about keys that config.json
// lacks or that cannot be used.
func (f *Folder) KVs(fileType uint32, p Parameters) (gguf.KVs, error) {
	w := &writer{arch: f.Arch, cfg: f.Config, dir: f.dir, filled: f.opt.Filled, fileType: fileType}
	w.set("general.architecture", gguf.Of(f.Arch))
	w.early()
	w.set("general.type", gguf.Of("model"))
	g, err := f.general(p)
	if err != nil {
		return nil, err
	}
	if err := g.write(w); err != nil {
		return nil, err
	}
	recipes[f.Arch](w)
	w.set("general.quantization_version", gguf.Of(uint32(2)))
	if w.err != nil {
		return nil, w.err
	}
	for _, kv := range f.Tokenizer.KVs {
		w.kvs.Set(kv.Key, kv.Value)
	}
	return w.kvs, nil
}

// Findings are the warnings about the folder.
func (f *Folder) Findings() []finding.Finding { return f.findings }

// reranker reports whether the folder is a Qwen3 reranker, which looks like a language model.
func (f *Folder) reranker() bool {
	if f.Arch != "qwen3" {
		return false
	}
	for _, name := range []string{f.opt.FolderName, f.Config.Text("_name_or_path"), f.Config.Class()} {
		name = strings.ToLower(name)
		if strings.Contains(name, "qwen3-reranker") || strings.Contains(name, "sequenceclassification") {
			return true
		}
	}
	return false
}

func (f *Folder) unsupported() error {
	return finding.Errorf("config.unsupported_architecture", f.Config.File, "key-values of %s models are not known", f.Arch).
		Hinted("the nearest architecture that is supported is " + config.Nearest(f.Arch, slices.Sorted(maps.Keys(recipes))))
}
