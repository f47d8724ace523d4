//go:build cgo && !noort

package onnxruntime

// systemLibrary finds nothing: Windows has an onnxruntime.dll of its own in the system folder, and it
// is too old.
func systemLibrary(string) (string, bool) { return "", false }

// libraryVersion says nothing here.
func libraryVersion(string) string { return "" }
