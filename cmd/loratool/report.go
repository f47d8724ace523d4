package main

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/formats"
)

// reportPaths are the files of --report: JSON, in folders that are there.
func reportPaths(c *cli.Context) ([]string, error) {
	paths := c.StringSlice("report")
	for _, p := range paths {
		if !strings.HasSuffix(p, ".json") {
			return nil, usagef("--report %q: reports are written as .json", p)
		}
		if !formats.IsFolder(filepath.Dir(p)) {
			return nil, finding.Errorf("output.io", p, "the folder of the report is not there")
		}
	}
	return paths, nil
}

// writeJSON writes a report, or leaves the one that was there.
func writeJSON(path string, v any) error {
	b, err := marshal(v)
	if err != nil {
		return err
	}
	tmp := path + ".tmp" + strconv.Itoa(os.Getpid())
	if err = os.WriteFile(tmp, b, 0o666); err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		os.Remove(tmp)
		return finding.Errorf("output.io", path, "the report cannot be written: %v", errors.Unwrap(err))
	}
	return nil
}
