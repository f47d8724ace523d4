package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
)

// TestWholeFiles compares whole outputs with what llama.cpp v0.5.0 writes, by their SHA-256.
func TestWholeFiles(t *testing.T) {
	corpus := os.Getenv("LORATOOL_CORPUS")
	if corpus == "" {
		t.Skip("LORATOOL_CORPUS is not set")
	}
	t.Chdir(filepath.Join(corpus, "gguf-files")) // the output holds the path of the importance matrix
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
