package main

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/loratool/loratool/formats/layout"
	"github.com/loratool/loratool/formats/safetensors"
	"github.com/loratool/loratool/internal/kernel"
	"github.com/loratool/loratool/naming"
	"github.com/loratool/loratool/tensor"
)

// A conversion is an adapter, and the dialects it is written in.
type conversion struct {
	name   string
	make   func(path string) (size int64, err error)
	base   string // config.json, "" where none is needed
	to     []string
	ending map[string]string // of outputs that are files
}

var conversions = []conversion{
	{"PEFT, Llama 7B, rank 64, bf16", func(path string) (int64, error) { return makePEFT(path, 4096, 11008) },
		`{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32, "num_key_value_heads": 32, "num_hidden_layers": 32, "vocab_size": 32000}`,
		languageModels, languageEndings},
	{"PEFT, Llama 3 8B (grouped heads), rank 64, bf16", func(path string) (int64, error) { return makePEFT(path, 1024, 14336) },
		`{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32, "num_key_value_heads": 8, "num_hidden_layers": 32, "vocab_size": 128256}`,
		languageModels, languageEndings},
	{"kohya, SDXL with text encoders, rank 32, f16", makeKohya, "", []string{"diffusers", "comfyui", "ai-toolkit"},
		map[string]string{"diffusers": ".safetensors", "comfyui": ".safetensors", "ai-toolkit": ".safetensors"}},
}

var (
	languageModels  = []string{"peft", "gguf", "mlx", "torchtune", "ort", "trtllm", "openvino"}
	languageEndings = map[string]string{"gguf": ".gguf", "ort": ".onnx_adapter", "openvino": ".safetensors"}
)

// benchConvert converts every adapter to every dialect and prints the best of some runs.
func benchConvert(program, dir string, runs int) error {
	tmp, err := os.MkdirTemp(dir, "loratool-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	fmt.Printf("| adapter | size | to | time | CPU time | peak memory | memory : size |\n|---|---|---|---|---|---|---|\n")
	for i, c := range conversions {
		in, base := filepath.Join(tmp, fmt.Sprint("in", i)), filepath.Join(tmp, fmt.Sprint("base", i, ".json"))
		if c.base == "" {
			in += ".safetensors"
		} else {
			base = filepath.Join(tmp, fmt.Sprint("base", i), "config.json")
			if err := os.Mkdir(filepath.Dir(base), 0o777); err != nil {
				return err
			}
			if err := os.WriteFile(base, []byte(c.base), 0o666); err != nil {
				return err
			}
		}
		size, err := c.make(in)
		if err != nil {
			return err
		}
		for _, to := range c.to {
			out := filepath.Join(tmp, "out"+c.ending[to])
			args := []string{"convert", in, "--to", to, "-o", out, "--quiet"}
			if c.base != "" {
				args = append(args, "--base", filepath.Dir(base))
			}
			var best, cpu time.Duration
			var peak int64
			for range runs {
				start := time.Now()
				var messages bytes.Buffer
				cmd := exec.Command(program, args...)
				cmd.Stderr = &messages
				if err := cmd.Run(); err != nil {
					return fmt.Errorf("%q: %v\n%s", args, err, &messages)
				}
				if d := time.Since(start); best == 0 || d < best {
					best, cpu = d, cmd.ProcessState.UserTime()+cmd.ProcessState.SystemTime()
				}
				peak = max(peak, peakMemory(cmd.ProcessState))
				if err := os.RemoveAll(out); err != nil {
					return err
				}
			}
			fmt.Printf("| %s | %.0f MB | %s | %.2f s | %.2f s | %.0f MB | %.2f |\n",
				c.name, float64(size)/1e6, to, best.Seconds(), cpu.Seconds(), float64(peak)/1e6, float64(peak)/float64(size))
		}
		if err := os.RemoveAll(in); err != nil {
			return err
		}
	}
	return nil
}

// makePEFT writes an adapter on every linear layer of 32 blocks with 4096 dimensions.
func makePEFT(path string, keys, ffn int64) (int64, error) {
	const rank, hidden = 64, 4096
	var specs []tensor.Spec
	for l := range 32 {
		for _, m := range []struct {
			name    string
			in, out int64
		}{{"self_attn.q_proj", hidden, hidden}, {"self_attn.k_proj", hidden, keys}, {"self_attn.v_proj", hidden, keys}, {"self_attn.o_proj", hidden, hidden},
			{"mlp.gate_proj", hidden, ffn}, {"mlp.up_proj", hidden, ffn}, {"mlp.down_proj", ffn, hidden}} {
			name := fmt.Sprintf("base_model.model.model.layers.%d.%s.lora_", l, m.name)
			specs = append(specs, tensor.Spec{Name: name + "A.weight", DType: tensor.BF16, Shape: tensor.Shape{rank, m.in}},
				tensor.Spec{Name: name + "B.weight", DType: tensor.BF16, Shape: tensor.Shape{m.out, rank}})
		}
	}
	config := `{"peft_type": "LORA", "r": 64, "lora_alpha": 128, "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]}`
	return writeRandom(path, specs, safetensors.Output{Dir: true, Stem: "adapter_model", Extra: []layout.File{safetensors.NewFile("adapter_config.json", []byte(config))}})
}

// makeKohya writes an adapter on every linear layer and convolution of SDXL.
func makeKohya(path string) (int64, error) {
	const rank = 32
	var specs []tensor.Spec
	for _, c := range naming.DiffusionFamilyNamed("sdxl").Components {
		for i := range c.Modules {
			m := &c.Modules[i]
			if m.Kind == "norm" || len(m.Shape) < 2 {
				continue
			}
			for _, p := range m.Parts {
				name, rows := c.Kohya[0]+naming.Flatten(p.Module), p.Rows
				if c.Flat == naming.Original {
					name = c.Kohya[0] + naming.Flatten(m.Original)
				}
				down := append(tensor.Shape{rank}, m.Shape[1:]...)
				up := tensor.Shape{rows, rank}
				for range m.Shape[2:] {
					up = append(up, 1)
				}
				specs = append(specs, tensor.Spec{Name: name + ".lora_down.weight", DType: tensor.F16, Shape: down},
					tensor.Spec{Name: name + ".lora_up.weight", DType: tensor.F16, Shape: up}, tensor.Spec{Name: name + ".alpha", DType: tensor.F16, Shape: tensor.Shape{}})
			}
		}
	}
	return writeRandom(path, specs, safetensors.Output{Metadata: [][2]string{{"ss_network_module", "networks.lora"}}})
}

// writeRandom writes tensors of 16 bits with values of N(0, 0.01), repeated.
func writeRandom(path string, specs []tensor.Spec, out safetensors.Output) (int64, error) {
	lay, err := safetensors.NewLayout(specs, out, layout.Options{Name: filepath.Base(path)})
	if err != nil {
		return 0, err
	}
	g := rand.New(rand.NewPCG(3, 4))
	v := make([]float32, 1<<20)
	for i := range v {
		v[i] = float32(g.NormFloat64() * 0.01)
	}
	blocks := map[tensor.DType][]byte{tensor.BF16: make([]byte, 2*len(v)), tensor.F16: make([]byte, 2*len(v))}
	kernel.EncodeBF16(blocks[tensor.BF16], v)
	kernel.EncodeF16(blocks[tensor.F16], v)
	var size int64
	for _, f := range lay.Files {
		size += f.Size
	}
	return size, write(path, lay, func(item int, w *layout.Writer) error { return fillItem(lay, item, w, blocks[specs[item].DType]) })
}

// fillItem repeats a block over an item.
func fillItem(lay *layout.Layout, item int, w *layout.Writer, block []byte) error {
	for off := int64(0); off < lay.Items[item].Size; off += int64(len(block)) {
		if err := w.WriteAt(item, block[:min(int64(len(block)), lay.Items[item].Size-off)], off); err != nil {
			return err
		}
	}
	return nil
}
