package onnxruntime

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/loratool/loratool/finding"
)

type member struct {
	name string
	data []byte
}

func tgz(t *testing.T, members ...member) []byte {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	w := tar.NewWriter(z)
	for _, m := range members {
		h := tar.Header{Name: m.name, Size: int64(len(m.data)), Mode: 0o644, Typeflag: tar.TypeReg}
		if m.data == nil {
			h.Typeflag, h.Linkname = tar.TypeSymlink, "/etc/passwd"
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(m.data); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(w.Close(), z.Close()); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func wheel(t *testing.T, members ...member) []byte {
	t.Helper()
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	for _, m := range members {
		w, err := z.Create(m.name)
		if err == nil {
			_, err = w.Write(m.data)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// npmTarball holds the library of three platforms, the wanted one in the middle, and incompressible
// bytes at the end that a truncation can cut.
func npmTarball(t *testing.T, library []byte) []byte {
	tail := make([]byte, 1<<16)
	for i := range tail {
		tail[i] = byte(i * i >> 3 * i)
	}
	return tgz(t,
		member{"package/package.json", []byte("{}")},
		member{"package/bin/napi-v6/linux/arm64/libonnxruntime.so.1", []byte("\x7fELF wrong processor")},
		member{"package/bin/napi-v6/linux/x64/libonnxruntime.so.1", library},
		member{"package/bin/napi-v6/win32/x64/onnxruntime.dll", []byte("MZ wrong system")},
		member{"package/README.md", tail},
	)
}

// fakeNPM puts a script called npm first on the PATH. It checks its arguments and leaves tarball in the
// working folder; with a nil tarball it fails.
func fakeNPM(t *testing.T, tarball []byte) {
	t.Helper()
	if runtime.GOOS == "windows" {
		t.Skip("the stand-in for npm is a shell script")
	}
	dir := t.TempDir()
	script := "#!/bin/sh\necho 'npm error network is down' >&2\nexit 1\n"
	if tarball != nil {
		src := put(t, tarball, dir, "src")
		script = fmt.Sprintf("#!/bin/sh\n[ \"$1 $2\" = 'pack %s@%s' ] || exit 3\ncase \" $* \" in *' --ignore-scripts '*) ;; *) exit 4;; esac\n/bin/cp '%s' ./%s-%s.tgz\n",
			npmPackage, npmVersion, src, npmPackage, npmVersion)
	}
	if err := os.WriteFile(filepath.Join(dir, "npm"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir)
}

// tree lists the files and folders below dir.
func tree(t *testing.T, dir string) []string {
	t.Helper()
	var names []string
	err := filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		if path != dir {
			rel, _ := filepath.Rel(dir, path)
			names = append(names, filepath.ToSlash(rel))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

func expectTree(t *testing.T, dir string, want ...string) {
	t.Helper()
	if got := tree(t, dir); !slices.Equal(got, want) {
		t.Errorf("the cache holds %q, expected %q", got, want)
	}
}

func expectCode(t *testing.T, err error, code string) *finding.Finding {
	t.Helper()
	f := finding.Of(err)
	if f == nil || f.Code != code {
		t.Fatalf("error %v, expected code %s", err, code)
	}
	return f
}

func TestInstallWithNPM(t *testing.T) {
	fakeNPM(t, npmTarball(t, fakeLibrary))
	cache := t.TempDir()
	var log []string
	o := InstallOptions{CacheDir: cache, Progress: func(s string) { log = append(log, s) }}
	in, err := install(t.Context(), o, testPlatform())
	if err != nil {
		t.Fatal(err)
	}
	want := filepath.Join(cache, npmVersion, "libonnxruntime.so.1")
	if in.Path != want || !in.Pinned || in.Already || in.SHA256 != sum(fakeLibrary) {
		t.Errorf("installed %+v", in)
	}
	if b, err := os.ReadFile(want); err != nil || !bytes.Equal(b, fakeLibrary) {
		t.Errorf("the library holds %q, %v", b, err)
	}
	expectTree(t, cache, npmVersion, npmVersion+"/libonnxruntime.so.1")
	if len(log) != 3 {
		t.Errorf("progress was %q", log)
	}

	t.Setenv("PATH", "") // a second time needs no npm
	if in, err = install(t.Context(), o, testPlatform()); err != nil || !in.Already {
		t.Errorf("second time: %+v, %v", in, err)
	}

	// A damaged library is replaced.
	put(t, []byte("damaged"), want)
	fakeNPM(t, npmTarball(t, fakeLibrary))
	if in, err = install(t.Context(), o, testPlatform()); err != nil || in.Already {
		t.Errorf("over a damaged one: %+v, %v", in, err)
	}
	if got, _ := fileSHA256(want); got != sum(fakeLibrary) {
		t.Error("the damaged library is still there")
	}
	expectTree(t, cache, npmVersion, npmVersion+"/libonnxruntime.so.1")
}

func TestInstallFailuresLeaveNothing(t *testing.T) {
	good := npmTarball(t, fakeLibrary)
	for _, tt := range []struct {
		name    string
		tarball []byte
		code    string
	}{
		{"npm fails", nil, "runtime.npm_failed"},
		{"wrong hash", npmTarball(t, append([]byte("\x7fELF"), "something else"...)), "runtime.wrong_hash"},
		{"library missing", tgz(t, member{"package/bin/napi-v6/linux/arm64/libonnxruntime.so.1", fakeLibrary}), "runtime.not_in_archive"},
		{"truncated in the middle", good[:len(good)/2], "runtime.bad_archive"},
		{"truncated at the checksum", good[:len(good)-5], "runtime.bad_archive"},
		{"flipped checksum", append(slices.Clone(good[:len(good)-8]), "12345678"...), "runtime.bad_archive"},
		{"not an archive", []byte("<html>"), "runtime.bad_archive"},
		{"empty", []byte{}, "runtime.bad_archive"},
		{"symlink for library", tgz(t, member{"package/bin/napi-v6/linux/x64/libonnxruntime.so.1", nil}), "runtime.not_in_archive"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			fakeNPM(t, tt.tarball)
			cache := t.TempDir()
			_, err := install(t.Context(), InstallOptions{CacheDir: cache}, testPlatform())
			f := expectCode(t, err, tt.code)
			if tt.code == "runtime.wrong_hash" && (f.Want != sum(fakeLibrary) || f.Got == "") {
				t.Errorf("hashes: %+v", f)
			}
			if tt.code == "runtime.npm_failed" && !strings.Contains(f.Message, "network is down") {
				t.Errorf("npm's words are missing: %v", f)
			}
			expectTree(t, cache)
		})
	}
}

func TestInstallWithoutNPM(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	cache := t.TempDir()
	_, err := install(t.Context(), InstallOptions{CacheDir: cache}, testPlatform())
	if f := expectCode(t, err, "runtime.no_npm"); !strings.Contains(f.Hint, "--from") {
		t.Errorf("hint %q", f.Hint)
	}
	expectTree(t, cache)

	bare := linux("linux/riscv64")
	_, err = install(t.Context(), InstallOptions{CacheDir: cache}, bare)
	expectCode(t, err, "runtime.no_package")
}

func TestInstallStops(t *testing.T) {
	fakeNPM(t, npmTarball(t, fakeLibrary))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	cache := t.TempDir()
	if _, err := install(ctx, InstallOptions{CacheDir: cache}, testPlatform()); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	expectTree(t, cache)
}

func TestInstallFromFile(t *testing.T) {
	other := []byte("\x7fELF another version")
	shared, cuda := []byte("shared"), []byte("cuda")
	folder := "sha256-" + sum(other)[:16]
	p := testPlatform()
	for _, tt := range []struct {
		name, file string
		data       []byte
		folder     string
		files      []string
	}{
		{"npm package", "onnxruntime-node.tgz", npmTarball(t, fakeLibrary), npmVersion, []string{"libonnxruntime.so.1"}},
		{"other npm package", "onnxruntime-node.tgz", npmTarball(t, other), folder, []string{"libonnxruntime.so.1"}},
		{"release archive", "onnxruntime-linux-x64-gpu-1.31.0.tgz", tgz(t,
			member{"onnxruntime-linux-x64-gpu-1.31.0/lib/libonnxruntime.so", nil},
			member{"onnxruntime-linux-x64-gpu-1.31.0/lib/libonnxruntime.so.1.31.0", other},
			member{"onnxruntime-linux-x64-gpu-1.31.0/lib/libonnxruntime_providers_shared.so", shared},
			member{"onnxruntime-linux-x64-gpu-1.31.0/lib/libonnxruntime_providers_cuda.so", cuda},
			member{"onnxruntime-linux-x64-gpu-1.31.0/lib/libonnxruntime_providers_tensorrt.so", cuda}),
			folder, []string{"libonnxruntime.so.1", "libonnxruntime_providers_cuda.so", "libonnxruntime_providers_shared.so"}},
		{"wheel", "onnxruntime_gpu.whl", wheel(t,
			member{"onnxruntime/capi/libonnxruntime_providers_shared.so", shared},
			member{"onnxruntime/capi/../../libonnxruntime.so.1.31.0", other},
			member{"onnxruntime/capi/onnxruntime_pybind11_state.so", other}),
			folder, []string{"libonnxruntime.so.1", "libonnxruntime_providers_shared.so"}},
		{"library", "any.so", other, folder, []string{"libonnxruntime.so.1"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			root := t.TempDir()
			cache := filepath.Join(root, "cache")
			from := put(t, tt.data, root, tt.file)
			in, err := install(t.Context(), InstallOptions{From: from, CacheDir: cache}, p)
			if err != nil {
				t.Fatal(err)
			}
			if in.Path != filepath.Join(cache, tt.folder, "libonnxruntime.so.1") || in.Pinned != (tt.folder == npmVersion) || in.Already {
				t.Errorf("installed %+v", in)
			}
			if got, _ := fileSHA256(in.Path); got != in.SHA256 {
				t.Errorf("hash %s, reported %s", got, in.SHA256)
			}
			want := []string{tt.folder}
			for _, f := range tt.files {
				want = append(want, tt.folder+"/"+f)
			}
			if tt.folder != npmVersion {
				want = append([]string{currentFile}, want...)
			}
			expectTree(t, cache, want...)

			l := lookup{cacheDir: cache, env: func(string) string { return "" }}
			if lib, err := l.find(p); err != nil || lib.Path != in.Path {
				t.Errorf("then found %v, %v", lib, err)
			}
			if again, err := install(t.Context(), InstallOptions{From: from, CacheDir: cache}, p); err != nil || !again.Already {
				t.Errorf("again: %+v, %v", again, err)
			}
		})
	}
}

// Fetching the pinned version after a library of one's own makes the pinned one current again, and keeps
// the other.
func TestInstallSwitches(t *testing.T) {
	fakeNPM(t, npmTarball(t, fakeLibrary))
	root := t.TempDir()
	cache := filepath.Join(root, "cache")
	p := testPlatform()
	own, err := install(t.Context(), InstallOptions{From: put(t, []byte("\x7fELF own"), root, "own.so"), CacheDir: cache}, p)
	if err != nil {
		t.Fatal(err)
	}
	pinned, err := install(t.Context(), InstallOptions{CacheDir: cache}, p)
	if err != nil {
		t.Fatal(err)
	}
	l := lookup{cacheDir: cache, env: func(string) string { return "" }}
	if lib, err := l.find(p); err != nil || lib.Path != pinned.Path {
		t.Errorf("found %v, %v", lib, err)
	}
	if !isFile(own.Path) {
		t.Error("the other library is gone")
	}
}

func TestInstallFromDamagedWheel(t *testing.T) {
	root := t.TempDir()
	good := wheel(t, member{"onnxruntime/capi/libonnxruntime.so.1.31.0", bytes.Repeat([]byte("library"), 1000)})
	flipped := slices.Clone(good)
	flipped[80] ^= 0xff
	for name, data := range map[string][]byte{"truncated": good[:len(good)-30], "flipped": flipped} {
		cache := filepath.Join(root, name)
		_, err := install(t.Context(), InstallOptions{From: put(t, data, root, name+".whl"), CacheDir: cache}, testPlatform())
		expectCode(t, err, "runtime.bad_archive")
		expectTree(t, cache)
	}
	if _, err := install(t.Context(), InstallOptions{From: filepath.Join(root, "gone.whl"), CacheDir: t.TempDir()}, testPlatform()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("error %v", err)
	}
}
