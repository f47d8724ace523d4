package gguf

import "slices"

// A KV is one key-value of a file's metadata.
type KV struct {
	Key   string
	Value Value
}

// KVs is metadata in file order. The order is part of a file's bytes, so edits say where a key goes:
// Set keeps its place, SetLast moves it to the end as llama.cpp's own tools do.
type KVs []KV

// Get returns the value of a key.
func (k KVs) Get(key string) (Value, bool) {
	for i := range k {
		if k[i].Key == key {
			return k[i].Value, true
		}
	}
	return Value{}, false
}

// Text returns a string value, ok only if the key is there and of this type.
func (k KVs) Text(key string) (string, bool) { return lookup(k, key, Value.Text) }

// Int returns an integer value of any width, ok only if the key is there and it fits.
func (k KVs) Int(key string) (int64, bool) { return lookup(k, key, Value.Int) }

// Uint returns a non-negative integer value of any width.
func (k KVs) Uint(key string) (uint64, bool) { return lookup(k, key, Value.Uint) }

// Float returns a float32 or float64 value.
func (k KVs) Float(key string) (float64, bool) { return lookup(k, key, Value.Float) }

// Bool returns a bool value.
func (k KVs) Bool(key string) (bool, bool) { return lookup(k, key, Value.Bool) }

// Strings returns a value that is an array of strings.
func (k KVs) Strings(key string) ([]string, bool) { return lookup(k, key, Value.Strings) }

func lookup[T any](k KVs, key string, as func(Value) (T, bool)) (x T, ok bool) {
	if v, found := k.Get(key); found {
		return as(v)
	}
	return x, false
}

// Set gives a key a value: where the key stands, or at the end if it is new.
func (k *KVs) Set(key string, v Value) {
	for i := range *k {
		if (*k)[i].Key == key {
			(*k)[i].Value = v
			return
		}
	}
	*k = append(*k, KV{key, v})
}

// SetLast gives a key a value and moves it to the end.
func (k *KVs) SetLast(key string, v Value) {
	k.Delete(key)
	*k = append(*k, KV{key, v})
}

// Delete removes keys; those that are not there are ignored.
func (k *KVs) Delete(keys ...string) {
	*k = slices.DeleteFunc(*k, func(kv KV) bool { return slices.Contains(keys, kv.Key) })
}
