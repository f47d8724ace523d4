// Package onnx reads and writes ONNX models at the level of the protobuf wire format.
//
// Opening walks the file once and keeps where every message lies. Weights are not read: a tensor is a
// section of the model file or of an external data file. Writing is a Layout that copies all bytes it
// does not have to change, so that unknown fields, odd encodings and field order survive, and a
// rewrite without changes gives back the same bytes.
//
// The rules a file is checked against are those of the onnx checker and of ONNX Runtime, in the
// stricter form where they differ on memory safety, and as warnings where the runtime is laxer.
package onnx

import (
	"errors"
	"io"
	"io/fs"
	"slices"
	"strconv"
	"sync"

	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/tensor"
)

// The newest versions this program knows. Later ones are read with a warning.
const (
	newestIR    = 14
	newestOpset = 28
	absurd      = 100 // a version from here on is no version
)

// A Header is what a model says about itself.
type Header struct {
	IRVersion                 int64
	Opsets                    []Opset
	Producer, ProducerVersion string
	Domain                    string
	ModelVersion              int64
	Metadata                  [][2]string // metadata_props, in file order
	Functions                 []Function

	metadataAt []*message // parallel to Metadata
}

// An Opset is a set of operators the model uses. The domain "" is that of ONNX itself.
type Opset struct {
	Domain  string
	Version int64
}

// A Function is a model-local function.
type Function struct {
	Domain, Name, Overload string
	Body                   *Graph
}

// A Model is an open ONNX file. It is read-only and safe for use by many goroutines; its tensors can
// be read until Close.
type Model struct {
	path    string // as given
	file    string // the .onnx file
	header  Header
	graph   *Graph
	records []*record
	tensors []tensor.Tensor
	notes   []finding.Finding
	files   []*dataFile
	walking sync.Mutex // guards the window of src
	src     *source
	root    *message
	closer  io.Closer
	known   map[int][]Known
}

// A Known is the weight of a module, found by its values in an initializer: in Rows outputs from RowOffset
// on, or in all where Rows is 0.
type Known struct {
	Module          string
	RowOffset, Rows int64
}

// SetKnown tells whose weights initializers of the main graph hold, by indexes into Tensors, where names do not.
// It is called before the model is shared.
func (m *Model) SetKnown(known map[int][]Known) { m.known = known }

// Known are the weights in tensor i, and whether any were looked for.
func (m *Model) Known(i int) (weights []Known, lookedFor bool) { return m.known[i], m.known != nil }

// parser holds what only the opening needs.
type parser struct {
	*source
	info    fs.FileInfo
	roots   roots
	header  Header
	graphs  []*Graph // main graph first, then those of training_info
	records []*record
	files   map[string]*dataFile
	order   []*dataFile
	notes   []finding.Finding
	noted   map[string]int
}

// maxNotes bounds the warnings with one code that a file can cause.
const maxNotes = 32

func (p *parser) warning(reason, format string, a ...any) *finding.Finding {
	return finding.Warnf("container."+reason, p.name, format, a...)
}

func (p *parser) warn(f *finding.Finding) {
	if p.noted[f.Code]++; p.noted[f.Code] <= maxNotes {
		p.notes = append(p.notes, *f)
	}
}

// read parses a model of size bytes. The files it has opened are closed when it fails.
func read(r io.ReaderAt, size int64, name string, info fs.FileInfo, where roots) (*Model, error) {
	p := &parser{
		source: &source{name: name, r: r, size: size}, info: info, roots: where,
		files: map[string]*dataFile{}, noted: map[string]int{},
	}
	m := &Model{path: name, file: name, src: p.source, root: p.root()}
	err := p.model(m.root)
	if err == nil {
		err = p.check()
	}
	m.files = p.order
	if err != nil {
		m.Close()
		return nil, err
	}
	m.header, m.graph, m.records = p.header, p.graphs[0], p.records
	if err := m.list(p); err != nil {
		m.Close()
		return nil, err
	}
	m.notes = p.notes
	return m, nil
}

// list makes the tensors: the initializers of the main graph first, then all others in file order.
func (m *Model) list(p *parser) error {
	slices.SortStableFunc(m.records, func(a, b *record) int { return m.rank(a) - m.rank(b) })
	names := make(map[string]int, len(m.records))
	for i, r := range m.records {
		r.index = i
		t := tensor.Tensor{Spec: tensor.Spec{Name: r.name(), DType: DType(r.dataType), Shape: r.dims}, Size: r.size}
		switch names[t.Name]++; {
		case names[t.Name] > 1 && m.rank(r) == 0:
			return p.reject("duplicate_name", "two initializers have the same name").In(r.own)
		case names[t.Name] > 1:
			t.Name += "#" + strconv.Itoa(i)
		}
		switch r.store {
		case storeNone:
			t.Src = p.r
		case storeTyped:
			t.Src = &typedData{file: m.src, rec: r}
		case storeExternal:
			t.Src, t.Off = r.file, r.off
		default:
			t.Src, t.Off = p.r, r.off
		}
		m.tensors = append(m.tensors, t)
		if r.kind == Initializer {
			r.graph.Initializers = append(r.graph.Initializers, i)
		}
	}
	return nil
}

// rank sorts the initializers of the main graph before all other tensors.
func (m *Model) rank(r *record) int {
	if r.kind == Initializer && r.graph == m.graph {
		return 0
	}
	return 1
}

// name is the tensor's name in Model.Tensors.
func (r *record) name() string {
	switch {
	case r.kind == Initializer && r.scope == "":
		return r.own
	case r.kind == Initializer:
		return r.scope + "/" + r.own
	}
	return r.scope
}

// AsStored is the model itself, for those who hold a view that is made of it.
func (m *Model) AsStored() *Model { return m }

// Path is the path the model was opened with.
func (m *Model) Path() string { return m.path }

// File is the .onnx file itself, where Path is a folder.
func (m *Model) File() string { return m.file }

// Format is "onnx".
func (m *Model) Format() string { return "onnx" }

// Tensors lists every tensor: the initializers of the main graph in their order and under their own
// names, then those of subgraphs ("node[3].then_branch/w"), the tensors in attributes ("node[5].value"),
// and the parts of sparse tensors ("sparse_initializer[0].values"), in file order. The data of each reads
// as raw_data would hold it, little-endian and packed.
func (m *Model) Tensors() []tensor.Tensor { return m.tensors }

// Info tells more about tensor i of Tensors.
func (m *Model) Info(i int) Info {
	r := m.records[i]
	w := Info{Name: r.own, Scope: r.scope, Kind: r.kind, Props: r.props}
	if r.file != nil {
		w.Location = r.file.location
	}
	return w
}

// Header is what the model says about itself.
func (m *Model) Header() *Header { return &m.header }

// Graph is the main graph.
func (m *Model) Graph() *Graph { return m.graph }

// Findings are the warnings that opening the model has given.
func (m *Model) Findings() []finding.Finding { return m.notes }

// Close closes the model file and the external data files.
func (m *Model) Close() error {
	var errs []error
	for _, d := range m.files {
		errs = append(errs, d.close())
	}
	if m.closer != nil {
		errs = append(errs, m.closer.Close())
	}
	return errors.Join(errs...)
}
