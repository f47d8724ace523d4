package main

import (
	"fmt"
	"os"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/urfave/cli/v2"

	"github.com/loratool/loratool/onnxruntime"
)

func runtimeCommand(t *terminal) *cli.Command {
	return &cli.Command{
		Name:  "runtime",
		Usage: "install or show the ONNX Runtime library",
		Description: "The library checks merges with arithmetic that is not this program's own. Everything else works without it.\n\n" +
			"Exit status: 0 done, 2 there is no library, or it cannot be used, 4 usage.",
		Subcommands: []*cli.Command{
			{
				Name:  "install",
				Usage: "put the library into the user's cache",
				Description: "Fetches the pinned version with the npm client (npm pack, no scripts run) and checks its SHA-256, or takes " +
					"the library out of a file: the npm package, a release archive, a Python wheel, or the library itself.\n\n" +
					"Exit status: 0 done, 2 could not install, 4 usage.",
				Flags:  []cli.Flag{&cli.StringFlag{Name: "from", Usage: "take the library from `FILE` instead of the network"}},
				Action: func(c *cli.Context) error { return runRuntimeInstall(t, c) },
			},
			{
				Name:        "info",
				Usage:       "show the library in use, its version and devices, and try each with a small product",
				Description: "Exit status: 0 done, 2 there is no library, or it cannot be used, 4 usage.",
				Action:      func(c *cli.Context) error { return runRuntimeInfo(t, c) },
			},
		},
		Action: func(c *cli.Context) error {
			return usagef("runtime needs a command: install or info")
		},
	}
}

func runRuntimeInstall(t *terminal, c *cli.Context) error {
	if c.NArg() > 0 {
		return usagef("runtime install takes no arguments; a file is given with --from")
	}
	in, err := onnxruntime.Install(c.Context, onnxruntime.InstallOptions{
		From: c.String("from"),
		Progress: func(line string) {
			if !t.quiet {
				fmt.Fprintln(t.err, line)
			}
		},
	})
	if err != nil {
		return err
	}
	if t.json {
		return t.document(in)
	}
	state := "installed"
	if in.Already {
		state = "already installed"
	}
	fmt.Fprintf(t.text(), "%s: %s\nsha256 %s", state, in.Path, in.SHA256)
	if !in.Pinned {
		fmt.Fprint(t.text(), " (not a build this program knows)")
	}
	fmt.Fprintln(t.text())
	return nil
}

func runRuntimeInfo(t *terminal, c *cli.Context) error {
	lib, err := onnxruntime.Locate(t.ortLib)
	if err != nil {
		return err
	}
	prober := onnxruntime.InProcess
	if exe, err := os.Executable(); err == nil {
		prober = onnxruntime.ChildProber(exe)
	}
	info, err := onnxruntime.Info(c.Context, lib, prober)
	if err != nil {
		return err
	}
	if t.json {
		return t.document(info)
	}
	fmt.Fprintf(t.text(), "library:  %s (from %s)\nversion:  %s (C API %d)\n", info.Path, info.Source, info.Version, info.API)
	w := table.NewWriter()
	w.SetStyle(plainTable())
	w.AppendHeader(table.Row{"provider", "usable", "device", "smoke test"})
	for _, p := range info.Providers {
		smoke := fmt.Sprintf("relative error %.1e", p.RelError)
		if !p.Usable {
			smoke = p.Reason
		}
		device := p.Device
		if p.Software {
			device += " (software)"
		}
		w.AppendRow(table.Row{p.Provider, p.Usable, device, smoke})
	}
	fmt.Fprintln(t.text(), w.Render())
	return nil
}
