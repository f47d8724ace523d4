//go:build unix

package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// TestInterrupt stops a merge in its middle: the exit status names the signal, and nothing is left.
func TestInterrupt(t *testing.T) {
	dir := t.TempDir()
	// 64 MiB of weight, and 2 · 4096² · 2048 operations on it: seconds of work.
	sparse(t, filepath.Join(dir, "base.safetensors"), `{"l.weight":{"dtype":"F32","shape":[4096,4096],"data_offsets":[0,67108864]}}`, 64<<20)
	adapter := filepath.Join(dir, "adapter")
	if err := os.Mkdir(adapter, 0o777); err != nil {
		t.Fatal(err)
	}
	config := `{"peft_type":"LORA","r":2048,"lora_alpha":1,"base_model_name_or_path":"base","target_modules":["l"]}`
	if err := os.WriteFile(filepath.Join(adapter, "adapter_config.json"), []byte(config), 0o666); err != nil {
		t.Fatal(err)
	}
	sparse(t, filepath.Join(adapter, "adapter_model.safetensors"), `{"base_model.model.l.lora_A.weight":{"dtype":"F32","shape":[2048,4096],"data_offsets":[0,33554432]},`+
		`"base_model.model.l.lora_B.weight":{"dtype":"F32","shape":[4096,2048],"data_offsets":[33554432,67108864]}}`, 64<<20)

	for _, s := range []struct {
		signal syscall.Signal
		status int
	}{{syscall.SIGINT, 130}, {syscall.SIGTERM, 143}} {
		t.Run(s.signal.String(), func(t *testing.T) {
			out := t.TempDir()
			var text bytes.Buffer
			cmd := exec.Command(os.Args[0], "--jobs", "1", "merge", filepath.Join(dir, "base.safetensors"), "-a", adapter, "-o", filepath.Join(out, "out.safetensors"))
			cmd.Env = append(os.Environ(), asMain+"=1")
			cmd.Stdout, cmd.Stderr = &text, &text
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			started := func() bool { entries, _ := os.ReadDir(out); return len(entries) > 0 }
			for range 6000 {
				if started() {
					break
				}
				time.Sleep(5 * time.Millisecond)
			}
			if !started() {
				t.Fatal("the merge has not begun to write")
			}
			if err := cmd.Process.Signal(s.signal); err != nil {
				t.Fatal(err)
			}
			var exit *exec.ExitError
			if err := cmd.Wait(); !errors.As(err, &exit) || exit.ExitCode() != s.status {
				t.Errorf("%v, expected exit status %d\n%s", err, s.status, &text)
			}
			if want := fmt.Sprintf("loratool: error: stopped by %v", s.signal); !bytes.Contains(text.Bytes(), []byte(want)) {
				t.Errorf("got %q, expected %q", &text, want)
			}
			if started() {
				t.Error("something is left in the output's folder")
			}
		})
	}
}

// sparse writes a safetensors file whose data are zeros that take no room.
func sparse(t testing.TB, path, header string, size int64) {
	t.Helper()
	b := binary.LittleEndian.AppendUint64(nil, uint64(len(header)))
	b = append(b, header...)
	if err := os.WriteFile(path, b, 0o666); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, int64(len(b))+size); err != nil {
		t.Fatal(err)
	}
}
