package onnxruntime

import (
	"crypto/sha256"
	"encoding/hex"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/loratool/loratool/finding"
)

// The environment variables that name the library: the first is what Go programs use, the second
// what Rust programs use.
const (
	EnvGo   = "ONNXRUNTIME_SHARED_LIBRARY_PATH"
	EnvRust = "ORT_DYLIB_PATH"
)

const installHint = "run `loratool runtime install`, or name the library with --ort-lib or " + EnvGo

// A Library is an ONNX Runtime shared library and where the choice came from.
type Library struct {
	Path   string `json:"path"`   // a file, or a bare name for the system's loader
	Source string `json:"source"` // "flag", a variable's name, "executable", "node_modules", "cache", "system"
}

// Locate finds the library. The order is: flag (a file or a folder), ONNXRUNTIME_SHARED_LIBRARY_PATH,
// ORT_DYLIB_PATH, the executable's folder and lib below it, node_modules of the working folder, what
// Install put into the user's cache, and the system's loader. A flag or variable that names nothing is
// an error, so that an explicit choice is never replaced by another.
//
// The working folder may be one that came with a model, so what its node_modules holds is taken only
// when the files have the pinned SHA-256 and no other library lies beside them. Windows ships a library of its own that is too old; there
// the system is not asked.
func Locate(flag string) (Library, error) {
	cache, err := DefaultCacheDir()
	if err != nil {
		cache = ""
	}
	exe, err := os.Executable()
	if err == nil {
		if real, err := filepath.EvalSymlinks(exe); err == nil {
			exe = real
		}
		exe = filepath.Dir(exe)
	}
	return lookup{flag: flag, env: os.Getenv, exeDir: exe, workDir: ".", cacheDir: cache, system: systemLibrary}.find(here())
}

// A lookup is where to look.
type lookup struct {
	flag                      string
	env                       func(string) string
	exeDir, workDir, cacheDir string
	system                    func(name string) (path string, ok bool)
}

func (l lookup) find(p platform) (Library, error) {
	named := []Library{{l.flag, "flag"}, {l.env(EnvGo), EnvGo}, {l.env(EnvRust), EnvRust}}
	for _, n := range named {
		if n.Path == "" {
			continue
		}
		return l.explicit(p, n)
	}
	if l.exeDir != "" {
		for _, dir := range []string{l.exeDir, filepath.Join(l.exeDir, "lib")} {
			if f := p.in(dir); f != "" {
				return Library{f, "executable"}, nil
			}
		}
	}
	if f := l.nodeModules(p); f != "" {
		return Library{f, "node_modules"}, nil
	}
	if l.cacheDir != "" {
		if f := p.in(filepath.Join(l.cacheDir, current(l.cacheDir))); f != "" {
			return Library{f, "cache"}, nil
		}
	}
	for _, n := range p.names {
		if f, ok := l.system(n); ok {
			return Library{f, "system"}, nil
		}
	}
	return Library{}, finding.Errorf("runtime.not_found", "", "no ONNX Runtime library was found").Hinted(installHint)
}

// explicit resolves a path someone gave. A bare name that is no file here is for the system's loader.
func (l lookup) explicit(p platform, n Library) (Library, error) {
	if isFile(n.Path) {
		return n, nil
	}
	if f := p.in(n.Path); f != "" {
		return Library{f, n.Source}, nil
	}
	if !strings.ContainsAny(n.Path, `/\`) {
		if f, ok := l.system(n.Path); ok {
			return Library{f, n.Source}, nil
		}
	}
	return Library{}, finding.Errorf("runtime.not_found", n.Path, "%s names no ONNX Runtime library", n.Source).Hinted(installHint)
}

func (l lookup) nodeModules(p platform) string {
	if len(p.npm) == 0 {
		return ""
	}
	dirs, err := filepath.Glob(filepath.Join(l.workDir, "node_modules", npmPackage, "bin", "napi-v*", filepath.FromSlash(p.npmDir)))
	if err != nil {
		return ""
	}
	slices.Sort(dirs)
	for _, dir := range slices.Backward(dirs) {
		if p.pristine(dir) {
			return filepath.Join(dir, p.npm[0].name)
		}
	}
	return ""
}

// pristine reports whether dir holds the pinned files and nothing else that loading them could pull
// in: the library looks beside itself for its providers and for the C++ runtime.
func (p platform) pristine(dir string) bool {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return false
	}
	for _, e := range entries {
		pinned := slices.ContainsFunc(p.npm, func(f pinnedFile) bool { return f.name == e.Name() })
		if !pinned && !strings.HasSuffix(e.Name(), ".node") && !p.pattern.MatchString(e.Name()) {
			return false
		}
	}
	for _, f := range p.npm {
		path := filepath.Join(dir, f.name)
		if st, err := os.Stat(path); err != nil || st.Size() != f.size {
			return false
		}
		if sum, err := fileSHA256(path); err != nil || sum != f.sha256 {
			return false
		}
	}
	return true
}

// DefaultCacheDir is the folder that Install fills when it is given none: loratool/ort in the user's
// cache folder. Each installed library has a folder of its own in it, and the file "current" names the
// one in use.
func DefaultCacheDir() (string, error) {
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", finding.Errorf("runtime.no_cache", "", "there is no cache folder: %v", err).Hinted("set XDG_CACHE_HOME or HOME")
	}
	return filepath.Join(dir, "loratool", "ort"), nil
}

// current is the name of the installed library's folder in use: what the file says, else the pinned version.
func current(cacheDir string) string {
	b, err := os.ReadFile(filepath.Join(cacheDir, currentFile))
	name := strings.TrimSpace(string(b))
	if err != nil || name == "" || name != filepath.Base(name) || !filepath.IsLocal(name) {
		return npmVersion
	}
	return name
}

const currentFile = "current"

func isFile(path string) bool {
	st, err := os.Stat(path)
	return err == nil && st.Mode().IsRegular()
}

func fileSHA256(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}
