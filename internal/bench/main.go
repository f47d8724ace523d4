// Command bench measures a merge against copying the same file, in one run, and prints the ratios that
// docs/benchmarks.md records. It makes its own model: bfloat16 weights of llama-like shapes, and a PEFT
// adapter on every linear layer. With -convert it measures conversions of adapters.
package main

import (
	"flag"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"time"

	"github.com/loratool/loratool/formats/layout"
	"github.com/loratool/loratool/formats/safetensors"
	"github.com/loratool/loratool/internal/kernel"
	"github.com/loratool/loratool/tensor"
)

func main() {
	log.SetFlags(0)
	program := flag.String("loratool", "bin/loratool", "program to measure")
	dir := flag.String("dir", os.TempDir(), "folder on the disk to measure")
	layers := flag.Int("layers", 6, "blocks of the model; one has 405 MB")
	rank := flag.Int("rank", 16, "rank of the adapter")
	runs := flag.Int("runs", 3, "runs of each")
	convert := flag.Bool("convert", false, "measure conversions of adapters instead")
	check := flag.Bool("check", false, "measure verify instead, on layers of 4096 × 4096, seven a block")
	flag.Parse()
	if *convert {
		if err := benchConvert(*program, *dir, *runs); err != nil {
			log.Fatal("bench: ", err)
		}
		return
	}
	if *check {
		if err := benchCheck(*program, *dir, *layers, *rank); err != nil {
			log.Fatal("bench: ", err)
		}
		return
	}
	if err := bench(*program, *dir, *layers, *rank, *runs); err != nil {
		log.Fatal("bench: ", err)
	}
}

func bench(program, dir string, layers, rank, runs int) error {
	tmp, err := os.MkdirTemp(dir, "loratool-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	model, adapter := filepath.Join(tmp, "model.safetensors"), filepath.Join(tmp, "adapter")
	size, err := makeModel(model, layers)
	if err != nil {
		return err
	}
	if err := makeAdapter(adapter, layers, rank); err != nil {
		return err
	}
	small := filepath.Join(tmp, "small-adapter") // leaves all but the first block to be copied by the same pipeline
	if err := makeAdapter(small, 0, rank); err != nil {
		return err
	}
	var copies, merges, pipelines []time.Duration
	var peak int64
	for range runs { // interleaved, so that both see the same machine
		d, err := timeCopy(model, filepath.Join(tmp, "copy"))
		if err != nil {
			return err
		}
		copies = append(copies, d)
		if d, _, err = timeMerge(program, model, small, filepath.Join(tmp, "out.safetensors")); err != nil {
			return err
		}
		pipelines = append(pipelines, d)
		d, rss, err := timeMerge(program, model, adapter, filepath.Join(tmp, "out.safetensors"))
		if err != nil {
			return err
		}
		merges, peak = append(merges, d), max(peak, rss)
	}
	c, m, p := median(copies), median(merges), median(pipelines)
	mb := float64(size) / 1e6
	fmt.Printf("| model | rank | copy + fsync | merge | merge : copy | merge : pipeline without arithmetic | merge, best | peak memory |\n|---|---|---|---|---|---|---|---|\n")
	fmt.Printf("| %.2f GB bf16 | %d | %.2f s (%.0f MB/s) | %.2f s (%.0f MB/s) | %.2f | %.2f | %.0f MB/s | %.0f MiB |\n",
		mb/1e3, rank, c.Seconds(), mb/c.Seconds(), m.Seconds(), mb/m.Seconds(), m.Seconds()/c.Seconds(), m.Seconds()/p.Seconds(),
		mb/merges[0].Seconds(), float64(peak)/(1<<20))
	return nil
}

func median(d []time.Duration) time.Duration {
	sort.Slice(d, func(i, j int) bool { return d[i] < d[j] })
	return d[len(d)/2]
}

// linears are the layers of one block of a 7B llama, [out, in].
var linears = []struct {
	name    string
	out, in int64
}{
	{"self_attn.q_proj", 4096, 4096}, {"self_attn.k_proj", 4096, 4096}, {"self_attn.v_proj", 4096, 4096}, {"self_attn.o_proj", 4096, 4096},
	{"mlp.gate_proj", 11008, 4096}, {"mlp.up_proj", 11008, 4096}, {"mlp.down_proj", 4096, 11008},
}

func makeModel(path string, layers int) (int64, error) {
	var specs []tensor.Spec
	for l := range layers {
		for _, m := range linears {
			specs = append(specs, tensor.Spec{Name: fmt.Sprintf("model.layers.%d.%s.weight", l, m.name), DType: tensor.BF16, Shape: tensor.Shape{m.out, m.in}})
		}
	}
	lay, err := safetensors.NewLayout(specs, safetensors.Output{Metadata: [][2]string{{"format", "pt"}}}, layout.Options{Name: filepath.Base(path)})
	if err != nil {
		return 0, err
	}
	// One block of weights, repeated: N(0, 0.02) is what matters, not that it is fresh.
	g := rand.New(rand.NewPCG(1, 2))
	v := make([]float32, 1<<20)
	for i := range v {
		v[i] = float32(g.NormFloat64() * 0.02)
	}
	block := make([]byte, 2*len(v))
	kernel.EncodeBF16(block, v)
	return lay.Files[0].Size, write(path, lay, func(item int, w *layout.Writer) error { return fillItem(lay, item, w, block) })
}

// makeAdapter writes an adapter for every linear layer of some blocks; for none, one for a single layer.
func makeAdapter(path string, layers, rank int) error {
	linears := linears
	if layers == 0 {
		layers, linears = 1, linears[:1]
	}
	config := fmt.Sprintf(`{"peft_type": "LORA", "r": %d, "lora_alpha": %d, "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]}`, rank, 2*rank)
	var specs []tensor.Spec
	for l := range layers {
		for _, m := range linears {
			name := fmt.Sprintf("base_model.model.model.layers.%d.%s.lora_", l, m.name)
			specs = append(specs,
				tensor.Spec{Name: name + "A.weight", DType: tensor.F32, Shape: tensor.Shape{int64(rank), m.in}},
				tensor.Spec{Name: name + "B.weight", DType: tensor.F32, Shape: tensor.Shape{m.out, int64(rank)}})
		}
	}
	lay, err := safetensors.NewLayout(specs, safetensors.Output{
		Dir: true, Stem: "adapter_model", Extra: []layout.File{safetensors.NewFile("adapter_config.json", []byte(config))},
	}, layout.Options{Name: filepath.Base(path)})
	if err != nil {
		return err
	}
	g := rand.New(rand.NewPCG(3, 4))
	return write(path, lay, func(item int, w *layout.Writer) error {
		b := make([]byte, lay.Items[item].Size)
		v := make([]float32, len(b)/4)
		for i := range v {
			v[i] = float32(g.NormFloat64() * 0.01)
		}
		kernel.EncodeF32(b, v)
		return w.WriteAt(item, b, 0)
	})
}

func write(path string, lay *layout.Layout, fill func(item int, w *layout.Writer) error) error {
	w, err := layout.Create(path, lay, true)
	if err != nil {
		return err
	}
	defer w.Abort()
	for i := range lay.Items {
		if err := fill(i, w); err != nil {
			return err
		}
	}
	return w.Commit()
}

// timeCopy copies a file with large writes and one fsync, as cp and sync would.
func timeCopy(from, to string) (time.Duration, error) {
	defer os.Remove(to)
	start := time.Now()
	in, err := os.Open(from)
	if err != nil {
		return 0, err
	}
	defer in.Close()
	out, err := os.Create(to)
	if err != nil {
		return 0, err
	}
	defer out.Close()
	// Hide the file's ReadFrom, so that the copy passes through memory as a merge does.
	if _, err := io.CopyBuffer(struct{ io.Writer }{out}, struct{ io.Reader }{in}, make([]byte, 8<<20)); err != nil {
		return 0, err
	}
	if err := out.Sync(); err != nil {
		return 0, err
	}
	return time.Since(start), nil
}

// timeMerge runs the program and returns its time and peak resident memory.
func timeMerge(program, model, adapter, out string) (time.Duration, int64, error) {
	defer os.Remove(out)
	start := time.Now()
	cmd := exec.Command(program, "merge", model, "-a", adapter, "-o", out, "--check", "off", "--quiet")
	cmd.Stderr = os.Stderr
	if err := cmd.Run(); err != nil {
		return 0, 0, err
	}
	d := time.Since(start)
	return d, peakMemory(cmd.ProcessState), nil
}
