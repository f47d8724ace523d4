// Package layout says where every byte of an output goes, and puts it there.
//
// A format's codec turns names, types and shapes into a Layout without seeing a weight: which files
// there are, which bytes are known up front (headers, side files, untouched parts of a source), and
// where each tensor's data belongs. A Writer then creates the files, fills the places, and makes the
// whole output appear at once or not at all.
package layout

import (
	"bytes"
	"io"
)

// A Layout is a complete output.
type Layout struct {
	// Dir is true when the output path becomes a folder that holds Files by name; false when the
	// output path is the first file itself and further files stand beside it by name.
	Dir   bool
	Files []File  // in commit order: the last file is the commit mark
	Items []Place // parallel to the specs the layout was made for
}

// Select makes the items those of the given indexes, in this order, for a caller with other specs.
func (l *Layout) Select(items []int) {
	places := make([]Place, len(items))
	for i, k := range items {
		places[i] = l.Items[k]
	}
	l.Items = places
}

// A File is one file of an output. Bytes that neither a Span nor a tensor covers are zero.
type File struct {
	Name  string // plain name (or relative path inside a Dir output) of the file
	Size  int64
	Spans []Span
}

// A Span is a run of Len bytes known before any weight is processed, to be written at Off.
type Span struct {
	Off    int64
	Len    int64
	Src    io.ReaderAt
	SrcOff int64
}

// Bytes makes a span of b at off.
func Bytes(off int64, b []byte) Span {
	return Span{Off: off, Len: int64(len(b)), Src: bytes.NewReader(b)}
}

// A Place is where a tensor's data goes: Size bytes at Off of file File.
type Place struct {
	File int
	Off  int64
	Size int64
	// Swap, where not nil, turns a run of whole elements (or blocks) in place to the byte order of the
	// file just before it is written.
	Swap func([]byte)
	// Seen, where not nil, is told every run that has been written, as it is in the file, and where in the
	// place it lies: for formats that keep checksums. Runs come in any order and from several goroutines.
	// Spans whose bytes depend on it are read when all items are written, by Commit or WriteSpans.
	Seen func(p []byte, off int64)
}

// Options are the choices an output's layout depends on, beside its tensors.
type Options struct {
	// Name is the last element of the output path.
	Name string
	// MaxShardSize is the largest size of a file in bytes before tensors go to the next shard;
	// 0 means the format's default.
	MaxShardSize int64
	// SideFiles replaces side files of a folder output: name → content, or nil to leave the file out.
	// Other names are ignored.
	SideFiles map[string][]byte
	// Provenance is written where the format has a place for it: key → value.
	Provenance [][2]string
}
