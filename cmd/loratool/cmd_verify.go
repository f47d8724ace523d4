package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/urfave/cli/v2"

	"github.com/loratool/loratool/adapter/dialect"
	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/formats"
	"github.com/loratool/loratool/merge"
	"github.com/loratool/loratool/quant/imatrix"
	"github.com/loratool/loratool/report"
	"github.com/loratool/loratool/tensor"
	"github.com/loratool/loratool/verify"
	"github.com/loratool/loratool/verify/target"
)

func verifyCommand(t *terminal) *cli.Command {
	return &cli.Command{
		Name:      "verify",
		Usage:     "check a file, an adapter against its base, or a merged model",
		ArgsUsage: "FILE… | ADAPTER --for TARGET | ADAPTER --base BASE | MERGED --base BASE -a ADAPTER[:S]…",
		Description: "FILE…: are they sound? Weights are read up to 256 MiB, or with --tensors; of bigger files the header is checked.\nADAPTER --base BASE: will it fit, and do something?\n" +
			"MERGED --base BASE -a ADAPTER: is it really BASE + adapters? Answered exactly and with ONNX Runtime.\n\n" +
			"Exit status: 0 sound, 1 something is wrong (with --fail-on warning: or odd), 2 could not check, 4 usage.",
		Flags: append([]cli.Flag{
			&cli.StringFlag{Name: "base", Usage: "base model, `PATH`"},
			&cli.StringFlag{Name: "for", Usage: "what will `TARGET` do with the adapter: " + strings.Join(target.Names(), ", ")},
			adapterFlag(),
			&cli.StringFlag{Name: "sample", Value: "8", Usage: "check `N` modules with ONNX Runtime, or all modules and every row"},
			&cli.StringFlag{Name: "device", Value: "auto", Usage: "`DEVICE` of the ONNX Runtime check: auto, cpu, cuda, webgpu"},
			&cli.Uint64Flag{Name: "seed", Usage: "`SEED` of the check's inputs and samples"},
			&cli.BoolFlag{Name: "whole-model", Usage: "run ONNX models as a whole too: BASE with the adapters beside its layers, BASE alone and MERGED, on the same inputs"},
			&cli.StringFlag{Name: "inputs", Usage: "values of the models' inputs for --whole-model, from `FILE`.npz or .json ({\"input_ids\": [[1, 2]]}); those that are missing are made up"},
			&cli.StringSliceFlag{Name: "dim", Usage: "size of an open dimension of the inputs that are made up, `NAME=N`; repeatable"},
			&cli.BoolFlag{Name: "tensors", Usage: "list every tensor with its SHA-256"},
			&cli.BoolFlag{Name: "allow-unmatched", Usage: "accept adapter tensors that match nothing in BASE"},
			&cli.StringFlag{Name: "tied", Value: "refuse", Usage: "how the merge treated tied embeddings, `HOW`: refuse, untie, both"},
			weightsFlag(),
			&cli.StringFlag{Name: "imatrix", Usage: "importance matrix that the merged weights were quantized with, `FILE`"},
			&cli.Float64Flag{Name: "retention-warning", Value: 0.9, Usage: "warn where less than this `SHARE` of an adapter is left after rounding"},
			&cli.Float64Flag{Name: "retention-error", Value: 0.5, Usage: "reject where less than this `SHARE` is left"},
			&cli.StringFlag{Name: "compat", Usage: "the merge reproduced a peer's roundings, `PEER`: peft, peft-safe, peft-noautocast"},
			&cli.StringFlag{Name: "attest", Usage: "hold the file to `FILE`, an attestation of merge --attest (BASE and ADAPTERs too, where they are given) or a manifest of merge --manifest"},
			&cli.BoolFlag{Name: "ignore-unsigned-files", Usage: "accept files of a folder that the attestation or manifest does not name"},
		}, append(reportFlags(), dialectFlags()...)...),
		Action: func(c *cli.Context) error { return runVerify(t, c) },
	}
}

func runVerify(t *terminal, c *cli.Context) error {
	reports, err := readReporting(c)
	if err != nil {
		return err
	}
	paths := c.Args().Slice()
	if len(paths) == 0 || len(paths) > 1 && c.String("base")+c.String("for") != "" {
		return usagef("verify takes one path, or several files alone; found %d", len(paths))
	}
	if c.Bool("ignore-unsigned-files") && c.String("attest") == "" {
		return usagef("--ignore-unsigned-files is for --attest")
	}
	if len(paths) > 1 && c.String("attest") != "" {
		return usagef("--attest is about one output, found %d", len(paths))
	}
	level, err := parseCheck(c.String("sample"), c.String("device"), c.Uint64("seed"))
	if err != nil {
		return err
	}
	var r *verify.Report
	switch adapters := c.StringSlice("adapter"); {
	case c.String("for") != "" && len(adapters) > 0:
		return usagef("verify --for is for an adapter, not for a merged model")
	case c.String("for") != "":
		r, err = verifyFor(c, paths[0])
	case c.String("base") == "" && len(adapters) > 0:
		return usagef("verify -a ADAPTER needs --base BASE")
	case c.String("base") == "":
		r, err = verifyFiles(t, c, paths)
	case len(adapters) == 0:
		r, err = verifyAdapter(t, c, paths[0])
	default:
		r, err = verifyMerge(t, c, paths[0], adapters, level)
	}
	if r == nil {
		return err
	}
	r.Provenance = provenance(c, level, paths...)
	if err != nil { // the plan was refused, which a report says too
		if e := reports.write(t, report.FromVerify(r)); e != nil {
			return e
		}
		return err
	}
	if c.String("attest") != "" {
		n := len(r.Findings)
		if err := t.checkAttestation(c, r, paths[0]); err != nil {
			return err
		}
		fmt.Fprintf(t.text(), "%s: %s\n", finding.Escape(c.String("attest")), verify.Found(slices.Clone(r.Findings[n:])).Verdict)
	}
	reports.baseline.Apply(r)
	if t.json {
		if err := t.document(r); err != nil {
			return err
		}
	}
	if err := reports.write(t, report.FromVerify(r)); err != nil {
		return err
	}
	t.report(r.Findings)
	t.sayKnown(reports.baseline, r.Known)
	if r.Verdict == verify.Reject {
		return status(exitFound)
	}
	return nil
}

// smallFile is the size of the weights that verify FILE reads without being asked for it.
const smallFile = 256 << 20

// verifyFiles checks files alone, each for itself.
func verifyFiles(t *terminal, c *cli.Context, paths []string) (*verify.Report, error) {
	if len(paths) > 1 && c.Bool("tensors") {
		return nil, usagef("--tensors lists the tensors of one file, found %d", len(paths))
	}
	var all *verify.Report
	for _, p := range paths {
		r, err := verifyFile(t, c, p)
		if err != nil {
			return nil, err
		}
		if all == nil {
			all = r
		} else {
			all.Findings = append(all.Findings, r.Findings...)
		}
	}
	return all, nil
}

// verifyFile checks a file alone; an adapter folder is also decoded.
func verifyFile(t *terminal, c *cli.Context, path string) (*verify.Report, error) {
	adapter := isAdapter(path)
	_, err := formats.Sniff(path)
	if err != nil && finding.Of(err).Code == "files.missing" {
		return nil, err
	}
	var r *verify.Report
	if err != nil && adapter { // in files that only its dialect reads
		r = verify.Found(nil)
	} else if r, err = verify.File(c.Context, path, verify.FileOptions{Digests: c.Bool("tensors"), Small: smallFile, Formats: t.formats}); err != nil {
		return nil, err
	}
	if adapter && r.Verdict != verify.Reject {
		opt, err := dialectOptions(c)
		if err != nil {
			return nil, err
		}
		if err := verify.AdapterFile(r, path, opt); err != nil {
			return nil, err
		}
	}
	fmt.Fprintf(t.text(), "%s: %s\n", finding.Escape(path), r.Verdict)
	if len(r.Tensors) > 0 {
		printDigests(t, r)
	}
	return r, nil
}

// verifyFor says what a server will do with an adapter.
func verifyFor(c *cli.Context, path string) (*verify.Report, error) {
	server := target.Find(strings.ToLower(c.String("for")))
	if server == nil {
		return nil, usagef("--for %q: the targets are %s", c.String("for"), strings.Join(target.Names(), ", "))
	}
	opt, err := dialectOptions(c)
	if err != nil {
		return nil, err
	}
	a, err := dialect.Open(path, opt)
	if err != nil {
		if f := finding.Of(err); f != nil && f.Code != "files.missing" {
			return verify.Rejected(f), nil
		}
		return nil, err
	}
	defer a.Close()
	findings := append(slices.Clone(a.Findings), server.Loads(a)...)
	if base := c.String("base"); base != "" {
		findings = append(findings, server.Fits(a, base)...)
	}
	return verify.Found(findings), nil
}

func printDigests(t *terminal, r *verify.Report) {
	w := table.NewWriter()
	w.SetStyle(plainTable())
	w.AppendHeader(table.Row{"tensor", "type", "shape", "sha256"})
	for _, name := range sortedKeys(r.Tensors) {
		d := r.Tensors[name]
		w.AppendRow(table.Row{finding.Escape(name), d.DType, tensor.Shape(d.Shape).String(), d.SHA256})
	}
	fmt.Fprintln(t.text(), w.Render())
}

// planAgainst opens a base and adapters and plans their merge; merged is the output that it is compared with,
// or "".
func (t *terminal) planAgainst(c *cli.Context, adapters []string, merged string) (plan *merge.Plan, planErr error, closeAll func(), err error) {
	tied, err := parseTied(c.String("tied"))
	if err != nil {
		return nil, nil, nil, err
	}
	compat, err := parseCompat(c.String("compat"))
	if err != nil {
		return nil, nil, nil, err
	}
	base, err := t.openComparedBase(c.String("base"), merged)
	if err != nil {
		return nil, nil, nil, err
	}
	opt, err := dialectOptions(c)
	if err == nil {
		err = t.recognise(c, base)
	}
	if err != nil {
		base.Close()
		return nil, nil, nil, err
	}
	inputs, closeAdapters, err := openAdapters(adapters, opt)
	if err != nil {
		base.Close()
		return nil, nil, nil, err
	}
	plan, planErr = planMerge(base, inputs, merge.Options{
		AllowUnmatched: c.Bool("allow-unmatched"), Compat: compat, Tied: tied, CheckOnly: true,
	})
	if path := c.String("imatrix"); path != "" {
		m, err := imatrix.Open(path)
		if err != nil {
			closeAdapters()
			base.Close()
			return nil, nil, nil, err
		}
		plan.Weigh(m)
	}
	return plan, planErr, func() { closeAdapters(); base.Close() }, nil
}

func verifyAdapter(t *terminal, c *cli.Context, path string) (*verify.Report, error) {
	plan, planErr, closeAll, err := t.planAgainst(c, []string{path}, "")
	if err != nil {
		if f := finding.Of(err); f != nil && f.Code != "files.missing" {
			return verify.Rejected(f), nil
		}
		return nil, err
	}
	defer closeAll()
	r, fits, err := verify.Adapter(c.Context, plan, planErr)
	if err != nil {
		return nil, err
	}
	if len(plan.Pairs) > 0 {
		fmt.Fprintf(t.text(), "%s: %d of %d updates fit %s\n", finding.Escape(path), appliedPairs(plan), len(plan.Pairs), finding.Escape(filepath.Base(c.String("base"))))
	}
	if len(fits) > 0 {
		low, high := fits[0], fits[0]
		for _, f := range fits {
			if f.Ratio < low.Ratio {
				low = f
			}
			if f.Ratio > high.Ratio {
				high = f
			}
		}
		fmt.Fprintf(t.text(), "update ratio: smallest %.2e (%s), largest %.2e (%s)\n", low.Ratio, finding.Escape(low.Module), high.Ratio, finding.Escape(high.Module))
	}
	return r, nil
}

func verifyMerge(t *terminal, c *cli.Context, path string, adapters []string, level checkLevel) (*verify.Report, error) {
	if level.off {
		return nil, usagef("--sample off: that would check nothing")
	}
	if level.low, level.lost = c.Float64("retention-warning"), c.Float64("retention-error"); !(0 < level.lost && level.lost <= level.low && level.low <= 1) {
		return nil, usagef("--retention-error %g and --retention-warning %g: shares from 0 to 1, the first not above the second", level.lost, level.low)
	}
	plan, planErr, closeAll, err := t.planAgainst(c, adapters, path)
	if err != nil {
		return nil, err
	}
	defer closeAll()
	if planErr != nil {
		return refused(plan), refusePlan(t, plan, planErr)
	}
	if _, err := os.Stat(path); err != nil {
		return nil, finding.Errorf("files.missing", path, "there is no such merged model")
	}
	whole, err := t.readWhole(c, path, adapters, level)
	if err != nil {
		return nil, err
	}
	defer whole.close()
	r, err := t.checkMerge(c.Context, plan, path, level, false)
	if f := finding.Of(err); f != nil && f.File == path {
		return verify.Rejected(f), nil // it cannot be opened for what it is
	}
	if err != nil {
		return nil, err
	}
	r.Findings = append(plan.Findings, r.Findings...)
	if err := whole.run(c.Context, r); err != nil {
		return nil, err
	}
	printModules(t, r)
	printCheck(t.text(), r)
	return r, nil
}

func printModules(t *terminal, r *verify.Report) {
	w := table.NewWriter()
	w.SetStyle(plainTable())
	w.AppendHeader(table.Row{"module", "type", "retention", "rel error", "update ratio", "runtime", ""})
	for _, m := range r.Modules {
		byRuntime, verdict := "", "ok"
		if m.Runtime != nil {
			byRuntime = fmt.Sprintf("%s α %.4f", m.Runtime.Provider, m.Runtime.Retention)
		}
		if !m.Pass {
			verdict = m.Why
		}
		w.AppendRow(table.Row{finding.Escape(m.Module), m.Type, fmt.Sprintf("%.4f", m.Retention), fmt.Sprintf("%.1e", m.RelError), fmt.Sprintf("%.2e", m.Ratio), byRuntime, verdict})
	}
	fmt.Fprintln(t.text(), w.Render())
}
