package main

import (
	"bytes"
	"context"
	"path/filepath"
	"slices"

	"github.com/urfave/cli/v2"

	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/formats"
	"github.com/loratool/loratool/formats/layout"
	"github.com/loratool/loratool/report"
	"github.com/loratool/loratool/tensor"
	"github.com/loratool/loratool/verify"
	"github.com/loratool/loratool/verify/attestation"
)

// attested are the flags of merge that an attestation records, where they are set: those that shape the output.
var attested = []string{"to", "dtype", "quantize", "requant", "compat", "tied", "allow-unmatched", "max-shard-size"}

// An attesting is what merge --attest needs.
type attesting struct {
	path       string // "" for none
	manifest   string // of the files alone; "" for none
	parameters map[string]any
}

func readAttesting(c *cli.Context) (attesting, error) {
	a := attesting{path: c.String("attest"), manifest: c.String("manifest")}
	if a.manifest != "" && a.manifest == a.path {
		return a, usagef("--attest and --manifest are written to the same file")
	}
	if m := a.manifest; m != "" && filepath.Dir(m) != filepath.Clean(c.String("output")) && !formats.IsFolder(filepath.Dir(m)) {
		return a, finding.Errorf("output.io", m, "the folder of the manifest is not there")
	}
	if a.path == "" {
		return a, nil
	}
	if filepath.Dir(a.path) == filepath.Clean(c.String("output")) {
		return a, usagef("--attest %q: the attestation names all files of the output, so it cannot be one of them", a.path)
	}
	if !formats.IsFolder(filepath.Dir(a.path)) {
		return a, finding.Errorf("output.io", a.path, "the folder of the attestation is not there")
	}
	var adapters []string
	for _, s := range c.StringSlice("adapter") {
		path, _, err := parseAdapter(s)
		if err != nil {
			return a, err
		}
		adapters = append(adapters, filepath.Base(filepath.Clean(path))+s[len(path):])
	}
	options := map[string]any{}
	for _, name := range attested {
		if c.IsSet(name) {
			options[name] = c.Value(name)
		}
	}
	a.parameters = map[string]any{"base": filepath.Base(filepath.Clean(c.Args().First())), "adapters": adapters, "options": options}
	return a, nil
}

// attest writes the attestation of an output that passed its check.
func (m *merging) attest(ctx context.Context) error {
	a := m.args.attest
	if a.manifest != "" {
		// Before the attestation, which names every file of a folder.
		s, err := attestation.NewManifest(ctx, m.args.output, m.files, a.manifest)
		if err == nil {
			err = writeStatement(a.manifest, s)
		}
		if err != nil {
			return err
		}
	}
	if a.path == "" {
		return nil
	}
	s := attestation.New(version(), a.parameters)
	files, root := m.files, filepath.Dir(m.args.output)
	if formats.IsFolder(m.args.output) {
		var err error
		if files, err = attestation.Files(m.args.output, nil); err != nil {
			return err
		}
		root = m.args.output
	}
	if err := s.Made(ctx, files, root); err != nil {
		return err
	}
	base, err := attestation.Files(m.args.base, m.base.Tensors())
	if err != nil {
		return err
	}
	if err := s.From(ctx, "base", m.args.base, base); err != nil {
		return err
	}
	for _, in := range m.inputs {
		files, err := attestation.Files(in.Adapter.Path, nil)
		if err != nil {
			return err
		}
		if err := s.From(ctx, "adapter", in.Adapter.Path, files); err != nil {
			return err
		}
	}
	return writeStatement(a.path, s)
}

func writeStatement(path string, s any) error {
	var b bytes.Buffer
	if err := report.WriteJSON(&b, s); err != nil {
		return err
	}
	return writeWhole(path, b.Bytes())
}

// checkAttestation adds to a report what an attestation has against the file, and against the base and the
// adapters where they are given.
func (t *terminal) checkAttestation(c *cli.Context, r *verify.Report, path string) error {
	file := c.String("attest")
	s, m, signed, err := attestation.Open(file)
	if err != nil {
		return err
	}
	if signed {
		r.Findings = append(r.Findings, finding.Finding{Code: "provenance.signature", Level: finding.Info, File: file, Message: "the statement is signed, and the signature is not checked here"})
	}
	if m != nil {
		found, err := m.Check(c.Context, path, file, c.Bool("ignore-unsigned-files"))
		r.Findings = append(r.Findings, found...)
		return err
	}
	found, err := s.Check(c.Context, path)
	if err != nil {
		return err
	}
	if c.Bool("ignore-unsigned-files") && formats.IsFolder(path) {
		found = slices.DeleteFunc(found, func(f finding.Finding) bool { return f.Code == "provenance.unexpected_file" })
	}
	from := func(role, path string, tensors []tensor.Tensor) error {
		files, err := attestation.Files(path, tensors)
		if err != nil {
			return err
		}
		other, err := s.CheckFrom(c.Context, role, files)
		found = append(found, other...)
		return err
	}
	if base := c.String("base"); base != "" {
		m, err := formats.OpenWith(base, t.formats)
		if err != nil {
			return err
		}
		defer m.Close()
		if err := from("base", base, m.Tensors()); err != nil {
			return err
		}
	}
	for _, a := range c.StringSlice("adapter") {
		path, _, err := parseAdapter(a)
		if err == nil {
			err = from("adapter", path, nil)
		}
		if err != nil {
			return err
		}
	}
	r.Findings = append(r.Findings, found...)
	return nil
}

// written are the files of an output that is not a folder.
func written(l *layout.Layout, output string) []string {
	if len(l.Files) == 1 {
		return []string{output}
	}
	var files []string
	for _, f := range l.Files {
		files = append(files, filepath.Join(filepath.Dir(output), f.Name))
	}
	return files
}
