package onnxruntime

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/loratool/loratool/finding"
)

// InstallOptions say where the library comes from and where it goes. The zero value fetches the pinned
// version with npm into the user's cache folder.
type InstallOptions struct {
	// From is a file to take the library from instead: the npm package (.tgz), a release archive (.tgz or
	// .zip), a Python wheel, or the library itself. Any version is accepted and its hash reported.
	From string
	// CacheDir is the folder to fill; "" means DefaultCacheDir.
	CacheDir string
	// Progress, where not nil, is told what happens, one line at a time.
	Progress func(line string)
}

// An Installed library.
type Installed struct {
	Path    string   `json:"path"`
	SHA256  string   `json:"sha256"`
	Pinned  bool     `json:"pinned"`  // the hash is one this program knows
	Already bool     `json:"already"` // it was there before, byte for byte
	Files   []string `json:"files"`   // names of all files in the library's folder
}

// Install puts the library into the cache and makes it the one that Locate finds. A wrong hash, a
// damaged archive and a failed download leave the cache as it was. Without From the npm client must be
// on the PATH; it runs no scripts of the package.
func Install(ctx context.Context, o InstallOptions) (Installed, error) {
	return install(ctx, o, here())
}

func install(ctx context.Context, o InstallOptions, p platform) (Installed, error) {
	if o.CacheDir == "" {
		dir, err := DefaultCacheDir()
		if err != nil {
			return Installed{}, err
		}
		o.CacheDir = dir
	}
	if o.Progress == nil {
		o.Progress = func(string) {}
	}
	if o.From == "" {
		if len(p.npm) == 0 {
			return Installed{}, finding.Errorf("runtime.no_package", "", "npm package %s %s has no library for %s", npmPackage, npmVersion, p.npmDir).
				Hinted("give an archive or a library with --from")
		}
		if in, ok := p.installed(o.CacheDir, npmVersion); ok {
			o.Progress("already installed: " + in.Path)
			return in, setCurrent(o.CacheDir, npmVersion)
		}
	}
	if err := os.MkdirAll(o.CacheDir, 0o755); err != nil {
		return Installed{}, installError(o.CacheDir, err)
	}
	work, err := os.MkdirTemp(o.CacheDir, ".install-*")
	if err != nil {
		return Installed{}, installError(o.CacheDir, err)
	}
	defer os.RemoveAll(work)
	from := o.From
	if from == "" {
		if from, err = npmPack(ctx, filepath.Join(work, "npm"), o.Progress); err != nil {
			return Installed{}, err
		}
	}
	files := filepath.Join(work, "files")
	if err := os.Mkdir(files, 0o755); err != nil {
		return Installed{}, installError(o.CacheDir, err)
	}
	o.Progress("extracting " + filepath.Base(from))
	hashes, err := p.extract(ctx, from, files)
	if err != nil {
		return Installed{}, err
	}
	name := p.version(hashes)
	if name == "" && o.From == "" {
		return Installed{}, p.mismatch(from, hashes)
	}
	if name == "" {
		name = "sha256-" + hashes[p.names[0]][:16]
	}
	return p.commit(o, files, name, hashes)
}

// version is npmVersion when the files are the pinned ones, else "".
func (p platform) version(hashes map[string]string) string {
	if len(p.npm) == 0 {
		return ""
	}
	for _, f := range p.npm {
		if hashes[f.name] != f.sha256 {
			return ""
		}
	}
	return npmVersion
}

// mismatch says which of the pinned files is missing or differs.
func (p platform) mismatch(from string, hashes map[string]string) error {
	for _, f := range p.npm {
		got, ok := hashes[f.name]
		switch {
		case !ok:
			return finding.Errorf("runtime.not_in_archive", filepath.Base(from), "the archive does not hold %s", f.name)
		case got != f.sha256:
			return finding.Errorf("runtime.wrong_hash", filepath.Base(from), "%s is not the library this program knows", f.name).
				Expected("sha256 "+got, f.sha256).Hinted("nothing was installed; if you trust the file, give it with --from")
		}
	}
	return nil
}

// commit moves the extracted files into the cache under name, unless the same are there already.
func (p platform) commit(o InstallOptions, files, name string, hashes map[string]string) (Installed, error) {
	dir := filepath.Join(o.CacheDir, name)
	already := sameFiles(dir, hashes)
	if !already {
		// A folder of that name with other bytes is damaged: move it out of the way, into the work folder
		// that goes away.
		if err := os.Rename(dir, files+".old"); err != nil && !errors.Is(err, os.ErrNotExist) {
			return Installed{}, installError(dir, err)
		}
		if err := os.Rename(files, dir); err != nil {
			return Installed{}, installError(dir, err)
		}
	}
	if err := setCurrent(o.CacheDir, name); err != nil {
		return Installed{}, err
	}
	in := Installed{
		Path: filepath.Join(dir, p.names[0]), SHA256: hashes[p.names[0]], Pinned: name == npmVersion, Already: already,
	}
	for f := range hashes {
		in.Files = append(in.Files, f)
	}
	slices.Sort(in.Files)
	if already {
		o.Progress("already installed: " + in.Path)
	} else {
		o.Progress("installed: " + in.Path)
	}
	return in, nil
}

// installed returns the pinned library in the cache if all its files have the right hash.
func (p platform) installed(cacheDir, name string) (Installed, bool) {
	dir := filepath.Join(cacheDir, name)
	hashes := map[string]string{}
	in := Installed{Path: filepath.Join(dir, p.names[0]), SHA256: p.npm[0].sha256, Pinned: true, Already: true}
	for _, f := range p.npm {
		hashes[f.name] = f.sha256
		in.Files = append(in.Files, f.name)
	}
	return in, sameFiles(dir, hashes)
}

func sameFiles(dir string, hashes map[string]string) bool {
	for name, want := range hashes {
		if sum, err := fileSHA256(filepath.Join(dir, name)); err != nil || sum != want {
			return false
		}
	}
	return true
}

// setCurrent records which folder of the cache is in use.
func setCurrent(cacheDir, name string) error {
	if current(cacheDir) == name {
		return nil
	}
	tmp, err := os.CreateTemp(cacheDir, ".current-*")
	if err != nil {
		return installError(cacheDir, err)
	}
	defer os.Remove(tmp.Name())
	_, err = tmp.WriteString(name + "\n")
	if err = errors.Join(err, tmp.Close()); err == nil {
		err = os.Rename(tmp.Name(), filepath.Join(cacheDir, currentFile))
	}
	if err != nil {
		return installError(cacheDir, err)
	}
	return nil
}

// npmPack downloads the package's tarball into dir and returns its path.
func npmPack(ctx context.Context, dir string, progress func(string)) (string, error) {
	npm, err := exec.LookPath("npm")
	if err != nil {
		return "", finding.Errorf("runtime.no_npm", "", "the npm client is not on the PATH").
			Hinted("install npm, or get the library elsewhere and give it with --from: the npm package " + npmPackage +
				"-" + npmVersion + ".tgz, a release archive, an onnxruntime wheel, or the library itself")
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		return "", installError(dir, err)
	}
	spec := npmPackage + "@" + npmVersion
	progress("npm pack " + spec + " (about 114 MB)")
	cmd := exec.CommandContext(ctx, npm, "pack", spec, "--ignore-scripts", "--silent")
	cmd.Dir = dir
	cmd.WaitDelay = 5 * time.Second
	var log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return "", ctx.Err()
		}
		return "", finding.Errorf("runtime.npm_failed", "", "npm pack %s failed: %v: %s", spec, err, lastLine(log.String())).
			Hinted("check npm's registry and proxy settings, or use --from")
	}
	found, err := filepath.Glob(filepath.Join(dir, "*.tgz"))
	if err != nil || len(found) != 1 {
		return "", finding.Errorf("runtime.npm_failed", "", "npm pack %s left %d archives, expected one", spec, len(found))
	}
	return found[0], nil
}

func lastLine(s string) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return strings.TrimSpace(lines[len(lines)-1])
}

func installError(path string, err error) error {
	return fmt.Errorf("installing ONNX Runtime: %s: %w", path, err)
}
