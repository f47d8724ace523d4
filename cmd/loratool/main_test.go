package main

import (
	"os"
	"testing"

	"github.com/loratool/loratool/onnxruntime"
)

// asMain makes the test program be loratool.
const asMain = "LORATOOL_TEST_AS_MAIN"

var runTests = func(m *testing.M) { os.Exit(m.Run()) }

func TestMain(m *testing.M) {
	onnxruntime.ServeProbe()
	if os.Getenv(asMain) != "" {
		main()
	}
	runTests(m)
}
