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
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"google.golang.org/protobuf/encoding/protowire"

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
	metadataAt                []*message
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
}

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

// model reads the ModelProto.
func (p *parser) model(root *message) error {
	if p.size == 0 {
		return p.reject("empty", "the file is empty")
	}
	if head, err := p.peek(0, 24); err != nil {
		return err
	} else if strings.HasPrefix(string(head), "version https://git-lfs") {
		return p.reject("lfs_pointer", "a git-lfs pointer, not the model").Hinted("fetch the file with git lfs pull")
	}
	h := &p.header
	main := &Graph{}
	err := p.walk(root, 0, func(f field) (err error) {
		switch f.num {
		case 7, 8, 14, 20, 25:
			if err := p.want(f, protowire.BytesType); err != nil {
				return err
			}
		}
		switch f.num {
		case 1:
			h.IRVersion, err = p.number(f)
		case 2:
			h.Producer, err = p.text(f)
		case 3:
			h.ProducerVersion, err = p.text(f)
		case 4:
			h.Domain, err = p.text(f)
		case 5:
			h.ModelVersion, err = p.number(f)
		case 7:
			p.graphs = []*Graph{main}
			err = p.graph(main, root.child(f), 1)
		case 8:
			var o Opset
			if o, err = p.opset(root.child(f), 1); err == nil {
				h.Opsets = append(h.Opsets, o)
			}
		case 14:
			h.metadataAt = append(h.metadataAt, root.child(f))
			h.Metadata, err = p.prop(h.Metadata, root.child(f), 1)
		case 25:
			err = p.function(root.child(f), 1)
		}
		return err
	})
	if err != nil {
		return err
	}
	if p.graphs == nil {
		return p.reject("model_rules", "a model without a graph").Hinted("this may be no ONNX file")
	}
	return p.training(root)
}

// training reads the graphs of training_info, after the main graph, because they can hold weights too.
func (p *parser) training(root *message) error {
	k := 0
	return p.walk(root, 0, func(f field) error {
		if f.num != 20 {
			return nil
		}
		m := root.child(f)
		scope := fmt.Sprintf("training_info[%d]", k)
		k++
		return p.walk(m, 1, func(f field) error {
			part := map[protowire.Number]string{1: "initialization", 2: "algorithm"}[f.num]
			if part == "" {
				return nil
			}
			if err := p.want(f, protowire.BytesType); err != nil {
				return err
			}
			g := &Graph{Scope: scope + "." + part}
			p.graphs = append(p.graphs, g)
			return p.graph(g, m.child(f), 2)
		})
	})
}

func (p *parser) opset(m *message, depth int) (o Opset, err error) {
	err = p.walk(m, depth, func(f field) (err error) {
		switch f.num {
		case 1:
			o.Domain, err = p.text(f)
		case 2:
			o.Version, err = p.number(f)
		}
		return err
	})
	if o.Domain == "ai.onnx" {
		o.Domain = ""
	}
	return o, err
}

// function reads a FunctionProto, whose body is like a graph with inputs that have no types.
func (p *parser) function(m *message, depth int) error {
	g := &Graph{Scope: fmt.Sprintf("functions[%d]", len(p.header.Functions)), at: m}
	fn := Function{Body: g}
	err := p.walk(m, depth, func(f field) (err error) {
		switch f.num {
		case 1:
			fn.Name, err = p.text(f)
		case 4, 5:
			var v Value
			if v.Name, err = p.text(f); err != nil {
				return err
			}
			if f.num == 4 {
				g.Inputs = append(g.Inputs, v)
			} else {
				g.Outputs = append(g.Outputs, v)
			}
		case 10:
			fn.Domain, err = p.text(f)
		case 13:
			fn.Overload, err = p.text(f)
		case 7, 11, 12, 14:
			if err = p.want(f, protowire.BytesType); err != nil {
				return err
			}
			switch f.num {
			case 7:
				err = p.node(g, m.child(f), depth+1)
			case 11: // defaults of the function's attributes
				_, err = p.attr(g, 0, m.child(f), depth+1)
			case 12:
				g.Values, err = p.value(g.Values, m.child(f), depth+1, false)
			case 14:
				g.Props, err = p.prop(g.Props, m.child(f), depth+1)
			}
		}
		return err
	})
	g.Name = fn.Name
	p.header.Functions = append(p.header.Functions, fn)
	return err
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

// Path is the path the model was opened with.
func (m *Model) Path() string { return m.path }

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
