//go:build !windows

package layout

import (
	"errors"
	"os"
	"syscall"
)

func isDiskFull(error) bool { return false }

// syncDir makes a rename durable. Some file systems refuse to sync a folder; there is nothing more to
// ask of them.
func syncDir(name string) error {
	d, err := os.Open(name)
	if err != nil {
		return err
	}
	defer d.Close()
	err = d.Sync()
	if errors.Is(err, syscall.EINVAL) || errors.Is(err, syscall.ENOTSUP) {
		return nil
	}
	return err
}
