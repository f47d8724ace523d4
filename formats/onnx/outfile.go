package onnx

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/loratool/loratool/formats/layout"
)

const (
	// pageAlign is the alignment the ONNX specification recommends, so that data can be mapped.
	pageAlign = 4096
	// wordAlign is for tensors smaller than a page.
	wordAlign = 64
)

// An outFile is an external data file of the output.
type outFile struct {
	name    string
	src     *dataFile // the file it comes from; nil for a new one
	kept    bool      // it begins as a copy of src, with the offsets there
	members []*target
	size    int64
}

// outFiles groups the external targets into files and names these.
func (m *Model) outFiles(targets []*target, opt layout.Options, edit Edit) []*outFile {
	var outs []*outFile
	of := map[*dataFile]*outFile{}
	added := &outFile{}
	for _, d := range m.files {
		of[d] = &outFile{src: d, kept: true}
		outs = append(outs, of[d])
	}
	for _, t := range targets {
		if !t.external {
			continue
		}
		o := added
		if t.rec.store == storeExternal {
			o = of[t.rec.file]
		}
		o.members = append(o.members, t)
		t.file = o
	}
	lost := map[*dataFile]bool{} // files with data that swaps leave out
	for _, t := range targets {
		if t.gone && t.rec.file != nil {
			lost[t.rec.file] = true
		}
	}
	outs = slices.DeleteFunc(outs, func(o *outFile) bool { return len(o.members) == 0 })
	taken := map[string]bool{opt.Name: true}
	var unnamed []*outFile
	for _, o := range outs {
		o.kept = !o.mustRepack() && !lost[o.src]
		if n := o.src.location; o.src.self || m.usable(n, edit.Dir) && !taken[n] {
			o.name, taken[n] = n, true
		} else {
			unnamed = append(unnamed, o)
		}
	}
	if len(added.members) > 0 {
		outs, unnamed = append(outs, added), append(unnamed, added)
	}
	for _, o := range unnamed {
		name := opt.Name + ".data"
		for i := 1; taken[name]; i++ {
			name = fmt.Sprintf("%s.%d.data", opt.Name, i)
		}
		o.name, taken[name] = name, true
	}
	return outs
}

// usable reports whether an external file may keep its name: a plain one, and in the output's folder
// not that of a file of the model.
func (m *Model) usable(name, dir string) bool {
	if strings.ContainsAny(name, "/:") {
		return false
	}
	if dir == "" {
		return true
	}
	fi, err := os.Stat(filepath.Join(dir, name))
	if err != nil {
		return true
	}
	for _, d := range m.files {
		if os.SameFile(fi, d.info) {
			return false
		}
	}
	own, err := os.Stat(m.file)
	return err != nil || !os.SameFile(fi, own)
}

// inSource sorts members as their data lies in the source, added ones behind all others.
func (o *outFile) inSource() {
	slices.SortStableFunc(o.members, func(a, b *target) int {
		if a.added() || b.added() {
			return cmp.Compare(a.item, b.item)
		}
		return cmp.Or(cmp.Compare(a.rec.off, b.rec.off), cmp.Compare(a.rec.len, b.rec.len), cmp.Compare(a.item, b.item))
	})
}

// mustRepack reports whether the members cannot stay where they are: a type changes, or data that is
// written anew is shared with another tensor.
func (o *outFile) mustRepack() bool {
	o.inSource()
	var reach, written int64 // the ends of what lies before, and of what is written anew in it
	for _, t := range o.members {
		if t.added() {
			continue
		}
		if t.changed {
			return true
		}
		if t.rec.len > 0 && (t.rec.off < written || t.touched && t.rec.off < reach) {
			return true
		}
		end := t.rec.off + t.rec.len
		if reach = max(reach, end); t.touched {
			written = max(written, end)
		}
	}
	return false
}

// place gives every member its offset.
func (o *outFile) place() {
	var last *target
	if o.kept && o.src != nil {
		o.size = o.src.size
	}
	for _, t := range o.members {
		if o.kept && o.src != nil && !t.added() {
			t.off = t.rec.off
			continue
		}
		if last != nil && o.src != nil && !last.touched && !t.touched && last.rec.off == t.rec.off && last.rec.len == t.rec.len {
			t.off = last.off // tied weights stay tied
			continue
		}
		align := int64(wordAlign)
		if t.size >= pageAlign {
			align = pageAlign
		}
		t.off = (o.size + align - 1) / align * align
		o.size = t.off + t.size
		last = t
	}
}

// spans are the bytes of the file that the caller does not write.
func (o *outFile) spans() []layout.Span {
	var w []layout.Span
	if !o.kept || o.src == nil {
		end := int64(0)
		for _, t := range o.members {
			if c := t.data(); c.src != nil && c.n > 0 && t.off >= end {
				w = append(w, layout.Span{Off: t.off, Len: c.n, Src: c.src, SrcOff: c.off})
			}
			end = max(end, t.off+t.size)
		}
		return w
	}
	at := int64(0)
	for _, t := range o.members {
		if t.added() || !t.touched {
			continue
		}
		if t.off > at {
			w = append(w, layout.Span{Off: at, Len: t.off - at, Src: o.src, SrcOff: at})
		}
		at = max(at, t.off+t.size)
	}
	if at < o.src.size {
		w = append(w, layout.Span{Off: at, Len: o.src.size - at, Src: o.src, SrcOff: at})
	}
	return w
}

// untouched reports whether the file is the same as in the source.
func (o *outFile) untouched() bool {
	if !o.kept || o.src == nil {
		return false
	}
	return !slices.ContainsFunc(o.members, func(t *target) bool { return t.touched })
}
