package quant

import (
	"cmp"
	"encoding/binary"
	"math"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/tensor"
)

// TestLatticeGoldens encodes rows of 512 values, some of them with sub-blocks of zeros or a single value,
// without importance where the type allows that, with importance, and with importance that is often zero.
func TestLatticeGoldens(t *testing.T) {
	const rows, cols = 8, 512
	read := func(name string) []byte {
		data, err := os.ReadFile("testdata/lattice/" + name)
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	x, importance := floats(read("input.f32")), floats(read("importance.f32"))
	for _, d := range latticeTypes {
		c := mustOf(t, d)
		want := read(strings.ToLower(d.String()) + ".bin")
		size := rows * cols / 256 * d.BlockBytes()
		for _, w := range [][]float32{nil, importance[:cols], importance[cols:]} {
			if w == nil && c.NeedsImportance() {
				continue
			}
			if len(want) < size {
				t.Fatalf("%s: goldens are missing", d)
			}
			checkEncode(t, goldenCase{ID: d.String(), Rows: rows, RowLen: cols, Valid: true}, c, x, w, want[:size])
			want = want[size:]
		}
		if len(want) != 0 {
			t.Errorf("%s: %d bytes of goldens are left over", d, len(want))
		}
	}
}

// TestNeighbours compares lists with what they are defined to be, for some points of each lattice.
func TestNeighbours(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for name, l := range map[string]*lattice{"2xxs": &lattice2xxs, "2xs": &lattice2xs, "2s": &lattice2s,
		"1": &lattice1, "3xxs": &lattice3xxs, "3s": &lattice3s} {
		l.ready()
		grid := make([][]int, l.points)
		for i := range grid {
			grid[i] = levelsOf(l, binary.LittleEndian.Uint16(packedGrids[l.at+2*i:]))
		}
		for range 200 {
			code := r.IntN(len(l.entry))
			point := make([]int, l.dims)
			for j, rest := 0, code; j < l.dims; j, rest = j+1, rest/l.levels {
				point[j] = rest % l.levels
			}
			entry := l.entry[code]
			if at := slices.IndexFunc(grid, func(p []int) bool { return slices.Equal(p, point) }); at >= 0 {
				if entry>>16 != int32(at) || !slices.Equal(levelsOf(l, uint16(entry)), point) {
					t.Errorf("%s: %v is point %d of the grid, not %#x", name, point, at, entry)
				}
				continue
			}
			if entry >= 0 {
				t.Errorf("%s: %v is not on the grid, but its entry is %#x", name, point, entry)
				continue
			}
			want := nearestShells(grid, point, l.shells)
			list := l.list(entry)
			if len(list)%8 != 0 || len(list) >= len(want)+8 || len(list) < len(want) {
				t.Fatalf("%s: %v has a list of %d, want %d and padding", name, point, len(list), len(want))
			}
			for i, p := range list {
				index := want[min(i, len(want)-1)]
				if int(p>>16) != index || !slices.Equal(levelsOf(l, uint16(p)), grid[index]) {
					t.Fatalf("%s: neighbour %d of %v is %#x, want point %d", name, i, point, p, index)
				}
			}
		}
	}
}

func levelsOf(l *lattice, packed uint16) []int {
	levels := make([]int, l.dims)
	for j := range levels {
		width := 16 / l.dims
		levels[j] = int(packed >> (j * width) & (1<<width - 1))
	}
	return levels
}

// nearestShells sorts a grid by distance and index and cuts it after so many distinct distances.
func nearestShells(grid [][]int, point []int, shells int) []int {
	distance := func(i int) (sum int) {
		for j, l := range grid[i] {
			sum += (l - point[j]) * (l - point[j])
		}
		return sum
	}
	order := make([]int, len(grid))
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(a, b int) int { return cmp.Or(cmp.Compare(distance(a), distance(b)), cmp.Compare(a, b)) })
	for n := 1; n < len(order); n++ {
		if distance(order[n]) > distance(order[n-1]) {
			if shells--; shells == 0 {
				return order[:n]
			}
		}
	}
	return order
}

func TestAscendingIsStable(t *testing.T) {
	zero := float32(0)
	order := make([]byte, 7)
	ascending(order, []float32{2, zero, -1, -zero, 2, -1, 0x1p-149})
	if want := []byte{2, 5, 1, 3, 6, 0, 4}; !slices.Equal(order, want) {
		t.Errorf("order %v, want %v", order, want)
	}
	ascending(order[:3], []float32{float32(math.Copysign(0, -1)), zero, -0x1p-149})
	if want := []byte{2, 0, 1}; !slices.Equal(order[:3], want) {
		t.Errorf("order %v, want %v", order[:3], want)
	}
}

// TestLatticeScaleOverflow: scales that float16 cannot hold, and costs that float32 cannot, are errors.
func TestLatticeScaleOverflow(t *testing.T) {
	importance := slices.Repeat([]float32{1}, 256)
	for _, d := range latticeTypes {
		for _, top := range []float32{1e8, 1e20, math.MaxFloat32} {
			x := make([]float32, 256)
			for i := range x {
				x[i] = top * (0.5 + float32(i%7)/14)
			}
			if f := finding.Of(mustOf(t, d).EncodeRows(make([]byte, d.BlockBytes()), x, 256, importance)); f == nil || f.Code != "quant.scale_overflow" {
				t.Errorf("%s: values up to %v give %v", d, top, f)
			}
		}
	}
}

// FuzzLattice encodes any finite values with any importance: no panic, the same bytes twice and for each
// super-block on its own, and finite values back.
func FuzzLattice(f *testing.F) {
	f.Add(uint64(1), uint8(0), uint8(0), []byte{})
	f.Add(uint64(2), uint8(3), uint8(1), []byte("\x00\x00\x80\x3f\xff\xff\x7f\x7f\x01\x00\x00\x00"))
	f.Add(uint64(3), uint8(10), uint8(4), []byte("\x00\x00\x00\x80\x00\x00\x80\x00"))
	f.Fuzz(func(t *testing.T, seed uint64, spread, sparse uint8, bits []byte) {
		r := rand.New(rand.NewPCG(seed, 1))
		x, w := make([]float32, 512), make([]float32, 512)
		for i := range x {
			x[i] = float32(r.NormFloat64() * math.Exp(float64(spread)*r.NormFloat64()))
			w[i] = float32(math.Exp(float64(spread) * r.NormFloat64()))
			if r.IntN(int(sparse)+1) > 0 {
				w[i] = 0
			}
			if r.IntN(int(sparse)+2) > 1 {
				x[i] = 0
			}
		}
		for i := range x {
			if len(bits) >= 4 {
				x[i], bits = math.Float32frombits(binary.LittleEndian.Uint32(bits)), bits[4:]
			}
			if !isFinite(x[i]) {
				x[i] = 1
			}
			if !isFinite(w[i]) {
				w[i] = math.MaxFloat32
			}
		}
		for _, d := range latticeTypes {
			checkAnyValues(t, d, x, w)
		}
	})
}

func checkAnyValues(t *testing.T, d tensor.DType, x, w []float32) {
	c, size := mustOf(t, d), d.BlockBytes()
	for _, importance := range [][]float32{nil, w} {
		if importance == nil && c.NeedsImportance() {
			continue
		}
		a, b := make([]byte, 2*size), make([]byte, 2*size)
		err := c.EncodeRows(a, x, 512, importance)
		if again := c.EncodeRows(b, x, 512, importance); (err == nil) != (again == nil) || err == nil && string(a) != string(b) {
			t.Fatalf("%s: two runs differ (%v, %v)", d, err, again)
		}
		if err != nil {
			if f := finding.Of(err); f == nil || f.Code != "quant.scale_overflow" {
				t.Fatalf("%s: %v", d, err)
			}
			continue
		}
		for k := range 2 {
			part := importance
			if part != nil {
				part = part[256*k:][:256]
			}
			if err := c.EncodeRows(b[:size], x[256*k:][:256], 256, part); err != nil || string(b[:size]) != string(a[k*size:][:size]) {
				t.Fatalf("%s: super-block %d on its own differs (%v)", d, k, err)
			}
		}
		y := make([]float32, 512)
		c.Decode(y, a)
		if i := nonFinite(y); i >= 0 {
			t.Fatalf("%s: element %d comes back as %v", d, i, y[i])
		}
	}
}
