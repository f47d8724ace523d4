package layout

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/loratool/loratool/finding"
)

// A Writer puts the bytes of a Layout on the disk, under temporary names in the target's folder, until
// Commit gives them their real names. Its methods may be called from several goroutines.
//
// The temporary names are .<name>.loratool-<pid>-<random>.tmp. A writer that is neither committed nor
// aborted (a killed process) leaves them behind; they can be removed by hand.
type Writer struct {
	path   string // as the caller wrote it, for messages
	layout *Layout
	disk   disk
	force  bool
	root   string // folder that holds the output
	files  []*file
	done   []coverage // by item
	moves  []*move

	mu     sync.RWMutex // held for writing by Commit and Abort only
	closed bool

	spanMu sync.Mutex
	spans  bool // all spans are written
}

// A file is one output file under its temporary name.
type file struct {
	name  string // for messages
	temp  string
	size  int64
	items bool // tensors go here, so it stays open until Commit

	h        handle
	finished bool
}

// Create makes the temporary files of an output, at their final sizes and with their space reserved,
// and returns the writer that fills them. Path is the output: a folder when l.Dir, otherwise the file
// of the layout that has this name; further files stand beside it.
//
// It refuses, as a *finding.Finding: an output that exists when force is not set (output.exists), a
// missing folder (output.no_folder), a folder where a file should go and the reverse
// (output.wrong_kind), a folder that is not plainly an earlier output (output.protected), a disk
// without enough room (output.disk_full) and whatever else the system refuses. Nothing is left behind
// by a failed Create.
func Create(path string, l *Layout, force bool) (*Writer, error) {
	return create(realDisk{}, path, l, force)
}

func create(d disk, path string, l *Layout, force bool) (*Writer, error) {
	if err := l.check(); err != nil {
		return nil, finding.Errorf("output.bad_layout", path, "%s", err)
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, failed(path, "find the output's folder", err)
	}
	if filepath.Dir(abs) == abs {
		return nil, finding.Errorf("output.protected", path, "the root folder cannot be an output")
	}
	w := &Writer{path: path, layout: l, disk: d, force: force, root: filepath.Dir(abs), done: make([]coverage, len(l.Items))}
	if err := w.plan(abs); err != nil {
		return nil, err
	}
	if err := w.room(); err != nil {
		return nil, err
	}
	if err := w.open(); err != nil {
		w.discard()
		return nil, err
	}
	return w, nil
}

// plan decides the temporary and final names, and checks what stands there now.
func (w *Writer) plan(abs string) error {
	fi, err := os.Stat(w.root)
	if errors.Is(err, fs.ErrNotExist) {
		return finding.Errorf("output.no_folder", w.path, "the folder %q does not exist", w.root).Hinted("create it first")
	}
	if err != nil {
		return failed(w.path, "look at the output's folder", err)
	}
	if !fi.IsDir() {
		return finding.Errorf("output.no_folder", w.path, "%q is not a folder", w.root)
	}
	add := func(final string, dir bool) (string, error) {
		var token [6]byte
		if _, err := rand.Read(token[:]); err != nil {
			return "", err
		}
		base := filepath.Base(final)
		if len(base) > 150 { // the temporary name must not become longer than a file name may be
			base = strings.ToValidUTF8(base[:150], "")
		}
		m := &move{final: final, dir: dir}
		m.temp = filepath.Join(w.root, fmt.Sprintf(".%s.loratool-%d-%s.tmp", base, os.Getpid(), hex.EncodeToString(token[:])))
		w.moves = append(w.moves, m)
		return m.temp, w.admit(m)
	}
	item := make([]bool, len(w.layout.Files))
	for _, p := range w.layout.Items {
		item[p.File] = true
	}
	if w.layout.Dir {
		temp, err := add(abs, true)
		if err != nil {
			return err
		}
		for i, f := range w.layout.Files {
			w.files = append(w.files, &file{name: filepath.Join(w.path, f.Name), temp: filepath.Join(temp, filepath.FromSlash(f.Name)), size: f.Size, items: item[i]})
		}
		return nil
	}
	main := -1
	for i, f := range w.layout.Files {
		if f.Name == filepath.Base(abs) || len(w.layout.Files) == 1 {
			main = i
		}
	}
	if main < 0 {
		return finding.Errorf("output.bad_layout", w.path, "none of the output's %d files is named %q", len(w.layout.Files), filepath.Base(abs))
	}
	for i, f := range w.layout.Files {
		final, name := filepath.Join(w.root, f.Name), filepath.Join(filepath.Dir(w.path), f.Name)
		if i == main {
			final, name = abs, w.path
		}
		temp, err := add(final, false)
		if err != nil {
			return err
		}
		w.files = append(w.files, &file{name: name, temp: temp, size: f.Size, items: item[i]})
	}
	return nil
}

// room compares the size of the output with the space that is free.
func (w *Writer) room() error {
	free, err := w.disk.Free(w.root)
	if errors.Is(err, errors.ErrUnsupported) {
		return nil
	}
	if err != nil {
		return failed(w.path, "ask for free space", err)
	}
	if need := w.layout.size(); need > free {
		return finding.Errorf("output.disk_full", w.path, "the output does not fit on the disk").
			Expected(fmt.Sprintf("%d bytes free", free), fmt.Sprintf("%d bytes", need)).
			Hinted("free some space or choose another folder; nothing was left behind")
	}
	return nil
}

// open creates the temporary files and reserves their space.
func (w *Writer) open() error {
	if w.layout.Dir {
		for _, dir := range w.folders() {
			if err := w.disk.Mkdir(dir); err != nil {
				return failed(w.path, "create a temporary folder", err)
			}
		}
		if mode := w.moves[0].mode; mode != 0 {
			if err := w.disk.Chmod(w.moves[0].temp, mode); err != nil {
				return failed(w.path, "set the folder's mode", err)
			}
		}
	}
	for i, f := range w.files {
		h, err := w.disk.Create(f.temp)
		if err != nil {
			return failed(f.name, "create a temporary file", err)
		}
		f.h = h
		if !w.layout.Dir && w.moves[i].mode != 0 {
			if err := w.disk.Chmod(f.temp, w.moves[i].mode); err != nil {
				return failed(f.name, "set the file's mode", err)
			}
		}
		if err := h.Reserve(f.size); err != nil {
			return failed(f.name, fmt.Sprintf("reserve %d bytes", f.size), err)
		}
		// A model folder may have more side files than a process may have open.
		if !f.items {
			f.h = nil
			if err := h.Close(); err != nil {
				return failed(f.name, "close", err)
			}
		}
	}
	return nil
}

// folders lists the temporary folder of a folder output and its sub-folders, outer ones first.
func (w *Writer) folders() []string {
	seen := map[string]bool{}
	var dirs []string
	var visit func(dir string)
	visit = func(dir string) {
		if seen[dir] {
			return
		}
		seen[dir] = true
		if dir != w.moves[0].temp {
			visit(filepath.Dir(dir))
		}
		dirs = append(dirs, dir)
	}
	visit(w.moves[0].temp)
	for _, f := range w.files {
		visit(filepath.Dir(f.temp))
	}
	return dirs
}

// WriteAt writes p at byte off of the data of tensor item (an index of Layout.Items). Where the place
// has a Swap, p must be whole elements and is turned in place to the byte order of the file. Writing
// outside the tensor is an error.
func (w *Writer) WriteAt(item int, p []byte, off int64) error {
	if item < 0 || item >= len(w.layout.Items) {
		return finding.Errorf("output.bad_layout", w.path, "there is no tensor %d among %d", item, len(w.layout.Items))
	}
	place := w.layout.Items[item]
	if off < 0 || int64(len(p)) > place.Size-off {
		return finding.Errorf("output.bad_layout", w.path, "%d bytes at %d do not lie in the %d bytes of tensor %d", len(p), off, place.Size, item)
	}
	w.mu.RLock()
	defer w.mu.RUnlock()
	if w.closed {
		return failed(w.path, "write", os.ErrClosed)
	}
	if place.Swap != nil {
		place.Swap(p)
	}
	f := w.files[place.File]
	if _, err := f.h.WriteAt(p, place.Off+off); err != nil {
		return failed(f.name, fmt.Sprintf("write %d bytes at %d", len(p), place.Off+off), err)
	}
	if place.Seen != nil {
		place.Seen(p, off)
	}
	w.done[item].add(off, off+int64(len(p)))
	return nil
}

// spanPiece is how much of a span is copied at once: large enough for write-behind, small enough for
// a prompt cancellation.
const spanPiece = 4 << 20

// WriteSpans copies the spans of every file. It may run beside WriteAt (unless a place's Seen fills spans),
// does nothing the second time, and stops between two pieces when ctx is cancelled. Commit calls it if nobody else did.
func (w *Writer) WriteSpans(ctx context.Context) error {
	w.mu.RLock()
	defer w.mu.RUnlock()
	if w.closed {
		return failed(w.path, "write", os.ErrClosed)
	}
	return w.writeSpans(ctx)
}

func (w *Writer) writeSpans(ctx context.Context) error {
	w.spanMu.Lock()
	defer w.spanMu.Unlock()
	if w.spans {
		return nil
	}
	var buf []byte
	for i, f := range w.files {
		if err := ctx.Err(); err != nil {
			return err
		}
		if f.finished {
			continue
		}
		if f.h == nil {
			h, err := w.disk.Reopen(f.temp)
			if err != nil {
				return failed(f.name, "open the temporary file again", err)
			}
			f.h = h
		}
		for _, s := range w.layout.Files[i].Spans {
			if need := min(s.Len, spanPiece); int64(len(buf)) < need {
				buf = make([]byte, need)
			}
			if err := copySpan(ctx, f, s, buf); err != nil {
				return err
			}
		}
		if !f.items {
			if err := f.finish(); err != nil {
				return err
			}
		}
	}
	w.spans = true
	return nil
}

func copySpan(ctx context.Context, f *file, s Span, buf []byte) error {
	for at := int64(0); at < s.Len; {
		if err := ctx.Err(); err != nil {
			return err
		}
		p := buf[:min(s.Len-at, int64(len(buf)))]
		n, err := s.Src.ReadAt(p, s.SrcOff+at)
		if n < len(p) {
			if err == nil || err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			if finding.Of(err) != nil {
				return err
			}
			return &fault{finding.Errorf("input.read", f.name, "read the %d bytes to copy at %d: %s", len(p), s.SrcOff+at, err).
				Hinted("the input was cut short or changed while it was read"), err}
		}
		if _, err := f.h.WriteAt(p, s.Off+at); err != nil {
			return failed(f.name, fmt.Sprintf("write %d bytes at %d", len(p), s.Off+at), err)
		}
		at += int64(len(p))
	}
	return nil
}

// finish makes a file's bytes durable, compares its size and closes it.
func (f *file) finish() error {
	if f.finished {
		return nil
	}
	if err := f.h.Sync(); err != nil {
		return failed(f.name, "sync", err)
	}
	n, err := f.h.Size()
	if err != nil {
		return failed(f.name, "look at the written file", err)
	}
	if n != f.size {
		return finding.Errorf("output.failed", f.name, "the written file has the wrong size").Expected(n, f.size)
	}
	h := f.h
	f.h = nil
	f.finished = true
	return failed(f.name, "close", h.Close())
}
