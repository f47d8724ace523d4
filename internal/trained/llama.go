package trained

import (
	"fmt"
	"math"
	"runtime"
	"strings"
	"sync"

	"github.com/loratool/loratool/internal/kernel"
)

// The architecture, as base/config.json says it.
const (
	hidden       = 256
	layers       = 4
	intermediate = 768
	heads        = 8
	groups       = 4 // heads of keys and values
	headLen      = hidden / heads
	vocabulary   = 256 // bytes
	theta        = 10000
	epsilon      = 1e-5
)

// A Llama computes with weights under their Hugging Face names, in float32.
type Llama struct{ weights map[string][]float32 }

// NewLlama returns the model with weights, [out, in] each.
func NewLlama(weights map[string][]float32) *Llama { return &Llama{weights} }

// Logits are those of windows of n bytes each, one after the other: [bytes, 256].
func (m *Llama) Logits(text []byte, n int) []float32 {
	x := make([]float32, len(text)*hidden)
	for i, b := range text {
		copy(x[i*hidden:], m.weights["model.embed_tokens.weight"][int(b)*hidden:][:hidden])
	}
	for l := range layers {
		at := fmt.Sprintf("model.layers.%d.", l)
		h := m.norm(x, at+"input_layernorm.weight")
		q, k, v := m.linear(h, at+"self_attn.q_proj"), m.linear(h, at+"self_attn.k_proj"), m.linear(h, at+"self_attn.v_proj")
		rotate(q, heads, n)
		rotate(k, groups, n)
		add(x, m.linear(attend(q, k, v, n), at+"self_attn.o_proj"))
		h = m.norm(x, at+"post_attention_layernorm.weight")
		gate, up := m.linear(h, at+"mlp.gate_proj"), m.linear(h, at+"mlp.up_proj")
		for i, g := range gate {
			gate[i] = float32(float64(g)/(1+math.Exp(-float64(g)))) * up[i]
		}
		add(x, m.linear(gate, at+"mlp.down_proj"))
	}
	return m.linear(m.norm(x, "model.norm.weight"), "lm_head")
}

// Loss is the mean loss, in nats per byte, over the bytes of windows of n bytes from byte first of each on. Bytes
// that fill no window are left out.
func (m *Llama) Loss(text []byte, n, first int) float64 {
	windows := len(text) / n
	losses := make([]float64, windows)
	var wg sync.WaitGroup
	next := make(chan int)
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			for w := range next {
				window := text[w*n:][:n]
				logits := m.Logits(window, n)
				for i := first; i < n; i++ {
					losses[w] += surprise(logits[(i-1)*vocabulary:][:vocabulary], window[i])
				}
			}
		})
	}
	for w := range windows {
		next <- w
	}
	close(next)
	wg.Wait()
	var sum float64
	for _, l := range losses {
		sum += l
	}
	return sum / float64(windows*(n-first))
}

// surprise is −log of the probability of a byte.
func surprise(logits []float32, b byte) float64 {
	top := float64(logits[0])
	for _, x := range logits {
		top = max(top, float64(x))
	}
	var sum float64
	for _, x := range logits {
		sum += math.Exp(float64(x) - top)
	}
	return top + math.Log(sum) - float64(logits[b])
}

// linear is x·Wᵀ.
func (m *Llama) linear(x []float32, name string) []float32 {
	w, in := m.weights[name+".weight"], hidden
	if strings.HasSuffix(name, "down_proj") {
		in = intermediate
	}
	out, rows := len(w)/in, len(x)/in
	turned := make([]float32, len(w))
	for o := range out {
		for k, v := range w[o*in:][:in] {
			turned[k*out+o] = v
		}
	}
	y := make([]float32, rows*out)
	kernel.NewLowRank(x, turned, rows, out, in, 1).Apply(y, out, 0, rows)
	return y
}

// norm is RMSNorm.
func (m *Llama) norm(x []float32, name string) []float32 {
	y := make([]float32, len(x))
	for at := 0; at < len(x); at += hidden {
		var sum float64
		for _, v := range x[at:][:hidden] {
			sum += float64(v) * float64(v)
		}
		scale := 1 / math.Sqrt(sum/hidden+epsilon)
		for k, g := range m.weights[name] {
			y[at+k] = float32(float64(x[at+k])*scale) * g
		}
	}
	return y
}

// rotate is the rotary embedding, in halves of a head.
func rotate(x []float32, heads, n int) {
	for i := range len(x) / headLen {
		pos, head := float64(i/heads%n), x[i*headLen:][:headLen]
		for j := range headLen / 2 {
			sin, cos := math.Sincos(pos * math.Pow(theta, -2*float64(j)/headLen))
			a, b := float64(head[j]), float64(head[j+headLen/2])
			head[j], head[j+headLen/2] = float32(a*cos-b*sin), float32(b*cos+a*sin)
		}
	}
}

// attend is causal attention inside windows of n bytes.
func attend(q, k, v []float32, n int) []float32 {
	out := make([]float32, len(q))
	scores := make([]float64, n)
	for i := range len(q) / hidden {
		first := i / n * n
		for h := range heads {
			query, group := q[i*hidden+h*headLen:][:headLen], h*groups/heads
			at := func(j int) int { return j*groups*headLen + group*headLen }
			top := math.Inf(-1)
			for j := first; j <= i; j++ {
				var dot float32
				for e, x := range k[at(j):][:headLen] {
					dot += x * query[e]
				}
				scores[j-first] = float64(dot) / math.Sqrt(headLen)
				top = max(top, scores[j-first])
			}
			var sum float64
			for j := range i - first + 1 {
				scores[j] = math.Exp(scores[j] - top)
				sum += scores[j]
			}
			to := out[i*hidden+h*headLen:][:headLen]
			for j := first; j <= i; j++ {
				p := float32(scores[j-first] / sum)
				for e, x := range v[at(j):][:headLen] {
					to[e] += p * x
				}
			}
		}
	}
	return out
}

func add(to, x []float32) {
	for i, v := range x {
		to[i] += v
	}
}
