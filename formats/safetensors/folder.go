package safetensors

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/loratool/loratool/finding"
)

// stems are the names under which libraries look for weights, in the order of preference:
// transformers, PEFT, diffusers.
var stems = []string{"model", "adapter_model", "diffusion_pytorch_model"}

// openFolder finds the weights of a model folder and opens them.
func (m *Model) openFolder() error {
	entries, err := os.ReadDir(m.folder)
	if err != nil {
		return missing(m.folder, err)
	}
	var all, files, indexes []string
	for _, e := range entries {
		switch name := e.Name(); {
		case strings.HasPrefix(name, "."):
			continue
		case strings.HasSuffix(name, ".safetensors"):
			files = append(files, name)
			all = append(all, name)
		case isIndex(name):
			indexes = append(indexes, name)
			all = append(all, name)
		case e.IsDir():
			all = append(all, name+"/")
		default:
			all = append(all, name)
		}
	}
	for _, stem := range stems {
		single, sharded := stem+".safetensors", stem+indexSuffix
		switch {
		case slices.Contains(files, single):
			if slices.Contains(indexes, sharded) {
				m.findings = append(m.findings, *finding.Warnf("container.ambiguous_weights", m.folder, "the folder holds both %q and %q; the first is used", single, sharded))
			}
			m.stem = stem
			return m.openSingle(filepath.Join(m.folder, single))
		case slices.Contains(indexes, sharded):
			return m.openIndex(sharded)
		}
	}
	switch {
	case len(indexes) == 1:
		return m.openIndex(indexes[0])
	case len(files) == 1 && len(indexes) == 0 && !shardName.MatchString(files[0]):
		m.stem = strings.TrimSuffix(files[0], ".safetensors")
		return m.openSingle(filepath.Join(m.folder, files[0]))
	case len(files) == 0 && len(indexes) == 0:
		f := finding.Errorf("container.no_weights", m.folder, "the folder holds no safetensors weights; it holds %s", list(all))
		if slices.ContainsFunc(all, isWeights) {
			f.Hint = "name the weight file itself to read another format"
		}
		return f
	case slices.ContainsFunc(files, shardName.MatchString):
		return finding.Errorf("container.missing_file", m.folder, "the folder holds shards, but not their index; it holds %s", list(all)).
			Hinted("fetch the missing *.safetensors.index.json")
	}
	return finding.Errorf("container.ambiguous_weights", m.folder, "the folder holds several weight files: %s", list(slices.Concat(indexes, files))).
		Hinted("name the file you mean")
}

var shardName = regexp.MustCompile(`-[0-9]{5}-of-[0-9]{5}\.safetensors$`)

// A SideFile is a file of a model folder that is not weights: configuration, tokenizer, templates,
// code, licence.
type SideFile struct {
	Name string // path relative to the folder, with slashes
	Path string
	Size int64
}

const (
	maxSideFiles = 4096
	maxSideDepth = 8
)

// SideFiles lists the side files of a model folder, sorted by name: every regular file (symbolic links
// to regular files included) that is neither weights of any format, nor their index, nor hidden. A
// sub-folder with weights in it is something of its own and left out, except the module folders of
// sentence-transformers (2_Dense and the like), which belong to the model with all they hold. A
// single file has no side files. Folders with more than 4096 files are refused.
func (m *Model) SideFiles() ([]SideFile, error) {
	if m.folder == "" {
		return nil, nil
	}
	_, err := os.Stat(filepath.Join(m.folder, "modules.json"))
	w := sideWalk{root: m.folder, modules: err == nil, left: maxSideFiles}
	files, _, err := w.walk("", false)
	if err != nil {
		return nil, err
	}
	slices.SortFunc(files, func(a, b SideFile) int { return strings.Compare(a.Name, b.Name) })
	return files, nil
}

type sideWalk struct {
	root    string
	modules bool // the folder lists module folders
	left    int  // how many more entries may come
}

var moduleFolder = regexp.MustCompile(`^[0-9]+_[A-Za-z0-9]+$`)

// walk lists the side files below a folder, and says whether there were weights among its files.
func (w *sideWalk) walk(rel string, whole bool) (files []SideFile, weights bool, err error) {
	dir := filepath.Join(w.root, filepath.FromSlash(rel))
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, false, missing(dir, err)
	}
	for _, e := range entries {
		name := e.Name()
		if strings.HasPrefix(name, ".") {
			continue
		}
		if w.left--; w.left < 0 {
			return nil, false, finding.Errorf("container.not_a_model_folder", w.root, "the folder holds more files than a model has").
				Hinted("name the weight file itself instead of the folder")
		}
		path := rel + name
		if e.IsDir() {
			if strings.Count(path, "/") >= maxSideDepth {
				continue
			}
			module := whole || (rel == "" && w.modules && moduleFolder.MatchString(name))
			below, heavy, err := w.walk(path+"/", module)
			if err != nil {
				return nil, false, err
			}
			if !heavy || module {
				files = append(files, below...)
			}
			weights = weights || (heavy && rel != "")
			continue
		}
		fi, err := os.Stat(filepath.Join(dir, name))
		if err != nil || !fi.Mode().IsRegular() {
			continue // a dangling link, a link to a folder, a socket
		}
		if isWeights(name) && !whole {
			weights = true
			continue
		}
		files = append(files, SideFile{Name: path, Path: filepath.Join(dir, name), Size: fi.Size()})
	}
	return files, weights, nil
}

// weightEnds are the endings of files that hold weights, training state or an index of weights.
var weightEnds = []string{
	".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".onnx", ".onnx_data", ".onnx.data", ".gguf", ".ggml", ".h5", ".hdf5", ".msgpack",
	".npz", ".npy", ".ot", ".tflite", ".nemo", ".engine", ".pdparams", ".mlmodel", ".pb", ".index.json",
}

func isWeights(name string) bool {
	name = strings.ToLower(name)
	return slices.ContainsFunc(weightEnds, func(end string) bool { return strings.HasSuffix(name, end) })
}

// ReadAt opens the file for each piece, so that a folder may have more side files than a process may
// have open. A file that has changed its size since it was listed is an error.
func (s SideFile) ReadAt(p []byte, off int64) (int, error) {
	f, err := os.Open(s.Path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return 0, err
	}
	if !fi.Mode().IsRegular() || fi.Size() != s.Size {
		return 0, fmt.Errorf("%q changed while it was in use: %w", s.Path, io.ErrUnexpectedEOF)
	}
	return f.ReadAt(p, off)
}
