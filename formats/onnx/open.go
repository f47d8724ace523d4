package onnx

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/loratool/loratool/finding"
)

// Open opens an ONNX file, or a folder that holds one: model.onnx, or the only .onnx file. Errors are
// findings whose code starts with "container.", or with "files." for what concerns the file system.
func Open(path string) (*Model, error) {
	file, err := modelFile(path)
	if err != nil {
		return nil, err
	}
	f, err := os.Open(file)
	if err != nil {
		return nil, fileError(file, err)
	}
	info, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, fileError(file, err)
	}
	resolved, err := filepath.EvalSymlinks(file)
	if err != nil {
		f.Close()
		return nil, fileError(file, err)
	}
	abs, err := filepath.Abs(resolved)
	if err != nil {
		abs = resolved
	}
	given, err := filepath.Abs(filepath.Dir(file))
	if err != nil {
		given = filepath.Dir(file)
	}
	m, err := read(f, info.Size(), file, info, roots{given: given, resolved: filepath.Dir(abs)})
	if err != nil {
		f.Close()
		return nil, err
	}
	m.path, m.closer = path, f
	return m, nil
}

func fileError(file string, err error) error {
	var pe *os.PathError
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return finding.Errorf("files.missing", file, "the file does not exist")
	case errors.As(err, &pe):
		err = pe.Err
	}
	return finding.Errorf("files.unreadable", file, "%v", err)
}

func modelFile(path string) (string, error) {
	fi, err := os.Stat(path)
	switch {
	case err != nil:
		return "", fileError(path, err)
	case fi.Mode().IsRegular():
		return path, nil
	case !fi.IsDir():
		return "", finding.Errorf("files.not_regular", path, "not a regular file").Expected(fi.Mode().Type(), "a file or a folder")
	}
	entries, err := os.ReadDir(path)
	if err != nil {
		return "", fileError(path, err)
	}
	var names []string
	for _, e := range entries {
		if strings.EqualFold(filepath.Ext(e.Name()), ".onnx") && !e.IsDir() {
			names = append(names, e.Name())
		}
	}
	name := "model.onnx"
	if !slices.Contains(names, name) {
		switch len(names) {
		case 0:
			return "", finding.Errorf("files.no_weights", path, "the folder holds no .onnx file")
		case 1:
			name = names[0]
		default:
			return "", finding.Errorf("files.ambiguous", path, "the folder holds %d .onnx files, none named model.onnx", len(names)).Hinted("name the file itself")
		}
	}
	file := filepath.Join(path, name)
	if fi, err := os.Stat(file); err != nil {
		return "", fileError(file, err)
	} else if !fi.Mode().IsRegular() {
		return "", finding.Errorf("files.not_regular", file, "not a regular file").Expected(fi.Mode().Type(), "a file")
	}
	return file, nil
}
