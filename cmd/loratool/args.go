package main

import (
	"strings"

	"github.com/urfave/cli/v2"
)

// arrange puts the arguments into the order the flag parser needs: global flags, the command, its
// flags, and after "--" the positionals. The parser stops at the first positional, so without this
// "loratool merge base --out x" would silently ignore --out.
func arrange(app *cli.App, args []string) ([]string, error) {
	if len(args) < 2 {
		return args, nil
	}
	for _, a := range args {
		if a == "--generate-bash-completion" {
			return args, nil
		}
	}
	global := valueFlags(app.Flags)
	commands, local := app.Commands, map[string]bool{}
	var names, globals, flags, positionals []string
	rest := args[1:]
	for len(rest) > 0 {
		a := rest[0]
		rest = rest[1:]
		if a == "--" {
			positionals = append(positionals, rest...)
			break
		}
		if !strings.HasPrefix(a, "-") || a == "-" {
			if c := find(commands, a); c != nil && len(positionals) == 0 {
				names, commands, local = append(names, a), c.Subcommands, valueFlags(c.Flags)
				continue
			}
			positionals = append(positionals, a)
			continue
		}
		name, _, hasValue := strings.Cut(strings.TrimLeft(a, "-"), "=")
		takes, own := local[name]
		to := &flags
		if g, ok := global[name]; ok && !own {
			takes, to = g, &globals
		}
		*to = append(*to, a)
		if takes && !hasValue {
			if len(rest) == 0 {
				return nil, usagef("flag %s needs a value", a)
			}
			*to = append(*to, rest[0])
			rest = rest[1:]
		}
	}
	for _, p := range positionals {
		if p == "-" {
			return nil, usagef("\"-\" is not a file: standard input and output are not used for models")
		}
	}
	out := append([]string{args[0]}, globals...)
	out = append(append(out, names...), flags...)
	if len(names) == 0 {
		return append(out, positionals...), nil
	}
	return append(append(out, "--"), positionals...), nil
}

// valueFlags maps every name of the flags to whether it takes a value.
func valueFlags(flags []cli.Flag) map[string]bool {
	m := map[string]bool{"help": false, "h": false}
	for _, f := range flags {
		d, ok := f.(cli.DocGenerationFlag)
		for _, n := range f.Names() {
			m[n] = ok && d.TakesValue()
		}
	}
	return m
}

func find(commands []*cli.Command, name string) *cli.Command {
	for _, c := range commands {
		if c.HasName(name) {
			return c
		}
	}
	return nil
}
