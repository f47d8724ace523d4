package main

import (
	"math"
	"os"
	"path/filepath"
	"strings"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/loratool/loratool/formats"
	"github.com/loratool/loratool/formats/layout"
	"github.com/loratool/loratool/formats/safetensors"
	"github.com/loratool/loratool/quant"
	"github.com/loratool/loratool/tensor"
)

// pack FOLDER OUT stores the projections of a model folder in FP8, under a scale a row.
func scriptPack(ts *testscript.TestScript, _ bool, args []string) {
	m, err := formats.Open(ts.MkAbs(args[0]))
	ts.Check(err)
	defer m.Close()
	var specs []tensor.Spec
	var data [][]byte
	encode := func(name string, d tensor.DType, v []float32, shape ...int64) {
		c, _ := quant.Of(d)
		b := make([]byte, len(v)*d.BlockBytes())
		ts.Check(c.Encode(b, v))
		specs, data = append(specs, tensor.Spec{Name: name, DType: d, Shape: shape}), append(data, b)
	}
	for _, t := range m.Tensors() {
		b, err := t.Read()
		ts.Check(err)
		if !strings.HasSuffix(t.Name, "_proj.weight") {
			specs, data = append(specs, t.Spec), append(data, b)
			continue
		}
		rows, cols := t.Shape[0], t.Shape[1]
		w, scales := make([]float32, rows*cols), make([]float32, rows)
		c, _ := quant.Of(t.DType)
		c.Decode(w, b)
		for r := range scales {
			row := w[int64(r)*cols:][:cols]
			for _, v := range row {
				scales[r] = max(scales[r], float32(math.Abs(float64(v)))/448)
			}
			for i := range row {
				row[i] /= scales[r]
			}
		}
		encode(t.Name, tensor.F8E4M3, w, rows, cols)
		encode(t.Name+"_scale", tensor.F32, scales, rows, 1)
	}
	config, err := os.ReadFile(filepath.Join(ts.MkAbs(args[0]), "config.json"))
	ts.Check(err)
	packed := strings.Replace(string(config), "{", `{"quantization_config": {"quant_method": "compressed-tensors"},`, 1)
	out := safetensors.Output{Dir: true, Extra: []layout.File{safetensors.NewFile("config.json", []byte(packed))}}
	l, err := safetensors.NewLayout(specs, out, layout.Options{Name: "packed"})
	ts.Check(err)
	w, err := layout.Create(ts.MkAbs(args[1]), l, false)
	ts.Check(err)
	defer w.Abort()
	for i, b := range data {
		ts.Check(w.WriteAt(i, b, 0))
	}
	ts.Check(w.Commit())
}
