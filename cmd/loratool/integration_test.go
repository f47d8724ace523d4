package main

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"
)

// TestAction holds action.yml and the script of its step together: every input reaches the script, by way of
// the environment, and the script reads nothing else.
func TestAction(t *testing.T) {
	b, err := os.ReadFile("../../action.yml")
	if err != nil {
		t.Fatal(err)
	}
	var action struct {
		Inputs map[string]struct{ Description string }
		Runs   struct {
			Using string
			Steps []struct {
				Uses, Run, Shell string
				Env              map[string]string
			}
		}
	}
	if err := yaml.Unmarshal(b, &action); err != nil {
		t.Fatal(err)
	}
	script, err := os.ReadFile("../../.ci/action")
	if err != nil {
		t.Fatal(err)
	}
	step := action.Runs.Steps[len(action.Runs.Steps)-1]
	if action.Runs.Using != "composite" || step.Shell != "bash" || strings.Contains(step.Run, "${{") {
		t.Errorf("the step runs %q with %s", step.Run, step.Shell)
	}
	for name := range action.Inputs {
		variable := "INPUT_" + strings.ToUpper(strings.ReplaceAll(name, "-", "_"))
		if got, want := step.Env[variable], "${{ inputs."+name+" }}"; got != want {
			t.Errorf("%s is %q, expected %q", variable, got, want)
		}
		if !strings.Contains(string(script), "${"+variable+":-") {
			t.Errorf("the script does not read %s", variable)
		}
	}
	for _, m := range regexp.MustCompile(`INPUT_[A-Z_]+`).FindAllString(string(script), -1) {
		if _, ok := step.Env[m]; !ok {
			t.Errorf("the script reads %s, which action.yml does not set", m)
		}
	}
	if info, err := os.Stat("../../.ci/action"); err != nil || info.Mode()&0o111 == 0 {
		t.Errorf("the script is not executable: %v", err)
	}
}

// TestHooks: the pre-commit hook is a command of this program, for the files it reads.
func TestHooks(t *testing.T) {
	b, err := os.ReadFile("../../.pre-commit-hooks.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var hooks []struct{ ID, Name, Entry, Language, Files string }
	if err := yaml.Unmarshal(b, &hooks); err != nil {
		t.Fatal(err)
	}
	if len(hooks) != 1 || hooks[0].Language != "golang" {
		t.Fatalf("%+v", hooks)
	}
	files := regexp.MustCompile(hooks[0].Files)
	for name, want := range map[string]bool{"a/model.safetensors": true, "m.gguf": true, "m.onnx": true, "pytorch_model.bin": true, "x.pt": true, "gguf": false, "model.safetensors.index.json": false, "README.md": false} {
		if files.MatchString(name) != want {
			t.Errorf("%s is matched: %v", name, !want)
		}
	}
	dir := "../../testdata/tiny-llama/"
	args := append(strings.Fields(hooks[0].Entry)[1:], dir+"base-q8_0.gguf", dir+"base.onnx")
	if a := ask(t, args...); a.status != exitDone {
		t.Errorf("%q: exit status %d\n%s", args, a.status, a.err)
	}
}
