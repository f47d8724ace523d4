package adapter

import "math"

// kronecker is W[block] += s·(K1 ⊗ K2), with both matrices in the block's orientation.
type kronecker struct {
	rowLocal
	area
	sides  [2]Side
	scale  float64
	order  []int64 // canonical output of each stored one, nil: the same
	k1, k2 []float64
	s1, s2 []float32 // the same for Apply: s·K1 and K2
	n2, m2 int64     // rows and columns of K2
	m1     int64     // columns of K1
}

func (b *binding) lokr() (*kronecker, error) {
	r1, c1 := b.u.Kron[0].Shape()
	r2, c2 := b.u.Kron[1].Shape()
	if r1 > math.MaxInt32 || c1 > math.MaxInt32 || r2 > math.MaxInt32 || c2 > math.MaxInt32 {
		return nil, b.mismatch("a Kronecker product beyond any matrix", "two small matrices")
	}
	at, err := b.place(r1*r2, c1*c2)
	if err != nil {
		return nil, err
	}
	k := &kronecker{area: at, sides: b.u.Kron, scale: b.u.Scale.Value, n2: r2, m2: c2, m1: c1}
	if at.transposed {
		k.n2, k.m2, k.m1 = c2, r2, r1
	}
	outputs, _ := at.sides()
	k.order, err = b.order(outputs)
	return k, err
}

func (k *kronecker) Load() error {
	for i, side := range k.sides {
		v, err := side.Dense()
		if err != nil {
			return err
		}
		if k.transposed {
			rows, cols := side.Shape()
			v = transpose(make([]float64, len(v)), v, int(rows), int(cols))
		}
		if i == 0 {
			k.k1 = v
		} else {
			k.k2 = v
		}
	}
	k.s2 = narrowed(k.k2)
	k.s1 = make([]float32, len(k.k1))
	for i, x := range k.k1 {
		k.s1[i] = float32(k.scale * x)
	}
	return nil
}

func (k *kronecker) Release() { k.k1, k.k2, k.s1, k.s2 = nil, nil, nil, nil }

func (k *kronecker) Apply(rows []float32, first int64) {
	addKronecker(k, rows, first, k.s1, k.s2, func(w, x, y float32) float32 { return w + float32(x*y) })
}

func (k *kronecker) Exact(rows []float64, first int64) {
	addKronecker(k, rows, first, k.k1, k.k2, func(w, x, y float64) float64 { return w + float64(float64(k.scale*x)*y) })
}

func addKronecker[T float32 | float64](k *kronecker, rows []T, first int64, k1, k2 []T, add func(w, x, y T) T) {
	lo, hi := k.overlap(int64(len(rows))/k.width, first)
	for i := lo; i < hi; i++ {
		row := blockRow(k.area, rows, i, first)
		c := i
		if k.order != nil && !k.transposed {
			c = k.order[i]
		}
		left, right := k1[c/k.n2*k.m1:][:k.m1], k2[c%k.n2*k.m2:][:k.m2]
		if k.order != nil && k.transposed {
			for j, o := range k.order {
				row[j] = add(row[j], left[o/k.m2], right[o%k.m2])
			}
			continue
		}
		for p, x := range left {
			part := row[int64(p)*k.m2:][:k.m2]
			for j, y := range right {
				part[j] = add(part[j], x, y)
			}
		}
	}
}
