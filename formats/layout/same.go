package layout

import (
	"os"
	"path/filepath"
)

// SameFile reports which of the inputs an output would replace: one that is the same file or folder
// under any name (symbolic and hard links included), or that lies inside the output folder. It
// returns "" when the output touches none of them. Create never writes into such an input: with
// force it is replaced whole, by name, once the output is complete.
func SameFile(output string, inputs []string) string {
	out, err := os.Stat(output)
	if err != nil {
		return ""
	}
	for _, in := range inputs {
		if is(out, in) {
			return in
		}
		if !out.IsDir() {
			continue
		}
		if p, err := filepath.Abs(in); err == nil && below(out, p) {
			return in
		}
		if p, err := filepath.EvalSymlinks(in); err == nil {
			if p, err = filepath.Abs(p); err == nil && below(out, p) {
				return in
			}
		}
	}
	return ""
}

func is(fi os.FileInfo, path string) bool {
	other, err := os.Stat(path)
	return err == nil && os.SameFile(fi, other)
}

// below reports whether one of the folders above path is dir.
func below(dir os.FileInfo, path string) bool {
	for up := filepath.Dir(path); up != path; path, up = up, filepath.Dir(up) {
		if is(dir, up) {
			return true
		}
	}
	return false
}
