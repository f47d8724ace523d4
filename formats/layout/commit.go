package layout

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/loratool/loratool/finding"
)

// A move takes a temporary file or folder to its final name.
type move struct {
	temp, final string
	dir         bool
	mode        fs.FileMode // of what it replaces; 0 = the system's default
	old         string      // where the replaced output stands after the move, "" = nowhere
	moved       bool
	keep        bool // the old output could not be put back: never remove it
}

// admit checks that the output of a move may be put there.
func (w *Writer) admit(m *move) error {
	link, err := os.Lstat(m.final)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return failed(w.path, "look at the output", err)
	}
	if !w.force {
		return exists(w.path, m.final)
	}
	fi, err := os.Stat(m.final)
	if err != nil { // a dangling link, which the move replaces
		return nil
	}
	switch {
	case m.dir && !fi.IsDir():
		return finding.Errorf("output.wrong_kind", w.path, "the output is a folder, but a file has its name").Hinted("choose another name or remove the file")
	case !m.dir && fi.IsDir():
		return finding.Errorf("output.wrong_kind", w.path, "the output is a file, but a folder has its name").Hinted("choose another name or remove the folder")
	case !m.dir && !fi.Mode().IsRegular():
		return finding.Errorf("output.wrong_kind", w.path, "what has the output's name is not a regular file").Hinted("choose another name")
	}
	m.mode = fi.Mode().Perm()
	if m.dir && link.IsDir() {
		return w.expendable(m.final, fi)
	}
	return nil
}

func exists(path, final string) error {
	return finding.Errorf("output.exists", path, "%q already exists", final).Hinted("use --force to replace it, or choose another name")
}

// expendable guards against a slip such as "-o . --force": replacing a folder deletes everything in
// it, so it has to be empty or share a file name with the new output, and must not be a place where
// someone lives or works.
func (w *Writer) expendable(dir string, fi fs.FileInfo) error {
	refuse := func(why string) error {
		return finding.Errorf("output.protected", w.path, "the folder will not be replaced: %s", why).Hinted("choose another name, or remove the folder by hand")
	}
	if cwd, err := os.Getwd(); err == nil && (is(fi, cwd) || below(fi, cwd)) {
		return refuse("the current folder is or lies in it")
	}
	if home, err := os.UserHomeDir(); err == nil && (is(fi, home) || below(fi, home)) {
		return refuse("the home folder is or lies in it")
	}
	if _, err := os.Lstat(filepath.Join(dir, ".git")); err == nil {
		return refuse("it is a git work tree")
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return failed(w.path, "look into the folder", err)
	}
	if len(entries) == 0 {
		return nil
	}
	for _, f := range w.layout.Files {
		if slices.ContainsFunc(entries, func(e fs.DirEntry) bool { return e.Name() == f.Name }) {
			return nil
		}
	}
	return refuse("it holds none of the files this output has")
}

// Commit finishes an output: it writes what is left of the spans, checks that every tensor is
// complete (output.incomplete), syncs and measures every file, gives the files their real names in
// the order of the layout, and syncs the folder. When it fails before the last name is given,
// everything is as it was before Create. Inputs that are to be replaced may still be open.
func (w *Writer) Commit() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return failed(w.path, "commit", os.ErrClosed)
	}
	err := w.commit()
	w.closed = true
	if clean := w.discard(); err == nil && clean != nil {
		return finding.Errorf("output.leftover", w.path, "the output is complete, but what it replaced is still there under a temporary name: %s", clean)
	}
	return err
}

func (w *Writer) commit() error {
	for i := range w.done {
		if n, size := w.done[i].written(), w.layout.Items[i].Size; n != size {
			return finding.Errorf("output.incomplete", w.path, "tensor %d was not written completely", i).
				Expected(fmt.Sprintf("%d bytes", n), fmt.Sprintf("%d bytes", size))
		}
	}
	if err := w.writeSpans(context.Background()); err != nil {
		return err
	}
	for _, f := range w.files {
		if err := f.finish(); err != nil {
			return err
		}
	}
	if w.layout.Dir {
		dirs := w.folders()
		slices.Reverse(dirs)
		for _, dir := range dirs {
			if err := w.disk.SyncDir(dir); err != nil {
				return failed(w.path, "sync the new folder", err)
			}
		}
	}
	for i, m := range w.moves {
		if err := w.move(m); err != nil {
			for _, done := range slices.Backward(w.moves[:i]) {
				err = errors.Join(err, w.undo(done))
			}
			return err
		}
	}
	return failed(w.path, "sync the output's folder", w.disk.SyncDir(w.root))
}

// move gives a temporary file or folder its final name. The old output stays somewhere until all
// moves are done, except where one rename replaces it for good.
func (w *Writer) move(m *move) error {
	_, err := os.Lstat(m.final)
	there := err == nil
	if there && !w.force {
		return exists(w.path, m.final)
	}
	if !there || (!m.dir && len(w.moves) == 1) {
		if err := w.disk.Rename(m.temp, m.final); err != nil {
			return failed(w.path, "give the output its name", err)
		}
		m.moved = true
		return nil
	}
	err = w.disk.Exchange(m.temp, m.final)
	if err == nil {
		m.moved, m.old = true, m.temp
		return nil
	}
	if !errors.Is(err, errors.ErrUnsupported) {
		return failed(w.path, "replace the old output", err)
	}
	aside := m.temp + ".old"
	if err := w.disk.Rename(m.final, aside); err != nil {
		return failed(w.path, "move the old output aside", err)
	}
	if err := w.disk.Rename(m.temp, m.final); err != nil {
		err = failed(w.path, "give the output its name", err)
		if back := w.disk.Rename(aside, m.final); back != nil {
			return errors.Join(err, finding.Errorf("output.leftover", w.path, "the old output could not be put back and stands at %q", aside))
		}
		return err
	}
	m.moved, m.old = true, aside
	return nil
}

// undo takes a move back.
func (w *Writer) undo(m *move) error {
	var err error
	switch m.old {
	case "":
		err = w.disk.Rename(m.final, m.temp)
	case m.temp:
		err = w.disk.Exchange(m.temp, m.final)
	default:
		if err = w.disk.Rename(m.final, m.temp); err == nil {
			err = w.disk.Rename(m.old, m.final)
		}
	}
	if err != nil {
		m.keep = true
		at := m.old
		if at == "" {
			at = m.final
		}
		return finding.Errorf("output.leftover", w.path, "a file of the output could not be taken back; look at %q", at)
	}
	m.moved, m.old = false, ""
	return nil
}

// Abort removes everything that the writer put on the disk. It may be called at any time and more
// than once; after a successful Commit there is nothing left for it to do.
func (w *Writer) Abort() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.closed = true
	w.discard()
}

// discard closes what is open and removes temporary files, and the outputs that were replaced.
func (w *Writer) discard() error {
	var first error
	note := func(err error) {
		if first == nil {
			first = err
		}
	}
	for _, f := range w.files {
		if f.h != nil {
			note(f.h.Close())
			f.h = nil
		}
	}
	for _, m := range w.moves {
		switch {
		case m.keep:
		case !m.moved:
			note(w.disk.RemoveAll(m.temp))
		case m.old != "":
			err := w.disk.RemoveAll(m.old)
			if err == nil {
				m.old = ""
			}
			note(err)
		}
	}
	return first
}
