package torch

import (
	"math"
	"strconv"
	"strings"

	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/tensor"
)

// typedStorages are the classes in which torch names storages of one type.
var typedStorages = map[tensor.DType]string{
	tensor.F64: "torch.DoubleStorage", tensor.F32: "torch.FloatStorage", tensor.F16: "torch.HalfStorage", tensor.BF16: "torch.BFloat16Storage",
	tensor.I64: "torch.LongStorage", tensor.I32: "torch.IntStorage", tensor.I16: "torch.ShortStorage", tensor.I8: "torch.CharStorage",
	tensor.U8: "torch.ByteStorage", tensor.Bool: "torch.BoolStorage",
}

// pickleOf is the pickle of a dict of tensors, opcode by opcode what CPython's pickler makes of it in protocol
// 2: every object is noted when it is first written, and called up after that.
func pickleOf(specs []tensor.Spec, file string) ([]byte, error) {
	const batch = 1000 // of items that are set together
	e := &emitter{memo: map[string]int{}}
	e.raw("\x80\x02}")
	e.put("")
	seen := make(map[string]bool, len(specs))
	open := false
	for i, s := range specs {
		class := typedStorages[s.DType]
		switch {
		case class == "":
			return nil, finding.Errorf("output.bad_dtype", file, "PyTorch has no storage of type %s", s.DType).In(s.Name)
		case seen[s.Name]:
			return nil, finding.Errorf("output.duplicate_name", file, "two tensors have the same name").In(s.Name)
		}
		seen[s.Name] = true
		n, err := s.Shape.Elements()
		if err != nil {
			return nil, finding.Errorf("output.bad_shape", file, "%v", err).In(s.Name)
		}
		if len(specs) > 1 && i%batch == 0 {
			e.raw("(")
			open = true
		}
		e.text(s.Name, "")
		e.tensor(class, strconv.Itoa(i), n, s.Shape)
		if open && (i+1)%batch == 0 {
			e.raw("u")
			open = false
		}
	}
	switch {
	case len(specs) == 1:
		e.raw("s")
	case open:
		e.raw("u")
	case len(specs) > 0: // CPython looks for another batch behind a full one
		e.raw("(u")
	}
	e.raw(".")
	return e.out, nil
}

// An emitter writes a pickle.
type emitter struct {
	out  []byte
	memo map[string]int // objects that come again: classes, functions, constant texts
	n    int            // objects noted so far
}

func (e *emitter) raw(s string) { e.out = append(e.out, s...) }

// indexed is an opcode with an index, short or long.
func (e *emitter) indexed(short, long byte, i int) {
	if i <= math.MaxUint8 {
		e.out = append(e.out, short, byte(i))
	} else {
		e.out = le.AppendUint32(append(e.out, long), uint32(i))
	}
}

// put notes the object that was just written; a name makes it one that can be called up.
func (e *emitter) put(name string) {
	e.indexed('q', 'r', e.n)
	if name != "" {
		e.memo[name] = e.n
	}
	e.n++
}

// again calls an object up, if it was written before.
func (e *emitter) again(name string) bool {
	i, ok := e.memo[name]
	if ok {
		e.indexed('h', 'j', i)
	}
	return ok
}

// text writes a string; name is as in put.
func (e *emitter) text(s, name string) {
	if name != "" && e.again(name) {
		return
	}
	e.out = le.AppendUint32(append(e.out, 'X'), uint32(len(s)))
	e.raw(s)
	e.put(name)
}

// global writes a class or function, "module.name".
func (e *emitter) global(path string) {
	if e.again(path) {
		return
	}
	i := strings.LastIndexByte(path, '.')
	e.raw("c" + path[:i] + "\n" + path[i+1:] + "\n")
	e.put(path)
}

func (e *emitter) number(n int64) {
	switch {
	case n >= 0 && n <= math.MaxUint8:
		e.out = append(e.out, 'K', byte(n))
	case n >= 0 && n <= math.MaxUint16:
		e.out = le.AppendUint16(append(e.out, 'M'), uint16(n))
	case n >= math.MinInt32 && n <= math.MaxInt32:
		e.out = le.AppendUint32(append(e.out, 'J'), uint32(n))
	default:
		b := le.AppendUint64(nil, uint64(n))
		for len(b) > 1 && b[len(b)-1] == 0 && b[len(b)-2] < 0x80 { // a size is not negative
			b = b[:len(b)-1]
		}
		e.out = append(append(e.out, 0x8a, byte(len(b))), b...)
	}
}

func (e *emitter) numbers(ns []int64) {
	const tuple1 = 0x85
	if len(ns) > 3 {
		e.raw("(")
	}
	for _, n := range ns {
		e.number(n)
	}
	switch {
	case len(ns) == 0:
		e.raw(")") // which is not noted
		return
	case len(ns) > 3:
		e.raw("t")
	default:
		e.out = append(e.out, byte(tuple1-1+len(ns)))
	}
	e.put("")
}

// tensor writes the call that makes a dense tensor of a storage of n elements that is its own:
// _rebuild_tensor_v2(storage, offset, size, stride, requires_grad, backward_hooks).
func (e *emitter) tensor(class, key string, n int64, shape tensor.Shape) {
	e.global(rebuildV2)
	e.raw("((")
	e.text("storage", "'storage'")
	e.global(class)
	e.text(key, "")
	e.text("cpu", "'cpu'")
	e.number(n)
	e.raw("t")
	e.put("")
	e.raw("Q")
	e.number(0)
	strides := make([]int64, len(shape))
	next := int64(1)
	for i := len(shape) - 1; i >= 0; i-- {
		strides[i] = next
		next *= max(shape[i], 1)
	}
	e.numbers(shape)
	e.numbers(strides)
	e.raw("\x89")
	e.global(orderedDict)
	e.raw(")R")
	e.put("")
	e.raw("t")
	e.put("")
	e.raw("R")
	e.put("")
}
