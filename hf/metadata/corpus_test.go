package metadata

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/loratool/loratool/formats/gguf"
	"github.com/loratool/loratool/hf/config"
	"github.com/loratool/loratool/internal/corpus"
)

// expected is the part of a case's expected.json that is used here.
type expected struct {
	KV      [][3]any
	Outputs map[string]struct {
		FileType *uint32 `json:"file_type"`
		Tensors  [][]any
	}
}

// parameters counts the tensors of an expected output.
func (e expected) parameters(output string) Parameters {
	var p Parameters
	var experts, stacks int64
	for _, x := range e.Outputs[output].Tensors {
		ne := x[1].([]any)
		n := int64(1)
		for _, d := range ne {
			n *= int64(d.(float64))
		}
		p.Total += n
		if strings.Contains(x[0].(string), "_exps.") && len(ne) >= 3 {
			p.Experts += n / int64(ne[2].(float64))
			experts += int64(ne[2].(float64))
			stacks++
		} else {
			p.Shared += n
		}
	}
	if stacks > 0 {
		p.ExpertCount = experts / stacks
	}
	return p
}

// plain is a value as expected.json has it: its type and its JSON value.
func plain(v gguf.Value) (string, any) {
	kind := v.Type().String()
	if v.Type() == gguf.Array {
		kind = "arr[" + v.Elem().String() + "]"
	}
	kind = strings.ReplaceAll(kind, "string", "str")
	data, err := json.Marshal(toJSON(v.Any()))
	if err != nil {
		panic(err)
	}
	var x any
	if err := json.Unmarshal(data, &x); err != nil {
		panic(err)
	}
	return kind, x
}

// toJSON makes float32 values the float64 of the same value, and bytes numbers.
func toJSON(v any) any {
	switch v := v.(type) {
	case float32:
		return float64(v)
	case []float32:
		s := make([]float64, len(v))
		for i, x := range v {
			s[i] = float64(x)
		}
		return s
	case []uint8:
		s := make([]int, len(v))
		for i, x := range v {
			s[i] = int(x)
		}
		return s
	}
	return v
}

// TestGolden compares the key-values of every golden folder with those that convert_hf_to_gguf.py of
// llama.cpp v0.5.0 wrote: keys, types, values and order.
func TestGolden(t *testing.T) {
	dir := corpus.Path(t, "hf2gguf")
	folders, err := os.ReadDir(filepath.Join(dir, "cases"))
	if err != nil {
		t.Fatal(err)
	}
	agree, total := 0, 0
	rules := map[string]int{}
	for _, c := range folders {
		t.Run(c.Name(), func(t *testing.T) {
			var e expected
			corpus.ReadJSON(t, filepath.Join(dir, "cases", c.Name(), "expected.json"), &e)
			for output, o := range e.Outputs {
				total++
				f, err := Read(filepath.Join(dir, "cases", c.Name(), "input"), Options{FolderName: c.Name()})
				if err != nil {
					t.Fatal(err)
				}
				if o.FileType == nil {
					t.Fatalf("%s: no file type", output)
				}
				kvs, err := f.KVs(*o.FileType, e.parameters(output))
				if err != nil {
					t.Fatal(err)
				}
				rules[f.Tokenizer.Rule]++
				var want, got [][3]any
				for _, kv := range e.KV {
					if kv[0] == "general.file_type" {
						kv[2] = float64(*o.FileType)
					}
					want = append(want, kv)
				}
				for _, kv := range kvs {
					kind, x := plain(kv.Value)
					got = append(got, [3]any{kv.Key, kind, x})
				}
				if d := cmp.Diff(want, got); d != "" {
					t.Fatalf("%s (-want +got):\n%s", output, d)
				}
				agree++
			}
		})
	}
	t.Logf("%d of %d outputs agree in all key-values; pre-tokenizers by %v", agree, total, rules)
}

// TestNames compares the parts of model ids with those that the reference finds, for several counts of
// parameters.
func TestNames(t *testing.T) {
	dir := corpus.Path(t, "hf2gguf")
	var units struct {
		Components struct {
			Columns []string
			Rows    [][]any
		}
	}
	corpus.ReadJSON(t, filepath.Join(dir, "units.json"), &units)
	agree := 0
	for _, row := range units.Components.Rows {
		p := splitName(row[0].(string), int64(row[1].(float64)))
		got := []any{row[0], row[1]}
		for _, s := range []*string{p.name, p.organization, p.basename, p.finetune, p.version, p.size} {
			if s == nil {
				got = append(got, nil)
			} else {
				got = append(got, *s)
			}
		}
		if p.name != nil {
			got = append(got, title(*p.name))
		} else {
			got = append(got, nil)
		}
		if d := cmp.Diff(row, got); d != "" {
			t.Errorf("%v (-want +got):\n%s", row[:2], d)
			continue
		}
		agree++
	}
	t.Logf("%d of %d ids agree", agree, len(units.Components.Rows))
}

func TestSizes(t *testing.T) {
	dir := corpus.Path(t, "hf2gguf")
	var units struct {
		Notation  [][2]any
		SizeLabel [][5]any `json:"size_label"`
		Naming    []struct {
			Args [6]*string
			Out  string
		}
	}
	corpus.ReadJSON(t, filepath.Join(dir, "units.json"), &units)
	for _, x := range units.Notation {
		if got := notation(int64(x[0].(float64))); got != x[1] {
			t.Errorf("%v: got %s, want %s", x[0], got, x[1])
		}
	}
	for _, x := range units.SizeLabel {
		n := func(i int) int64 { return int64(x[i].(float64)) }
		if got := sizeLabel(Parameters{Total: n(0), Shared: n(1), Experts: n(2), ExpertCount: n(3)}); got != x[4] {
			t.Errorf("%v: got %s", x, got)
		}
	}
	for _, x := range units.Naming {
		var a [6]string
		for i, s := range x.Args {
			if s != nil {
				a[i] = *s
			}
		}
		if got := FileName(a[0], a[1], a[2], a[3], a[4], a[5]); got != x.Out {
			t.Errorf("got %s, want %s", got, x.Out)
		}
	}
	t.Logf("%d counts, %d labels, %d file names", len(units.Notation), len(units.SizeLabel), len(units.Naming))
}

// TestGeneral compares what model cards, configurations and overrides give with the calls that the
// reference makes.
func TestGeneral(t *testing.T) {
	dir := corpus.Path(t, "hf2gguf")
	var units struct {
		Metadata []struct {
			Card             *string
			Config           map[string]any
			GenerationConfig map[string]any `json:"generation_config"`
			Folder           string
			TotalParams      int64   `json:"total_params"`
			ModelName        *string `json:"model_name"`
			Override         map[string]any
			Calls            [][]any
		}
	}
	corpus.ReadJSON(t, filepath.Join(dir, "units.json"), &units)
	agree := 0
	for i, c := range units.Metadata {
		folder := t.TempDir()
		write := func(name string, v any) string {
			path := filepath.Join(folder, name)
			data, err := json.Marshal(v)
			if s, ok := v.(string); ok {
				data = []byte(s)
			}
			if err == nil {
				err = os.WriteFile(path, data, 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
			return path
		}
		f := &Folder{dir: folder, opt: Options{FolderName: c.Folder}}
		if c.Card != nil {
			write("README.md", *c.Card)
		}
		if c.Config == nil {
			c.Config = map[string]any{}
		}
		write("config.json", c.Config)
		if c.GenerationConfig != nil {
			write("generation_config.json", c.GenerationConfig)
		}
		if c.ModelName != nil {
			f.opt.ModelName = *c.ModelName
		}
		if c.Override != nil {
			f.opt.Override = write("override.json", c.Override)
		}
		var err error
		if f.Config, err = config.Read(folder, false); err != nil {
			t.Fatal(err)
		}
		g, err := f.general(Parameters{Total: c.TotalParams})
		if err != nil {
			t.Fatal(err)
		}
		if !sizeCalled(c.Calls) {
			// The reference computes the label after the calls recorded here.
			delete(g.text, "size_label")
		}
		w := &writer{}
		if err := g.write(w); err != nil {
			t.Fatal(err)
		}
		var want, got []string
		for _, call := range c.Calls {
			if line := callLine(call); line != "" {
				want = append(want, line)
			}
		}
		for _, kv := range w.kvs {
			got = append(got, kv.Key+" "+fmt.Sprint(kv.Value.Any()))
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("%d (-want +got):\n%s", i, d)
			continue
		}
		agree++
	}
	t.Logf("%d of %d sources agree", agree, len(units.Metadata))
}

func sizeCalled(calls [][]any) bool {
	for _, c := range calls {
		if c[0] == "size_label" {
			return true
		}
	}
	return false
}

// callLine is a call of the reference's writer as the key and value it writes; empty strings are not
// written.
func callLine(call []any) string {
	name, value := call[0].(string), call[len(call)-1]
	if value == "" {
		return ""
	}
	key := name
	for _, group := range []string{"sampling", "base_model", "dataset", "source", "license"} {
		if rest, ok := strings.CutPrefix(name, group+"_"); ok {
			key = group + "." + rest
			if len(call) == 3 {
				key = fmt.Sprintf("%s.%v.%s", group, call[1], rest)
			}
		}
	}
	return fmt.Sprintf("general.%s %v", key, value)
}
