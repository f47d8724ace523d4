package model

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/formats/npy"
	"github.com/loratool/loratool/tensor"
)

// maxFile bounds the files that inputs are read from, and what they unpack to.
const maxFile = 1 << 30

// ReadInputs reads values of inputs: from a .npz file, an array for each input, or from a .json file, an object of
// numbers and nested lists of numbers by the inputs' names. Whole numbers and booleans become int64, others float64;
// they are converted to the model's types later.
func ReadInputs(path string) (map[string]Array, error) {
	switch strings.ToLower(filepath.Ext(path)) {
	case ".npz":
		arrays, err := npy.ReadArchive(path, maxFile)
		if err != nil {
			return nil, err
		}
		out := map[string]Array{}
		for _, a := range arrays {
			out[a.Name] = Array{a.Spec, a.Data}
		}
		return out, nil
	case ".json":
		return readJSON(path)
	}
	return nil, finding.Errorf("runtime.bad_input", path, "inputs are read from .npz and .json files")
}

func readJSON(path string) (map[string]Array, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, finding.Errorf("files.missing", path, "the file of inputs cannot be opened")
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil || len(b) > maxFile {
		return nil, finding.Errorf("files.unreadable", path, "the file of inputs cannot be read, or is larger than 1 GiB")
	}
	bad := func(format string, a ...any) *finding.Finding {
		return finding.Errorf("runtime.bad_input", path, format, a...).Hinted(`the form is {"input_ids": [[1, 2, 3]], …}, an entry for each input`)
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return nil, bad("the file of inputs is not a JSON object")
	}
	out := map[string]Array{}
	for d.More() {
		t, err := d.Token()
		name, ok := t.(string)
		if err != nil || !ok {
			return nil, bad("the file of inputs is not valid JSON")
		}
		if _, twice := out[name]; twice {
			return nil, bad("the value is given twice").In(name)
		}
		var v any
		if err := d.Decode(&v); err != nil {
			return nil, bad("not valid JSON: %v", err).In(name)
		}
		a, err := nested(v)
		if err != nil {
			return nil, bad("%v", err).In(name)
		}
		out[name] = a
	}
	if _, err := d.Token(); err != nil {
		return nil, bad("the file of inputs is not valid JSON")
	}
	if _, err := d.Token(); err != io.EOF {
		return nil, bad("something follows the JSON object")
	}
	return out, nil
}

// nested makes an array of nested lists, all of one level equally long.
func nested(v any) (Array, error) {
	shape := tensor.Shape{}
	for at := v; ; {
		list, ok := at.([]any)
		if !ok {
			break
		}
		shape = append(shape, int64(len(list)))
		if len(list) == 0 {
			break
		}
		at = list[0]
	}
	var ints []int64
	var floats []float64
	whole := true
	var walk func(v any, depth int) error
	walk = func(v any, depth int) error {
		if list, ok := v.([]any); ok {
			if depth >= len(shape) || int64(len(list)) != shape[depth] {
				return fmt.Errorf("the lists are not equally long, or not equally deep")
			}
			for _, x := range list {
				if err := walk(x, depth+1); err != nil {
					return err
				}
			}
			return nil
		}
		if depth != len(shape) {
			return fmt.Errorf("the lists are not equally deep")
		}
		switch x := v.(type) {
		case bool:
			n := int64(0)
			if x {
				n = 1
			}
			ints, floats = append(ints, n), append(floats, float64(n))
		case json.Number:
			f, err := x.Float64()
			if err != nil {
				return fmt.Errorf("%s is not a number that fits", x)
			}
			n, err := x.Int64()
			whole = whole && err == nil
			ints, floats = append(ints, n), append(floats, f)
		default:
			return fmt.Errorf("the values are numbers, true and false, found %T", v)
		}
		return nil
	}
	if err := walk(v, 0); err != nil {
		return Array{}, err
	}
	if whole {
		return fromInts(tensor.I64, shape, ints)
	}
	return fromFloats(tensor.F64, shape, floats)
}
