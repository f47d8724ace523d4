package onnxruntime

import (
	"context"
	"sync"
)

// CheckOptions are the choices of a Checker. The zero value is sensible.
type CheckOptions struct {
	Seed    uint64 // of all modules' inputs, combined with each module's name
	Rows    int    // of the input X; 0 means 8
	Columns int    // outputs of a module compared with float64 arithmetic; 0 means 64
	// RunBytes bounds the base and merged weights, as float32, of one run; 0 means 16 MiB.
	RunBytes int
}

// A Checker compares merged modules with base and adapter on a runtime. It keeps one session for each
// combination of stored types, and may be used by several goroutines.
type Checker struct {
	runtime *Runtime
	options CheckOptions
	decode  bool

	mu       sync.Mutex
	sessions map[checkGraph]*session
}

// NewChecker makes a checker. Close frees its sessions.
func (r *Runtime) NewChecker(o CheckOptions) *Checker {
	if o.Rows <= 0 {
		o.Rows = 8
	}
	if o.Columns <= 0 {
		o.Columns = 64
	}
	if o.RunBytes <= 0 {
		o.RunBytes = 16 << 20
	}
	return &Checker{
		runtime: r, options: o, sessions: map[checkGraph]*session{},
		// WebGPU casts neither bfloat16 nor, on every device, float16.
		decode: r.provider == WebGPU,
	}
}

// Close frees the sessions. The checker must not be in use.
func (c *Checker) Close() {
	for _, s := range c.sessions {
		s.close()
	}
	clear(c.sessions)
}

// Check measures a module given whole. It works on slices of its rows, so that the memory it needs
// beside the weights is bounded.
func (c *Checker) Check(ctx context.Context, m Module, whole Block) (Result, error) {
	a, err := c.Start(m)
	if err != nil {
		return Result{}, err
	}
	if err := a.Add(ctx, whole); err != nil {
		return Result{}, err
	}
	return a.Result()
}

// A form is how the wanted change reaches the graph.
type form uint8

const (
	lowRank form = iota // A, B and a scale for each rank
	difference
	expected
)

// A checkGraph tells check graphs apart.
type checkGraph struct {
	base, merged int64 // ONNX types
	transposed   bool
	form         form
}

// inputs are the graph's inputs in order.
func (k checkGraph) inputs() []string {
	if k.form == lowRank {
		return []string{"X", "W", "M", "A", "s", "B"}
	}
	return []string{"X", "W", "M", "V"}
}

var checkOutputs = []string{"Y0", "Y1", "D"}

// model builds the graph: all weights are inputs, so that nothing is serialised or copied, and are cast
// to float32 before the products, whatever precision the provider has for the stored type.
//
//	Y0 = X·Wᵀ   Y1 = X·Mᵀ   D = ((X·Aᵀ)∘s)·Bᵀ, X·Vᵀ or X·(V−W)ᵀ
func (k checkGraph) model() []byte {
	var g graph
	rows, cols, transB := "n", "k", int64(1)
	if k.transposed {
		rows, cols, transB = "k", "n", 0
	}
	g.input("X", onnxFloat, "m", "k")
	g.input("W", k.base, rows, cols)
	g.input("M", k.merged, rows, cols)
	toFloat := func(name string, elem int64) string {
		if elem == onnxFloat {
			return name
		}
		g.node("Cast", []string{name}, name+"f", attribute{"to", onnxFloat})
		return name + "f"
	}
	product := func(x, w, y string, transB int64) {
		g.node("Gemm", []string{x, w}, y, attribute{"transB", transB})
	}
	w := toFloat("W", k.base)
	product("X", w, "Y0", transB)
	product("X", toFloat("M", k.merged), "Y1", transB)
	switch k.form {
	case lowRank:
		g.input("A", onnxFloat, "r", "k")
		g.input("s", onnxFloat, "one", "r")
		g.input("B", onnxFloat, "n", "r")
		product("X", "A", "XA", 1)
		g.node("Mul", []string{"XA", "s"}, "XAs")
		product("XAs", "B", "D", 1)
	case difference:
		g.input("V", onnxFloat, rows, cols)
		product("X", "V", "D", transB)
	case expected:
		g.input("V", onnxFloat, rows, cols)
		g.node("Sub", []string{"V", w}, "VW")
		product("X", "VW", "D", transB)
	}
	for _, y := range checkOutputs {
		g.output(y, "m", "n")
	}
	return g.model()
}

// session returns the session for a graph, made on first use.
func (c *Checker) session(k checkGraph) (*session, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if s := c.sessions[k]; s != nil {
		return s, nil
	}
	m := Model{Bytes: k.model()}
	// One thread: the callers are as many as there are processors, and more of either would wait for one another.
	s, err := c.runtime.open(m, k.inputs(), checkOutputs, 1, "")
	if err != nil {
		return nil, modelError(m, err)
	}
	c.sessions[k] = s
	return s, nil
}
