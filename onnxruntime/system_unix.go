//go:build cgo && !noort && !windows

package onnxruntime

/*
#cgo LDFLAGS: -ldl
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>

// runtime_path opens a library and returns the file that defines OrtGetApiBase in it, or NULL.
static const char *runtime_path(const char *name, void **handle) {
	Dl_info info;
	void *f;
	*handle = dlopen(name, RTLD_LAZY | RTLD_LOCAL);
	if (*handle == NULL) return NULL;
	f = dlsym(*handle, "OrtGetApiBase");
	if (f == NULL || dladdr(f, &info) == 0) return NULL;
	return info.dli_fname;
}

// The structure that OrtGetApiBase returns, which has been the same since the first release.
typedef struct {
	const void *(*api)(unsigned version);
	const char *(*version)(void);
} api_base;

// runtime_version returns the version that a library says it has, or NULL.
static const char *runtime_version(const char *path) {
	void *handle = dlopen(path, RTLD_LAZY | RTLD_LOCAL);
	const api_base *(*get)(void);
	const api_base *base;
	if (handle == NULL) return NULL;
	get = (const api_base *(*)(void))dlsym(handle, "OrtGetApiBase");
	if (get == NULL || (base = get()) == NULL || base->version == NULL) return NULL;
	return base->version();
}
*/
import "C"

import "unsafe"

// systemLibrary asks the loader for an ONNX Runtime by name and returns the file it takes.
func systemLibrary(name string) (string, bool) {
	s := C.CString(name)
	defer C.free(unsafe.Pointer(s))
	var handle unsafe.Pointer
	path := C.runtime_path(s, &handle)
	if handle == nil {
		return "", false
	}
	defer C.dlclose(handle)
	if path == nil {
		return "", false
	}
	return C.GoString(path), true
}

// libraryVersion asks a library for its version, "" where it does not say.
func libraryVersion(path string) string {
	s := C.CString(path)
	defer C.free(unsafe.Pointer(s))
	v := C.runtime_version(s)
	if v == nil {
		return ""
	}
	return C.GoString(v)
}
