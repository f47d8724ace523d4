package safetensors

import (
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/loratool/loratool/finding"
)

const indexSuffix = ".safetensors.index.json"

func isIndex(name string) bool { return strings.HasSuffix(name, indexSuffix) }

// An index says which shard holds which tensor.
type index struct {
	shardOf map[string]string
	total   string // total_size as it is written, "" if it is not
}

// openIndex opens the shards that an index in the model's folder names.
func (m *Model) openIndex(name string) error {
	path := filepath.Join(m.folder, name)
	m.stem = strings.TrimSuffix(name, indexSuffix)
	idx, err := readIndex(path)
	if err != nil {
		return err
	}
	root, err := os.OpenRoot(m.folder)
	if err != nil {
		return missing(m.folder, err)
	}
	defer root.Close()

	warn := warnings{file: path}
	shards := map[string]bool{}
	for _, s := range idx.shardOf {
		shards[s] = true
	}
	found := make(map[string]bool, len(idx.shardOf))
	var total int64
	for _, shard := range slices.Sorted(maps.Keys(shards)) {
		f, h, err := openInside(root, path, shard)
		if err != nil {
			return err
		}
		m.add(f, h, func(name string) bool {
			home, indexed := idx.shardOf[name]
			switch {
			case !indexed && !found[name]:
				warn.add("unindexed_tensor", name, fmt.Sprintf("the tensor lies in shard %q, but not in the index; it is kept", shard))
			case !indexed:
				warn.add("duplicate_across_shards", name, fmt.Sprintf("the tensor lies in shard %q too, and not in the index; the first one is used", shard))
				return false
			case home != shard:
				warn.add("duplicate_across_shards", name, fmt.Sprintf("the tensor lies in shard %q too, but the index says %q, which is used", shard, home))
				return false
			}
			found[name] = true
			return true
		})
	}
	if err := idx.complete(path, found); err != nil {
		return err
	}
	m.strays(shards, found, &warn)
	for _, t := range m.tensors {
		if idx.shardOf[t.Name] != "" {
			total += t.Size
		}
	}
	if want, err := strconv.ParseFloat(idx.total, 64); idx.total != "" && (err != nil || want != float64(total)) {
		warn.add("total_size_mismatch", "", fmt.Sprintf("the index gives a total size of %s bytes, the tensors have %d", idx.total, total))
	}
	m.findings = append(m.findings, warn.all()...)
	return nil
}

// strays warns of shards in the folder that the index does not name: leftovers of another run, or an
// index that lost some lines. Their tensors are not used.
func (m *Model) strays(named, found map[string]bool, warn *warnings) {
	entries, err := os.ReadDir(m.folder)
	if err != nil {
		return
	}
	for _, e := range entries {
		name := e.Name()
		if named[name] || !shardName.MatchString(name) || !strings.HasPrefix(name, m.stem+"-") {
			continue
		}
		f, h, err := openShard(filepath.Join(m.folder, name), name)
		if err != nil {
			warn.add("unindexed_shard", "", fmt.Sprintf("the index does not name the shard %q, which is unreadable too and ignored", name))
			continue
		}
		f.Close()
		for _, t := range h.tensors {
			if found[t.Name] {
				warn.add("duplicate_across_shards", t.Name, fmt.Sprintf("the tensor lies in %q too, which the index does not name and which is ignored", name))
			} else {
				warn.add("unindexed_tensor", t.Name, fmt.Sprintf("the tensor lies in %q, which the index does not name and which is ignored", name))
			}
		}
	}
}

// complete makes sure that every tensor was found where the index places it.
func (idx *index) complete(path string, found map[string]bool) error {
	for _, name := range slices.Sorted(maps.Keys(idx.shardOf)) {
		if !found[name] {
			return finding.Errorf("container.missing_tensor", path, "the index places the tensor in shard %q, which does not hold it", idx.shardOf[name]).In(name)
		}
	}
	return nil
}

// readIndex reads and checks an index file.
func readIndex(path string) (*index, error) {
	fi, err := os.Stat(path)
	if err != nil {
		return nil, missing(path, err)
	}
	if !fi.Mode().IsRegular() {
		return nil, notRegular(path, fi)
	}
	if fi.Size() > maxHeader {
		return nil, finding.Errorf("container.header_too_large", path, "the index is larger than any real one").Expected(fmt.Sprintf("%d bytes", fi.Size()), fmt.Sprintf("at most %d", maxHeader))
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, missing(path, err)
	}
	defer f.Close()
	buf := make([]byte, fi.Size())
	if _, err := io.ReadFull(f, buf); err != nil {
		return nil, unreadable(path, err)
	}
	return parseIndex(path, buf)
}

func parseIndex(path string, buf []byte) (*index, error) {
	if isPointer(buf) {
		return nil, pointer(path)
	}
	if !utf8.Valid(buf) {
		return nil, finding.Errorf("container.bad_utf8", path, "the index is not UTF-8")
	}
	s := &scanner{file: path, text: string(buf)}
	idx := &index{}
	seen := map[string]bool{}
	err := s.object(func(key string) error {
		if seen[key] {
			return s.fail("duplicate_key", "the key %q appears twice, found again", key)
		}
		seen[key] = true
		switch {
		case key == "weight_map":
			return s.weightMap(idx)
		case key == "metadata" && s.peek() == '{':
			return s.totalSize(idx)
		}
		return s.skip()
	})
	if err == nil {
		err = s.end()
	}
	if err != nil {
		return nil, err
	}
	if idx.shardOf == nil {
		return nil, finding.Errorf("container.bad_json", path, "the index has no weight_map")
	}
	return idx, nil
}

func (s *scanner) weightMap(idx *index) error {
	// The shortest line is 10 bytes long, a usual one 80.
	idx.shardOf = make(map[string]string, len(s.text)/80)
	return s.object(func(name string) error {
		if _, ok := idx.shardOf[name]; ok {
			return s.fail("duplicate_key", "the tensor appears twice in weight_map, found again").In(name)
		}
		if s.peek() != '"' {
			return s.fail("bad_json", "the shard's name is not a string").In(name)
		}
		shard, err := s.str()
		idx.shardOf[name] = shard
		return err
	})
}

func (s *scanner) totalSize(idx *index) error {
	seen := false
	return s.object(func(key string) error {
		if key != "total_size" {
			return s.skip()
		}
		if seen {
			return s.fail("duplicate_key", "total_size appears twice, found again")
		}
		seen = true
		if c := s.peek(); c != '-' && (c < '0' || c > '9') {
			return s.skip()
		}
		var err error
		idx.total, err = s.number()
		return err
	})
}

// openInside opens a shard that an index names. The name must stay in the index's folder. A shard may
// itself be a symbolic link that leads out of it, as all files in the Hugging Face cache are: the
// link was made by whoever keeps the folder, the name came with the file.
func openInside(root *os.Root, indexPath, shard string) (*os.File, *header, error) {
	escape := func() error {
		return finding.Errorf("container.path_escape", indexPath, "the index names the shard %q, which is not a plain name inside the model's folder", shard)
	}
	if strings.ContainsAny(shard, "\\\x00:") || !filepath.IsLocal(shard) || slices.Contains(strings.Split(shard, "/"), "..") {
		return nil, nil, escape()
	}
	name := filepath.Join(filepath.Dir(indexPath), filepath.FromSlash(shard))
	fi, err := root.Lstat(shard)
	if err != nil {
		if _, err := os.Lstat(name); err == nil {
			return nil, nil, escape() // it exists, but only through a linked folder
		}
		return nil, nil, finding.Errorf("container.missing_file", name, "the index names this shard, but there is no such file").Hinted("the download is incomplete; fetch the missing shard")
	}
	if fi.Mode().Type() == os.ModeSymlink {
		return openShard(name, name)
	}
	if !fi.Mode().IsRegular() {
		return nil, nil, notRegular(name, fi)
	}
	f, err := root.Open(shard)
	if err != nil {
		return nil, nil, missing(name, err)
	}
	h, err := readOpen(f, name)
	if err != nil {
		f.Close()
		return nil, nil, err
	}
	return f, h, nil
}
