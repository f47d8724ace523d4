//go:build cgo && !noort

package onnxruntime

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"

	ort "github.com/yalue/onnxruntime_go"

	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/tensor"
)

// apiVersion is the version of the C API that the binding asks the library for.
const apiVersion = 29

// loadLibrary opens the library and the process-wide environment.
func loadLibrary(lib Library) (string, error) {
	// The CUDA provider reads this when it starts. TensorFloat-32 keeps 10 bits of a product; a check must
	// keep them all.
	if err := os.Setenv("NVIDIA_TF32_OVERRIDE", "0"); err != nil {
		return "", err
	}
	ort.SetSharedLibraryPath(lib.Path)
	err := ort.InitializeEnvironment(ort.WithLogLevelError())
	if err == nil {
		return ort.GetVersion(), nil
	}
	msg := err.Error()
	switch {
	case strings.Contains(msg, "ORT API base"):
		f := finding.Errorf("runtime.too_old", lib.Path, "the library is too old").Hinted(installHint)
		f.Got, f.Want = libraryVersion(lib.Path), fmt.Sprintf("ONNX Runtime 1.%d or newer", apiVersion)
		return "", f
	case strings.Contains(msg, "OrtGetApiBase"):
		return "", finding.Errorf("runtime.not_a_runtime", lib.Path, "the library is not ONNX Runtime").Hinted(installHint)
	}
	return "", finding.Errorf("runtime.not_loadable", lib.Path, "the library cannot be loaded: %s", msg).Hinted(installHint)
}

// missingCUDA says which file of the CUDA provider is not beside the library.
func missingCUDA(lib Library) string {
	dir, err := filepath.EvalSymlinks(filepath.Dir(lib.Path))
	if err != nil || !strings.ContainsAny(lib.Path, `/\`) {
		return "" // the loader's own folders: only starting the provider can tell
	}
	names := []string{"libonnxruntime_providers_shared.so", "libonnxruntime_providers_cuda.so"}
	if runtime.GOOS == "windows" {
		names = []string{"onnxruntime_providers_shared.dll", "onnxruntime_providers_cuda.dll"}
	}
	for _, n := range names {
		if !isFile(filepath.Join(dir, n)) {
			return n + " is not beside the library"
		}
	}
	return ""
}

// A session is a loaded model on a provider. Its run may be called from several goroutines.
type session struct {
	s       *ort.DynamicAdvancedSession
	outputs []string
}

// newSession loads a model. With a trace, a folder, operators that the provider lacks run on the CPU, and when the
// session is closed the folder gets a record of what ran where.
func newSession(m Model, in, out []string, p Provider, threads int, trace string) (*session, error) {
	opts, err := ort.NewSessionOptions()
	if err != nil {
		return nil, err
	}
	defer opts.Destroy()
	if err := configure(opts, p, threads, trace); err != nil {
		return nil, err
	}
	if m.Folder != "" {
		if err := opts.AddSessionConfigEntry("session.model_external_initializers_file_folder_path", m.Folder); err != nil {
			return nil, err
		}
	}
	var s *ort.DynamicAdvancedSession
	if m.Bytes == nil {
		s, err = ort.NewDynamicAdvancedSession(m.Path, in, out, opts)
	} else {
		s, err = ort.NewDynamicAdvancedSessionWithONNXData(m.Bytes, in, out, opts)
	}
	if err != nil {
		return nil, err
	}
	return &session{s, out}, nil
}

func configure(opts *ort.SessionOptions, p Provider, threads int, trace string) error {
	// By default the CPU provider replaces DequantizeLinear and MatMul by a product with 8-bit activations,
	// which is 10⁴ times less accurate than what the file says.
	config := [][2]string{{"session.disable_quant_qdq", "1"}, {"session.set_denormal_as_zero", "0"}}
	// The threads of several small runs would wait for one another by spinning, on cores that other work needs.
	config = append(config, [2]string{"session.intra_op.allow_spinning", "0"})
	if trace != "" {
		if err := opts.EnableProfiling(filepath.Join(trace, "run")); err != nil {
			return err
		}
	} else if p != CPU {
		config = append(config, [2]string{"session.disable_cpu_ep_fallback", "1"})
	}
	for _, c := range config {
		if err := opts.AddSessionConfigEntry(c[0], c[1]); err != nil {
			return err
		}
	}
	if err := opts.SetLogSeverityLevel(ort.LoggingLevelError); err != nil {
		return err
	}
	if threads > 0 {
		if err := opts.SetIntraOpNumThreads(threads); err != nil {
			return err
		}
	}
	switch p {
	case CUDA:
		cuda, err := ort.NewCUDAProviderOptions()
		if err != nil {
			return err
		}
		defer cuda.Destroy()
		if err := cuda.Update(map[string]string{"use_tf32": "0"}); err != nil {
			return err
		}
		return opts.AppendExecutionProviderCUDA(cuda)
	case WebGPU:
		return opts.AppendExecutionProvider("WebGPU", nil)
	}
	return nil
}

func (s *session) close() {
	if s.s != nil {
		s.s.Destroy()
	}
	s.s = nil
}

// run runs the session once. Inputs stand in the order of the session's input names.
func (s *session) run(in []Value) ([]Value, error) {
	var pin runtime.Pinner
	defer pin.Unpin()
	values := make([]ort.Value, 0, len(in))
	defer func() {
		for _, v := range values {
			v.Destroy()
		}
	}()
	for i, v := range in {
		if err := v.check(fmt.Sprint(i)); err != nil {
			return nil, err
		}
		o, err := toORT(v, &pin)
		if err != nil {
			return nil, fmt.Errorf("input %d: %w", i, err)
		}
		values = append(values, o)
	}
	out := make([]ort.Value, len(s.outputs))
	err := s.s.Run(values, out)
	defer func() {
		for _, v := range out {
			// The binding leaves nil pointers of a type where it failed to copy an output.
			if v != nil && !reflect.ValueOf(v).IsNil() {
				v.Destroy()
			}
		}
	}()
	if err != nil {
		return nil, err
	}
	ys := make([]Value, len(out))
	for i, v := range out {
		if ys[i], err = fromORT(v); err != nil {
			return nil, fmt.Errorf("output %q: %w", s.outputs[i], err)
		}
	}
	return ys, nil
}

// toORT wraps a value without copying it. The runtime keeps the pointer until the value is destroyed,
// so the data is pinned.
func toORT(v Value, pin *runtime.Pinner) (ort.Value, error) {
	shape := ort.Shape(v.Shape)
	switch {
	case v.elem != 0 && len(shape) == 0:
		return scalar(v)
	case v.elem != 0:
		raw := v.raw
		if len(raw) == 0 {
			raw = make([]byte, 8) // the binding wants an address even where there are no elements
		}
		pin.Pin(&raw[0])
		return ort.NewCustomDataTensor(shape, raw, ort.TensorElementDataType(v.elem))
	case v.I64 != nil:
		return wrap(shape, v.I64, pin)
	}
	return wrap(shape, v.F32, pin)
}

// scalar makes a value without dimensions, which the binding has for its own types only.
func scalar(v Value) (ort.Value, error) {
	le := binary.LittleEndian
	switch v.elem {
	case onnxFloat:
		return ort.NewScalar(math.Float32frombits(le.Uint32(v.raw)))
	case elements[tensor.I32].number:
		return ort.NewScalar(int32(le.Uint32(v.raw)))
	case elements[tensor.I64].number:
		return ort.NewScalar(int64(le.Uint64(v.raw)))
	case elements[tensor.F64].number:
		return ort.NewScalar(math.Float64frombits(le.Uint64(v.raw)))
	case elements[tensor.Bool].number:
		return ort.NewScalar(v.raw[0] != 0)
	}
	return nil, fmt.Errorf("scalars of its type cannot be given")
}

func wrap[T float32 | int64](shape ort.Shape, v []T, pin *runtime.Pinner) (ort.Value, error) {
	if len(shape) == 0 {
		return ort.NewScalar(v[0])
	}
	if len(v) > 0 {
		pin.Pin(&v[0])
	}
	return ort.NewTensor(shape, v)
}

// fromORT takes over an output; its data has been copied out of the runtime by the binding.
func fromORT(v ort.Value) (Value, error) {
	switch t := v.(type) {
	case *ort.Tensor[float32]:
		return Value{Shape: []int64(t.GetShape()), F32: t.GetData()}, nil
	case *ort.Tensor[int64]:
		return Value{Shape: []int64(t.GetShape()), I64: t.GetData()}, nil
	case nil:
		return Value{}, errors.New("the model gave no value")
	}
	return Value{}, fmt.Errorf("its type %T is neither float32 nor int64; cast it in the graph", v)
}
