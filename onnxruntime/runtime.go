package onnxruntime

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"sync"

	"github.com/loratool/loratool/finding"
)

// Options are the choices made when the library is opened.
type Options struct {
	Device  Device // "" means Auto
	Threads int    // CPU threads inside an operator; 0 lets the runtime choose
	Prober  Prober // how GPU providers are tried; nil means InProcess
}

// A Runtime is the loaded library and the provider that does the work. It is safe for use by several
// goroutines.
type Runtime struct {
	lib      Library
	version  string
	provider Provider
	threads  int
}

// environment is the library of this process: it is loaded once and stays.
var environment struct {
	sync.Mutex
	path    string
	version string
}

// Open loads the library, once a process, and picks the provider. A device that was named but does not
// compute is an error, never a silent CPU.
func Open(ctx context.Context, lib Library, o Options) (*Runtime, error) {
	version, err := load(lib)
	if err != nil {
		return nil, err
	}
	r := &Runtime{lib: lib, version: version, threads: o.Threads}
	probe := o.Prober
	if probe == nil {
		probe = InProcess
	}
	wish := []Provider{CUDA, WebGPU, CPU}
	if o.Device != Auto && o.Device != "" {
		wish = []Provider{Provider(o.Device)}
	}
	for _, p := range wish {
		res := probe(ctx, lib, p)
		// A software driver is slower than the CPU provider; it is used when it is asked for.
		if res.Usable && (len(wish) == 1 || !res.Software) {
			r.provider = p
			return r, nil
		}
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if len(wish) == 1 || p == CPU {
			return nil, finding.Errorf("runtime.no_device", lib.Path, "device %s is not usable: %s", p, res.Reason).
				Hinted("`loratool runtime info` shows what is; --device auto takes the best of it")
		}
	}
	return nil, finding.Errorf("runtime.no_device", lib.Path, "there is no device %q", o.Device)
}

// load opens the library once. A process cannot change it for another.
func load(lib Library) (version string, err error) {
	environment.Lock()
	defer environment.Unlock()
	if environment.version != "" {
		if environment.path != lib.Path {
			return "", finding.Errorf("runtime.second_library", lib.Path, "this process already uses another library").
				Expected(lib.Path, environment.path)
		}
		return environment.version, nil
	}
	version, err = loadLibrary(lib)
	if err == nil {
		environment.path, environment.version = lib.Path, version
	}
	return version, err
}

// Provider is the provider that does the work.
func (r *Runtime) Provider() Provider { return r.provider }

// Version is the library's own version.
func (r *Runtime) Version() string { return r.version }

// Library is the loaded library.
func (r *Runtime) Library() Library { return r.lib }

// Run loads a model, runs it once with the inputs by name, and returns the named outputs in order. Loading
// a model from an untrusted file is as safe as ONNX Runtime is.
func (r *Runtime) Run(ctx context.Context, m Model, in map[string]Value, out []string) ([]Value, error) {
	s, err := r.Load(ctx, m, sortedKeys(in), out)
	if err != nil {
		return nil, err
	}
	defer s.Close()
	return s.Run(ctx, in)
}

// A Session is a model that is loaded and can be run several times, always with the same inputs.
type Session struct {
	runtime *Runtime
	model   Model
	in      []string
	s       *session
	trace   string // folder of the trace of a mixed session, "" without
}

// Load loads a model for runs with these inputs and outputs. Errors of the runtime have the code
// runtime.run_failed and its own message.
func (r *Runtime) Load(ctx context.Context, m Model, in, out []string) (*Session, error) {
	return r.load(ctx, m, in, out, "")
}

// LoadMixed is Load for models made elsewhere, of which a GPU provider may lack operators, such as those that work on
// shapes: these run on the CPU. Where each one ran is recorded, and Placement tells.
func (r *Runtime) LoadMixed(ctx context.Context, m Model, in, out []string) (*Session, error) {
	if r.provider == CPU {
		return r.load(ctx, m, in, out, "")
	}
	dir, err := os.MkdirTemp("", "loratool-trace-")
	if err != nil {
		return nil, finding.Errorf("output.io", m.Path, "no temporary folder: %v", err)
	}
	s, err := r.load(ctx, m, in, out, dir)
	if err != nil {
		os.RemoveAll(dir)
	}
	return s, err
}

func (r *Runtime) load(ctx context.Context, m Model, in, out []string, trace string) (*Session, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	s, err := r.open(m, in, out, r.threads, trace)
	if err != nil {
		return nil, modelError(m, err)
	}
	return &Session{r, m, in, s, trace}, nil
}

// Run runs the model once, and returns its outputs in the order in which they were named.
func (s *Session) Run(ctx context.Context, in map[string]Value) ([]Value, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	values := make([]Value, len(s.in))
	for i, n := range s.in {
		v, ok := in[n]
		if !ok {
			return nil, finding.Errorf("runtime.bad_input", s.model.Path, "input %q is not given", n)
		}
		if err := v.check(n); err != nil {
			return nil, finding.Errorf("runtime.bad_input", s.model.Path, "%v", err)
		}
		// The WebGPU provider crashes on tensors without elements.
		if size, _ := v.Shape.Elements(); size == 0 && s.runtime.provider == WebGPU {
			return nil, finding.Errorf("runtime.bad_input", s.model.Path, "input %q has no elements, which WebGPU does not bear", n).
				Hinted("use --device cpu, or zeros of rank 1 for an absent adapter")
		}
		values[i] = v
	}
	ys, err := s.s.run(values)
	if err != nil {
		return nil, modelError(s.model, err)
	}
	return ys, nil
}

// Close frees the model.
func (s *Session) Close() {
	s.s.close()
	if s.trace != "" {
		os.RemoveAll(s.trace)
	}
}

// open makes a session on the runtime's provider.
func (r *Runtime) open(m Model, in, out []string, threads int, trace string) (*session, error) {
	if len(in) == 0 || len(out) == 0 {
		return nil, fmt.Errorf("a run needs at least one input and one output, found %d and %d", len(in), len(out))
	}
	return newSession(m, in, out, r.provider, threads, trace)
}

func modelError(m Model, err error) error {
	if f := finding.Of(err); f != nil {
		return err
	}
	return finding.Errorf("runtime.run_failed", m.Path, "ONNX Runtime: %v", err)
}

// The sizes of the product that proves a provider.
const (
	probeRows = 4
	probeIn   = 96
	probeOut  = 64
)

// prove multiplies two small matrices on a provider and compares with float64 arithmetic. The result is
// the relative error.
func prove(p Provider) (float64, error) {
	var g graph
	g.input("X", onnxFloat, "m", "k")
	g.input("W", onnxFloat, "k", "n")
	g.node("MatMul", []string{"X", "W"}, "Y")
	g.output("Y", "m", "n")
	s, err := newSession(Model{Bytes: g.model()}, []string{"X", "W"}, []string{"Y"}, p, 1, "")
	if err != nil {
		return 0, err
	}
	defer s.close()
	random := rand.New(rand.NewPCG(1, 2))
	x, w := normal(random, probeRows*probeIn), normal(random, probeIn*probeOut)
	ys, err := s.run([]Value{Floats(x, probeRows, probeIn), Floats(w, probeIn, probeOut)})
	if err != nil {
		return 0, err
	}
	y := ys[0].F32
	if len(y) != probeRows*probeOut {
		return 0, fmt.Errorf("the product has %d elements, expected %d", len(y), probeRows*probeOut)
	}
	var diff, norm float64
	for i := range probeRows {
		for j := range probeOut {
			var want float64
			for k := range probeIn {
				want += float64(x[i*probeIn+k]) * float64(w[k*probeOut+j])
			}
			d := float64(y[i*probeOut+j]) - want
			diff, norm = diff+d*d, norm+want*want
		}
	}
	e := math.Sqrt(diff / norm)
	if !(e <= 1e-5) {
		return e, fmt.Errorf("a small product is wrong: relative error %.1e", e)
	}
	return e, nil
}

func normal(random *rand.Rand, n int) []float32 {
	v := make([]float32, n)
	for i := range v {
		v[i] = float32(random.NormFloat64())
	}
	return v
}
