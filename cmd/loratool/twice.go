package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/formats"
	"github.com/loratool/loratool/formats/layout"
)

// notTheSame is the code of a merge whose second run gave other bytes.
const notTheSame = "merge.determinism"

// again merges a second time into a folder beside the output, with one worker or, where that was the number, with
// three, and compares every file. The copy is removed.
func (m *merging) again(ctx context.Context) ([]finding.Finding, error) {
	dir, err := os.MkdirTemp(filepath.Dir(filepath.Clean(m.args.output)), ".loratool-twice-")
	if err != nil {
		return nil, finding.Errorf("output.io", m.args.output, "there is no place for the second merge: %v", err)
	}
	defer os.RemoveAll(dir)
	copied := filepath.Join(dir, m.args.name)
	l, err := m.plan.Layout(m.base, copied, layout.Options{MaxShardSize: m.args.shard, Provenance: m.provenance()})
	if err != nil {
		return nil, err
	}
	t := *m.t
	if t.jobs == 1 {
		t.jobs = 3
	} else {
		t.jobs = 1
	}
	w := writing{t: &t, label: "merging again", plan: m.plan, layout: l, output: copied}
	if err := w.run(ctx); err != nil {
		return nil, err
	}
	first, root := filepath.Dir(m.args.output), dir
	if formats.IsFolder(m.args.output) {
		first, root = m.args.output, copied
	}
	var found []finding.Finding
	err = filepath.WalkDir(root, func(p string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		rel, err := filepath.Rel(root, p)
		if err != nil {
			return err
		}
		same, err := sameBytes(ctx, filepath.Join(first, rel), p)
		if err == nil && !same {
			found = append(found, *finding.Errorf(notTheSame, filepath.Join(first, rel), "a second merge with %d workers gives other bytes", t.jobs).
				Hinted("a base or an adapter has changed meanwhile, or the memory of this machine fails; please report it if neither is so"))
		}
		return err
	})
	return found, err
}

// sameBytes compares two files.
func sameBytes(ctx context.Context, a, b string) (bool, error) {
	fa, err := os.Open(a)
	if err != nil {
		return false, nil // it is not there
	}
	defer fa.Close()
	fb, err := os.Open(b)
	if err != nil {
		return false, finding.Errorf("files.unreadable", b, "the file cannot be read")
	}
	defer fb.Close()
	x, y := make([]byte, 1<<20), make([]byte, 1<<20)
	for {
		if err := ctx.Err(); err != nil {
			return false, err
		}
		n, errA := io.ReadFull(fa, x)
		k, errB := io.ReadFull(fb, y)
		ended := func(err error) bool { return err == io.EOF || errors.Is(err, io.ErrUnexpectedEOF) }
		switch {
		case errA != nil && !ended(errA) || errB != nil && !ended(errB):
			return false, finding.Errorf("files.unreadable", a, "the file cannot be read")
		case !bytes.Equal(x[:n], y[:k]):
			return false, nil
		case errA != nil:
			return true, nil
		}
	}
}
