// Package imatrix reads importance matrices: how much each column of a weight matters, measured by how
// large the activations are that it is multiplied with. Both forms of llama.cpp are read: the GGUF file,
// and the legacy .dat file before it.
package imatrix

import (
	"bytes"
	"io"
	"os"
	"slices"

	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/tensor"
)

// A Matrix is the content of one file. It is read whole.
type Matrix struct {
	Path     string
	Datasets []string // what it was measured on
	Chunks   int64    // how much text; 0 is unknown
	Findings []finding.Finding

	entries map[string]entry
}

// An entry has a value for each column of each matrix that a tensor holds.
type entry struct {
	values   []float32
	matrices int64 // 0 where the file does not say
}

// Open reads a file of either form. What is wrong with it is a *finding.Finding with a code imatrix.<reason>,
// or container.<reason> where the GGUF container itself is broken.
//
// Values are Σx² by the count of what was summed; a matrix of a tensor that has seen nothing (an expert that
// was never chosen) counts every column the same, as in the reference, and is reported.
func Open(path string) (*Matrix, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, finding.Errorf("files.missing", path, "there is no such importance matrix")
	}
	if !st.Mode().IsRegular() {
		return nil, finding.Errorf("files.not_regular", path, "not a regular file").Expected(st.Mode().Type(), "an importance matrix")
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, finding.Errorf("files.unreadable", path, "the importance matrix cannot be read: %v", err)
	}
	defer f.Close()
	m := &Matrix{Path: path, entries: map[string]entry{}}
	head := make([]byte, 4)
	n, err := f.ReadAt(head, 0)
	if err != nil && err != io.EOF {
		return nil, finding.Errorf("files.unreadable", path, "the importance matrix cannot be read: %v", err)
	}
	if bytes.Equal(head[:n], []byte("GGUF")) {
		err = m.readGGUF()
	} else {
		err = m.readLegacy(f, st.Size())
	}
	if err != nil {
		return nil, err
	}
	if len(m.entries) == 0 {
		return nil, finding.Errorf("imatrix.empty", path, "the importance matrix has no entries")
	}
	return m, nil
}

// Len is the number of entries.
func (m *Matrix) Len() int { return len(m.entries) }

// Has reports whether there is an entry for a tensor.
func (m *Matrix) Has(name string) bool { _, ok := m.entries[name]; return ok }

// Names lists the tensors with an entry, sorted.
func (m *Matrix) Names() []string {
	names := make([]string, 0, len(m.entries))
	for n := range m.entries {
		names = append(names, n)
	}
	slices.Sort(names)
	return names
}

// For returns the importance of a tensor's columns, all ≥ 0 and finite: Shape[-1] values for each of the
// matrices that a tensor of three dimensions holds, one after the other. It is nil without an entry. An
// entry of another size is a finding, imatrix.wrong_size.
func (m *Matrix) For(s tensor.Spec) ([]float32, error) {
	e, ok := m.entries[s.Name]
	if !ok {
		return nil, nil
	}
	cols, experts := int64(1), int64(1)
	if n := len(s.Shape); n > 0 {
		cols = s.Shape[n-1]
		if n > 2 {
			experts = s.Shape[n-3]
		}
	}
	want, err := tensor.Shape{experts, cols}.Elements()
	outer, err2 := s.Shape[:max(0, len(s.Shape)-3)].Elements()
	if err != nil || err2 != nil || outer != 1 || int64(len(e.values)) != want || e.matrices > 1 && e.matrices != experts {
		return nil, finding.Errorf("imatrix.wrong_size", m.Path, "the entry does not fit the tensor's shape %v", s.Shape).In(s.Name).
			Expected(len(e.values), want).Hinted("the importance matrix belongs to another model")
	}
	return e.values, nil
}

// add checks an entry and keeps it. unseen counts the matrices that were never used.
func (m *Matrix) add(name string, values []float32, matrices, unseen int64) error {
	for i, v := range values {
		if v-v != 0 || v < 0 {
			return finding.Errorf("imatrix.bad_value", m.Path, "value %d of the entry is %v", i, v).In(name).
				Expected(v, "a finite number from 0").Hinted("make the importance matrix again")
		}
	}
	if unseen > 0 {
		m.Findings = append(m.Findings, *finding.Warnf("imatrix.unseen", m.Path, "%d of %d matrices of the entry were never used while measuring; all their columns count the same", unseen, max(matrices, 1)).In(name))
	}
	m.entries[name] = entry{values, matrices}
	return nil
}
