package torch

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/loratool/loratool/finding"
)

// wrappers are the keys under which training programs keep the model's state dict.
var wrappers = []string{"state_dict", "model_state_dict", "model", "module"}

// A collector walks the dicts of a checkpoint and lists their tensors.
type collector struct {
	m       *Model
	names   map[string]bool
	within  map[*dict]bool // the dicts on the way to the current one
	visits  int
	ignored []string
}

// maxVisits bounds the walk: dicts that share dicts can have exponentially many paths.
const maxVisits = 1 << 20

// collect finds the state dict in the value of the pickle and makes tensors of it.
func (m *Model) collect(value any) error {
	top, ok := value.(*dict)
	if !ok {
		return m.notStateDict("it holds %s", describe(value))
	}
	c := &collector{m: m, names: map[string]bool{}, within: map[*dict]bool{}}
	chosen, wrapper := unwrap(top)
	for _, k := range top.keys {
		if key, ok := k.(string); ok && wrapper != "" && key != wrapper {
			c.ignored = append(c.ignored, key)
		}
	}
	if err := c.walk(chosen, ""); err != nil {
		return err
	}
	if len(m.tensors) == 0 && len(top.keys) > 0 {
		return m.notStateDict("it holds no tensors")
	}
	if len(c.ignored) > 0 {
		m.findings = append(m.findings, c.asideFinding())
	}
	return nil
}

func (m *Model) notStateDict(format string, a ...any) error {
	return m.fail("not_a_state_dict", "the file holds no state dict: "+format, a...).Hinted("save model.state_dict() and nothing else")
}

// unwrap returns the dict to read and the key it lies under, "" for the top itself.
func unwrap(top *dict) (*dict, string) {
	for _, v := range top.values {
		if _, ok := v.(*view); ok {
			return top, ""
		}
	}
	for _, key := range wrappers {
		if d, ok := top.values[key].(*dict); ok {
			return d, key
		}
	}
	return top, ""
}

func (c *collector) walk(d *dict, prefix string) error {
	if c.within[d] {
		return c.m.notStateDict("a dict contains itself")
	}
	if len(c.within) > maxNesting {
		return c.m.fail("nesting", "dicts nested more than %d deep", maxNesting)
	}
	c.within[d] = true
	defer delete(c.within, d)
	for _, k := range d.keys {
		if c.visits++; c.visits > maxVisits {
			return c.m.fail("amplification", "the dicts have more than %d paths", maxVisits)
		}
		var name string
		switch k := k.(type) {
		case string:
			name = prefix + k
		case int64:
			if prefix == "" {
				return c.m.notStateDict("its keys are numbers")
			}
			name = prefix + strconv.FormatInt(k, 10)
		default:
			return c.m.notStateDict("a key is %s", describe(k))
		}
		switch v := d.values[k].(type) {
		case *view:
			if c.names[name] {
				return c.m.fail("duplicate_key", "two tensors are called %q", name)
			}
			c.names[name] = true
			c.m.add(name, v)
		case *dict:
			if err := c.walk(v, name+"."); err != nil {
				return err
			}
		default:
			c.ignored = append(c.ignored, name)
		}
	}
	return nil
}

func (c *collector) asideFinding() finding.Finding {
	const named = 5
	quoted := make([]string, 0, named)
	for _, k := range c.ignored[:min(named, len(c.ignored))] {
		quoted = append(quoted, strconv.Quote(k))
	}
	more := ""
	if n := len(c.ignored) - named; n > 0 {
		more = fmt.Sprintf(" and %d more", n)
	}
	return finding.Finding{Code: "container.not_a_tensor", Level: finding.Info, File: c.m.path,
		Message: "entries beside the state dict are left aside: " + strings.Join(quoted, ", ") + more}
}
