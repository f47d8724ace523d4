package gguf

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/loratool/loratool/finding"
)

// The keys of a split model's files. Only they stand in the files after the first.
const (
	splitNo      = "split.no"            // u16, from 0
	splitCount   = "split.count"         // u16
	splitTensors = "split.tensors.count" // i32, of all files together
)

// maxShards is the largest number of files that split.count and the name can express.
const maxShards = math.MaxUint16

// shardName is the name of shard i, counted from 0, of n.
func shardName(prefix string, i, n int) string {
	return fmt.Sprintf("%s-%05d-of-%05d.gguf", prefix, i+1, n)
}

// parseShardName takes a name of the pattern apart. i counts from 0.
func parseShardName(name string) (prefix string, i, n int, ok bool) {
	const tail = len("-00001-of-00001.gguf")
	if len(name) <= tail {
		return "", 0, 0, false
	}
	prefix, t := name[:len(name)-tail], name[len(name)-tail:]
	i, err1 := strconv.Atoi(t[1:6])
	n, err2 := strconv.Atoi(t[10:15])
	if err1 != nil || err2 != nil || i < 1 || i > n || n > maxShards || shardName(prefix, i-1, n) != name {
		return "", 0, 0, false
	}
	return prefix, i - 1, n, true
}

// A split is what a file says about the model it is a part of.
type split struct {
	no, count, tensors int
}

// splitOf reads the split keys of a file; count is 1 for a file that is whole.
func splitOf(p *part) (s split, err error) {
	s = split{count: 1}
	for _, k := range []struct {
		key string
		to  *int
		max uint64
	}{{splitNo, &s.no, maxShards}, {splitCount, &s.count, maxShards}, {splitTensors, &s.tensors, math.MaxInt32}} {
		v, ok := p.kvs.Get(k.key)
		if !ok {
			continue
		}
		u, ok := v.Uint()
		if !ok || u > k.max {
			return s, finding.Errorf("container.bad_split", p.file, "%s is unusable", k.key).
				Expected(fmt.Sprintf("%s (%s)", v, v.Type()), fmt.Sprintf("an integer up to %d", k.max))
		}
		*k.to = int(u)
	}
	s.count = max(s.count, 1)
	if s.no >= s.count {
		return s, finding.Errorf("container.bad_split", p.file, "shard number beyond the number of shards").
			Expected(s.no, fmt.Sprintf("less than %d", s.count))
	}
	return s, nil
}

// siblings opens the other files of a split model and checks that they belong together.
func (m *Model) siblings(first *part, s split, opt OpenOptions) ([]*part, error) {
	dir, name := filepath.Split(first.file)
	prefix, i, n, ok := parseShardName(name)
	switch {
	case !ok:
		return nil, finding.Errorf("container.bad_split", first.file, "the file is shard %d of %d, but its name does not say so", s.no+1, s.count).
			Expected(name, shardName(strings.TrimSuffix(name, ".gguf"), s.no, s.count)).
			Hinted("give all files of the split model their original names")
	case s.no != 0:
		return nil, finding.Errorf("container.not_first_shard", first.file, "the file is shard %d of a split model", s.no+1).
			Hinted("open the first shard: " + dir + shardName(prefix, 0, n))
	case i != 0 || n != s.count:
		return nil, finding.Errorf("container.bad_split", first.file, "name and split keys disagree").
			Expected(name, shardName(prefix, s.no, s.count))
	}
	parts := []*part{first}
	for i := 1; i < n; i++ {
		p, err := m.sibling(first, dir+shardName(prefix, i, n), split{i, n, s.tensors}, opt)
		if err != nil {
			return nil, err
		}
		parts = append(parts, p)
	}
	return parts, checkTogether(parts, s.tensors)
}

func (m *Model) sibling(first *part, path string, want split, opt OpenOptions) (*part, error) {
	p, err := m.parseFile(path, opt)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, finding.Errorf("container.missing_file", path, "shard %d of %d is missing", want.no+1, want.count).
			Hinted("all files of a split model must lie in one folder")
	}
	if err != nil {
		return nil, err
	}
	got, err := splitOf(p)
	if err != nil {
		return nil, err
	}
	switch {
	case got.no != want.no || got.count != want.count || got.tensors != want.tensors:
		return nil, finding.Errorf("container.bad_split", path, "the file does not belong to this split model").
			Expected(describe(got), describe(want)).Hinted("the files are from different models, or were renamed")
	case p.big != first.big:
		return nil, finding.Errorf("container.bad_split", path, "the byte order differs from the first shard's")
	}
	own := p.kvs[:len(p.kvs):len(p.kvs)]
	own.Delete(splitNo, splitCount, splitTensors, alignmentKey)
	if len(own) > 0 {
		p.warnings.add(finding.Warnf("container.shard_metadata", path, "%d key-values of a shard after the first are ignored", len(own)))
	}
	return p, nil
}

func describe(s split) string {
	return fmt.Sprintf("shard %d of %d with %d tensors in all", s.no+1, s.count, s.tensors)
}

func checkTogether(parts []*part, want int) error {
	total := 0
	where := map[string]string{}
	for _, p := range parts {
		total += len(p.tensors)
		for i := range p.tensors {
			name := p.tensors[i].Name
			if other, twice := where[beforeNUL(name)]; twice {
				return finding.Errorf("container.duplicate_name", p.file, "the tensor is in %s too", other).In(name)
			}
			where[beforeNUL(name)] = p.file
		}
	}
	if total != want {
		return finding.Errorf("container.bad_split", parts[0].file, "the shards do not hold all tensors").
			Expected(total, want).Hinted("a shard is of another model, or the model was split wrongly")
	}
	return nil
}
