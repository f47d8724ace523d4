//go:build !cgo || noort

package onnxruntime

import "testing"

func TestStubSaysSo(t *testing.T) {
	lib := Library{Path: "libonnxruntime.so.1", Source: "flag"}
	_, err := Open(t.Context(), lib, Options{})
	expectCode(t, err, "runtime.not_built")
	_, err = Info(t.Context(), lib, nil)
	expectCode(t, err, "runtime.not_built")
	if p := InProcess(t.Context(), lib, CPU); p.Usable || p.Reason == "" {
		t.Errorf("probe %+v", p)
	}
}
