package onnxruntime

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"
)

// A Probe says whether a provider computes.
type Probe struct {
	Provider Provider `json:"provider"`
	Usable   bool     `json:"usable"`
	RelError float64  `json:"rel_error,omitempty"` // of a small product against float64
	Device   string   `json:"device,omitempty"`    // WebGPU: the devices that the drivers report
	Software bool     `json:"software,omitempty"`  // WebGPU: every one of them is the CPU in disguise
	Reason   string   `json:"reason,omitempty"`    // why it is not usable
}

// A Prober tries a provider of a library.
type Prober func(ctx context.Context, lib Library, p Provider) Probe

// InProcess tries the provider in this process: quick, but a GPU driver that crashes takes the process
// with it.
func InProcess(_ context.Context, lib Library, p Provider) Probe {
	res := Probe{Provider: p}
	if reason := missing(lib, p); reason != "" {
		res.Reason = reason
		return res
	}
	if p == WebGPU {
		var names []string
		res.Software = true
		for _, d := range gpuDevices() {
			names = append(names, d.name)
			res.Software = res.Software && d.software
		}
		res.Device = strings.Join(names, ", ")
	}
	if _, err := load(lib); err != nil {
		res.Reason = err.Error()
		return res
	}
	e, err := prove(p)
	if err != nil {
		res.Reason = err.Error()
		return res
	}
	res.RelError, res.Usable = e, true
	return res
}

// missing says what a provider lacks that can be seen without starting it.
func missing(lib Library, p Provider) string {
	switch p {
	case CPU:
		return ""
	case CUDA:
		return missingCUDA(lib)
	case WebGPU:
		if err := gpuLoader(); err != nil {
			return err.Error()
		}
		if len(gpuDevices()) == 0 {
			return "no Vulkan driver reports a device"
		}
		return ""
	}
	return fmt.Sprintf("there is no provider %q", string(p))
}

// probeVariable marks a child process of ChildProber and carries what it is to try.
const probeVariable = "LORATOOL_RUNTIME_PROBE"

// The longest a child may take: the first use of a CUDA or Vulkan driver compiles shaders.
const probeTime = 60 * time.Second

type probeRequest struct {
	Library  Library
	Provider Provider
}

// ChildProber tries GPU providers in a child process started from exe, the program itself, so that a
// crash of a driver is an answer and not the end. The program's main function must call ServeProbe first.
// The CPU is tried in this process.
func ChildProber(exe string) Prober {
	return func(ctx context.Context, lib Library, p Provider) Probe {
		if p == CPU {
			return InProcess(ctx, lib, p)
		}
		res := Probe{Provider: p}
		// A provider that plainly is not there is not worth a process. Asking for devices loads drivers, so
		// that is left to the child.
		if p == CUDA {
			res.Reason = missingCUDA(lib)
		} else if err := gpuLoader(); err != nil {
			res.Reason = err.Error()
		}
		if res.Reason != "" {
			return res
		}
		ctx, cancel := context.WithTimeout(ctx, probeTime)
		defer cancel()
		request, err := json.Marshal(probeRequest{lib, p})
		if err != nil {
			res.Reason = err.Error()
			return res
		}
		cmd := exec.CommandContext(ctx, exe)
		cmd.Env = append(os.Environ(), probeVariable+"="+string(request))
		cmd.WaitDelay = time.Second
		var out, log bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &log
		err = cmd.Run()
		answer := Probe{}
		if jsonErr := json.Unmarshal([]byte(lastLine(out.String())), &answer); err == nil && jsonErr == nil && answer.Provider == p {
			return answer
		}
		switch {
		case ctx.Err() != nil:
			res.Reason = "no answer within " + probeTime.String()
		case err != nil:
			res.Reason = fmt.Sprintf("the probe crashed: %v: %s", err, lastLine(log.String()))
		default:
			res.Reason = "the probe gave no answer"
		}
		return res
	}
}

// ServeProbe answers and exits when this process is a child of ChildProber; otherwise it returns at once.
func ServeProbe() {
	request, ok := os.LookupEnv(probeVariable)
	if !ok {
		return
	}
	os.Exit(serveProbe(request, os.Stdout))
}

func serveProbe(request string, out io.Writer) int {
	var r probeRequest
	if err := json.Unmarshal([]byte(request), &r); err != nil {
		return 2
	}
	if err := json.NewEncoder(out).Encode(InProcess(context.Background(), r.Library, r.Provider)); err != nil {
		return 2
	}
	return 0
}

// A Report is what there is to say about a library.
type Report struct {
	Library
	Version   string  `json:"version"`
	API       int     `json:"api"` // the C API version this program asks for
	Providers []Probe `json:"providers"`
}

// Info loads the library and tries every provider with it. A nil prober means InProcess.
func Info(ctx context.Context, lib Library, probe Prober) (Report, error) {
	version, err := load(lib)
	if err != nil {
		return Report{Library: lib}, err
	}
	if probe == nil {
		probe = InProcess
	}
	r := Report{Library: lib, Version: version, API: apiVersion}
	for _, p := range []Provider{CPU, CUDA, WebGPU} {
		r.Providers = append(r.Providers, probe(ctx, lib, p))
		if err := ctx.Err(); err != nil {
			return r, err
		}
	}
	return r, nil
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
