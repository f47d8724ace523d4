package metadata

import (
	"encoding/json"
	"math"
	"strconv"
	"strings"

	"github.com/loratool/loratool/formats/gguf"
	"github.com/loratool/loratool/hf/config"
)

// A writer collects key-values. Keys that are not of the general and tokenizer groups get the
// architecture's prefix. The first error stays.
type writer struct {
	arch     string
	cfg      *config.Config
	dir      string
	filled   bool
	fileType uint32
	kvs      gguf.KVs
	err      error
}

func (w *writer) fail(err error) {
	if w.err == nil {
		w.err = err
	}
}

// set gives a key a value, where the key stands if it is there already. Empty strings and arrays are
// never written.
func (w *writer) set(key string, v gguf.Value) {
	if s, ok := v.Text(); ok && s == "" || v.Type() == gguf.Array && v.Len() == 0 {
		return
	}
	if !strings.HasPrefix(key, "general.") && !strings.HasPrefix(key, "tokenizer.") {
		key = w.arch + "." + key
	}
	w.kvs.Set(key, v)
}

// u32 writes a whole number if the first of the names that is present has one.
func (w *writer) u32(key string, names ...string) {
	if v := w.cfg.Get(names...); v != nil {
		w.setU32(key, names[0], v)
	}
}

// needU32 is u32 for a number that must be there.
func (w *writer) needU32(key string, names ...string) {
	if n, ok := w.int(names...); ok {
		w.putU32(key, names[0], n)
	}
}

func (w *writer) setU32(key, name string, v any) {
	n, ok := config.Int(v)
	if !ok {
		w.fail(w.cfg.Bad(name, v, "a whole number"))
		return
	}
	w.putU32(key, name, n)
}

func (w *writer) putU32(key, name string, n int64) {
	if n < 0 || n > math.MaxUint32 {
		w.fail(w.cfg.Bad(name, n, "a number from 0 to 4294967295"))
		return
	}
	w.set(key, gguf.Of(uint32(n)))
}

// u32s writes a whole number or, where it differs from layer to layer, an array of them.
func (w *writer) u32s(key string, names ...string) {
	v := w.cfg.Get(names...)
	list, ok := v.([]any)
	if !ok {
		w.u32(key, names...)
		return
	}
	numbers := make([]int32, len(list))
	for i, x := range list {
		n, ok := config.Int(x)
		if !ok || n < math.MinInt32 || n > math.MaxInt32 {
			w.fail(w.cfg.Bad(names[0], v, "whole numbers"))
			return
		}
		numbers[i] = int32(n)
	}
	w.set(key, gguf.ArrayOf(numbers))
}

// f32 writes a number if the first of the names that is present has one.
func (w *writer) f32(key string, names ...string) { w.setF32(key, names[0], w.cfg.Get(names...)) }

// needF32 is f32 for a number that must be there.
func (w *writer) needF32(key string, names ...string) {
	x, err := w.cfg.Float(names...)
	if err != nil {
		w.fail(err)
		return
	}
	w.set(key, gguf.Of(float32(x)))
}

func (w *writer) setF32(key, name string, v any) {
	if v == nil {
		return
	}
	x, ok := config.Float(v)
	if !ok {
		w.fail(w.cfg.Bad(name, v, "a number"))
		return
	}
	w.set(key, gguf.Of(float32(x)))
}

// int is a whole number of the configuration that must be there.
func (w *writer) int(names ...string) (int64, bool) {
	n, err := w.cfg.Int(names...)
	if err != nil {
		w.fail(err)
	}
	return n, err == nil
}

// intOr is a whole number of the configuration, or another where the keys are absent or null.
func (w *writer) intOr(other int64, names ...string) int64 {
	if w.cfg.Get(names...) == nil {
		return other
	}
	n, _ := w.int(names...)
	return n
}

// number makes a configuration value for config.With.
func number(n int64) json.Number { return json.Number(strconv.FormatInt(n, 10)) }
