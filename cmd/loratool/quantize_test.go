package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/formats"
	"github.com/loratool/loratool/internal/corpus"
)

// TestWholeFiles compares whole outputs with what llama.cpp v0.5.0 writes, by their SHA-256.
func TestWholeFiles(t *testing.T) {
	t.Chdir(corpus.Path(t, "gguf-files")) // the output holds the path of the importance matrix
	b, err := os.ReadFile("manifest.json")
	if err != nil {
		t.Fatal(err)
	}
	var manifest struct {
		Cases []struct {
			ID, Input, SHA256 string
			Recipe            string `json:"ftype"`
			Options           []string
		}
	}
	if err := json.Unmarshal(b, &manifest); err != nil {
		t.Fatal(err)
	}
	equal := 0
	for _, c := range manifest.Cases {
		for _, jobs := range []string{"1", "3"} {
			t.Run(c.ID+"/"+jobs, func(t *testing.T) {
				output := filepath.Join(t.TempDir(), "out.gguf")
				args := append([]string{"loratool", "quantize", c.Input, "-o", output, "--to", c.Recipe, "--quiet", "--jobs", jobs}, c.Options...)
				var out, err bytes.Buffer
				if status := run(args, &out, &err); status != exitDone {
					t.Fatalf("exit status %d: %s", status, err.String())
				}
				got, e := os.ReadFile(output)
				if e != nil {
					t.Fatal(e)
				}
				if sum := sha256.Sum256(got); hex.EncodeToString(sum[:]) != c.SHA256 {
					t.Fatalf("%d bytes with another digest", len(got))
				}
				equal++
			})
		}
	}
	t.Logf("whole files: %d of %d as the reference, each with one worker and with three", equal/2, len(manifest.Cases))
}

// A merge that is stored by an importance matrix is right for a check that knows the matrix, and for one that
// does not.
func TestMergeWithImatrix(t *testing.T) {
	tiny := filepath.Join("..", "..", "testdata", "tiny-llama")
	base, dir := filepath.Join(tiny, "base-f16.gguf"), t.TempDir()
	matrix, output := filepath.Join(dir, "m.dat"), filepath.Join(dir, "out.gguf")
	if err := os.WriteFile(matrix, importanceFile(t, base), 0o666); err != nil {
		t.Fatal(err)
	}
	adapter := filepath.Join(tiny, "adapter")
	if a := ask(t, "merge", base, "-a", adapter, "-o", output, "--quantize", "Q4_0", "--imatrix", matrix, "--check", "all"); a.status != exitDone || !strings.Contains(a.out, `"verdict": "accept"`) {
		t.Fatalf("merge: exit status %d\n%s%s", a.status, a.out, a.err)
	}
	for _, more := range [][]string{nil, {"--imatrix", matrix}} {
		a := ask(t, append([]string{"verify", output, "--base", base, "-a", adapter, "--sample", "all"}, more...)...)
		if a.status != exitDone {
			t.Errorf("verify %q: exit status %d\n%s%s", more, a.status, a.out, a.err)
		}
	}
	// Without the adapter in it, it is wrong for both.
	if a := ask(t, "quantize", base, "-o", output, "--to", "Q4_0", "--imatrix", matrix, "--force"); a.status != exitDone {
		t.Fatalf("quantize: exit status %d\n%s%s", a.status, a.out, a.err)
	}
	for _, more := range [][]string{nil, {"--imatrix", matrix}} {
		a := ask(t, append([]string{"verify", output, "--base", base, "-a", adapter, "--sample", "all"}, more...)...)
		found := false
		for _, f := range a.findings {
			found = found || f.Level == finding.Error
		}
		if a.status != exitFound || !found {
			t.Errorf("verify of an unmerged file %q: exit status %d\n%s", more, a.status, a.out)
		}
	}
}

// importanceFile is a legacy importance matrix with an entry for each matrix of a model.
func importanceFile(t *testing.T, path string) []byte {
	t.Helper()
	m, err := formats.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	le, n, seed := binary.LittleEndian, uint32(0), uint32(1)
	b := make([]byte, 4)
	for _, x := range m.Tensors() {
		if len(x.Shape) < 2 || x.Name == "token_embd.weight" {
			continue
		}
		n++
		b = append(le.AppendUint32(b, uint32(len(x.Name))), x.Name...)
		b = le.AppendUint32(le.AppendUint32(b, 4), uint32(x.Shape[1]))
		for range x.Shape[1] {
			seed = seed*1664525 + 1013904223
			b = le.AppendUint32(b, math.Float32bits(float32(seed>>8)*0x1p-20))
		}
	}
	le.PutUint32(b, n)
	return b
}
