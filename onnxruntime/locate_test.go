package onnxruntime

import (
	"crypto/sha256"
	"encoding/hex"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/loratool/loratool/finding"
)

// fakeLibrary is what the tests install instead of 46 MB: an ELF magic and some bytes.
var fakeLibrary = []byte("\x7fELF a runtime that computes nothing")

func sum(b []byte) string {
	s := sha256.Sum256(b)
	return hex.EncodeToString(s[:])
}

// testPlatform pins fakeLibrary.
func testPlatform() platform {
	return linux("linux/x64", pinnedFile{"libonnxruntime.so.1", int64(len(fakeLibrary)), sum(fakeLibrary)})
}

func put(t *testing.T, data []byte, elem ...string) string {
	t.Helper()
	path := filepath.Join(elem...)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, data, 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// Every place that an earlier one hides is found once the earlier ones are gone.
func TestLocateOrder(t *testing.T) {
	root := t.TempDir()
	p := testPlatform()
	env := map[string]string{}
	l := lookup{
		flag: put(t, fakeLibrary, root, "flag.so"), env: func(k string) string { return env[k] },
		exeDir: filepath.Join(root, "exe"), workDir: filepath.Join(root, "work"), cacheDir: filepath.Join(root, "cache"),
		system: func(name string) (string, bool) { return "/sys/" + name, name == "libonnxruntime.so" },
	}
	env[EnvGo] = put(t, fakeLibrary, root, "go.so")
	env[EnvRust] = put(t, fakeLibrary, root, "rust.so")
	exe := put(t, fakeLibrary, root, "exe", "libonnxruntime.so")
	lib := put(t, fakeLibrary, root, "exe", "lib", "libonnxruntime.so.1")
	node := put(t, fakeLibrary, root, "work", "node_modules", npmPackage, "bin", "napi-v6", "linux", "x64", "libonnxruntime.so.1")
	put(t, nil, filepath.Dir(node), "onnxruntime_binding.node")
	cached := put(t, fakeLibrary, root, "cache", npmVersion, "libonnxruntime.so.1")

	expect := func(path, source string) {
		t.Helper()
		got, err := l.find(p)
		if err != nil || got != (Library{path, source}) {
			t.Fatalf("found %v, %v; expected %s from %s", got, err, path, source)
		}
	}
	expect(l.flag, "flag")
	l.flag = filepath.Join(root, "exe", "lib")
	expect(lib, "flag")
	l.flag = "libonnxruntime.so"
	expect("/sys/libonnxruntime.so", "flag")
	l.flag = ""
	expect(env[EnvGo], EnvGo)
	delete(env, EnvGo)
	expect(env[EnvRust], EnvRust)
	delete(env, EnvRust)
	expect(exe, "executable")
	os.Remove(exe)
	expect(lib, "executable")
	os.Remove(lib)
	expect(node, "node_modules")
	os.Remove(node)
	expect(cached, "cache")
	os.Remove(cached)
	expect("/sys/libonnxruntime.so", "system")
	l.system = func(string) (string, bool) { return "", false }
	_, err := l.find(p)
	if f := finding.Of(err); f == nil || f.Code != "runtime.not_found" || f.Hint == "" {
		t.Errorf("with nothing anywhere: %v", err)
	}
}

func TestLocateKeepsExplicitChoice(t *testing.T) {
	root := t.TempDir()
	put(t, fakeLibrary, root, "cache", npmVersion, "libonnxruntime.so.1")
	for _, l := range []lookup{
		{flag: filepath.Join(root, "gone.so"), env: func(string) string { return "" }},
		{env: func(k string) string { return map[string]string{EnvGo: root}[k] }},
	} {
		l.cacheDir = filepath.Join(root, "cache")
		l.system = func(string) (string, bool) { return "", false }
		if got, err := l.find(testPlatform()); finding.Of(err) == nil || finding.Of(err).Code != "runtime.not_found" {
			t.Errorf("found %v, %v instead of an error", got, err)
		}
	}
}

// A model's folder may bring a node_modules of its own.
func TestLocateDistrustsWorkingFolder(t *testing.T) {
	for name, spoil := range map[string]func(dir string){
		"other bytes": func(dir string) {
			b := append([]byte(nil), fakeLibrary...)
			b[len(b)-1]++
			put(t, b, dir, "libonnxruntime.so.1")
		},
		"other size":       func(dir string) { put(t, fakeLibrary[1:], dir, "libonnxruntime.so.1") },
		"library beside":   func(dir string) { put(t, nil, dir, "libstdc++.so.6") },
		"provider beside":  func(dir string) { put(t, nil, dir, "libonnxruntime_providers_shared.so") },
		"nothing is wrong": func(string) {},
	} {
		root := t.TempDir()
		file := put(t, fakeLibrary, root, "node_modules", npmPackage, "bin", "napi-v6", "linux", "x64", "libonnxruntime.so.1")
		spoil(filepath.Dir(file))
		l := lookup{workDir: root, env: func(string) string { return "" }, system: func(string) (string, bool) { return "", false }}
		_, err := l.find(testPlatform())
		if (err == nil) != (name == "nothing is wrong") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestCurrentStaysInCache(t *testing.T) {
	for content, want := range map[string]string{
		"sha256-00\n": "sha256-00", "": npmVersion, "../../etc": npmVersion, "/etc": npmVersion, "..": npmVersion, "a/b": npmVersion,
	} {
		dir := t.TempDir()
		put(t, []byte(content), dir, currentFile)
		if got := current(dir); got != want {
			t.Errorf("%q names %q, expected %q", content, got, want)
		}
	}
}

func TestPlatformsAreComplete(t *testing.T) {
	for name, p := range platforms {
		if len(p.npm) > 0 && p.npm[0].name != p.names[0] {
			t.Errorf("%s: installs %s, looks for %s", name, p.npm[0].name, p.names[0])
		}
		for _, f := range p.npm {
			if len(f.sha256) != 64 || f.size <= 0 {
				t.Errorf("%s: bad pin %v", name, f)
			}
			if got, ok := p.wants("package/bin/napi-v6/" + p.npmDir + "/" + f.name); !ok || got != f.name {
				t.Errorf("%s: %s is extracted as %q, %v", name, f.name, got, ok)
			}
		}
	}
	p := platforms["linux/amd64"]
	for member, want := range map[string]string{
		"onnxruntime/capi/libonnxruntime.so.1.30.0":                "libonnxruntime.so.1",
		"onnxruntime-linux-x64-1.30.0/lib/libonnxruntime.so":       "libonnxruntime.so.1",
		"onnxruntime/capi/libonnxruntime_providers_cuda.so":        "libonnxruntime_providers_cuda.so",
		"onnxruntime/capi/libonnxruntime_providers_tensorrt.so":    "",
		"package/bin/napi-v6/linux/arm64/libonnxruntime.so.1":      "",
		"package/bin/napi-v6/win32/x64/onnxruntime.dll":            "",
		"onnxruntime/capi/onnxruntime_pybind11_state.so":           "",
		"lib/libonnxruntime.so.1.debug":                            "",
		"lib/libonnxruntime.so.1.30.0.dSYM/x/libonnxruntime.so.1a": "",
	} {
		if got, _ := p.wants(member); got != want {
			t.Errorf("%s is taken as %q, expected %q", member, got, want)
		}
	}
}

func TestSystemLibraryOfUnknownName(t *testing.T) {
	if path, ok := systemLibrary("libno-such-runtime.so.99"); ok {
		t.Error("found", path)
	}
	// The C library is there but is no ONNX Runtime.
	if runtime.GOOS == "linux" {
		if path, ok := systemLibrary("libc.so.6"); ok {
			t.Error("took the C library for ONNX Runtime:", path)
		}
	}
}
