package adapter

// full is W[block] += s·value, with the value in the block's orientation.
type full struct {
	rowLocal
	area
	value Factor
	scale float64
	v     []float32
}

func (b *binding) full() (*full, error) {
	v := b.u.Value
	at, err := b.place(v.Rows, v.Cols)
	if err != nil {
		return nil, err
	}
	if v, err = b.outputs(v); err != nil {
		return nil, err
	}
	if at.transposed {
		v = v.Transpose()
	}
	return &full{area: at, value: v, scale: b.u.Scale.Value}, nil
}

// difference binds an update that adds something that does not depend on W, and its area.
func (b *binding) difference() (Op, area, error) {
	u := *b.u
	if s := u.Scale.strength(); u.Magnitude.Present() && s != 0 {
		u.Scale.Value /= s // the user's factor is the share of the whole change
	}
	inner := *b
	inner.u = &u
	switch u.Kind {
	case LoHa:
		h, err := inner.loha()
		if err != nil {
			return nil, area{}, err
		}
		return h, h.area, nil
	case LoKr:
		k, err := inner.lokr()
		if err != nil {
			return nil, area{}, err
		}
		return k, k.area, nil
	}
	f, err := inner.full()
	if err != nil {
		return nil, area{}, err
	}
	return f, f.area, nil
}

func (f *full) Load() (err error) { f.v, err = load(f.value); return err }
func (f *full) Release()          { f.v = nil }

func (f *full) Apply(rows []float32, first int64) {
	lo, hi := f.overlap(int64(len(rows))/f.width, first)
	s := float32(f.scale)
	for i := lo; i < hi; i++ {
		row := blockRow(f.area, rows, i, first)
		for j, v := range f.v[i*f.cols:][:f.cols] {
			row[j] += float32(s * v)
		}
	}
}

func (f *full) Exact(rows []float64, first int64) {
	lo, hi := f.overlap(int64(len(rows))/f.width, first)
	for i := lo; i < hi; i++ {
		row := blockRow(f.area, rows, i, first)
		for j, v := range f.v[i*f.cols:][:f.cols] {
			row[j] += float64(f.scale * float64(v))
		}
	}
}
