package torch

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"

	"github.com/loratool/loratool/finding"
)

// Caps of the interpreter. Real checkpoints stay far below: the pickler writes batches of a thousand
// items, and state dicts are a few levels deep.
const (
	maxPickle  = 64 << 20 // bytes of one pickle
	maxStack   = 1 << 18  // values and marks at a time
	maxNesting = 64       // containers within containers
	maxLong    = 16       // bytes of an integer
)

// An interpreter reads one pickle without running anything: globals become names, calls become
// descriptions of storages and tensors, and whatever is not on the allow-list ends the reading at the
// point where it is named.
type interpreter struct {
	file   string
	what   string // which pickle of the file, for messages
	in     *bufio.Reader
	pos    int64 // bytes consumed
	limit  int64 // bytes there are
	stack  []any
	marks  []int
	memo   map[uint32]any
	pids   func(ip *interpreter, id *tuple) (any, error)
	opened int64 // position of the opcode being run
}

// The values an interpreter builds, beside nil, bool, int64, float64, string and bytes.
type (
	blob   []byte
	long   string // a little-endian integer of more than eight bytes
	global string // an allowed module.name
	opaque string // something allowed and ignored, such as a device
	set    struct{}

	tuple struct {
		items []any
		depth int
	}
	list struct {
		items []any
		depth int
	}
	// A dict keeps the order of its items. Keys are strings, integers, booleans, floats or nil.
	dict struct {
		keys   []any
		values map[any]any
		depth  int
	}
)

// newInterpreter reads a pickle from r, which holds limit bytes. pids turns persistent ids into values;
// nil refuses them.
func newInterpreter(file, what string, r *bufio.Reader, limit int64, pids func(*interpreter, *tuple) (any, error)) *interpreter {
	return &interpreter{file: file, what: what, in: r, limit: min(limit, maxPickle), memo: map[uint32]any{}, pids: pids}
}

func (ip *interpreter) fail(reason, format string, a ...any) *finding.Finding {
	return finding.Errorf("container."+reason, ip.file, "%s, byte %d: %s", ip.what, ip.opened, fmt.Sprintf(format, a...))
}

// run reads up to STOP and returns the one value that is left.
func (ip *interpreter) run() (any, error) {
	for {
		ip.opened = ip.pos
		op, err := ip.byte()
		if err != nil {
			return nil, err
		}
		if op == '.' {
			v, err := ip.pop()
			if err == nil && len(ip.stack) > 0 {
				err = ip.fail("stack_leftover", "%d values are left on the stack at the end", len(ip.stack))
			}
			return v, err
		}
		if err := ip.step(op); err != nil {
			return nil, err
		}
		if len(ip.stack)+len(ip.marks) > maxStack {
			return nil, ip.fail("nesting", "more than %d values on the stack", maxStack)
		}
	}
}

func (ip *interpreter) step(op byte) error {
	switch op {
	case 0x80: // PROTO
		v, err := ip.byte()
		if err == nil && v > 5 {
			err = ip.fail("bad_opcode", "pickle protocol %d is not known", v)
		}
		return err
	case 0x95: // FRAME
		_, err := ip.length(8)
		return err
	case '(':
		ip.marks = append(ip.marks, len(ip.stack))
	case '0':
		if n := len(ip.marks); n > 0 && ip.marks[n-1] == len(ip.stack) {
			ip.marks = ip.marks[:n-1]
			return nil
		}
		_, err := ip.pop()
		return err
	case '1':
		_, err := ip.popMark()
		return err
	case 'N':
		ip.push(nil)
	case 0x88, 0x89:
		ip.push(op == 0x88)
	case 'K', 'M', 'J', 'G', 0x8a:
		return ip.number(op)
	case 'X', 0x8c, 0x8d, 'U', 'T', 'B', 'C', 0x8e:
		return ip.text(op)
	case '}', ']', ')', 0x8f, 't', 0x85, 0x86, 0x87, 'a', 'e', 's', 'u':
		return ip.container(op)
	case 'q', 'r', 0x94, 'h', 'j':
		return ip.remember(op)
	case 'c', 'i', 0x93:
		return ip.name(op)
	case 'R', 0x81, 'b', 'Q':
		return ip.call(op)
	default:
		return ip.fail("bad_opcode", "opcode 0x%02x has no place in a state dict", op)
	}
	return nil
}

func (ip *interpreter) number(op byte) error {
	width := map[byte]int{'K': 1, 'M': 2, 'J': 4, 'G': 8}[op]
	if op == 0x8a {
		n, err := ip.byte()
		if err != nil {
			return err
		}
		if n > maxLong {
			return ip.fail("overflow", "an integer of %d bytes", n)
		}
		width = int(n)
	}
	b, err := ip.take(int64(width))
	if err != nil {
		return err
	}
	switch {
	case op == 'G':
		ip.push(math.Float64frombits(binary.BigEndian.Uint64(b)))
	case op == 'J':
		ip.push(int64(int32(binary.LittleEndian.Uint32(b))))
	case width > 8:
		ip.push(long(b))
	default:
		var full [8]byte
		if op == 0x8a && width > 0 && b[width-1]&0x80 != 0 {
			full = [8]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
		}
		copy(full[:], b)
		ip.push(int64(binary.LittleEndian.Uint64(full[:])))
	}
	return nil
}

func (ip *interpreter) text(op byte) error {
	width := map[byte]int{'X': 4, 0x8c: 1, 0x8d: 8, 'U': 1, 'T': 4, 'B': 4, 'C': 1, 0x8e: 8}[op]
	n, err := ip.length(width)
	if err != nil {
		return err
	}
	b, err := ip.take(n)
	if err != nil {
		return err
	}
	if op == 'B' || op == 'C' || op == 0x8e {
		ip.push(blob(b))
	} else {
		ip.push(string(b))
	}
	return nil
}

func (ip *interpreter) container(op byte) error {
	switch op {
	case '}':
		ip.push(newDict())
	case ']':
		ip.push(&list{})
	case ')':
		ip.push(&tuple{})
	case 0x8f:
		ip.push(set{})
	case 't':
		items, err := ip.popMark()
		if err != nil {
			return err
		}
		return ip.pushTuple(items)
	case 0x85, 0x86, 0x87:
		items, err := ip.popN(int(op-0x85) + 1)
		if err != nil {
			return err
		}
		return ip.pushTuple(items)
	case 'a', 'e':
		items, err := ip.popItems(op == 'e', 1)
		if err != nil {
			return err
		}
		return ip.appendTo(items)
	case 's', 'u':
		items, err := ip.popItems(op == 'u', 2)
		if err != nil {
			return err
		}
		return ip.setItems(items)
	}
	return nil
}

func (ip *interpreter) popItems(marked bool, n int) ([]any, error) {
	if marked {
		return ip.popMark()
	}
	return ip.popN(n)
}

func (ip *interpreter) pushTuple(items []any) error {
	t := &tuple{items: slices.Clone(items)}
	for _, v := range items {
		t.depth = max(t.depth, 1+depthOf(v))
	}
	if t.depth > maxNesting {
		return ip.fail("nesting", "containers nested more than %d deep", maxNesting)
	}
	ip.push(t)
	return nil
}

func (ip *interpreter) appendTo(items []any) error {
	top, err := ip.peek()
	if err != nil {
		return err
	}
	l, ok := top.(*list)
	if !ok {
		return ip.fail("bad_target", "appends to %s", describe(top))
	}
	for _, v := range items {
		l.items = append(l.items, v)
		if l.depth = max(l.depth, 1+depthOf(v)); l.depth > maxNesting {
			return ip.fail("nesting", "containers nested more than %d deep", maxNesting)
		}
	}
	return nil
}

func (ip *interpreter) setItems(items []any) error {
	top, err := ip.peek()
	if err != nil {
		return err
	}
	d, ok := top.(*dict)
	if !ok {
		return ip.fail("bad_target", "sets items of %s", describe(top))
	}
	if len(items)%2 != 0 {
		return ip.fail("stack_underflow", "a key without a value")
	}
	for i := 0; i < len(items); i += 2 {
		k, v := items[i], items[i+1]
		switch k.(type) {
		case nil, bool, int64, float64, string:
		default:
			return ip.fail("bad_key", "%s as a key", describe(k))
		}
		if _, twice := d.values[k]; twice {
			return ip.fail("duplicate_key", "key %q occurs twice", fmt.Sprint(k))
		}
		d.keys = append(d.keys, k)
		d.values[k] = v
		if d.depth = max(d.depth, 1+depthOf(v)); d.depth > maxNesting {
			return ip.fail("nesting", "containers nested more than %d deep", maxNesting)
		}
	}
	return nil
}

func newDict() *dict { return &dict{values: map[any]any{}} }

// depthOf is how many containers lie within one another in v. A container that is changed after it
// was put into another one makes this too small; whoever walks the values has a cap of his own.
func depthOf(v any) int {
	switch v := v.(type) {
	case *list:
		return v.depth
	case *dict:
		return v.depth
	case *tuple:
		return v.depth
	}
	return 0
}

func (ip *interpreter) remember(op byte) error {
	var index uint32
	switch op {
	case 0x94:
		index = uint32(len(ip.memo))
	case 'q', 'h':
		b, err := ip.byte()
		if err != nil {
			return err
		}
		index = uint32(b)
	default:
		b, err := ip.take(4)
		if err != nil {
			return err
		}
		index = binary.LittleEndian.Uint32(b)
	}
	if op == 'h' || op == 'j' {
		v, ok := ip.memo[index]
		if !ok {
			return ip.fail("bad_memo", "value %d was never stored", index)
		}
		ip.push(v)
		return nil
	}
	// Every stored value took an opcode, so no index of an honest file exceeds the bytes read.
	if int64(index) > ip.pos {
		return ip.fail("bad_memo", "value is stored as number %d, but there are not that many", index)
	}
	v, err := ip.peek()
	if err == nil {
		ip.memo[index] = v
	}
	return err
}

// name handles the opcodes that name a global. It is refused here, whether or not it is ever called.
func (ip *interpreter) name(op byte) error {
	var module, name string
	if op == 0x93 {
		v, err := ip.popN(2)
		if err != nil {
			return err
		}
		var ok1, ok2 bool
		module, ok1 = v[0].(string)
		name, ok2 = v[1].(string)
		if !ok1 || !ok2 {
			return ip.fail("forbidden_global", "a global named by %s and %s", describe(v[0]), describe(v[1]))
		}
	} else {
		var err error
		if module, err = ip.line(); err != nil {
			return err
		}
		if name, err = ip.line(); err != nil {
			return err
		}
	}
	full := module + "." + name
	switch {
	case unsupportedGlobals[full]:
		return ip.fail("unsupported_tensor", "%q makes a kind of tensor that cannot be used here", full).
			Hinted("save it as a dense tensor of a plain type")
	case !allowedGlobal(full):
		return &forbidden{ip.fail("forbidden_global", "names what a state dict has no use for").
			Expected(full, "collections.OrderedDict and torch's own storages and tensors").Hinted("the file can run code when it is loaded by torch; ask for a safetensors file"), full}
	case op == 'i':
		return ip.fail("bad_opcode", "makes an instance of %q", full)
	}
	ip.push(global(full))
	return nil
}

// A forbidden error is a finding that also keeps the name of the global.
type forbidden struct {
	*finding.Finding
	name string
}

func (f *forbidden) Unwrap() error { return f.Finding }

// suspect interprets bytes that nobody should need, and returns the forbidden global they name, or "".
func suspect(r io.Reader, limit int64) string {
	ip := newInterpreter("", "", bufio.NewReaderSize(io.LimitReader(r, limit), 512), limit, func(*interpreter, *tuple) (any, error) { return opaque("storage"), nil })
	_, err := ip.run()
	var f *forbidden
	if errors.As(err, &f) {
		return f.name
	}
	return ""
}

func (ip *interpreter) push(v any) { ip.stack = append(ip.stack, v) }

// floor is where the values above the topmost mark begin.
func (ip *interpreter) floor() int {
	if n := len(ip.marks); n > 0 {
		return ip.marks[n-1]
	}
	return 0
}

func (ip *interpreter) popN(n int) ([]any, error) {
	at := len(ip.stack) - n
	if at < ip.floor() {
		return nil, ip.fail("stack_underflow", "needs %d values, %d are there", n, len(ip.stack)-ip.floor())
	}
	items := ip.stack[at:]
	ip.stack = ip.stack[:at]
	return items, nil
}

func (ip *interpreter) pop() (any, error) {
	v, err := ip.popN(1)
	if err != nil {
		return nil, err
	}
	return v[0], nil
}

func (ip *interpreter) peek() (any, error) {
	if len(ip.stack) <= ip.floor() {
		return nil, ip.fail("stack_underflow", "needs a value, none is there")
	}
	return ip.stack[len(ip.stack)-1], nil
}

// popMark takes the values above the topmost mark, and the mark. They are valid until the next push.
func (ip *interpreter) popMark() ([]any, error) {
	n := len(ip.marks)
	if n == 0 {
		return nil, ip.fail("stack_underflow", "needs a mark, none is there")
	}
	at := ip.marks[n-1]
	ip.marks = ip.marks[:n-1]
	items := ip.stack[at:]
	ip.stack = ip.stack[:at]
	return items, nil
}

func (ip *interpreter) byte() (byte, error) {
	if ip.pos >= ip.limit {
		return 0, ip.ended()
	}
	b, err := ip.in.ReadByte()
	if err != nil {
		return 0, ip.broken(err)
	}
	ip.pos++
	return b, nil
}

// take reads n bytes, which are compared with what is there before anything is allocated.
func (ip *interpreter) take(n int64) ([]byte, error) {
	if n > ip.limit-ip.pos {
		return nil, ip.ended()
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(ip.in, b); err != nil {
		return nil, ip.broken(err)
	}
	ip.pos += n
	return b, nil
}

// length reads a length of width bytes and checks it against what is there.
func (ip *interpreter) length(width int) (int64, error) {
	b, err := ip.take(int64(width))
	if err != nil {
		return 0, err
	}
	var full [8]byte
	copy(full[:], b)
	n := binary.LittleEndian.Uint64(full[:])
	if n > uint64(ip.limit-ip.pos) {
		return 0, ip.fail("truncated", "%d bytes are announced, %d are left", n, ip.limit-ip.pos)
	}
	return int64(n), nil
}

// line reads a name up to the end of its line.
func (ip *interpreter) line() (string, error) {
	const longest = 1024
	var b strings.Builder
	for b.Len() < longest {
		c, err := ip.byte()
		if err != nil {
			return "", err
		}
		if c == '\n' {
			return b.String(), nil
		}
		b.WriteByte(c)
	}
	return "", ip.fail("bad_opcode", "a name of more than %d bytes", longest)
}

func (ip *interpreter) ended() error {
	if ip.limit == maxPickle {
		return ip.fail("too_large", "the pickle is larger than %d bytes", maxPickle)
	}
	return ip.fail("truncated", "the pickle ends before its end mark")
}

func (ip *interpreter) broken(err error) error {
	if f := finding.Of(err); f != nil {
		return f
	}
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		return ip.ended()
	}
	return fmt.Errorf("%s: %w", ip.file, err)
}

// describe says what a value is, for messages.
func describe(v any) string {
	switch v := v.(type) {
	case nil:
		return "None"
	case bool:
		return "a boolean"
	case int64, long:
		return "an integer"
	case float64:
		return "a float"
	case string:
		return "a string"
	case blob:
		return "bytes"
	case *tuple:
		return "a tuple"
	case *list:
		return "a list"
	case *dict:
		return "a dict"
	case global:
		return fmt.Sprintf("%q", string(v))
	case opaque:
		return "a " + string(v)
	case set:
		return "a set"
	case *view:
		return "a tensor"
	}
	return "a storage"
}
