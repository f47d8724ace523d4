package main

import (
	"context"
	"fmt"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/urfave/cli/v2"

	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/formats"
	"github.com/loratool/loratool/formats/layout"
	"github.com/loratool/loratool/hf"
	"github.com/loratool/loratool/merge"
	"github.com/loratool/loratool/quant/onnxquant"
	"github.com/loratool/loratool/quantized"
	"github.com/loratool/loratool/tensor"
	"github.com/loratool/loratool/verify"
)

func mergeCommand(t *terminal) *cli.Command {
	return &cli.Command{
		Name:      "merge",
		Usage:     "bake adapters into a base model",
		ArgsUsage: "BASE",
		Description: "Writes a model of BASE's format whose weights are BASE plus the adapters. The output appears whole or not at all, " +
			"and is checked from the written file: exactly on a sample of rows, and with ONNX Runtime where the library is installed.\n\n" +
			"Exit status: 0 done, 1 the check of the output failed, 2 could not complete, 3 no target matched, 4 usage, 130 interrupted.",
		Flags: slices.Concat([]cli.Flag{
			adapterFlag(),
			&cli.StringFlag{Name: "output", Aliases: []string{"o"}, Usage: "output `PATH`: a file, or a folder when BASE is one"},
			&cli.StringFlag{Name: "to", Usage: "output `FORMAT` (default: BASE's own, or gguf for a folder and an OUTPUT that ends in .gguf)"},
			&cli.StringFlag{Name: "dtype", Value: "keep", Usage: "`TYPE` of float tensors and of updated quantized ones: keep, f32, f16, bf16, f8_e4m3 (or fp8), f8_e5m2. " +
				"8 bits are for safetensors: a plain cast, in which vectors, position embeddings and the VAE keep their type and an overflow is an error"},
			&cli.StringFlag{Name: "quantize", Usage: "quantize the merged weights in the same pass, by `RECIPE` (Q4_K_M; for ONNX matmulnbits:4:32, qdq:int8)"},
			&cli.StringFlag{Name: "requant", Value: "auto", Usage: requantUsage},
			&cli.StringFlag{Name: "calibration", Usage: "weigh the retention with the modules' inputs in `FILE` (.npz): an array [samples, in] or of mean squares [in] by module name; changes no byte"},
			weightsFlag(),
			&cli.StringFlag{Name: "compat", Usage: "reproduce a peer's roundings, `PEER`: peft, peft-safe, peft-noautocast"},
			&cli.BoolFlag{Name: "allow-unmatched", Usage: "go on without the adapter tensors that match nothing in BASE"},
			&cli.StringFlag{Name: "tied", Value: "refuse", Usage: "when an adapter changes one side of tied embeddings, `HOW`: refuse, untie (store both), both (update the shared matrix)"},
			&cli.BoolFlag{Name: "dry-run", Usage: "print the plan and write nothing"},
			&cli.StringFlag{Name: "check", Value: "sample:8", Usage: "check the output, `HOW`: off, sample:N (N modules with ONNX Runtime), all"},
			&cli.StringFlag{Name: "device", Value: "auto", Usage: "`DEVICE` of the ONNX Runtime check: auto, cpu, cuda, webgpu"},
			&cli.Uint64Flag{Name: "seed", Usage: "`SEED` of the check's inputs and samples"},
			&cli.StringFlag{Name: "max-shard-size", Usage: "largest `SIZE` of an output file (default: the format's own)"},
			&cli.StringFlag{Name: "attest", Usage: "write to `FILE` what was made from what, by SHA-256: an unsigned in-toto statement of SLSA provenance"},
			&cli.StringFlag{Name: "manifest", Usage: "write to `FILE` the output's files and their SHA-256, as OpenSSF model signing (OMS 1.0) signs them, unsigned"},
			&cli.BoolFlag{Name: "twice", Usage: "merge again, with another number of workers, beside the output and compare every byte; the copy is removed"},
			&cli.BoolFlag{Name: "force", Usage: "replace an existing output"},
		}, reportFlags(), recipeFlags(), folderFlags(), dialectFlags()),
		Action: func(c *cli.Context) error { return runMerge(t, c) },
	}
}

// A mergeDocument is what merge prints with --json.
type mergeDocument struct {
	SchemaVersion int                `json:"schema_version"`
	Provenance    *verify.Provenance `json:"provenance"`
	Output        string             `json:"output"`
	Format        string             `json:"format"`
	Bytes         int64              `json:"bytes"`
	Pairs         []merge.Pair       `json:"pairs"`
	Recipe        string             `json:"recipe,omitempty"`
	Tensors       []merge.Stored     `json:"tensors,omitempty"` // with a recipe
	Modules       []merge.Stats      `json:"modules"`
	Retention     *verify.Retention  `json:"retention,omitempty"`
	Check         *verify.Report     `json:"check,omitempty"`
	Findings      []finding.Finding  `json:"findings"`
	Known         []finding.Finding  `json:"known,omitempty"`
}

type mergeArguments struct {
	base, output string
	name         string // of the output as it was asked for; output gets the first file of several
	options      merge.Options
	graph        *quantized.Options // --quantize for an ONNX graph
	check        checkLevel
	shard        int64
	reports      reporting
	attest       attesting
	twice        bool
	format       string
}

func readMergeArguments(c *cli.Context) (a mergeArguments, err error) {
	if a.base, err = oneArgument(c, "base model"); err != nil {
		return a, err
	}
	if len(c.StringSlice("adapter")) == 0 {
		return a, usagef("merge needs at least one adapter (-a PATH)")
	}
	if a.output = c.String("output"); a.output == "" && !c.Bool("dry-run") {
		return a, usagef("merge needs an output (-o PATH)")
	}
	if a.options.DType, err = parseDType(c.String("dtype")); err != nil {
		return a, err
	}
	if err = mergeQuantization(c, &a); err != nil {
		return a, err
	}
	if err = readRequant(c.String("requant"), &a.options); err != nil {
		return a, err
	}
	if a.options.Compat, err = parseCompat(c.String("compat")); err != nil {
		return a, err
	}
	if a.options.Tied, err = parseTied(c.String("tied")); err != nil {
		return a, err
	}
	if path := c.String("calibration"); path != "" {
		if a.options.Calibration, err = merge.ReadCalibration(path); err != nil {
			return a, err
		}
	}
	a.options.AllowUnmatched = c.Bool("allow-unmatched")
	if a.check, err = parseCheck(c.String("check"), c.String("device"), c.Uint64("seed")); err != nil {
		return a, err
	}
	if s := c.String("max-shard-size"); s != "" {
		if a.shard, err = parseSize(s); err != nil {
			return a, usagef("--max-shard-size: %v", err)
		}
	}
	if a.reports, err = readReporting(c); err != nil {
		return a, err
	}
	a.twice, a.name = c.Bool("twice"), filepath.Base(filepath.Clean(c.String("output")))
	if a.attest, err = readAttesting(c); err != nil {
		return a, err
	}
	a.format = c.String("to")
	return a, nil
}

// mergeQuantization reads --quantize and the flags beside it.
func mergeQuantization(c *cli.Context, a *mergeArguments) (err error) {
	name := c.String("quantize")
	switch {
	case name != "" && !strings.EqualFold(c.String("dtype"), "keep"):
		return usagef("--quantize and --dtype both choose types: give one of them")
	case onnxquant.IsRecipe(name):
		a.graph, err = readGraphRecipe(c, name)
		return err
	case name != "":
		a.options.Quantize, err = readQuantization(c, name)
		return err
	}
	for _, f := range recipeFlags() {
		if c.IsSet(f.Names()[0]) {
			return usagef("--%s goes with --quantize RECIPE", f.Names()[0])
		}
	}
	return nil
}

// recipe is the name of the recipe that the output is quantized by, "" without one.
func (a *mergeArguments) recipe() string {
	switch {
	case a.graph != nil:
		return a.graph.Recipe.String()
	case a.options.Quantize != nil:
		return a.options.Quantize.Recipe.Name()
	}
	return ""
}

func runMerge(t *terminal, c *cli.Context) error {
	args, err := readMergeArguments(c)
	if err != nil {
		return err
	}
	base, err := t.openMergeBase(c, &args)
	if err != nil {
		return err
	}
	defer base.Close()
	if err := sameFormat(args, base.Format()); err != nil {
		return err
	}
	dialect, err := dialectOptions(c)
	if err != nil {
		return err
	}
	inputs, closeAdapters, err := openAdapters(c.StringSlice("adapter"), dialect)
	if err != nil {
		return err
	}
	defer closeAdapters()
	plan, err := planMerge(base, inputs, args.options)
	if c.Bool("dry-run") {
		return printPlan(t, plan, err)
	}
	if err != nil {
		return args.reports.refused(t, c, args, plan, err)
	}
	m := merging{t: t, args: args, base: base, inputs: inputs, plan: plan, origin: provenance(c, args.check, args.output)}
	if err := t.demandRuntime(c.Context, args.check); err != nil {
		return err
	}
	if err := m.write(c.Context, c.Bool("force")); err != nil {
		return err
	}
	return m.checkAndReport(c.Context)
}

// openMergeBase opens the base, as a GGUF model where a model folder is to become one.
func (t *terminal) openMergeBase(c *cli.Context, args *mergeArguments) (formats.Writable, error) {
	if wanted(args.format, args.output) != "gguf" || !isModelFolder(args.base) {
		if err := noFolderFlags(c); err != nil {
			return nil, err
		}
		return t.openKept(c, args)
	}
	opt := folderOptions(c)
	opt.DType, args.options.DType = args.options.DType, tensor.Invalid
	m, err := openFolder(args.base, opt)
	if err != nil {
		return nil, err
	}
	var adapters []string
	for _, a := range c.StringSlice("adapter") {
		path, _, err := parseAdapter(a)
		if err != nil {
			m.Close()
			return nil, err
		}
		adapters = append(adapters, path)
	}
	m.SetOrigin(adapters)
	args.options.TypeOf = m.Type
	return m, nil
}

// openKept opens the base as its own format. What a scheme has quantized stays so, unless a type is asked for.
func (t *terminal) openKept(c *cli.Context, args *mergeArguments) (formats.Writable, error) {
	m, err := t.openBase(args.base)
	if err == nil {
		if err = t.recognise(c, m); err != nil {
			m.Close()
			return nil, err
		}
		if args.graph != nil {
			return quantizeGraph(m, *args.graph)
		}
	}
	if d, ok := m.(*formats.Decoded); ok && args.options.DType == tensor.Invalid && args.options.Quantize == nil {
		return d.Packed(), nil
	}
	return m, err
}

// wanted is the format of an output: the one asked for, or the one its ending says, "" for neither.
func wanted(to, output string) string {
	if to == "" && output != "" {
		return endingFormat(output)
	}
	return strings.ToLower(to)
}

// sameFormat refuses an output of another format than the base's, asked for with --to or by its ending.
func sameFormat(args mergeArguments, format string) error {
	f, from := wanted(args.format, args.output), "--to "+args.format
	if args.format == "" {
		from = filepath.Base(args.output)
	}
	if f == "" || f == format {
		return nil
	}
	return finding.Errorf("merge.unsupported_format", args.base, "a %s base is written as %s; another format is not offered yet", format, format).Expected(from, format)
}

func endingFormat(path string) string {
	switch e := strings.ToLower(filepath.Ext(path)); e {
	case ".gguf", ".onnx", ".safetensors":
		return e[1:]
	case ".bin", ".pt", ".pth", ".ckpt":
		return "torch"
	}
	return ""
}

// A merging is one run of the command after its plan was made.
type merging struct {
	t      *terminal
	args   mergeArguments
	base   formats.Writable
	inputs []merge.Input
	plan   *merge.Plan
	origin *verify.Provenance
	files  []string // written, where the output is not a folder
	stats  []merge.Stats
	stored []merge.Stored
	bytes  int64
}

// provenance names what the output was made of, where the format has a place for it.
func (m *merging) provenance() [][2]string {
	if _, folder := m.base.(*hf.Model); folder {
		return nil // it has the format's own keys
	}
	var names []string
	for _, in := range m.inputs {
		names = append(names, fmt.Sprintf("%s:%g", filepath.Base(filepath.Clean(in.Adapter.Path)), in.Scale))
	}
	return [][2]string{
		{"loratool.base", filepath.Base(filepath.Clean(m.args.base))},
		{"loratool.adapters", strings.Join(names, ",")},
	}
}

func (m *merging) write(ctx context.Context, force bool) error {
	paths := []string{m.args.base}
	for _, in := range m.inputs {
		paths = append(paths, in.Adapter.Path)
	}
	if err := outputIsInput(m.args.output, paths); err != nil {
		return err
	}
	l, err := m.plan.Layout(m.base, m.args.output, layout.Options{MaxShardSize: m.args.shard, Provenance: m.provenance()})
	if err != nil {
		return err
	}
	w := writing{t: m.t, label: "merging", plan: m.plan, layout: l, output: m.args.output, force: force}
	err = w.run(ctx)
	m.args.output, m.stats, m.stored, m.bytes = w.output, w.stats, w.stored, w.bytes
	m.files = written(l, m.args.output)
	return err
}

// checkAndReport verifies the written file and prints what was done.
func (m *merging) checkAndReport(ctx context.Context) error {
	doc := mergeDocument{
		SchemaVersion: verify.SchemaVersion, Provenance: m.origin, Output: m.args.output, Format: m.base.Format(), Bytes: m.bytes,
		Pairs: m.plan.Pairs, Modules: m.stats, Findings: append([]finding.Finding{}, m.plan.Findings...),
	}
	if doc.Recipe = m.args.recipe(); doc.Recipe != "" {
		doc.Tensors = m.stored
	}
	var names []string
	var values []float64
	var kept []verify.Kept
	for _, s := range m.stats {
		names, values = append(names, s.Module), append(values, s.Retention)
		kept = append(kept, verify.Kept{Module: s.Module, Tensor: s.Tensor, Type: s.Type, Retention: s.Retention})
	}
	doc.Retention = verify.SummarizeRetention(names, values)
	doc.Findings = append(doc.Findings, verify.Effects(m.plan, m.stats)...)
	if f := verify.LowRetention(m.args.output, kept, 0.9); f != nil {
		doc.Findings = append(doc.Findings, *f)
	}
	if m.args.twice {
		differ, err := m.again(ctx)
		if err != nil {
			return err
		}
		doc.Findings = append(doc.Findings, differ...)
	}
	debug.FreeOSMemory() // the slabs are done with; the check needs room of its own
	report, err := m.t.checkMerge(ctx, m.plan, m.args.output, m.args.check, true)
	if err != nil {
		return err
	}
	if report != nil {
		doc.Check = report
		for _, f := range report.Findings {
			if f.Code != "adapter.no_effect" { // measured and reported above
				doc.Findings = append(doc.Findings, f)
			}
		}
		m.args.reports.baseline.Apply(report)
	}
	doc.Findings, doc.Known = m.args.reports.baseline.Split(doc.Findings)
	if m.t.json {
		if err := m.t.document(doc); err != nil {
			return err
		}
	}
	if err := m.args.reports.write(m.t, doc.rendered()); err != nil {
		return err
	}
	m.t.report(doc.Findings)
	m.t.sayKnown(m.args.reports.baseline, doc.Known)
	m.print(report)
	if report != nil && report.Verdict == verify.Reject || slices.ContainsFunc(doc.Findings, func(f finding.Finding) bool { return f.Code == notTheSame }) {
		return status(exitFound)
	}
	return m.attest(ctx)
}

func (m *merging) print(report *verify.Report) {
	out := m.t.text()
	applied, replaced := 0, 0
	for _, p := range m.plan.Pairs {
		switch p.State {
		case "applied":
			applied++
		case "replaced":
			replaced++
		}
	}
	fmt.Fprintf(out, "%s: %d updates applied, %d replaced, of %d; %s written\n", m.args.output, applied, replaced, len(m.plan.Pairs), formatSize(m.bytes))
	if m.args.recipe() != "" {
		printStored(m.t, m.stored)
		fmt.Fprintln(out)
	}
	w := table.NewWriter()
	w.SetStyle(plainTable())
	w.AppendHeader(table.Row{"stored as", "tensors", "retention min", "median", "update ratio", "changed"})
	for _, g := range groupStats(m.stats) {
		w.AppendRow(table.Row{g.typ, g.n, fmt.Sprintf("%.4f", g.retention.Min), fmt.Sprintf("%.4f", g.retention.Median), fmt.Sprintf("%.2e", g.ratio), fmt.Sprintf("%.1f %%", 100*g.changed)})
	}
	fmt.Fprintln(out, w.Render())
	printKept(out, m.stats)
	if report != nil {
		printCheck(out, report)
	}
}

type statsGroup struct {
	typ            string
	n              int
	retention      *verify.Retention
	ratio, changed float64
}

// groupStats sums the measurements up by stored type.
func groupStats(stats []merge.Stats) []statsGroup {
	var groups []statsGroup
	for _, s := range stats {
		i := 0
		for i < len(groups) && groups[i].typ != s.Type {
			i++
		}
		if i == len(groups) {
			groups = append(groups, statsGroup{typ: s.Type})
		}
	}
	for i := range groups {
		g := &groups[i]
		var names []string
		var values []float64
		for _, s := range stats {
			if s.Type == g.typ {
				g.n++
				g.ratio += s.Ratio
				g.changed += s.Changed
				names, values = append(names, s.Module), append(values, s.Retention)
			}
		}
		g.ratio /= float64(g.n)
		g.changed /= float64(g.n)
		g.retention = verify.SummarizeRetention(names, values)
	}
	return groups
}

func parseCompat(s string) (merge.Compat, error) {
	switch p := merge.Compat(s); p {
	case merge.CompatNone, merge.CompatPEFT, merge.CompatPEFTSafe, merge.CompatPEFTNoAutocast:
		return p, nil
	}
	return "", usagef("--compat %q: peft, peft-safe or peft-noautocast", s)
}

func parseTied(s string) (merge.TiedPolicy, error) {
	switch p := merge.TiedPolicy(s); p {
	case merge.TiedUntie, merge.TiedBoth:
		return p, nil
	case "refuse", merge.TiedRefuse:
		return merge.TiedRefuse, nil
	}
	return "", usagef("--tied %q: refuse, untie or both", s)
}

func parseDType(s string) (tensor.DType, error) {
	switch strings.ToLower(s) {
	case "keep", "":
		return tensor.Invalid, nil
	}
	switch d, _ := tensor.ParseDType(s); d {
	case tensor.F32, tensor.F16, tensor.BF16, tensor.F8E4M3, tensor.F8E5M2:
		return d, nil
	}
	return tensor.Invalid, usagef("--dtype %q: keep, f32, f16, bf16, f8_e4m3 (or fp8) or f8_e5m2", s)
}
