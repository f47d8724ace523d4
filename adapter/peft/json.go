package peft

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
)

// maxDepth is how deeply a configuration may nest. PEFT's own files need four levels.
const maxDepth = 64

// An object is a JSON object with its keys in file order, which alpha_pattern depends on.
type object struct {
	keys []string
	vals map[string]any
}

// errDuplicate is wrapped by the error for a key that occurs twice.
var errDuplicate = errors.New("duplicate key")

// parseObject reads one JSON object strictly: nothing after it, no key twice, no deep nesting, no NaN.
// Values are nil, bool, json.Number, string, []any and *object.
func parseObject(b []byte) (*object, error) {
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	v, err := parseValue(d, 0)
	if err != nil {
		return nil, err
	}
	if _, err := d.Token(); err != io.EOF {
		return nil, errors.New("there is more after the JSON value")
	}
	o, ok := v.(*object)
	if !ok {
		return nil, fmt.Errorf("the top level is %s, not an object", describe(v))
	}
	return o, nil
}

func parseValue(d *json.Decoder, depth int) (any, error) {
	if depth > maxDepth {
		return nil, fmt.Errorf("nested more than %d levels deep", maxDepth)
	}
	t, err := d.Token()
	if err != nil {
		return nil, err
	}
	switch t {
	case json.Delim('['):
		a := []any{}
		for d.More() {
			v, err := parseValue(d, depth+1)
			if err != nil {
				return nil, err
			}
			a = append(a, v)
		}
		_, err = d.Token()
		return a, err
	case json.Delim('{'):
		o := &object{vals: map[string]any{}}
		for d.More() {
			k, err := d.Token()
			if err != nil {
				return nil, err
			}
			v, err := parseValue(d, depth+1)
			if err != nil {
				return nil, err
			}
			name := k.(string)
			if _, ok := o.vals[name]; ok {
				return nil, fmt.Errorf("%w %q", errDuplicate, name)
			}
			o.keys = append(o.keys, name)
			o.vals[name] = v
		}
		_, err = d.Token()
		return o, err
	}
	return t, nil
}

// describe names a JSON value in a message.
func describe(v any) string {
	switch x := v.(type) {
	case nil:
		return "null"
	case bool:
		return strconv.FormatBool(x)
	case json.Number:
		return x.String()
	case string:
		if len(x) > 60 {
			x = x[:60] + "…"
		}
		return strconv.Quote(x)
	case []any:
		return fmt.Sprintf("a list of %d", len(x))
	}
	return "an object"
}

// set reports whether a value says something: null, false, "", [] and {} do not.
func set(v any) bool {
	switch x := v.(type) {
	case nil:
		return false
	case bool:
		return x
	case string:
		return x != ""
	case []any:
		return len(x) > 0
	case *object:
		return len(x.keys) > 0
	}
	return true
}
