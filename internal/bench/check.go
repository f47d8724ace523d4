package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

// benchCheck measures the check of a whole merge, every row of every module, on layers of 4096 × 4096.
func benchCheck(program, dir string, layers, rank int) error {
	for i := range linears {
		linears[i].out, linears[i].in = 4096, 4096
	}
	tmp, err := os.MkdirTemp(dir, "loratool-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	model, adapter, merged := filepath.Join(tmp, "model.safetensors"), filepath.Join(tmp, "adapter"), filepath.Join(tmp, "merged.safetensors")
	size, err := makeModel(model, layers)
	if err != nil {
		return err
	}
	if err := makeAdapter(adapter, layers, rank); err != nil {
		return err
	}
	cmd := exec.Command(program, "merge", model, "-a", adapter, "-o", merged, "--check", "off", "--quiet")
	cmd.Stderr = os.Stderr
	if err := cmd.Run(); err != nil {
		return err
	}
	fmt.Printf("| modules of 4096 × 4096 bf16 | rank | size | check | time | processor time | peak memory |\n|---|---|---|---|---|---|---|\n")
	for _, sample := range []string{"8", "all"} {
		start := time.Now()
		cmd := exec.Command(program, "verify", merged, "--base", model, "-a", adapter, "--sample", sample, "--device", "cpu", "--report", filepath.Join(tmp, "r.html"), "--quiet")
		cmd.Stderr = os.Stderr
		if err := cmd.Run(); err != nil {
			return err
		}
		fmt.Printf("| %d | %d | %.2f GB | --sample %s | %.1f s | %.1f s | %.0f MiB |\n", len(linears)*layers, rank, float64(size)/1e9, sample,
			time.Since(start).Seconds(), (cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()).Seconds(), float64(peakMemory(cmd.ProcessState))/(1<<20))
	}
	return nil
}
