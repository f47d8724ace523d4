//go:build linux || darwin

package layout

import (
	"errors"
	"math"
	"math/bits"

	"golang.org/x/sys/unix"
)

func freeSpace(dir string) (int64, error) {
	var st unix.Statfs_t
	for {
		err := unix.Statfs(dir, &st)
		if err == unix.EINTR {
			continue
		}
		if err == unix.ENOSYS {
			return 0, errors.ErrUnsupported
		}
		if err != nil {
			return 0, err
		}
		break
	}
	hi, lo := bits.Mul64(uint64(st.Bavail), uint64(st.Bsize))
	if hi != 0 || lo > math.MaxInt64 {
		return math.MaxInt64, nil
	}
	return int64(lo), nil
}
