// Package formats opens model files of every kind this program reads.
package formats

import (
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/formats/gguf"
	"github.com/loratool/loratool/formats/layout"
	"github.com/loratool/loratool/formats/onnx"
	"github.com/loratool/loratool/formats/ortadapter"
	"github.com/loratool/loratool/formats/safetensors"
	"github.com/loratool/loratool/formats/torch"
	"github.com/loratool/loratool/tensor"
)

// A Model is an open file (or folder, or set of shards) of any format: tensors that are listed without
// having been read.
type Model interface {
	Path() string
	Format() string // "safetensors", "gguf", "onnx", "torch", "ortadapter"
	Tensors() []tensor.Tensor
	Findings() []finding.Finding // what is odd about the file, none of level error
	Close() error
}

// A Writable model can lay out an output like itself with other types.
type Writable interface {
	Model
	// Layout lays out an output with these tensors, which are the model's own in the same order, some with
	// another type.
	Layout(specs []tensor.Spec, opt layout.Options) (*layout.Layout, error)
}

// Options are the choices in opening a file.
type Options struct {
	// BigEndian accepts big-endian GGUF files, which are refused otherwise: nearly every program that meets
	// one would take its numbers for nonsense.
	BigEndian bool
}

// Open opens a path: a file of any known format, a model folder, a pipeline of diffusers, a sharded index, or
// the first shard of a split GGUF.
func Open(path string) (Model, error) { return OpenWith(path, Options{}) }

// OpenWith opens a path as Open does, with options.
func OpenWith(path string, opt Options) (Model, error) {
	if isPipeline(path) {
		return opened(openPipeline(path))
	}
	format, err := Sniff(path)
	if err != nil {
		return nil, err
	}
	switch format {
	case "gguf":
		return opened(gguf.OpenWith(path, gguf.OpenOptions{AllowBigEndian: opt.BigEndian}))
	case "onnx":
		return opened(onnx.Open(path))
	case "torch":
		return opened(torch.Open(path))
	case "ortadapter":
		return opened(ortadapter.Open(path))
	}
	return opened(safetensors.Open(path))
}

// opened keeps a nil pointer of a codec's type from becoming a non-nil Model.
func opened[M Model](m M, err error) (Model, error) {
	if err != nil {
		return nil, err
	}
	return m, nil
}

// Sniff decides which codec a path is for: by its ending where that is one of ours, since the codec
// then says best what is wrong with the file; by its content otherwise.
func Sniff(path string) (string, error) {
	st, err := os.Stat(path)
	if err != nil {
		return "", finding.Errorf("files.missing", path, "%v", unwrapPath(err))
	}
	if st.IsDir() {
		return sniffFolder(path)
	}
	if !st.Mode().IsRegular() {
		return "", finding.Errorf("files.not_regular", path, "not a regular file").Expected(st.Mode().Type(), "a file or a folder")
	}
	if f := byEnding(path); f != "" {
		return f, nil
	}
	f, err := os.Open(path)
	if err != nil {
		return "", finding.Errorf("files.unreadable", path, "%v", unwrapPath(err))
	}
	defer f.Close()
	head := make([]byte, 16)
	n, err := io.ReadFull(f, head)
	if err != nil && err != io.ErrUnexpectedEOF && err != io.EOF {
		return "", finding.Errorf("files.unreadable", path, "%v", unwrapPath(err))
	}
	if format := byContent(head[:n]); format != "" {
		return format, nil
	}
	return "", finding.Errorf("files.unknown_format", path, "not a format this program reads").
		Expected(describeHead(head[:n]), "safetensors, GGUF, ONNX, PyTorch or .onnx_adapter")
}

func byEnding(path string) string {
	lower := strings.ToLower(path)
	for ending, format := range map[string]string{
		".safetensors": "safetensors", ".safetensors.index.json": "safetensors", ".gguf": "gguf", ".onnx": "onnx",
		".bin": "torch", ".pt": "torch", ".pth": "torch", ".ckpt": "torch", ".onnx_adapter": "ortadapter",
	} {
		if strings.HasSuffix(lower, ending) {
			return format
		}
	}
	return ""
}

func byContent(head []byte) string {
	s := string(head)
	switch {
	case strings.HasPrefix(s, "GGUF"), strings.HasPrefix(s, "FUGG"):
		return "gguf"
	case strings.HasPrefix(s, "PK\x03\x04"), strings.HasPrefix(s, "\x80\x02"):
		return "torch"
	case len(s) >= 8 && s[4:8] == "TORT":
		return "ortadapter"
	case len(s) > 8 && s[8] == '{':
		return "safetensors"
	case strings.HasPrefix(s, "\x08") && len(s) > 2 && (s[2] == 0x12 || s[2] == 0x3a || s[2] == 0x42):
		return "onnx" // ir_version, then producer_name, graph or opset_import
	}
	return ""
}

func describeHead(head []byte) string {
	switch s := string(head); {
	case len(s) == 0:
		return "an empty file"
	case strings.HasPrefix(s, "version https://"):
		return "a git-lfs pointer: fetch the real file first"
	case strings.HasPrefix(s, "<"):
		return "an HTML or XML page"
	case strings.HasPrefix(s, "{"):
		return "JSON text"
	}
	return "unknown bytes"
}

// sniffFolder looks for weights in a folder; where there are several kinds, safetensors goes first, as
// it does for every loader of Hugging Face folders.
func sniffFolder(path string) (string, error) {
	entries, err := os.ReadDir(path)
	if err != nil {
		return "", finding.Errorf("files.unreadable", path, "%v", unwrapPath(err))
	}
	found := map[string]bool{}
	for _, e := range entries {
		if f := byEnding(e.Name()); f != "" && !e.IsDir() && e.Name() != "training_args.bin" {
			found[f] = true
		}
	}
	for _, f := range []string{"safetensors", "onnx", "gguf", "torch"} {
		if !found[f] {
			continue
		}
		if f == "gguf" || f == "torch" {
			return "", finding.Errorf("files.ambiguous", path, "a folder with %s files: name the file itself", f)
		}
		return f, nil
	}
	return "", finding.Errorf("files.no_weights", path, "the folder holds no weights").
		Expected("no such file", "*.safetensors, *.onnx").Hinted("name the folder that holds model.safetensors or model.onnx")
}

// unwrapPath drops the path from a system error, since findings name the file themselves.
func unwrapPath(err error) error {
	if p, ok := err.(*os.PathError); ok {
		return p.Err
	}
	return err
}

// IsFolder reports whether a path is a folder.
func IsFolder(path string) bool {
	st, err := os.Stat(filepath.Clean(path))
	return err == nil && st.IsDir()
}
