package torch

import (
	"math"

	"github.com/loratool/loratool/tensor"
)

// storageTypes are the classes of typed storages. An untyped one counts bytes.
var storageTypes = map[string]tensor.DType{
	"torch.DoubleStorage": tensor.F64, "torch.FloatStorage": tensor.F32, "torch.HalfStorage": tensor.F16, "torch.BFloat16Storage": tensor.BF16,
	"torch.LongStorage": tensor.I64, "torch.IntStorage": tensor.I32, "torch.ShortStorage": tensor.I16, "torch.CharStorage": tensor.I8,
	"torch.ByteStorage": tensor.U8, "torch.BoolStorage": tensor.Bool, "torch.ComplexFloatStorage": tensor.C64,
	"torch.ComplexDoubleStorage": tensor.C128, "torch.storage.UntypedStorage": tensor.U8, "torch.UntypedStorage": tensor.U8,
}

var elementTypes = map[string]tensor.DType{
	"torch.float64": tensor.F64, "torch.double": tensor.F64, "torch.float32": tensor.F32, "torch.float": tensor.F32,
	"torch.float16": tensor.F16, "torch.half": tensor.F16, "torch.bfloat16": tensor.BF16,
	"torch.int64": tensor.I64, "torch.long": tensor.I64, "torch.int32": tensor.I32, "torch.int": tensor.I32,
	"torch.int16": tensor.I16, "torch.short": tensor.I16, "torch.int8": tensor.I8, "torch.uint8": tensor.U8,
	"torch.uint16": tensor.U16, "torch.uint32": tensor.U32, "torch.uint64": tensor.U64, "torch.bool": tensor.Bool,
	"torch.complex64": tensor.C64, "torch.complex128": tensor.C128,
	"torch.float8_e4m3fn": tensor.F8E4M3, "torch.float8_e5m2": tensor.F8E5M2, "torch.float8_e8m0fnu": tensor.F8E8M0,
	"torch.float8_e4m3fnuz": tensor.F8E4M3FNUZ, "torch.float8_e5m2fnuz": tensor.F8E5M2FNUZ,
}

const (
	orderedDict = "collections.OrderedDict"
	rebuildV2   = "torch._utils._rebuild_tensor_v2"
	rebuildV3   = "torch._utils._rebuild_tensor_v3"
	parameter   = "torch._utils._rebuild_parameter"
	torchSize   = "torch.Size"
	torchDevice = "torch.device"
)

func allowedGlobal(name string) bool {
	switch name {
	case orderedDict, rebuildV2, rebuildV3, parameter, torchSize, torchDevice:
		return true
	}
	_, storage := storageTypes[name]
	_, element := elementTypes[name]
	return storage || element
}

// unsupportedGlobals are harmless, but make tensors that are no dense array of plain elements.
var unsupportedGlobals = map[string]bool{
	"torch.serialization._get_layout": true, "torch._utils._rebuild_sparse_tensor": true, "torch._utils._rebuild_sparse_csr_tensor": true,
	"torch._utils._rebuild_nested_tensor": true, "torch._utils._rebuild_qtensor": true, "torch._utils._rebuild_meta_tensor_no_storage": true,
	"torch._utils._rebuild_wrapper_subclass": true, "torch._utils._rebuild_device_tensor_from_numpy": true,
	"torch.QInt8Storage": true, "torch.QUInt8Storage": true, "torch.QInt32Storage": true, "torch.QUInt4x2Storage": true, "torch.QUInt2x4Storage": true,
	"torch.qint8": true, "torch.quint8": true, "torch.qint32": true, "torch.quint4x2": true, "torch.quint2x4": true,
}

// A storage is a stretch of elements in the file that tensors are views of.
type storage struct {
	key      string
	dtype    tensor.DType
	untyped  bool
	elements int64
	data     *record // set once the file says where it is
}

// bytes is the size of the storage; newStorage has checked it.
func (s *storage) bytes() int64 { return s.elements * int64(s.dtype.BlockBytes()) }

// A part is some of a storage's elements: all of them, except in files of torch before 0.4.
type part struct {
	*storage
	off, elements int64
}

// A view is a tensor: elements of a storage, found by strides. Offset and strides count elements.
type view struct {
	storage *storage
	dtype   tensor.DType
	offset  int64
	shape   tensor.Shape
	strides []int64
	count   int64
}

// call handles the opcodes that make torch call something. Nothing is called here.
func (ip *interpreter) call(op byte) error {
	switch op {
	case 'Q':
		v, err := ip.pop()
		if err != nil {
			return err
		}
		id, ok := v.(*tuple)
		if !ok || ip.pids == nil {
			return ip.fail("bad_persistent_id", "%s as the name of a storage", describe(v))
		}
		s, err := ip.pids(ip, id)
		if err != nil {
			return err
		}
		ip.push(s)
		return nil
	case 'b':
		// The state of a state dict is its _metadata, which says nothing about the tensors.
		if _, err := ip.pop(); err != nil {
			return err
		}
		target, err := ip.peek()
		if err != nil {
			return err
		}
		if _, ok := target.(*dict); !ok {
			return ip.fail("bad_target", "sets attributes of %s", describe(target))
		}
		return nil
	}
	v, err := ip.popN(2)
	if err != nil {
		return err
	}
	f, isGlobal := v[0].(global)
	args, isTuple := v[1].(*tuple)
	if !isGlobal || !isTuple || op == 0x81 && f != orderedDict {
		return ip.fail("forbidden_call", "calls %s with %s", describe(v[0]), describe(v[1]))
	}
	made, err := ip.rebuild(string(f), args.items)
	if err != nil {
		return err
	}
	ip.push(made)
	return nil
}

func (ip *interpreter) rebuild(f string, args []any) (any, error) {
	switch {
	case f == orderedDict && len(args) == 0:
		return newDict(), nil
	case f == rebuildV2 && (len(args) == 6 || len(args) == 7):
		return ip.view(args[:4], nil)
	case f == rebuildV3 && (len(args) == 7 || len(args) == 8):
		return ip.view(args[:4], args[6])
	case f == parameter && len(args) == 3:
		if v, ok := args[0].(*view); ok {
			return v, nil
		}
	case f == torchSize && len(args) == 1:
		if t, ok := args[0].(*tuple); ok {
			return t, nil
		}
	case f == torchDevice:
		return opaque("device"), nil
	}
	return nil, ip.fail("forbidden_call", "calls %q with %d arguments that do not belong there", f, len(args))
}

// view checks a tensor's place in its storage: storage, offset, sizes, strides, and for version 3 the
// element type.
func (ip *interpreter) view(args []any, element any) (*view, error) {
	p, ok := args[0].(*part)
	if !ok {
		return nil, ip.fail("forbidden_call", "makes a tensor from %s", describe(args[0]))
	}
	v := &view{storage: p.storage, dtype: p.dtype}
	if element != nil {
		name, _ := element.(global)
		if v.dtype, ok = elementTypes[string(name)]; !ok {
			return nil, ip.fail("forbidden_call", "makes a tensor with %s as its type", describe(element))
		}
	} else if p.untyped {
		return nil, ip.fail("forbidden_call", "makes a tensor without a type from an untyped storage")
	}
	size := int64(v.dtype.BlockBytes())
	first, room := p.off, p.elements
	if v.dtype != p.dtype {
		if !p.untyped {
			return nil, ip.fail("dtype_conflict", "a tensor of %s in a storage of %s", v.dtype, p.dtype)
		}
		first, room = 0, p.elements/size
	}
	shape, err := ip.integers(args[2], "bad_shape")
	if err != nil {
		return nil, err
	}
	v.shape = shape
	if v.strides, err = ip.integers(args[3], "bad_stride"); err != nil {
		return nil, err
	}
	if len(v.strides) != len(v.shape) {
		return nil, ip.fail("bad_stride", "%d sizes with %d strides", len(v.shape), len(v.strides))
	}
	offset, ok := args[1].(int64)
	if !ok || offset < 0 || offset > room {
		return nil, ip.fail("out_of_bounds", "a tensor begins at element %v of a storage of %d", args[1], room)
	}
	v.offset = first + offset
	return v, ip.checkExtent(v, room-offset)
}

// checkExtent checks that the view's elements lie within the room elements from its first one.
func (ip *interpreter) checkExtent(v *view, room int64) error {
	last := int64(0)
	for i, d := range v.shape {
		switch s := v.strides[i]; {
		case d < 0:
			return ip.fail("bad_shape", "a tensor of shape %v", v.shape)
		case s < 0:
			return ip.fail("bad_stride", "a tensor with strides %v", v.strides)
		case d > 1 && s > 0 && (d-1 > (math.MaxInt64-last)/s):
			return ip.fail("overflow", "shape %v with strides %v overflows", v.shape, v.strides)
		case d > 1:
			last += (d - 1) * s
		}
	}
	n, err := v.shape.Elements()
	if err == nil {
		_, err = v.dtype.Bytes(n)
	}
	if err != nil {
		return ip.fail("overflow", "%v", err)
	}
	v.count = n
	if n == 0 {
		return nil
	}
	if last >= room {
		return ip.fail("out_of_bounds", "a tensor of shape %v with strides %v needs %d elements of its storage, %d are there",
			v.shape, v.strides, last+1, room)
	}
	const spread, free = 1024, 1 << 20
	if n > free && n/spread > room {
		return ip.fail("amplification", "a tensor of %d elements is made of %d stored ones", n, room)
	}
	return nil
}

// integers reads the sizes or strides of a tensor.
func (ip *interpreter) integers(v any, reason string) ([]int64, error) {
	t, ok := v.(*tuple)
	if !ok {
		return nil, ip.fail(reason, "the sizes or strides of a tensor are %s", describe(v))
	}
	n := make([]int64, len(t.items))
	for i, x := range t.items {
		switch x := x.(type) {
		case int64:
			n[i] = x
		case long:
			return nil, ip.fail("overflow", "a size or stride of more than 64 bits")
		default:
			return nil, ip.fail(reason, "a size or stride of a tensor is %s", describe(x))
		}
	}
	return n, nil
}

// storages collects the storages that a pickle names.
type storages struct {
	byKey map[string]*storage
	order []*storage
	views bool // some had the view metadata of torch before 0.4
}

// named handles a persistent id: ("storage", class, key, location, elements), and before 0.4 a sixth
// item, None or (key, offset, elements) of a part.
func (ss *storages) named(ip *interpreter, t *tuple) (any, error) {
	id := t.items
	bad := func(what string) (any, error) { return nil, ip.fail("bad_persistent_id", "%s", what) }
	if len(id) < 5 || len(id) > 6 {
		return bad("a storage named by a tuple of the wrong length")
	}
	if kind, _ := id[0].(string); kind != "storage" {
		return bad("a persistent id that is no storage")
	}
	class, _ := id[1].(global)
	dtype, ok := storageTypes[string(class)]
	if !ok {
		return bad("a storage of unknown class " + describe(id[1]))
	}
	key, ok := id[2].(string)
	if !ok {
		return bad("a storage whose key is " + describe(id[2]))
	}
	n, ok := id[4].(int64)
	if !ok || n < 0 {
		return bad("a storage without a number of elements")
	}
	if _, ok := id[3].(string); !ok {
		return bad("a storage whose location is " + describe(id[3]))
	}
	if key == "" || len(key) > 255 {
		return nil, ip.fail("bad_storage_key", "a storage with %d bytes of key", len(key))
	}
	for _, c := range []byte(key) {
		if c <= ' ' || c == '/' || c == '\\' || c > '~' {
			return nil, ip.fail("bad_storage_key", "a storage with the key %q", key)
		}
	}
	if _, err := dtype.Bytes(n); err != nil {
		return nil, ip.fail("overflow", "storage %q: %v", key, err)
	}
	untyped := dtype == tensor.U8 && class != "torch.ByteStorage"
	s, seen := ss.byKey[key]
	switch {
	case !seen:
		s = &storage{key: key, dtype: dtype, untyped: untyped, elements: n}
		ss.byKey[key] = s
		ss.order = append(ss.order, s)
	case s.dtype != dtype || s.untyped != untyped || s.elements != n:
		return nil, ip.fail("dtype_conflict", "storage %q is %d elements of %s here and %d of %s before", key, n, dtype, s.elements, s.dtype)
	}
	p := &part{storage: s, elements: n}
	if len(id) == 6 && id[5] != nil {
		return ss.part(ip, p, id[5])
	}
	return p, nil
}

func (ss *storages) part(ip *interpreter, p *part, metadata any) (any, error) {
	t, ok := metadata.(*tuple)
	if !ok || len(t.items) != 3 {
		return nil, ip.fail("bad_persistent_id", "a part of storage %q described by %s", p.key, describe(metadata))
	}
	off, ok1 := t.items[1].(int64)
	n, ok2 := t.items[2].(int64)
	if !ok1 || !ok2 || off < 0 || n < 0 || off > p.elements || n > p.elements-off {
		return nil, ip.fail("out_of_bounds", "a part of storage %q outside its %d elements", p.key, p.elements)
	}
	ss.views = true
	p.off, p.elements = off, n
	return p, nil
}
