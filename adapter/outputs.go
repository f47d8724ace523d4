package adapter

// Outputs is the number of output rows that an update of a matrix covers, 0 where its tensors do not say.
func (u *Update) Outputs() int64 {
	switch u.Kind {
	case LowRank, DoRA, LoHa, VeRA, HiRA, GLoRA:
		return u.B.Rows
	case LoKr:
		r1, _ := u.Kron[0].Shape()
		r2, _ := u.Kron[1].Shape()
		return r1 * r2
	case Bias:
		return u.Value.Rows * u.Value.Cols
	case IA3:
		if u.Input {
			return 0
		}
		return u.Value.Rows * u.Value.Cols
	case OFT, HRA:
		if u.Input {
			return u.Magnitude.Rows * u.Magnitude.Cols
		}
		return u.Value.Rows
	}
	return u.Value.Rows
}

// Inputs is the number of columns of an update's matrix, the rest of its dimensions taken together; 0 where
// its tensors do not say.
func (u *Update) Inputs() int64 {
	switch u.Kind {
	case LoKr:
		_, c1 := u.Kron[0].Shape()
		_, c2 := u.Kron[1].Shape()
		return c1 * c2
	case Full, Replace, Rows:
		return u.Value.Cols
	}
	return u.A.Cols
}

// GatherOutputs is the update of the output rows index(i) for i < rows, of a linear layer or a convolution.
// It is false where those rows cannot be changed on their own: they are turned into one another, or their
// columns have a common norm.
func (u *Update) GatherOutputs(rows int64, index func(int64) int64) (Update, bool) {
	v := *u
	vector := func(f Factor) Factor {
		f.Rows, f.Cols = f.Rows*f.Cols, 1
		f = f.GatherRows(rows, index)
		f.Rows, f.Cols = 1, rows
		return f
	}
	if u.Magnitude.Present() {
		if u.Input && u.Kind != OFT && rows != u.Outputs() {
			return v, false
		}
		if !u.Input || u.Kind == OFT {
			v.Magnitude = vector(u.Magnitude)
		}
	}
	switch u.Kind {
	case LowRank, DoRA, VeRA, HiRA, GLoRA:
		v.B = u.B.GatherRows(rows, index)
	case LoHa:
		v.B, v.B2 = u.B.GatherRows(rows, index), u.B2.GatherRows(rows, index)
	case LoKr:
		if w, ok := v.gatherBlocks(rows, index); ok {
			return w, true
		}
		v.Kind, v.Kron, v.Value = Full, [2]Side{}, u.product().GatherRows(rows, index)
		plain := *u
		plain.Magnitude = Factor{}
		if f, ok := plain.Factored(); ok && !u.Magnitude.Present() && 2*int64(f.Rank) <= min(rows, f.A.Cols) {
			v = f
			v.B = f.B.GatherRows(rows, index)
		}
	case Bias:
		v.Value = vector(u.Value)
	case IA3:
		if !u.Input {
			v.Value = vector(u.Value)
		}
	case OFT:
		if u.Input {
			break
		}
		b := u.Turn.Block
		if len(u.Turn.Stages) > 1 || u.Turn.Stages[0] != nil || u.Value.Rows == b || !aligned(rows, b, index) {
			return v, false
		}
		v.Value, v.Turn = u.Value.GatherRows(rows, index), u.Turn.Computed()
	case HRA:
		return v, u.Input
	default:
		v.Value = u.Value.GatherRows(rows, index)
	}
	return v, true
}

// aligned reports whether rows are gathered in whole blocks of b.
func aligned(rows, b int64, index func(int64) int64) bool {
	if rows%b != 0 {
		return false
	}
	for i := range rows {
		if k := index(i); k%b != i%b || i%b > 0 && k != index(i-1)+1 {
			return false
		}
	}
	return true
}

// gatherBlocks gathers rows of a Kronecker product that are whole blocks of its second matrix: they are rows
// of the first, and the result is a Kronecker product again.
func (u *Update) gatherBlocks(rows int64, index func(int64) int64) (Update, bool) {
	v := *u
	b, _ := u.Kron[1].Shape()
	if b == 0 || !aligned(rows, b, index) {
		return v, false
	}
	block := func(i int64) int64 { return index(i*b) / b }
	first := &v.Kron[0]
	if first.Full.Present() {
		first.Full = first.Full.GatherRows(rows/b, block)
	} else {
		first.B = first.B.GatherRows(rows/b, block)
	}
	return v, true
}

// product is the matrix of a Kronecker product.
func (u *Update) product() Factor {
	r1, c1 := u.Kron[0].Shape()
	r2, c2 := u.Kron[1].Shape()
	return FromFunc(r1*r2, c1*c2, func() ([]float32, error) {
		x, err := u.Kron[0].Dense()
		if err != nil {
			return nil, err
		}
		y, err := u.Kron[1].Dense()
		if err != nil {
			return nil, err
		}
		out := make([]float32, r1*r2*c1*c2)
		for i, a := range x {
			for j, b := range y {
				row := int64(i)/c1*r2 + int64(j)/c2
				out[row*c1*c2+int64(i)%c1*c2+int64(j)%c2] = float32(a * b)
			}
		}
		return out, nil
	})
}
