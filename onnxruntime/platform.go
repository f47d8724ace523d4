package onnxruntime

import (
	"fmt"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
)

// A platform says what the library is called on one operating system and processor, and which files
// of the npm package make it up.
type platform struct {
	// names are the file names looked for, best first. The first is the name an installed library gets.
	names []string
	// pattern matches the library's file name in archives, with or without version.
	pattern *regexp.Regexp
	// providers matches the execution providers that are separate files beside the library.
	providers *regexp.Regexp
	// npmDir is the folder below bin/napi-v* in the npm package, such as linux/x64.
	npmDir string
	// npm are the pinned files, the library first. Empty: the package has none for this platform.
	npm []pinnedFile
}

// A pinnedFile is a file of the npm package with its size in bytes and its SHA-256.
type pinnedFile struct {
	name   string
	size   int64
	sha256 string
}

// The npm package whose contents are pinned. Hashes were taken from its tarball of 113507888 bytes.
const (
	npmPackage = "onnxruntime-node"
	npmVersion = "1.30.0"
)

var (
	soPattern     = regexp.MustCompile(`^libonnxruntime\.so(\.\d+)*$`)
	dylibPattern  = regexp.MustCompile(`^libonnxruntime(\.\d+)*\.dylib$`)
	dllPattern    = regexp.MustCompile(`^onnxruntime\.dll$`)
	soProviders   = regexp.MustCompile(`^libonnxruntime_providers_(shared|cuda)\.so$`)
	dllProviders  = regexp.MustCompile(`^onnxruntime_providers_(shared|cuda)\.dll$`)
	noneProviders = regexp.MustCompile(`^$`)
)

var platforms = map[string]platform{
	"linux/amd64": linux("linux/x64", pinnedFile{"libonnxruntime.so.1", 45828512,
		"ffb75a925ba05e47b235bb66e3e3911714a80b328a9c9425539feb204aa32a23"}),
	"linux/arm64": linux("linux/arm64", pinnedFile{"libonnxruntime.so.1", 25135496,
		"1f549d46250b005580b597f4164984aaf75b3bcb9f3aeb07c7f8a8fe60b23c76"}),
	"darwin/arm64": {
		names:   []string{"libonnxruntime.1.dylib", "libonnxruntime.dylib"},
		pattern: dylibPattern, providers: noneProviders, npmDir: "darwin/arm64",
		npm: []pinnedFile{{"libonnxruntime.1.dylib", 44589928,
			"685d2be5dba1309c89d3a5324b7fd06a5c42f1a61bfea32d14c4cc28d072121d"}},
	},
	"darwin/amd64": {
		names:   []string{"libonnxruntime.1.dylib", "libonnxruntime.dylib"},
		pattern: dylibPattern, providers: noneProviders, npmDir: "darwin/x64",
	},
	// The WebGPU provider of the Windows library loads the other three from its own folder.
	"windows/amd64": windows("win32/x64",
		pinnedFile{"onnxruntime.dll", 28754232, "508c362f5673483dd3a086379c392795b2e42d10d5e6f3f90ebd7ac21c97af67"},
		pinnedFile{"DirectML.dll", 18527584, "234e8898778cdec88d3cb0539508273494082812c968699f3de665a018971625"},
		pinnedFile{"dxcompiler.dll", 17986360, "593d42df78c7f9cbd97c1374af107cfe20985759f98b77afc1448fe41ee3cc76"},
		pinnedFile{"dxil.dll", 1508664, "cf9a3981263f8ec30c9905d136eeaf4b4573209c602198671b958ec86905dea8"}),
	"windows/arm64": windows("win32/arm64",
		pinnedFile{"onnxruntime.dll", 29815136, "6c3a2abf5c6aca11c48a0d338a91af309f2266f25ce2e4084e6a87bbcb0fbfd0"},
		pinnedFile{"DirectML.dll", 18444600, "aaf72a9d55aa123e0708d957d30dd4fbeb7a2e335ec6257ed5ff4261a402b9ee"},
		pinnedFile{"dxcompiler.dll", 22285624, "442a995492579e1048cf1f05a86ab00f476c46b7f9d0996e588884040a543bbe"},
		pinnedFile{"dxil.dll", 1769784, "859b6d638c5ca3df39e9cab2a602cb0f63d0e63d750f84bb2a9ec9031319b73e"}),
}

func linux(npmDir string, npm ...pinnedFile) platform {
	return platform{
		names:   []string{"libonnxruntime.so.1", "libonnxruntime.so"},
		pattern: soPattern, providers: soProviders, npmDir: npmDir, npm: npm,
	}
}

func windows(npmDir string, npm ...pinnedFile) platform {
	return platform{
		names:   []string{"onnxruntime.dll"},
		pattern: dllPattern, providers: dllProviders, npmDir: npmDir, npm: npm,
	}
}

// here is the platform the program runs on. Unlisted Unix systems use Linux's names and have no
// pinned files.
func here() platform {
	if p, ok := platforms[runtime.GOOS+"/"+runtime.GOARCH]; ok {
		return p
	}
	return linux(fmt.Sprintf("%s/%s", runtime.GOOS, runtime.GOARCH))
}

// wants reports whether an archive member is a file of this platform's runtime, and under which name
// it is installed. The npm package holds several platforms; its members must lie in the right folder.
func (p platform) wants(member string) (name string, ok bool) {
	member = strings.ReplaceAll(member, `\`, "/")
	if i := strings.Index(member, "/napi-v"); i >= 0 {
		_, rest, _ := strings.Cut(member[i+1:], "/")
		if !strings.HasPrefix(rest, p.npmDir+"/") {
			return "", false
		}
	}
	base := member[strings.LastIndexByte(member, '/')+1:]
	switch {
	case p.pattern.MatchString(base):
		return p.names[0], true
	case p.providers.MatchString(base):
		return base, true
	}
	for i, f := range p.npm {
		if i > 0 && f.name == base {
			return base, true
		}
	}
	return "", false
}

// in returns the library in dir, or "" where there is none.
func (p platform) in(dir string) string {
	for _, n := range p.names {
		if f := filepath.Join(dir, n); isFile(f) {
			return f
		}
	}
	return ""
}
