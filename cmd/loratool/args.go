package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"
)

// arrange puts the arguments into the order the flag parser needs: global flags, the command, its
// flags, and after "--" the positionals. The parser stops at the first positional, so without this
// "loratool merge base --out x" would silently ignore --out. "help COMMAND" becomes "COMMAND --help".
func arrange(app *cli.App, args []string) ([]string, error) {
	if len(args) < 2 {
		return args, nil
	}
	a := arrangement{global: valueFlags(app.Flags), commands: app.Commands, local: map[string]bool{}}
	for rest := args[1:]; len(rest) > 0; {
		arg := rest[0]
		rest = rest[1:]
		switch {
		case arg == "--":
			a.positionals = append(a.positionals, rest...)
			rest = nil
		case arg == "help" && len(a.names)+len(a.positionals) == 0, arg == "--help", arg == "-h":
			a.help = true
		case !strings.HasPrefix(arg, "-") || arg == "-":
			if err := a.word(arg); err != nil {
				return nil, err
			}
		default:
			var err error
			if rest, err = a.flag(arg, rest); err != nil {
				return nil, err
			}
		}
	}
	if a.help {
		return nil, helpRequest{a.names, a.command}
	}
	if slices.Contains(a.positionals, "-") || slices.Contains(a.flags, "-") {
		return nil, usagef("\"-\" is not a file: standard input and output are not used for models")
	}
	out := append([]string{args[0]}, a.globals...)
	out = append(append(out, a.names...), a.flags...)
	return append(append(out, "--"), a.positionals...), nil
}

// An arrangement is a command line taken apart.
type arrangement struct {
	commands      []*cli.Command  // what the next word may name
	global, local map[string]bool // the known flags, and whether they take a value

	names, globals, flags, positionals []string
	command                            *cli.Command // the one that names name
	help                               bool
}

// A helpRequest is the error of a command line that asks for help, on one command or on all (nil).
type helpRequest struct {
	names   []string
	command *cli.Command
}

func (h helpRequest) Error() string { return "help was asked for" }

// word takes a command or a positional.
func (a *arrangement) word(arg string) error {
	if len(a.commands) == 0 {
		a.positionals = append(a.positionals, arg)
		return nil
	}
	for _, c := range a.commands {
		if c.HasName(arg) {
			a.names, a.command, a.commands, a.local = append(a.names, arg), c, c.Subcommands, valueFlags(c.Flags)
			return nil
		}
	}
	var known []string
	for _, c := range a.commands {
		known = append(known, c.Name)
	}
	return usageError{
		text: fmt.Sprintf("unknown command %q", strings.Join(append(slices.Clone(a.names), arg), " ")),
		hint: suggest(arg, known, "", "loratool help lists the commands"),
	}
}

// flag takes a flag and, from rest, its value.
func (a *arrangement) flag(arg string, rest []string) ([]string, error) {
	name, _, hasValue := strings.Cut(strings.TrimLeft(arg, "-"), "=")
	to := &a.flags
	takes, ok := a.local[name]
	if !ok {
		to = &a.globals
		takes, ok = a.global[name]
	}
	if !ok {
		return nil, a.unknown(arg)
	}
	*to = append(*to, arg)
	if !takes || hasValue {
		return rest, nil
	}
	if len(rest) == 0 {
		return nil, usageError{text: fmt.Sprintf("flag %s needs a value", arg), hint: a.listed()}
	}
	if next, _, _ := strings.Cut(strings.TrimLeft(rest[0], "-"), "="); strings.HasPrefix(rest[0], "-") && a.known(next) {
		return nil, usageError{text: fmt.Sprintf("flag %s needs a value, found the flag %s", arg, rest[0]), hint: a.listed()}
	}
	*to = append(*to, rest[0])
	return rest[1:], nil
}

func (a *arrangement) known(name string) bool {
	_, local := a.local[name]
	_, global := a.global[name]
	return local || global
}

func (a *arrangement) unknown(arg string) error {
	arg, _, _ = strings.Cut(arg, "=")
	var known []string
	for _, flags := range []map[string]bool{a.local, a.global} {
		for n := range flags {
			if len(n) > 1 {
				known = append(known, n)
			}
		}
	}
	slices.Sort(known)
	u := usageError{text: fmt.Sprintf("unknown flag %s", arg), hint: suggest(strings.TrimLeft(arg, "-"), known, "--", a.listed())}
	if len(a.names) > 0 {
		u.text += " of " + strings.Join(a.names, " ")
	}
	return u
}

// listed says where the flags that are understood here are listed.
func (a *arrangement) listed() string {
	return strings.TrimSpace("loratool help "+strings.Join(a.names, " ")) + " lists the flags"
}

// suggest is the hint for a mistyped word: the nearest of the known ones, and where all are listed.
func suggest(word string, known []string, dashes, listed string) string {
	best, nearest := 1+len(word)/3, ""
	for _, k := range known {
		if d := edits(word, k); d <= best && (nearest == "" || d < best) {
			best, nearest = d, k
		}
	}
	if nearest == "" {
		return listed
	}
	return fmt.Sprintf("did you mean %s%s? %s", dashes, nearest, listed)
}

// edits counts the single-letter changes, insertions and deletions that make b of a.
func edits(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			change := diagonal
			if a[i] != b[j] {
				change++
			}
			diagonal = row[j+1]
			row[j+1] = min(change, diagonal+1, row[j]+1)
		}
	}
	return row[len(b)]
}

// valueFlags maps every name of the flags to whether it takes a value.
func valueFlags(flags []cli.Flag) map[string]bool {
	m := map[string]bool{}
	for _, f := range flags {
		d, ok := f.(cli.DocGenerationFlag)
		for _, n := range f.Names() {
			m[n] = ok && d.TakesValue()
		}
	}
	return m
}
