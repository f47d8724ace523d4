package formats

import (
	"encoding/json"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/formats/layout"
	"github.com/loratool/loratool/formats/safetensors"
	"github.com/loratool/loratool/tensor"
)

// pipelineIndex is the file that makes a folder a pipeline of diffusers.
const pipelineIndex = "model_index.json"

// A Pipeline is a folder of diffusers with a sub-folder for each component: unet, text_encoder, vae, scheduler.
// Its tensors are those of all components with weights, with the component's name before theirs:
// "unet.conv_in.weight".
type Pipeline struct {
	path     string
	parts    []part
	tensors  []tensor.Tensor
	files    []layout.File // whatever is no component with weights; the index is the last
	findings []finding.Finding
}

type part struct {
	name  string
	model *safetensors.Model
}

// isPipeline reports whether a path is a folder with an index of components.
func isPipeline(path string) bool {
	st, err := os.Stat(filepath.Join(path, pipelineIndex))
	return err == nil && st.Mode().IsRegular() && IsFolder(path)
}

// openPipeline opens every component that has safetensors weights. Those that only have others are copied.
func openPipeline(path string) (p *Pipeline, err error) {
	p = &Pipeline{path: path}
	defer func() {
		if err != nil {
			p.Close()
			p = nil
		}
	}()
	components, err := readIndex(filepath.Join(path, pipelineIndex))
	if err != nil {
		return p, err
	}
	for _, name := range components {
		dir := filepath.Join(path, name)
		if !IsFolder(dir) {
			continue // a component that is left out (null), or one of the pipeline's settings
		}
		m, err := safetensors.Open(dir)
		if err != nil {
			if f := finding.Of(err); f != nil && f.Code == "container.no_weights" {
				if f.Hint != "" { // weights of another format
					p.findings = append(p.findings, *finding.Warnf("container.no_weights", dir, "no safetensors weights: the component is copied as it is"))
				}
				continue
			}
			return p, err
		}
		p.parts = append(p.parts, part{name, m})
		for _, t := range m.Tensors() {
			t.Name = name + "." + t.Name
			p.tensors = append(p.tensors, t)
		}
		p.findings = append(p.findings, m.Findings()...)
	}
	if len(p.parts) == 0 {
		return p, finding.Errorf("files.no_weights", path, "no component of the pipeline holds safetensors weights")
	}
	p.files, err = p.others()
	return p, err
}

// readIndex lists the components that an index names, sorted.
func readIndex(file string) ([]string, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, finding.Errorf("files.unreadable", file, "%v", unwrapPath(err))
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, 1<<20))
	if err != nil {
		return nil, finding.Errorf("files.unreadable", file, "%v", unwrapPath(err))
	}
	var index map[string]json.RawMessage
	if err := json.Unmarshal(b, &index); err != nil {
		return nil, finding.Errorf("container.bad_index", file, "%v", err)
	}
	var names []string
	for name := range index {
		if !strings.HasPrefix(name, "_") && filepath.IsLocal(name) && !strings.ContainsAny(name, `/\`) && name != "." {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names, nil
}

// maxPipelineFiles bounds what a pipeline holds beside its weights.
const maxPipelineFiles = 4096

// others lists the files that belong to no component with weights. Weights beside the index are another
// form of the same model and left out.
func (p *Pipeline) others() ([]layout.File, error) {
	var files []layout.File
	var index layout.File
	err := filepath.WalkDir(p.path, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return finding.Errorf("files.unreadable", path, "%v", unwrapPath(err))
		}
		rel, err := filepath.Rel(p.path, path)
		if err != nil || rel == "." {
			return err
		}
		name := filepath.ToSlash(rel)
		component := slices.ContainsFunc(p.parts, func(c part) bool { return c.name == name })
		switch {
		case e.IsDir() && (component || strings.HasPrefix(e.Name(), ".") || strings.Count(name, "/") > 8):
			return fs.SkipDir
		case e.IsDir() || strings.HasPrefix(e.Name(), "."), !strings.Contains(name, "/") && byEnding(name) != "":
			return nil
		}
		st, err := os.Stat(path)
		if err != nil || !st.Mode().IsRegular() {
			return nil // a dangling link, a socket
		}
		if len(files) >= maxPipelineFiles {
			return finding.Errorf("container.not_a_model_folder", p.path, "the folder holds more files than a pipeline has")
		}
		src := safetensors.SideFile{Name: name, Path: path, Size: st.Size()}
		f := layout.File{Name: name, Size: src.Size, Spans: []layout.Span{{Len: src.Size, Src: src}}}
		if name == pipelineIndex {
			index = f
		} else {
			files = append(files, f)
		}
		return nil
	})
	return append(files, index), err
}

// Path is the path that was opened.
func (p *Pipeline) Path() string { return p.path }

// Format is "safetensors".
func (p *Pipeline) Format() string { return "safetensors" }

// Tensors lists the tensors of all components.
func (p *Pipeline) Tensors() []tensor.Tensor { return p.tensors }

// Findings are the warnings about the components.
func (p *Pipeline) Findings() []finding.Finding { return p.findings }

// Components lists the components with weights.
func (p *Pipeline) Components() []string {
	var out []string
	for _, c := range p.parts {
		out = append(out, c.name)
	}
	return out
}

// Close closes the components.
func (p *Pipeline) Close() error {
	var first error
	for _, c := range p.parts {
		if err := c.model.Close(); err != nil && first == nil {
			first = err
		}
	}
	return first
}

// Layout lays the components out in their sub-folders, with all else copied and the index last.
func (p *Pipeline) Layout(specs []tensor.Spec, opt layout.Options) (*layout.Layout, error) {
	out := &layout.Layout{Dir: true}
	for _, c := range p.parts {
		n := len(c.model.Tensors())
		if n > len(specs) {
			return nil, finding.Errorf("output.bad_shape", p.path, "the output lacks tensors of component %q", c.name)
		}
		own := make([]tensor.Spec, n)
		for i, s := range specs[:n] {
			own[i] = s
			own[i].Name = strings.TrimPrefix(s.Name, c.name+".")
		}
		specs = specs[n:]
		sub := opt
		sub.Name, sub.SideFiles = c.name, nil
		l, err := c.model.Layout(own, sub)
		if err != nil {
			return nil, err
		}
		first := len(out.Files)
		for _, f := range l.Files {
			f.Name = c.name + "/" + f.Name
			out.Files = append(out.Files, f)
		}
		for _, place := range l.Items {
			place.File += first
			out.Items = append(out.Items, place)
		}
	}
	if len(specs) > 0 {
		return nil, finding.Errorf("output.bad_name", p.path, "the pipeline has no place for %q", specs[0].Name)
	}
	out.Files = append(out.Files, p.files...)
	return out, nil
}
