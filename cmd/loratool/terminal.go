package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strconv"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/formats"
	"github.com/loratool/loratool/onnxruntime"
	"github.com/loratool/loratool/report"
	"github.com/loratool/loratool/verify"
)

// Exit statuses of all commands.
const (
	exitDone    = 0
	exitFound   = 1 // a check found something wrong
	exitFailed  = 2 // could not complete
	exitNothing = 3 // nothing to do
	exitUsage   = 4
)

// A usageError is the caller's mistake on the command line.
type usageError struct{ text, hint string }

func (e usageError) Error() string { return e.text }

func usagef(format string, a ...any) error { return usageError{text: fmt.Sprintf(format, a...)} }

// A status ends a command whose output has already said everything.
type status int

func (s status) Error() string { return fmt.Sprintf("exit status %d", int(s)) }

// A terminal is where a command's results and messages go. Results go to out; messages, progress and
// (with --json) all human text go to err.
type terminal struct {
	out, err  io.Writer
	json      bool
	quiet     bool
	jsonLog   bool
	progress  string
	jobs      int
	maxMemory int64
	formats   formats.Options
	failOn    finding.Level
	ortLib    string
	runtime   *onnxruntime.Runtime // once it is open
	warned    bool
	hinted    map[string]bool // hints that were given
	printed   bool            // the JSON document is out
}

// workers is how many things are done at once.
func (t *terminal) workers() int { return cmp.Or(t.jobs, runtime.GOMAXPROCS(0)) }

func (t *terminal) configure(c *cli.Context) error {
	t.json, t.quiet = c.Bool("json"), c.Bool("quiet")
	t.jobs, t.ortLib = c.Int("jobs"), c.String("ort-lib")
	t.progress = c.String("progress")
	t.formats.BigEndian = c.Bool("big-endian")
	if t.jobs < 0 {
		return usagef("--jobs %d: a number of workers is positive", t.jobs)
	}
	switch t.progress {
	case "auto", "always", "never":
	default:
		return usagef("--progress %q: auto, always or never", t.progress)
	}
	switch c.String("log-format") {
	case "text":
	case "json":
		t.jsonLog = true
	default:
		return usagef("--log-format %q: text or json", c.String("log-format"))
	}
	switch l := finding.Level(c.String("fail-on")); l {
	case finding.Error, finding.Warning:
		t.failOn = l
	default:
		return usagef("--fail-on %q: error or warning", l)
	}
	if s := c.String("max-memory"); s != "" {
		n, err := parseSize(s)
		if err != nil {
			return usagef("--max-memory: %v", err)
		}
		t.maxMemory = n
	}
	return nil
}

// text is where human-readable results go.
func (t *terminal) text() io.Writer {
	switch {
	case t.quiet:
		return io.Discard
	case t.json:
		return t.err
	}
	return t.out
}

// document prints the command's JSON document.
func (t *terminal) document(v any) error {
	t.printed = true
	return report.WriteJSON(t.out, v)
}

// alike is how many findings of one code are printed as text before the rest is only counted.
const alike = 10

// report prints findings, errors last.
func (t *terminal) report(findings []finding.Finding) {
	for _, l := range []finding.Level{finding.Info, finding.Warning, finding.Error} {
		seen := map[string]int{}
		var order []string
		for i := range findings {
			f := &findings[i]
			if f.Level != l {
				continue
			}
			if seen[f.Code]++; seen[f.Code] == 1 {
				order = append(order, f.Code)
			}
			if seen[f.Code] <= alike || t.jsonLog {
				t.say(f)
			}
		}
		for _, code := range order {
			if more := seen[code] - alike; more > 0 && !t.jsonLog && (!t.quiet || l == finding.Error) {
				fmt.Fprintf(t.err, "loratool: %s: and %d more of the kind %s; --json lists all\n", l, more, code)
			}
		}
	}
}

func (t *terminal) say(f *finding.Finding) {
	if f.Level == finding.Warning {
		t.warned = true
	}
	if t.quiet && f.Level != finding.Error {
		return
	}
	if t.jsonLog {
		b, _ := json.Marshal(f)
		fmt.Fprintf(t.err, "%s\n", b)
		return
	}
	fmt.Fprintf(t.err, "loratool: %s: %s\n", f.Level, f.Error())
	if f.Hint != "" && !t.hinted[f.Hint] {
		if t.hinted == nil {
			t.hinted = map[string]bool{}
		}
		t.hinted[f.Hint] = true
		fmt.Fprintf(t.err, "loratool: hint: %s\n", finding.Escape(f.Hint))
	}
}

// finish prints what a command ended with and chooses the exit status.
func (t *terminal) finish(cause error, err error) int {
	var stopped interrupt
	var s status
	var u usageError
	switch {
	case errors.As(cause, &stopped):
		t.fail(&finding.Finding{Code: "io.interrupted", Level: finding.Error, Message: stopped.Error()})
		return signalStatus(stopped.signal)
	case err == nil:
		if t.warned && t.failOn == finding.Warning {
			return exitFound
		}
		return exitDone
	case errors.As(err, &s):
		return int(s)
	case errors.As(err, &u):
		t.fail(&finding.Finding{Code: "usage.arguments", Level: finding.Error, Message: u.text, Hint: cmp.Or(u.hint, "loratool help lists the commands and their flags")})
		return exitUsage
	case errors.Is(err, context.Canceled):
		return exitFailed
	}
	f := finding.Of(err)
	if f == nil {
		f = &finding.Finding{Code: "io.failed", Level: finding.Error, Message: err.Error()}
	}
	t.fail(f)
	if f.Code == "match.nothing_to_do" {
		return exitNothing
	}
	return exitFailed
}

// fail prints what ended a command, and the JSON document where the command has not come to it.
func (t *terminal) fail(f *finding.Finding) {
	t.say(f)
	if inGitHub() {
		_ = report.WriteAnnotations(t.err, &report.Document{Findings: []finding.Finding{*f}})
	}
	if t.json && !t.printed {
		_ = t.document(map[string]any{"schema_version": verify.SchemaVersion, "verdict": verify.Reject, "findings": []*finding.Finding{f}})
	}
}

// isTerminal reports whether w is a terminal.
func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	st, err := f.Stat()
	return err == nil && st.Mode()&os.ModeCharDevice != 0
}

// parseSize reads a size such as 512MiB, 2GB, 1.5G or 4096.
func parseSize(s string) (int64, error) {
	i := strings.IndexFunc(s, func(r rune) bool { return (r < '0' || r > '9') && r != '.' })
	number, unit := s, ""
	if i >= 0 {
		number, unit = s[:i], strings.ToUpper(strings.TrimSpace(s[i:]))
	}
	factor, ok := map[string]float64{
		"": 1, "B": 1, "K": 1e3, "KB": 1e3, "M": 1e6, "MB": 1e6, "G": 1e9, "GB": 1e9, "T": 1e12, "TB": 1e12,
		"KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30, "TIB": 1 << 40,
	}[unit]
	x, err := strconv.ParseFloat(number, 64)
	if err != nil || !ok || x*factor < 1 || x*factor > 1<<62 {
		return 0, fmt.Errorf("%q is not a size (examples: 512MiB, 2GB)", s)
	}
	return int64(x * factor), nil
}

// formatSize prints a size in binary units.
func formatSize(n int64) string {
	units := []string{"B", "KiB", "MiB", "GiB", "TiB"}
	x, i := float64(n), 0
	for x >= 1024 && i < len(units)-1 {
		x, i = x/1024, i+1
	}
	if i == 0 {
		return fmt.Sprintf("%d B", n)
	}
	return fmt.Sprintf("%.1f %s", x, units[i])
}
