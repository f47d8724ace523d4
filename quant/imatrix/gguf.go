package imatrix

import (
	"strings"

	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/formats/gguf"
	"github.com/loratool/loratool/quant"
	"github.com/loratool/loratool/tensor"
)

const (
	sums   = ".in_sum2"
	counts = ".counts"
)

// readGGUF reads the form in a GGUF file: for a weight W the tensors W.in_sum2, [matrices, columns], and
// W.counts, [matrices, 1].
func (m *Matrix) readGGUF() error {
	file, err := gguf.Open(m.Path)
	if err != nil {
		return err
	}
	defer file.Close()
	if err := m.readMetadata(file.KVs()); err != nil {
		return err
	}
	m.Findings = append(m.Findings, file.Findings()...)
	byName := map[string]*tensor.Tensor{}
	tensors := file.Tensors()
	for i := range tensors {
		t := &tensors[i]
		if !strings.HasSuffix(t.Name, sums) && !strings.HasSuffix(t.Name, counts) {
			return finding.Errorf("imatrix.bad_tensor", m.Path, "the tensor is no part of an importance matrix").In(t.Name).
				Expected(t.Name, "a name that ends in .in_sum2 or .counts")
		}
		if t.DType != tensor.F32 {
			return finding.Errorf("imatrix.bad_tensor", m.Path, "wrong type").In(t.Name).Expected(t.DType, tensor.F32)
		}
		byName[t.Name] = t
	}
	for i := range tensors {
		name, isSum := strings.CutSuffix(tensors[i].Name, sums)
		if !isSum {
			name = strings.TrimSuffix(tensors[i].Name, counts)
		}
		sum, count := byName[name+sums], byName[name+counts]
		if sum == nil || count == nil {
			return finding.Errorf("imatrix.incomplete", m.Path, "the entry has no %s and %s together", sums, counts).In(name)
		}
		if isSum {
			if err := m.addSums(name, sum, count); err != nil {
				return err
			}
		}
	}
	return nil
}

func (m *Matrix) readMetadata(kvs gguf.KVs) error {
	if t, _ := kvs.Text("general.type"); t != "imatrix" {
		return finding.Errorf("imatrix.not_imatrix", m.Path, "the file is not an importance matrix").Expected("general.type = "+t, "imatrix")
	}
	datasets, ok := kvs.Strings("imatrix.datasets")
	chunks, ok2 := kvs.Uint("imatrix.chunk_count")
	_, ok3 := kvs.Uint("imatrix.chunk_size")
	if !ok || !ok2 || !ok3 || chunks > 1<<32-1 {
		return finding.Errorf("imatrix.bad_metadata", m.Path, "imatrix.datasets, imatrix.chunk_count and imatrix.chunk_size must all be there")
	}
	m.Datasets, m.Chunks = datasets, int64(chunks)
	return nil
}

// addSums makes an entry of sums and counts.
func (m *Matrix) addSums(name string, sum, count *tensor.Tensor) error {
	values, err := floats(sum)
	if err != nil {
		return err
	}
	n, err := floats(count)
	if err != nil {
		return err
	}
	if len(n) == 0 || len(values)%len(n) != 0 {
		return finding.Errorf("imatrix.wrong_size", m.Path, "the counts do not go with the sums").In(name).Expected(count.Shape, sum.Shape)
	}
	cols := len(values) / len(n)
	if k := len(sum.Shape); k == 0 || sum.Shape[k-1] != int64(cols) {
		return finding.Errorf("imatrix.wrong_size", m.Path, "the counts do not go with the sums").In(name).Expected(count.Shape, sum.Shape)
	}
	var unseen int64
	for i, c := range n {
		row := values[i*cols : (i+1)*cols]
		if c-c != 0 {
			return finding.Errorf("imatrix.bad_value", m.Path, "count %d is %v", i, c).In(name)
		}
		seen := c > 0
		if !seen {
			unseen++
		}
		for j := range row {
			if row[j] /= c; !seen {
				row[j] = 1
			}
		}
	}
	return m.add(name, values, int64(len(n)), unseen)
}

// floats reads a tensor whose size has been checked against the file.
func floats(t *tensor.Tensor) ([]float32, error) {
	b, err := t.Read()
	if err != nil {
		return nil, err
	}
	v := make([]float32, len(b)/4)
	c, _ := quant.Of(tensor.F32)
	c.Decode(v, b)
	return v, nil
}
