package onnxruntime

import (
	"encoding/json"
	"os"
	"path/filepath"

	"github.com/loratool/loratool/finding"
)

// A Placement counts the operators that ran, by type: on the provider that was asked for, and on the CPU because the
// provider lacks them.
type Placement struct {
	Device, CPU map[string]int
}

// Placement closes a session of LoadMixed and says where its operators ran. The zero value is for a runtime on the CPU.
func (s *Session) Placement() (Placement, error) {
	if s.trace == "" {
		return Placement{}, nil
	}
	defer os.RemoveAll(s.trace)
	s.s.close() // which writes the record
	p := Placement{map[string]int{}, map[string]int{}}
	files, err := filepath.Glob(filepath.Join(s.trace, "*.json"))
	if err != nil || len(files) == 0 {
		return p, finding.Errorf("runtime.run_failed", s.model.Path, "ONNX Runtime left no record of what ran where")
	}
	b, err := os.ReadFile(files[0])
	if err != nil {
		return p, finding.Errorf("runtime.run_failed", s.model.Path, "the record of what ran where cannot be read: %v", err)
	}
	var events []struct {
		Cat  string
		Name string
		Args struct {
			Op       string `json:"op_name"`
			Provider string
			Node     string `json:"node_index"`
		}
	}
	if err := json.Unmarshal(b, &events); err != nil {
		return p, finding.Errorf("runtime.run_failed", s.model.Path, "the record of what ran where is not readable: %v", err)
	}
	seen := map[string]bool{}
	for _, e := range events {
		if e.Cat != "Node" || e.Args.Provider == "" || seen[e.Args.Node+"\x00"+e.Name] {
			continue
		}
		seen[e.Args.Node+"\x00"+e.Name] = true
		if e.Args.Provider == "CPUExecutionProvider" {
			p.CPU[e.Args.Op]++
		} else {
			p.Device[e.Args.Op]++
		}
	}
	return p, nil
}
