package adapter

import "fmt"

// glora is W[block] += s·(B·A + W·B2·A2), the second product along the inputs.
type glora struct {
	area
	sum    *product // s·B·A
	group  int64    // columns of one input: the taps of a kernel
	a2, b2 Factor
	rank   int64
	scale  float64
	a, b   []float64 // A2 [rank, in], B2 [in, rank]
	mixed  []float64 // transposed only: B2ᵀ·W, rank × cols
}

func (b *binding) glora() (Op, error) {
	p, err := b.product()
	if err != nil {
		return nil, err
	}
	u := b.u
	g := &glora{area: p.area, sum: p, a2: u.A2, b2: u.B2, rank: u.A2.Rows, scale: u.Scale.Value, group: 1}
	_, inputs := g.sides()
	n := u.B2.Rows
	if u.B2.Cols != g.rank || u.A2.Cols != n || n == 0 || inputs%n != 0 || inputs != n && (len(b.stored.Shape) < 3 || g.transposed) {
		return nil, b.mismatch(fmt.Sprintf("input factors [%d, %d] and [%d, %d]", u.B2.Rows, u.B2.Cols, u.A2.Rows, u.A2.Cols), fmt.Sprintf("[%d, r] and [r, %d]", inputs, inputs))
	}
	g.group = inputs / n
	return g, nil
}

func (g *glora) LowRank() (Product, bool) { return Product{}, false }
func (g *glora) Columns() bool            { return g.transposed }

func (g *glora) Load() error {
	a, err := load(g.a2)
	if err != nil {
		return err
	}
	b, err := load(g.b2)
	if err != nil {
		return err
	}
	g.a, g.b = widened(a), widened(b)
	return g.sum.Load()
}

func (g *glora) Release() {
	g.a, g.b, g.mixed = nil, nil, nil
	g.sum.Release()
}

// Prepare sums B2ᵀ·W where the inputs are stored as rows.
func (g *glora) Prepare(next func() ([]float32, int64, error)) error {
	if !g.transposed {
		return nil
	}
	g.mixed = make([]float64, g.rank*g.cols)
	for {
		rows, first, err := next()
		if err != nil || len(rows) == 0 {
			return err
		}
		lo, hi := g.overlap(int64(len(rows))/g.width, first)
		for i := lo; i < hi; i++ {
			row := blockRow(g.area, rows, i, first)
			for k := range g.rank {
				x := g.b[i*g.rank+k]
				for j, w := range row {
					g.mixed[k*g.cols+int64(j)] += float64(x * float64(w))
				}
			}
		}
	}
}

func (g *glora) Apply(rows []float32, first int64) {
	applyGLoRA(g, rows, first, g.sum.Apply)
}

func (g *glora) Exact(rows []float64, first int64) {
	applyGLoRA(g, rows, first, g.sum.Exact)
}

func applyGLoRA[T float32 | float64](g *glora, rows []T, first int64, add func([]T, int64)) {
	lo, hi := g.overlap(int64(len(rows))/g.width, first)
	if lo >= hi {
		return
	}
	change := make([]float64, (hi-lo)*g.cols)
	for i := lo; i < hi; i++ {
		g.mix(change[(i-lo)*g.cols:][:g.cols], i, func(j int64) float64 { return float64(blockRow(g.area, rows, i, first)[j]) })
	}
	add(rows, first)
	for i := lo; i < hi; i++ {
		row := blockRow(g.area, rows, i, first)
		for j, x := range change[(i-lo)*g.cols:][:g.cols] {
			row[j] += T(g.scale * x)
		}
	}
}

// mix sets out to row i of W·B2·A2; w is row i of W.
func (g *glora) mix(out []float64, i int64, w func(j int64) float64) {
	for k := range g.rank {
		if g.transposed {
			x := g.a[k*g.rows+i]
			for j, y := range g.mixed[k*g.cols:][:g.cols] {
				out[j] += float64(x * y)
			}
			continue
		}
		inputs := g.cols / g.group
		a := g.a[k*inputs:][:inputs]
		for tap := range g.group {
			dot := 0.0
			for j := range inputs {
				dot += float64(w(j*g.group+tap) * g.b[j*g.rank+k])
			}
			for j, x := range a {
				out[int64(j)*g.group+tap] += float64(dot * x)
			}
		}
	}
}
