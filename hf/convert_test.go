package hf_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/loratool/loratool/formats/gguf"
	"github.com/loratool/loratool/formats/layout"
	"github.com/loratool/loratool/hf"
	"github.com/loratool/loratool/hf/metadata"
	"github.com/loratool/loratool/internal/corpus"
	"github.com/loratool/loratool/merge"
	"github.com/loratool/loratool/tensor"
)

// write carries a conversion of a model out and returns the output's folder.
func write(t testing.TB, m *hf.Model, name string, opt layout.Options, edit func(*gguf.Header)) string {
	t.Helper()
	plan, err := merge.NewPlan(m, nil, merge.Options{TypeOf: m.Type})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), name)
	opt.Name = name
	specs := make([]tensor.Spec, len(plan.Tensors))
	for i := range specs {
		specs[i] = plan.Tensors[i].Spec()
	}
	h := m.Header()
	if edit != nil {
		edit(&h)
	}
	l, err := gguf.NewLayout(h, specs, opt)
	if err != nil {
		t.Fatal(err)
	}
	if h.BigEndian {
		// The converter turns the numbers of float tensors only and leaves blocks as they are, unlike the
		// program beside it that converts files.
		for i := range l.Items {
			if specs[i].DType.IsBlock() {
				l.Items[i].Swap = nil
			}
		}
	}
	run(t, plan, l, filepath.Join(filepath.Dir(path), l.Files[len(l.Files)-1].Name))
	return filepath.Dir(path)
}

func run(t testing.TB, plan *merge.Plan, l *layout.Layout, path string) {
	t.Helper()
	w, err := layout.Create(path, l, false)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	if _, err := merge.Run(context.Background(), plan, l, w, merge.RunOptions{Jobs: 2, MaxMemory: 1 << 20}); err != nil {
		t.Fatal(err)
	}
	if err := w.WriteSpans(context.Background()); err != nil {
		t.Fatal(err)
	}
	if err := w.Commit(); err != nil {
		t.Fatal(err)
	}
}

func sum(t testing.TB, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	s := sha256.Sum256(b)
	return hex.EncodeToString(s[:])
}

// A manifest case names the pre-tokenizer that was given to the converter, since no program can know the
// hash of a made-up vocabulary.
type manifestCase struct {
	Case string
	Pre  *struct{ Name string } `json:"pre_tokenizer"`
}

func preTokenizers(t testing.TB, root string) map[string]string {
	t.Helper()
	var m struct{ Cases []manifestCase }
	corpus.ReadJSON(t, filepath.Join(root, "manifest.json"), &m)
	out := map[string]string{}
	for _, c := range m.Cases {
		if c.Pre != nil {
			out[c.Case] = c.Pre.Name
		}
	}
	return out
}

// input is the case's folder under the case's own name.
func input(t testing.TB, root, name string) string {
	t.Helper()
	link := filepath.Join(t.TempDir(), name)
	if err := os.Symlink(filepath.Join(root, "cases", name, "input"), link); err != nil {
		t.Skip(err)
	}
	return link
}

func convert(t testing.TB, dir, outtype string, meta metadata.Options) *hf.Model {
	t.Helper()
	opt := hf.Options{Metadata: meta}
	if outtype != "auto" {
		d, ok := tensor.ParseDType(outtype)
		if !ok {
			t.Fatalf("type %q is not known", outtype)
		}
		opt.DType = d
	}
	m, err := hf.Open(dir, opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m
}

// TestWholeFiles compares every golden conversion as a whole.
func TestWholeFiles(t *testing.T) {
	root := corpus.Path(t, "hf2gguf")
	pre := preTokenizers(t, root)
	cases, err := os.ReadDir(filepath.Join(root, "cases"))
	if err != nil {
		t.Fatal(err)
	}
	equal, all := 0, 0
	for _, c := range cases {
		t.Run(c.Name(), func(t *testing.T) {
			var want struct {
				Outputs map[string]struct{ SHA256 string }
			}
			corpus.ReadJSON(t, filepath.Join(root, "cases", c.Name(), "expected.json"), &want)
			for outtype, w := range want.Outputs {
				all++
				m := convert(t, input(t, root, c.Name()), outtype, metadata.Options{Pre: pre[c.Name()]})
				dir := write(t, m, "m.gguf", layout.Options{}, nil)
				if got := sum(t, filepath.Join(dir, "m.gguf")); got != w.SHA256 {
					t.Errorf("%s: another file than the converter's", outtype)
					continue
				}
				equal++
			}
		})
	}
	if all == 0 {
		t.Fatal("no cases")
	}
	t.Logf("%d of %d files equal", equal, all)
}

// TestVariants compares conversions with other options.
func TestVariants(t *testing.T) {
	root := corpus.Path(t, "hf2gguf")
	pre := preTokenizers(t, root)
	var variants []struct {
		Case    string
		OutType string
		Options []string
		OutFile *string
		Exit    int
		Files   map[string]struct{ SHA256 string }
	}
	corpus.ReadJSON(t, filepath.Join(root, "variants.json"), &variants)
	done := 0
	for _, v := range variants {
		name := v.Case + " " + strings.Join(v.Options, " ")
		t.Run(name, func(t *testing.T) {
			if v.Exit != 0 {
				t.Skip("about an option that is not offered")
			}
			outFile := "m.gguf"
			if v.OutFile != nil && !strings.Contains(*v.OutFile, "{") {
				outFile = *v.OutFile
			} else {
				for name := range v.Files { // a name that the converter has chosen
					outFile = name
				}
			}
			meta := metadata.Options{Pre: pre[v.Case]}
			opt := layout.Options{}
			vocab, big := false, false
			perFile, first := 0, true
			for i := 0; i < len(v.Options); i++ {
				value := func() string { i++; return v.Options[i] }
				switch v.Options[i] {
				case "--vocab-only":
					vocab = true
				case "--bigendian":
					big = true
				case "--model-name":
					meta.ModelName = value()
				case "--split-max-size":
					if value() != "100K" {
						t.Fatal("a size that this test does not know")
					}
					opt.MaxShardSize = 100_000
				case "--split-max-tensors":
					n, err := strconv.Atoi(value())
					if err != nil {
						t.Fatal(err)
					}
					perFile = n
				case "--no-lazy", "--use-temp-file": // about how the converter works
				case "--no-tensor-first-split":
					first = false
				default:
					t.Skipf("%s is not offered", v.Options[i])
				}
			}
			dir := input(t, root, v.Case)
			d, ok := tensor.ParseDType(v.OutType)
			if !ok && v.OutType != "auto" {
				t.Fatal(v.OutType)
			}
			m, err := hf.Open(dir, hf.Options{DType: d, VocabOnly: vocab, Metadata: meta})
			if err != nil {
				t.Fatal(err)
			}
			defer m.Close()
			out := write(t, m, outFile, opt, func(h *gguf.Header) {
				h.BigEndian = big
				if perFile == 0 {
					return
				}
				if !first {
					h.Shards = append(h.Shards, 0)
				}
				for n := len(m.Tensors()); n > 0; n -= perFile {
					h.Shards = append(h.Shards, min(n, perFile))
				}
			})
			entries, err := os.ReadDir(out)
			if err != nil {
				t.Fatal(err)
			}
			if len(entries) != len(v.Files) {
				t.Errorf("%d files, want %d", len(entries), len(v.Files))
			}
			for name, want := range v.Files {
				if got := sum(t, filepath.Join(out, name)); got != want.SHA256 {
					t.Errorf("%s is another file than the converter's", name)
				}
			}
			done++
		})
	}
	t.Logf("%d variants compared", done)
}
