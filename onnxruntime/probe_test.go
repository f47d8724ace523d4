package onnxruntime

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/loratool/loratool/tensor"
)

func TestInfo(t *testing.T) {
	run := need(t)
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	r, err := Info(t.Context(), run.Library(), ChildProber(exe))
	if err != nil {
		t.Fatal(err)
	}
	if r.Version == "" || r.Path != run.Library().Path || r.API != apiVersion || len(r.Providers) != 3 {
		t.Errorf("report %+v", r)
	}
	for _, p := range r.Providers {
		switch {
		case p.Usable && !(p.RelError > 0 && p.RelError < 1e-5):
			t.Errorf("%s is usable with error %g", p.Provider, p.RelError)
		case p.Usable == (p.Reason != ""):
			t.Errorf("%s: usable %v, reason %q", p.Provider, p.Usable, p.Reason)
		}
	}
	if p := r.Providers[0]; p.Provider != CPU || !p.Usable {
		t.Errorf("the CPU is not usable: %+v", p)
	}
	if _, err := json.Marshal(r); err != nil {
		t.Error(err)
	}
}

// What a child says, or fails to say, is an answer and never an error.
func TestChildProber(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("the children are shell scripts")
	}
	dir := t.TempDir()
	// The library stands beside both CUDA files, so that a child is asked.
	lib := Library{Path: put(t, nil, dir, "libonnxruntime.so.1")}
	put(t, nil, dir, "libonnxruntime_providers_shared.so")
	put(t, nil, dir, "libonnxruntime_providers_cuda.so")
	if missingCUDA(lib) != "" {
		t.Skip("needs a build with cgo")
	}
	for name, tt := range map[string]struct{ script, reason string }{
		"answers":        {`echo noise; echo '{"provider":"cuda","usable":true,"rel_error":1e-7}'`, ""},
		"crashes":        {`echo 'driver trouble' >&2; kill -SEGV $$`, "driver trouble"},
		"says nothing":   {`exit 0`, "no answer"},
		"other provider": {`echo '{"provider":"cpu","usable":true}'`, "no answer"},
		"lies and fails": {`echo '{"provider":"cuda","usable":true}'; exit 1`, "crashed"},
	} {
		exe := filepath.Join(dir, strings.ReplaceAll(name, " ", "-"))
		script := "#!/bin/sh\ncase \"$" + probeVariable + "\" in *'\"Provider\":\"cuda\"'*) ;; *) exit 9;; esac\n" + tt.script + "\n"
		if err := os.WriteFile(exe, []byte(script), 0o755); err != nil {
			t.Fatal(err)
		}
		p := ChildProber(exe)(t.Context(), lib, CUDA)
		if p.Usable != (tt.reason == "") || !strings.Contains(p.Reason, tt.reason) {
			t.Errorf("%s: %+v", name, p)
		}
	}
}

func TestProbeOfMissingProvider(t *testing.T) {
	dir := t.TempDir()
	lib := Library{Path: put(t, nil, dir, "libonnxruntime.so.1")}
	start := time.Now()
	p := ChildProber(filepath.Join(dir, "not-there"))(t.Context(), lib, CUDA)
	if p.Usable || p.Reason == "" || strings.Contains(p.Reason, "not-there") {
		t.Errorf("after %v: %+v", time.Since(start), p)
	}
	if p := InProcess(t.Context(), lib, "tpu"); p.Usable || p.Reason == "" {
		t.Errorf("unknown provider: %+v", p)
	}
}

// Each library is loaded by a child of its own, since a process keeps the first.
func TestReasonsForBadLibraries(t *testing.T) {
	if apiVersion == 0 || runtime.GOOS != "linux" {
		t.Skip("needs a build with cgo, and the C library's name")
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	libraries := map[string]string{
		put(t, []byte("text"), t.TempDir(), "libonnxruntime.so.1"): "cannot be loaded",
		"libc.so.6": "is not ONNX Runtime",
	}
	if old := oldLibrary(t); old != "" {
		libraries[old] = "too old (found 1.17.1, expected ONNX Runtime 1.29 or newer)"
	}
	for path, reason := range libraries {
		request, err := json.Marshal(probeRequest{Library{Path: path}, CPU})
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(exe)
		cmd.Env = append(os.Environ(), probeVariable+"="+string(request))
		out, err := cmd.Output()
		var p Probe
		if jsonErr := json.Unmarshal(out, &p); err != nil || jsonErr != nil {
			t.Fatalf("%s: %v, output %q", path, err, out)
		}
		if p.Usable || !strings.Contains(p.Reason, reason) {
			t.Errorf("%s: %+v", path, p)
		}
	}
}

// oldLibrary compiles a library that knows no newer C interface than that of 1.17.1, or returns "".
func oldLibrary(t *testing.T) string {
	cc, err := exec.LookPath("cc")
	if err != nil {
		t.Log("there is no C compiler: what is said of an old library is NOT tested")
		return ""
	}
	dir := t.TempDir()
	source := put(t, []byte(`#include <stddef.h>
static const void *api(unsigned version) { (void)version; return NULL; }
static const char *version(void) { return "1.17.1"; }
static const struct { const void *(*api)(unsigned); const char *(*version)(void); } base = {api, version};
const void *OrtGetApiBase(void) { return &base; }
`), dir, "old.c")
	lib := filepath.Join(dir, "libonnxruntime.so.1.17.1")
	if out, err := exec.Command(cc, "-shared", "-fPIC", "-o", lib, source).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return lib
}

func TestServeProbeRefusesGarbage(t *testing.T) {
	var out strings.Builder
	if code := serveProbe("not json", &out); code == 0 || out.Len() != 0 {
		t.Errorf("exit %d, %q", code, out.String())
	}
}

func TestCheckOnGPU(t *testing.T) {
	cpu := need(t)
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range []Device{Device(CUDA), Device(WebGPU)} {
		t.Run(string(d), func(t *testing.T) {
			run, err := Open(t.Context(), cpu.Library(), Options{Device: d, Prober: ChildProber(exe)})
			if err != nil {
				if os.Getenv("LORATOOL_GPU") == string(d) {
					t.Fatal("LORATOOL_GPU asks for the device: ", err)
				}
				t.Skip("no such device here: ", err)
			}
			c := run.NewChecker(CheckOptions{})
			defer c.Close()
			for _, dtype := range []tensor.DType{tensor.F32, tensor.F16, tensor.BF16} {
				for _, transposed := range []bool{false, true} {
					l := newLayer(256, 320, 8, 0.03, dtype)
					l.transposed = transposed
					if r := check(t, c, l.module(), l.block(l.merged(1, false))); r.Verdict != OK || r.Provider != Provider(d) {
						t.Errorf("%s: verdict %s on %s (%s)", dtype, r.Verdict, r.Provider, r.Why)
					}
					if r := check(t, c, l.module(), l.block(l.merged(2, false))); r.Verdict != Scaled {
						t.Errorf("%s twice: verdict %s (%s)", dtype, r.Verdict, r.Why)
					}
				}
			}
			_, err = run.Run(t.Context(), adder(onnxFloat), map[string]Value{"X": Floats(nil, 0, 2)}, []string{"Y"})
			if d == Device(WebGPU) {
				expectCode(t, err, "runtime.bad_input")
			}
		})
	}
}
