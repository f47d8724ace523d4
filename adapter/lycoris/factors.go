package lycoris

import (
	"fmt"

	"github.com/loratool/loratool/adapter"
)

// lora is LoCon: s·up·down, with the core of a decomposed kernel between them where there is one.
func (d *decoder) lora() (*adapter.Update, error) {
	u := d.update("weight", adapter.LowRank)
	a, err := d.take(u, "lora_down.weight")
	if err != nil {
		return nil, err
	}
	if u.B, err = d.take(u, "lora_up.weight"); err != nil {
		return nil, err
	}
	rank := a.Rows
	if core := d.Tensors["lora_mid.weight"]; core != nil {
		d.use(u, "lora_mid.weight")
		kernel(u, core.Shape)
		if a, err = adapter.Tucker(core, a); err != nil {
			return nil, err
		}
	} else {
		kernel(u, d.Tensors["lora_down.weight"].Shape)
	}
	u.A, u.Rank = a, int(rank)
	if err := d.fit(a, u.B, "lora_down.weight", "lora_up.weight"); err != nil {
		return nil, err
	}
	u.Scale, err = d.scale(rank)
	return u, err
}

// loha is s·(w1_a·w1_b)∘(w2_a·w2_b). With cores w_a is stored [r, out].
func (d *decoder) loha() (*adapter.Update, error) {
	u := d.update("weight", adapter.LoHa)
	var err error
	if u.A, u.B, err = d.decomposed(u, "hada_w1_b", "hada_w1_a", "hada_t1"); err != nil {
		return nil, err
	}
	if u.A2, u.B2, err = d.decomposed(u, "hada_w2_b", "hada_w2_a", "hada_t2"); err != nil {
		return nil, err
	}
	if u.A.Cols != u.A2.Cols || u.B.Rows != u.B2.Rows {
		return nil, d.errorf("shape_mismatch", "hada_w2_a", "the two products of module %q have different sizes", d.Name).
			Expected(fmt.Sprintf("[%d, %d] and [%d, %d]", u.B.Rows, u.A.Cols, u.B2.Rows, u.A2.Cols), "one size")
	}
	u.Rank = int(d.Tensors["hada_w1_b"].Shape[0])
	u.Scale, err = d.scale(int64(u.Rank))
	return u, err
}

// decomposed takes a pair of factors, or with a core the three parts of a decomposed kernel.
func (d *decoder) decomposed(u *adapter.Update, a, b, core string) (fa, fb adapter.Factor, err error) {
	t := d.Tensors[core]
	if t == nil {
		return d.pair(u, a, b)
	}
	if fa, err = d.take(u, a); err != nil {
		return fa, fb, err
	}
	if fb, err = d.take(u, b); err != nil {
		return fa, fb, err
	}
	d.use(u, core)
	kernel(u, t.Shape)
	if fa, err = adapter.Tucker(t, fa); err != nil {
		return fa, fb, err
	}
	fb = fb.Transpose()
	return fa, fb, d.fit(fa, fb, a, b)
}

// lokr is s·w1 ⊗ w2, each whole or a product. The scale is alpha by the rank of w2's product, else of w1's;
// where both are whole it is 1.
func (d *decoder) lokr() (*adapter.Update, error) {
	u := d.update("weight", adapter.LoKr)
	rank := int64(0)
	for i, name := range []string{"lokr_w1", "lokr_w2"} {
		side := &u.Kron[i]
		var err error
		if t := d.Tensors[name]; t != nil {
			if side.Full, err = d.take(u, name); err != nil {
				return nil, err
			}
			kernel(u, t.Shape)
			continue
		}
		core := ""
		if i == 1 {
			core = "lokr_t2"
		}
		if t := d.Tensors[name+"_b"]; t != nil {
			kernel(u, t.Shape)
		}
		if side.A, side.B, err = d.decomposed(u, name+"_b", name+"_a", core); err != nil {
			return nil, err
		}
		rank = d.Tensors[name+"_b"].Shape[0]
	}
	if rank == 0 && !d.FullAlpha {
		u.Scale = adapter.Scale{Value: 1, Source: "both matrices are whole: 1"}
		return u, nil
	}
	u.Rank = int(rank)
	var err error
	u.Scale, err = d.scale(max(rank, 1))
	return u, err
}

// glora is s·(b1·b2 + W·a1·a2) with a1 [in, r], a2 [r, in], b1 [out, r] and b2 [r, in]. In old files the
// numbers are the other way round.
func (d *decoder) glora() (*adapter.Update, error) {
	u := d.update("weight", adapter.GLoRA)
	var f [4]adapter.Factor
	for i, name := range []string{"a1.weight", "a2.weight", "b1.weight", "b2.weight"} {
		var err error
		if f[i], err = d.take(u, name); err != nil {
			return nil, err
		}
		if i == 3 {
			kernel(u, d.Tensors[name].Shape)
		}
	}
	a1, a2, b1, b2 := f[0], f[1], f[2], f[3]
	current := b1.Cols == b2.Rows && a1.Cols == a2.Rows && a1.Rows == a2.Cols && a1.Cols == b1.Cols
	turned := b2.Cols == b1.Rows && a2.Cols == a1.Rows && a1.Cols == a2.Rows && b2.Cols == a1.Rows
	if turned && (!current || a1.Rows < a1.Cols) { // of a square layer both fit: the rank is the smaller side
		a1, a2, b1, b2, current = a2, a1, b2, b1, true
		kernel(u, d.Tensors["b1.weight"].Shape)
	}
	if !current {
		return nil, d.errorf("rank_mismatch", "a1.weight", "the factors of module %q do not fit each other", d.Name).
			Expected(fmt.Sprintf("a1 [%d, %d], a2 [%d, %d], b1 [%d, %d], b2 [%d, %d]", f[0].Rows, f[0].Cols, f[1].Rows, f[1].Cols, f[2].Rows, f[2].Cols, f[3].Rows, f[3].Cols),
				"a1 [in, r], a2 [r, in], b1 [out, r], b2 [r, in]")
	}
	u.A, u.B, u.A2, u.B2, u.Rank = b2, b1, a2, a1, int(b1.Cols)
	var err error
	u.Scale, err = d.scale(b1.Cols)
	return u, err
}
