package onnx

import (
	"errors"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
)

// roots are the folders that data files may lie in: the one of the path the user gave, and the one of
// the file that this path leads to. The second is how the Hugging Face cache works, where both model
// and data are links into a folder "blobs". ONNX Runtime has the same rule since 1.24.2.
type roots struct {
	given, resolved string
}

var (
	errNotRegular = errors.New("not a regular file")
	errLink       = errors.New("a symbolic link leaves the folder")
)

// find decides how to open a location, which readLocation has cleaned. Linked is true where a link is
// followed for which a user should know.
func (r roots) find(clean string) (open func() (*os.File, error), linked bool, err error) {
	inRoot := func(dir, name string) func() (*os.File, error) {
		return func() (*os.File, error) { return os.OpenInRoot(dir, name) }
	}
	local := filepath.FromSlash(clean)
	linked = r.hasLink(clean)
	switch err := statInRoot(r.given, local); {
	case err == nil:
		return inRoot(r.given, local), linked, nil
	case !linked || errors.Is(err, errNotRegular):
		return nil, false, err
	}
	// Through a link, and out of the given folder or to nothing.
	target, err := filepath.EvalSymlinks(filepath.Join(r.given, local))
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, false, err
		}
		return nil, false, errLink
	}
	if rel, err := filepath.Rel(r.resolved, target); err == nil && filepath.IsLocal(rel) {
		return inRoot(r.resolved, rel), false, statInRoot(r.resolved, rel)
	}
	if dir, name, ok := r.blob(clean); ok {
		err := statInRoot(dir, name)
		if err == nil || errors.Is(err, fs.ErrNotExist) || errors.Is(err, errNotRegular) {
			return inRoot(dir, name), true, err
		}
	}
	return nil, false, errLink
}

// blob recognises a data file that is a link into the "blobs" folder of a Hugging Face cache, next to a
// model that is a file of its own, for example because it was edited there.
func (r roots) blob(clean string) (dir, name string, ok bool) {
	parent := path.Dir(clean)
	if parent != "." && r.hasLink(parent) {
		return "", "", false
	}
	text, err := os.Readlink(filepath.Join(r.given, filepath.FromSlash(clean)))
	if err != nil {
		return "", "", false
	}
	rest := filepath.ToSlash(text)
	for strings.HasPrefix(rest, "../") {
		rest = rest[3:]
	}
	if rest == filepath.ToSlash(text) {
		return "", "", false
	}
	name, ok = strings.CutPrefix(rest, "blobs/")
	if !ok || name == "" || name == ".." || strings.Contains(name, "/") {
		return "", "", false
	}
	base, err := filepath.EvalSymlinks(filepath.Join(r.given, filepath.FromSlash(parent)))
	if err != nil {
		return "", "", false
	}
	dir = filepath.Dir(filepath.Join(base, text))
	if fi, err := os.Lstat(dir); err != nil || !fi.IsDir() {
		return "", "", false // the folder is itself a link, to who knows where
	}
	return dir, name, true
}

// hasLink reports whether a component of the location is a symbolic link.
func (r roots) hasLink(clean string) bool {
	at := r.given
	for e := range strings.SplitSeq(clean, "/") {
		at = filepath.Join(at, e)
		if fi, err := os.Lstat(at); err != nil || fi.Mode()&fs.ModeSymlink != 0 {
			return err == nil
		}
	}
	return false
}

// statInRoot makes sure that a name below dir is a regular file, before it is opened: opening a pipe
// would wait for a writer.
func statInRoot(dir, name string) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	fi, err := root.Stat(name)
	if err == nil && !fi.Mode().IsRegular() {
		err = errNotRegular
	}
	return err
}
