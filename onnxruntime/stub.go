//go:build !cgo || noort

package onnxruntime

import "github.com/loratool/loratool/finding"

const apiVersion = 0

func notBuilt() error {
	return finding.Errorf("runtime.not_built", "", "built without ONNX Runtime").
		Hinted("use a build with cgo and without the tag noort; everything but ONNX Runtime's checks works in this one")
}

func systemLibrary(string) (string, bool) { return "", false }

func loadLibrary(Library) (string, error) { return "", notBuilt() }

func missingCUDA(Library) string { return notBuilt().Error() }

func gpuLoader() error { return notBuilt() }

func gpuDevices() []gpuDevice { return nil }

type session struct{}

func newSession(Model, []string, []string, Provider, int, string) (*session, error) {
	return nil, notBuilt()
}

func (*session) close() {}

func (*session) run([]Value) ([]Value, error) { return nil, notBuilt() }
