package layout

import (
	"fmt"
	"math"
	"path/filepath"
	"slices"
	"strings"
)

// check makes sure that a layout can be written at all: plain file names, no name twice, every span
// and place inside its file, and no two of them on the same bytes. A layout that fails is a codec's
// bug or carries names from a hostile file, and must not reach the disk.
func (l *Layout) check() error {
	type run struct{ off, end int64 }
	runs := make([][]run, len(l.Files))
	add := func(file int, off, size int64) error {
		if off < 0 || size < 0 || off > l.Files[file].Size-size {
			return fmt.Errorf("%d bytes at %d do not lie in the %d bytes of %q", size, off, l.Files[file].Size, l.Files[file].Name)
		}
		if size > 0 {
			runs[file] = append(runs[file], run{off, off + size})
		}
		return nil
	}
	if len(l.Files) == 0 {
		return fmt.Errorf("an output without files")
	}
	names := make(map[string]bool, len(l.Files))
	var total int64
	for i, f := range l.Files {
		if !plainName(f.Name, l.Dir) {
			return fmt.Errorf("%q cannot be the name of an output file", f.Name)
		}
		if names[f.Name] {
			return fmt.Errorf("two output files are named %q", f.Name)
		}
		names[f.Name] = true
		if f.Size < 0 || f.Size > math.MaxInt64-total {
			return fmt.Errorf("the size %d of %q is impossible", f.Size, f.Name)
		}
		total += f.Size
		for _, s := range f.Spans {
			if err := add(i, s.Off, s.Len); err != nil {
				return err
			}
		}
	}
	for _, p := range l.Items {
		if p.File < 0 || p.File >= len(l.Files) {
			return fmt.Errorf("a tensor is placed in file %d of %d", p.File, len(l.Files))
		}
		if err := add(p.File, p.Off, p.Size); err != nil {
			return err
		}
	}
	for i, rs := range runs {
		slices.SortFunc(rs, func(a, b run) int {
			switch {
			case a.off < b.off:
				return -1
			case a.off > b.off:
				return 1
			}
			return 0
		})
		for j := 1; j < len(rs); j++ {
			if rs[j].off < rs[j-1].end {
				return fmt.Errorf("two parts of %q share the bytes from %d", l.Files[i].Name, rs[j].off)
			}
		}
	}
	return nil
}

// plainName reports whether name stays below the folder it is used in. Only outputs that are folders
// may have sub-folders.
func plainName(name string, dir bool) bool {
	if strings.ContainsAny(name, "\\\x00") || !filepath.IsLocal(name) || name == "." || filepath.ToSlash(filepath.Clean(name)) != name {
		return false
	}
	return dir || !strings.Contains(name, "/")
}

// size is the sum of the sizes of all files.
func (l *Layout) size() int64 {
	var n int64
	for _, f := range l.Files {
		n += f.Size
	}
	return n
}
