// Command demo bakes the adapters of testdata into the same small models in three formats, verifies every
// result, and prints one table. It drives the program as a user would.
package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"
)

// cases are what the demo merges: paths below testdata.
var cases = []struct{ what, base, adapter, output string }{
	{"safetensors folder", "tiny-llama/base", "tiny-llama/adapter", "merged"},
	{"GGUF F16", "tiny-llama/base-f16.gguf", "tiny-llama/adapter", "merged-f16.gguf"},
	{"GGUF F16, GGUF adapter", "tiny-llama/base-f16.gguf", "tiny-llama/adapter.gguf", "merged-f16-lora.gguf"},
	{"GGUF Q8_0", "tiny-llama/base-q8_0.gguf", "tiny-llama/adapter", "merged-q8_0.gguf"},
	{"ONNX", "tiny-llama/base.onnx", "tiny-llama/adapter", "merged.onnx"},
	{"ONNX (dynamo names)", "tiny-llama/base-dynamo.onnx", "tiny-llama/adapter", "merged-dynamo.onnx"},
	{"DoRA, safetensors", "tiny-llama/base", "tiny-llama/adapters/dora", "merged-dora"},
	{"a trained model", "trained/base", "trained/adapters/python-r8-small", "merged-trained"},
}

func main() {
	log.SetFlags(0)
	program := flag.String("loratool", "bin/loratool", "program to show")
	data := flag.String("testdata", "testdata", "folder with the models")
	dir := flag.String("dir", ".demo", "folder for the merged models")
	flag.Parse()
	if err := demo(*program, *data, *dir); err != nil {
		log.Fatal("demo: ", err)
	}
}

func demo(program, data, dir string) error {
	if err := os.MkdirAll(dir, 0o777); err != nil {
		return err
	}
	ensureRuntime(program)
	w := table.NewWriter()
	w.SetStyle(table.StyleLight)
	w.Style().Format.Header = text.FormatDefault
	w.AppendHeader(table.Row{"base", "stored as", "modules", "retention min", "median", "exact check", "ONNX Runtime", "largest error", "verdict", "time"})
	bad := 0
	for _, c := range cases {
		start := time.Now()
		row, ok, err := one(program, filepath.Join(data, c.base), filepath.Join(data, c.adapter), filepath.Join(dir, c.output))
		if err != nil {
			return fmt.Errorf("%s: %w", c.what, err)
		}
		if !ok {
			bad++
		}
		row[0] = c.what
		w.AppendRow(append(row, fmt.Sprintf("%.2f s", time.Since(start).Seconds())))
	}
	fmt.Println(w.Render())
	fmt.Printf("retention: the share of the adapter that is present in the stored weights; 1 is all of it, 0 a merge that never happened\nmerged models are in %s\n", dir)
	if bad > 0 {
		return fmt.Errorf("%d of %d merges failed their check", bad, len(cases))
	}
	return nil
}

// ensureRuntime installs ONNX Runtime when it is missing, and says so when it cannot.
func ensureRuntime(program string) {
	if exec.Command(program, "runtime", "info").Run() == nil {
		return
	}
	fmt.Fprintln(os.Stderr, "installing ONNX Runtime (loratool runtime install)")
	cmd := exec.Command(program, "runtime", "install")
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	if cmd.Run() != nil {
		fmt.Fprintln(os.Stderr, "*** going on without ONNX Runtime: the exact check still runs ***")
	}
}

// A report is what the demo reads of verify's JSON.
type report struct {
	Verdict string
	Modules []struct {
		Type    string
		Pass    bool
		Exact   struct{ Elements, Rounded int64 }
		Runtime *struct {
			RelError float64 `json:"rel_error"`
		}
	}
	Retention struct{ Min, Median float64 }
	Runtime   struct {
		Version, Provider, Reason string
		Modules, Of               int
	}
}

// one merges, verifies every row and module, and returns a row of the table.
func one(program, base, adapter, out string) (table.Row, bool, error) {
	if b, err := exec.Command(program, "merge", base, "-a", adapter, "-o", out, "--force", "--check", "off", "--quiet").CombinedOutput(); err != nil {
		return nil, false, fmt.Errorf("merge: %w\n%s", err, b)
	}
	var stdout, stderr bytes.Buffer
	cmd := exec.Command(program, "verify", out, "--base", base, "-a", adapter, "--sample", "all", "--json")
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if exit := (*exec.ExitError)(nil); err != nil && (!errors.As(err, &exit) || exit.ExitCode() != 1) {
		return nil, false, fmt.Errorf("verify: %w\n%s", err, stderr.String())
	}
	var r report
	if err := json.Unmarshal(stdout.Bytes(), &r); err != nil {
		return nil, false, fmt.Errorf("verify: %w", err)
	}
	var types []string
	var elements, rounded int64
	passed, worst := 0, 0.0
	for _, m := range r.Modules {
		if !strings.Contains(strings.Join(types, " "), m.Type) {
			types = append(types, m.Type)
		}
		elements, rounded = elements+m.Exact.Elements, rounded+m.Exact.Rounded
		if m.Pass {
			passed++
		}
		if m.Runtime != nil {
			worst = max(worst, m.Runtime.RelError)
		}
	}
	exact := fmt.Sprintf("%d of %d pass", passed, len(r.Modules))
	if rounded > 0 {
		exact += fmt.Sprintf(", %.3f %% one rounding", 100*float64(rounded)/float64(elements))
	}
	runtime, largest := "not checked", ""
	if r.Runtime.Provider != "" {
		runtime = fmt.Sprintf("%s on %s, %d of %d", r.Runtime.Version, r.Runtime.Provider, r.Runtime.Modules, r.Runtime.Of)
		largest = fmt.Sprintf("%.1e", worst)
	}
	return table.Row{"", strings.Join(types, " "), len(r.Modules), fmt.Sprintf("%.4f", r.Retention.Min), fmt.Sprintf("%.4f", r.Retention.Median),
		exact, runtime, largest, r.Verdict}, r.Verdict != "reject", nil
}
