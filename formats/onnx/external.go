package onnx

import (
	"cmp"
	"crypto/sha1"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/loratool/loratool/finding"
)

// A dataFile is a file of external data. The first maxPinned ones stay open; models with one file a
// tensor may have more than a process may open, so the others are opened for each read.
type dataFile struct {
	location string // clean, relative to the model's folder
	size     int64
	self     bool // the model file itself
	info     fs.FileInfo
	open     func() (*os.File, error)
	users    []*record
	sums     []string // the SHA-1 sums that tensors claim

	mu     sync.RWMutex
	pinned *os.File
}

const maxPinned = 64

func (d *dataFile) ReadAt(p []byte, off int64) (int, error) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	if d.pinned != nil {
		return d.pinned.ReadAt(p, off)
	}
	f, err := d.open()
	if err != nil {
		return 0, err
	}
	defer f.Close()
	if fi, err := f.Stat(); err != nil || !os.SameFile(fi, d.info) {
		return 0, finding.Errorf("files.changed", d.location, "the file was replaced while the model was open")
	}
	return f.ReadAt(p, off)
}

func (d *dataFile) close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.pinned == nil {
		return nil
	}
	err := d.pinned.Close()
	d.pinned = nil
	return err
}

// external resolves a tensor's external_data.
func (p *parser) external(r *record) error {
	keys := map[string]string{}
	for _, kv := range r.external {
		switch _, twice := keys[kv[0]]; {
		case twice:
			return p.reject("duplicate_key", "external_data has %q twice", kv[0]).In(r.own)
		case kv[0] == "basepath":
			p.warn(p.warning("unknown_key", "external_data has the key \"basepath\", which ONNX Runtime refuses").In(r.own).Hinted("writing the model again drops it"))
		case !knownKey(kv[0]):
			p.warn(p.warning("unknown_key", "external_data has the key %q", kv[0]).In(r.own).Expected(kv[0], "location, offset, length, checksum"))
		}
		keys[kv[0]] = kv[1]
	}
	where, ok := keys["location"]
	if !ok {
		return p.reject("no_location", "external_data without a location").In(r.own)
	}
	loc, reason, why := readLocation(where)
	if reason != "" {
		return p.reject(reason, "external data in %q, which is %s", where, why).In(r.own).Expected(where, "a file below the model's folder")
	}
	if loc.odd {
		p.warn(p.warning("odd_path", "external data in %q", where).In(r.own).Expected(where, "a plain relative path"))
	}
	offset, err := p.decimal(r, keys, "offset")
	if err != nil {
		return err
	}
	length, err := p.decimal(r, keys, "length")
	if err != nil {
		return err
	}
	d, err := p.dataFile(loc.clean, r.own)
	if err != nil {
		return err
	}
	given := length >= 0
	if offset = max(offset, 0); !given {
		length = r.size
	}
	switch {
	case offset > math.MaxInt64-length || offset > d.size:
		return p.reject("bad_offset", "the data begins behind the end of %q", where).In(r.own).Expected(offset, fmt.Sprintf("at most %d", d.size))
	case length > d.size-offset:
		return p.reject("truncated", "%q is too short", where).In(r.own).
			Expected(fmt.Sprintf("%d bytes from offset %d", d.size-offset, offset), fmt.Sprintf("%d bytes", length)).
			Hinted("the download of the data file may be incomplete")
	case length != r.size:
		return p.reject("size_mismatch", "the length in external_data does not fit the shape %v", r.dims).In(r.own).
			Expected(fmt.Sprintf("%d bytes", length), fmt.Sprintf("%d bytes", r.size))
	}
	r.file, r.off, r.len = d, offset, length
	d.users = append(d.users, r)
	if sum := keys["checksum"]; sum != "" && !slices.Contains(d.sums, sum) && len(d.sums) < 8 {
		d.sums = append(d.sums, sum)
	}
	return nil
}

func knownKey(k string) bool {
	switch k {
	case "location", "offset", "length", "checksum":
		return true
	}
	return strings.HasPrefix(k, "prepacked_")
}

// decimal reads a number of external_data, -1 where it is not given.
func (p *parser) decimal(r *record, keys map[string]string, key string) (int64, error) {
	s, ok := keys[key]
	if !ok {
		return -1, nil
	}
	digits := s != "" && (s == "0" || s[0] != '0') && strings.Trim(s, "0123456789") == ""
	v, err := strconv.ParseInt(s, 10, 64)
	if !digits || err != nil {
		return 0, p.reject("bad_offset", "the %s in external_data is no number a file may have", key).In(r.own).Expected(s, "decimal digits, below 2^63")
	}
	return v, nil
}

// dataFile opens a data file, once for each location.
func (p *parser) dataFile(clean, tensor string) (*dataFile, error) {
	if d := p.files[clean]; d != nil {
		return d, nil
	}
	open, linked, err := p.roots.find(clean)
	if err != nil {
		return nil, p.locationError(err, clean, tensor)
	}
	f, err := open()
	if err != nil {
		return nil, p.locationError(err, clean, tensor)
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = errNotRegular
	}
	if err != nil {
		f.Close()
		return nil, p.locationError(err, clean, tensor)
	}
	d := &dataFile{location: clean, size: info.Size(), info: info, open: open}
	if len(p.order) < maxPinned {
		d.pinned = f
	} else if err := f.Close(); err != nil {
		return nil, p.locationError(err, clean, tensor)
	}
	if linked {
		p.warn(p.warning("symlink", "the data file %q is a symbolic link", clean).In(tensor))
	}
	if n := links(info); n > 1 {
		p.warn(p.warning("hardlink", "the data file %q has %d names", clean, n).In(tensor))
	}
	if d.self = p.info != nil && os.SameFile(info, p.info); d.self {
		p.warn(p.warning("self_reference", "the external data lies in the model file itself").In(tensor))
	}
	p.files[clean] = d
	p.order = append(p.order, d)
	return d, nil
}

func (p *parser) locationError(err error, clean, tensor string) error {
	switch {
	case errors.Is(err, errNotRegular):
		return p.reject("not_regular_file", "%q is not a regular file", clean).In(tensor)
	case errors.Is(err, errLink):
		return p.reject("symlink", "%q is a symbolic link that leaves the model's folder", clean).In(tensor).
			Hinted("put the data file itself beside the model")
	case errors.Is(err, fs.ErrNotExist):
		return p.reject("missing_file", "the data file %q does not exist", clean).In(tensor).
			Hinted("download the data file and put it beside the model")
	}
	return finding.Errorf("files.unreadable", p.name, "the data file %q cannot be opened: %v", clean, err).In(tensor)
}

// checkOverlap warns about ranges of one file that share a part. Equal ranges are tied weights.
func (p *parser) checkOverlap() {
	for _, d := range p.order {
		slices.SortStableFunc(d.users, func(a, b *record) int {
			return cmp.Or(cmp.Compare(a.off, b.off), cmp.Compare(a.len, b.len))
		})
		var last *record
		for _, r := range d.users {
			if last != nil && r.len > 0 && r.off < last.off+last.len && (r.off != last.off || r.len != last.len) {
				p.warn(p.warning("overlap", "its data in %q shares bytes with %q", d.location, last.own).In(r.own))
			}
			if last == nil || r.off+r.len > last.off+last.len {
				last = r
			}
		}
	}
}

// Checksums reads every external file that tensors give a checksum for, and warns where it differs.
// Nothing else in the ONNX world looks at these sums.
func (m *Model) Checksums() ([]finding.Finding, error) {
	var w []finding.Finding
	for _, d := range m.files {
		if len(d.sums) == 0 {
			continue
		}
		h := sha1.New()
		if _, err := io.Copy(h, io.NewSectionReader(d, 0, d.size)); err != nil {
			return nil, finding.Errorf("files.unreadable", filepath.Join(filepath.Dir(m.file), d.location), "%v", err)
		}
		got := hex.EncodeToString(h.Sum(nil))
		for _, sum := range d.sums {
			if !strings.EqualFold(sum, got) {
				w = append(w, *finding.Warnf("container.checksum_mismatch", m.path, "the SHA-1 sum of %q is not what the model says", d.location).Expected(got, sum))
			}
		}
	}
	return w, nil
}
