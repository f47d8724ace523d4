package onnxruntime

import (
	"os"
	"testing"
)

// TestMain lets the test program be the child of ChildProber.
func TestMain(m *testing.M) {
	ServeProbe()
	os.Exit(m.Run())
}

// need opens the installed library on the CPU, or skips the test.
func need(t testing.TB) *Runtime {
	t.Helper()
	lib, err := Locate("")
	if err != nil {
		t.Skip("needs the ONNX Runtime library (loratool runtime install): ", err)
	}
	r, err := Open(t.Context(), lib, Options{Device: Device(CPU)})
	if err != nil {
		if apiVersion == 0 {
			t.Skip("needs a build with cgo: ", err)
		}
		t.Fatal(err)
	}
	return r
}
