package main

import (
	"fmt"
	"io"
	"strings"
	"unicode/utf8"

	"github.com/urfave/cli/v2"
)

// helpWidth is the column that help text is wrapped at.
const helpWidth = 100

// printAppHelp lists the commands and the global flags.
func printAppHelp(out io.Writer, app *cli.App) {
	fmt.Fprintf(out, "%s: %s\n\nusage: %s [global flags] COMMAND [flags] [arguments]\n\ncommands:\n", app.Name, app.Usage, app.Name)
	printCommands(out, app.Commands)
	fmt.Fprintf(out, "  %s help COMMAND says more about one\n\nglobal flags, before or after the command:\n", app.Name)
	printFlags(out, app.Flags)
	fmt.Fprint(out, `
exit status of all commands:
  0    done; warnings may have been printed
  1    a check found something wrong (with --fail-on warning: or odd)
  2    could not complete: bad input, no space, unsupported; outputs are untouched
  3    nothing to do: no target matched
  4    usage: unknown flag, missing argument
  130  interrupted (143: terminated); temporary files are removed
`)
}

// printCommandHelp describes one command. path are the words that name it.
func printCommandHelp(out io.Writer, path []string, c *cli.Command) {
	name := strings.Join(path, " ")
	fmt.Fprintf(out, "loratool %s: %s\n\nusage: loratool %s", name, c.Usage, name)
	if len(c.Subcommands) > 0 {
		fmt.Fprint(out, " COMMAND")
	}
	if len(c.Flags) > 0 {
		fmt.Fprint(out, " [flags]")
	}
	if c.ArgsUsage != "" {
		fmt.Fprint(out, " "+c.ArgsUsage)
	}
	fmt.Fprintln(out)
	if c.Description != "" {
		fmt.Fprintln(out)
		for _, line := range strings.Split(c.Description, "\n") {
			printWrapped(out, "", "", line)
		}
	}
	if len(c.Subcommands) > 0 {
		fmt.Fprintln(out, "\ncommands:")
		printCommands(out, c.Subcommands)
	}
	if len(c.Flags) > 0 {
		fmt.Fprintln(out, "\nflags, before or after the arguments:")
		printFlags(out, c.Flags)
	}
	fmt.Fprintln(out, "\nloratool help lists the global flags (--json, --quiet, --jobs, …)")
}

func printCommands(out io.Writer, commands []*cli.Command) {
	width := 0
	for _, c := range commands {
		width = max(width, len(c.Name))
	}
	for _, c := range commands {
		printWrapped(out, fmt.Sprintf("  %-*s  ", width, c.Name), strings.Repeat(" ", width+4), c.Usage)
	}
}

func printFlags(out io.Writer, flags []cli.Flag) {
	names, texts := make([]string, len(flags)), make([]string, len(flags))
	width := 0
	for i, f := range flags {
		names[i], texts[i] = describeFlag(f.(cli.DocGenerationFlag), f.Names())
		width = max(width, len(names[i]))
	}
	for i := range flags {
		printWrapped(out, fmt.Sprintf("  %-*s  ", width, names[i]), strings.Repeat(" ", width+4), texts[i])
	}
}

// describeFlag returns a flag's names with its placeholder, the word in backquotes of its usage, and what
// it does.
func describeFlag(f cli.DocGenerationFlag, names []string) (name, text string) {
	before, rest, marked := strings.Cut(f.GetUsage(), "`")
	placeholder, after, _ := strings.Cut(rest, "`")
	name = "    --" + names[0]
	if len(names) > 1 {
		name = "-" + names[1] + ", --" + names[0]
	}
	if !f.TakesValue() {
		return name, f.GetUsage()
	}
	text = f.GetUsage()
	if marked {
		name += " " + placeholder
		text = before + placeholder + after
	} else {
		name += " N"
	}
	if v := f.GetValue(); v != "" && v != "0" && v != "[]" {
		text += " (default: " + strings.Trim(v, `"`) + ")"
	}
	return name, text
}

// printWrapped prints first and the words of text, with indent before every further line.
func printWrapped(out io.Writer, first, indent, text string) {
	line, empty := first, true
	for _, w := range strings.Fields(text) {
		if !empty && utf8.RuneCountInString(line)+1+utf8.RuneCountInString(w) > helpWidth {
			fmt.Fprintln(out, strings.TrimRight(line, " "))
			line, empty = indent, true
		}
		if !empty {
			line += " "
		}
		line, empty = line+w, false
	}
	fmt.Fprintln(out, strings.TrimRight(line, " "))
}
