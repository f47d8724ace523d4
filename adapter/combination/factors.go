package combination

import (
	"math"

	"github.com/loratool/loratool/adapter"
)

// factors works on A and B apart: each gets the root of the strength, and A its sign.
func (o Options) factors(u adapter.Update, parts []part, m method) (adapter.Update, error) {
	us := make([]adapter.Update, len(parts))
	ws := make([]float64, len(parts))
	for i := range parts {
		us[i], _ = parts[i].u.Factored()
		if us[i].Rank != us[0].Rank {
			return u, refuse(&parts[i], "%s works on factors of one rank: those of module %q differ", o.Method, u.Module).
				Expected(us[i].Rank, us[0].Rank).Hinted("resize the adapters to one rank, or use " + o.Method + "_svd or cat")
		}
		ws[i] = parts[i].strength()
	}
	f := us[0]
	f.Scale, f.Tensors = one(f.Rank), u.Tensors
	f.A = o.merged(&u, "A", m, us, func(v *adapter.Update) adapter.Factor { return v.A }, func(i int) float64 {
		return math.Copysign(math.Sqrt(math.Abs(ws[i])), ws[i])
	})
	f.B = o.merged(&u, "B", m, us, func(v *adapter.Update) adapter.Factor { return v.B }, func(i int) float64 {
		return math.Sqrt(math.Abs(ws[i]))
	})
	return f, nil
}

// merged is one side of all updates as one factor.
func (o Options) merged(u *adapter.Update, name string, m method, us []adapter.Update, of func(*adapter.Update) adapter.Factor, weight func(int) float64) adapter.Factor {
	side := o.side(u, name, m)
	return adapter.FromFunc(of(&us[0]).Rows, of(&us[0]).Cols, func() ([]float32, error) {
		ts, ws := make([][]float32, len(us)), make([]float64, len(us))
		for i := range us {
			v, err := of(&us[i]).Load()
			if err != nil {
				return nil, err
			}
			ts[i], ws[i] = append([]float32(nil), v...), weight(i)
		}
		return side.merge(ts, ws), nil
	})
}

// weighted is Σ weight·values, in float64 and rounded once.
func weighted(rows, cols int64, parts []part, weight func(*part) float64, values func(*part) ([]float32, error)) adapter.Factor {
	return adapter.FromFunc(rows, cols, func() ([]float32, error) {
		sum := make([]float64, rows*cols)
		for i := range parts {
			v, err := values(&parts[i])
			if err != nil {
				return nil, err
			}
			w := weight(&parts[i])
			for j, x := range v {
				sum[j] += float64(w * float64(x))
			}
		}
		out := make([]float32, len(sum))
		for i, x := range sum {
			out[i] = float32(x)
		}
		return out, nil
	})
}
