// Command loratool bakes LoRA adapters into model weights, converts adapters between ecosystems, and
// proves the result. It reads safetensors, GGUF, ONNX and PyTorch files.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"syscall"

	"github.com/urfave/cli/v2"

	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/onnxruntime"
)

func main() {
	onnxruntime.ServeProbe() // a child that tries a GPU provider ends here
	os.Exit(run(os.Args, os.Stdout, os.Stderr))
}

// traceVariable is the environment variable that lets a mistake of the program end in a stack trace.
const traceVariable = "LORATOOL_TRACE"

// run is the whole program; tests call it in-process.
func run(args []string, stdout, stderr io.Writer) (code int) {
	ctx, stop := interruptible(context.Background())
	defer stop()
	t := &terminal{out: stdout, err: stderr}
	defer func() {
		if p := recover(); p != nil && os.Getenv(traceVariable) == "" {
			t.fail(finding.Errorf("internal.panic", "", "a mistake in this program: %v", p).Hinted(traceVariable + "=1 shows where; please report it"))
			code = exitFailed
		} else if p != nil {
			panic(p)
		}
	}()
	app := newApp(t)
	if last := len(args) - 1; last > 0 && args[last] == askCompletion {
		for _, w := range completions(app, args[1:last]) {
			fmt.Fprintln(stdout, w)
		}
		return exitDone
	}
	t.json = slices.Contains(args, "--json") // so that an error in the flags is a document, too
	args, err := arrange(app, args)
	var h helpRequest
	switch {
	case errors.As(err, &h) && h.command == nil:
		printAppHelp(stdout, app)
		return exitDone
	case errors.As(err, &h):
		printCommandHelp(stdout, h.names, h.command)
		return exitDone
	case err == nil:
		err = app.RunContext(ctx, args)
	}
	return t.finish(context.Cause(ctx), err)
}

func newApp(t *terminal) *cli.App {
	app := &cli.App{
		Name:                      "loratool",
		Usage:                     "bake, convert and check LoRA adapters",
		Version:                   version(),
		HideVersion:               true,
		Flags:                     globalFlags(),
		Writer:                    t.out,
		ErrWriter:                 t.err,
		DisableSliceFlagSeparator: true,
		HideHelp:                  true,
		Before:                    t.configure,
		Action: func(c *cli.Context) error {
			if c.Bool("version") {
				return printVersion(t)
			}
			printAppHelp(t.err, c.App)
			return status(exitUsage)
		},
		OnUsageError:   func(_ *cli.Context, err error, _ bool) error { return usagef("%v", err) },
		ExitErrHandler: func(*cli.Context, error) {},
		Commands: []*cli.Command{
			inspectCommand(t), mergeCommand(t), convertCommand(t), extractCommand(t), resizeCommand(t), combineCommand(t), quantizeCommand(t), splitCommand(t), joinCommand(t), injectCommand(t), verifyCommand(t), diffCommand(t), runtimeCommand(t),
			completionCommand(t), versionCommand(t),
		},
	}
	for _, c := range app.Commands {
		finishCommand(c, c.Name)
	}
	return app
}

// finishCommand gives a command what all of them share: its own help, and a hint at it in usage errors.
func finishCommand(c *cli.Command, name string) {
	hinted := func(err error) error {
		if u, ok := err.(usageError); ok && u.hint == "" {
			u.hint = "loratool help " + name + " says how it is used"
			return u
		}
		return err
	}
	c.HideHelp = true
	c.OnUsageError = func(_ *cli.Context, err error, _ bool) error { return hinted(usagef("%v", err)) }
	action := c.Action
	c.Action = func(ctx *cli.Context) error { return hinted(action(ctx)) }
	for _, s := range c.Subcommands {
		finishCommand(s, name+" "+s.Name)
	}
}

func globalFlags() []cli.Flag {
	return []cli.Flag{
		&cli.BoolFlag{Name: "json", Usage: "print one JSON document on stdout; human text goes to stderr"},
		&cli.BoolFlag{Name: "quiet", Aliases: []string{"q"}, Usage: "print errors only"},
		&cli.StringFlag{Name: "progress", Value: "auto", Usage: "show progress `WHEN`: auto (on a terminal), always, never"},
		&cli.IntFlag{Name: "jobs", Usage: "use `N` workers (default: one a processor)"},
		&cli.BoolFlag{Name: "big-endian", Usage: "accept big-endian GGUF files; outputs made from one are big-endian too"},
		&cli.StringFlag{Name: "max-memory", Usage: "keep weight buffers below `SIZE`, for example 512MiB"},
		&cli.StringFlag{Name: "log-format", Value: "text", Usage: "`FORMAT` of messages on stderr: text, json"},
		&cli.StringFlag{Name: "fail-on", Value: "error", Usage: "lowest `LEVEL` of finding that makes the exit status 1: error, warning"},
		&cli.StringFlag{Name: "ort-lib", Usage: "use the ONNX Runtime library at `PATH`"},
		&cli.BoolFlag{Name: "version", Usage: "print the version"},
	}
}

// An interrupt is the cause of a context that a signal cancelled.
type interrupt struct{ signal os.Signal }

func (i interrupt) Error() string { return fmt.Sprintf("stopped by %v", i.signal) }

// interruptible returns a context that SIGINT and SIGTERM cancel; a second signal ends the program at once.
func interruptible(parent context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(parent)
	ch := make(chan os.Signal, 2)
	signal.Notify(ch, os.Interrupt, syscall.SIGTERM)
	go func() {
		if s, ok := <-ch; ok {
			cancel(interrupt{s})
			if s, ok := <-ch; ok {
				os.Exit(signalStatus(s))
			}
		}
	}()
	return ctx, func() {
		signal.Stop(ch)
		close(ch)
		cancel(nil)
	}
}

func signalStatus(s os.Signal) int {
	if s == syscall.SIGTERM {
		return 143
	}
	return 130
}
