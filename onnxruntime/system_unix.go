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
