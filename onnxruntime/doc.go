// Package onnxruntime is where this program meets ONNX Runtime: it finds or installs the shared
// library, says which devices it can use, runs models, and checks merged modules with it. Nothing
// else in the program talks to the runtime.
//
// The library is found when the program runs (Locate) and never fetched without being asked
// (Install). A program built without cgo, or with the tag noort, has the same functions; those that
// need the library answer with a finding of code runtime.not_built.
//
// # Devices
//
// Open picks the execution provider that will do the work and proves with a small product that it
// does: the fallback to the CPU is off, so a provider that is there but leaves the nodes to the CPU
// counts as not usable. Trying a GPU provider means loading drivers, and a broken driver can kill the
// process. ChildProber tries it in a child process; InProcess does not. CUDA's provider is known to
// replace Go's signal handlers when it loads.
//
// # Limits of what is supported
//
// The binding needs the C API of ONNX Runtime 1.29 or newer. Models need at least one input. Outputs
// must be float32 or int64; cast the others in the graph.
package onnxruntime
