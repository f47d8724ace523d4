package hf

import (
	"fmt"

	"github.com/loratool/loratool/naming"
	"github.com/loratool/loratool/tensor"
)

// A grid is a parameter as matrices: a stack of them where there are experts, one otherwise; a vector is a
// matrix of one column. rows is the parameter's output axis.
type grid struct {
	stack, rows, cols int64
	transposed        bool // stored [cols, rows]
}

// gridOf looks at a source's shape.
func gridOf(s source, transposed bool) (grid, error) {
	g := grid{stack: 1, cols: 1, transposed: transposed}
	d := s.shape
	switch {
	case len(d) == 1 && !transposed:
		g.rows = d[0]
	case len(d) == 2:
		g.rows, g.cols = d[0], d[1]
	case len(d) == 3:
		g.stack, g.rows, g.cols = d[0], d[1], d[2]
	default:
		return g, fmt.Errorf("a tensor of shape %v is not expected here", d)
	}
	if transposed {
		g.rows, g.cols = g.cols, g.rows
	}
	return g, nil
}

// plain reports whether a place holds the parameter as it is.
func plain(p naming.Place) bool {
	return p.Heads == 0 && p.Run == 0 && p.Rows == 0 && p.RowOffset == 0 && !p.Transposed
}

// reordered is the data of one GGUF tensor that holds (part of) a source: all places are in that tensor.
func (b *builder) reordered(s source, places []naming.Place, transposed bool) (source, error) {
	if len(places) == 1 && plain(places[0]) && !transposed {
		return s, nil
	}
	// The bias of a stack of experts is a matrix whose rows are vectors.
	vectors := len(s.shape) == 2 && places[0].Experts == 0 && b.stackedBias(places[0].Tensor)
	if vectors {
		s.shape = tensor.Shape{s.shape[0], s.shape[1], 1}
	}
	g, err := gridOf(s, transposed)
	if err != nil {
		return s, err
	}
	latent := places[0].Experts > 0
	if latent && g.stack != 1 {
		return s, fmt.Errorf("a tensor of shape %v is not expected here", s.shape)
	}
	var sections []section
	for e := range g.stack {
		next := int64(0)
		for _, p := range places {
			rows, err := g.check(p, next, latent)
			if err != nil {
				return s, err
			}
			sec, err := g.section(s, p, e, rows)
			if err != nil {
				return s, err
			}
			sections = append(sections, sec)
			next += rows
		}
	}
	return source{newView(sections), s.dtype, g.shape(s, places, latent, vectors)}, nil
}

// check returns how many rows a place has, and refuses a place that the source does not fill.
func (g grid) check(p naming.Place, next int64, latent bool) (int64, error) {
	rows := p.Rows
	if rows == 0 {
		rows = g.rows
	}
	most := int64(0)
	switch {
	case p.Heads > 0 && rows%(2*p.Heads) != 0:
		return 0, fmt.Errorf("%d rows are not %d heads of an even size, as config.json says", rows, p.Heads)
	case p.Run > 0 && rows%p.Run != 0:
		return 0, fmt.Errorf("%d rows are not whole runs of %d", rows, p.Run)
	case p.Run > 0:
		most = p.First + (rows/p.Run-1)*p.Step + p.Run
	default:
		most = rows
	}
	if rows <= 0 || most > g.rows || !latent && p.RowOffset != next {
		return 0, fmt.Errorf("the tensor has %d rows, but the sizes in config.json ask for %d", g.rows, most)
	}
	return rows, nil
}

// section is the data of a place in matrix e of the source.
func (g grid) section(s source, p naming.Place, e, rows int64) (section, error) {
	elem := int64(s.dtype.BlockBytes())
	canonical := func(i int64) int64 { return p.Canonical(i, rows) }
	start := e * g.rows * g.cols
	switch {
	case g.transposed && !p.Transposed: // rows of the place are columns of the source
		return transposed{
			src: s, width: g.rows * elem, elem: elem, n: g.cols, rows: rows, column: canonical,
			row: func(j int64) int64 { return e*g.cols + j },
		}, nil
	case p.Transposed && !g.transposed: // columns of the place are rows of the source
		return transposed{
			src: s, width: g.cols * elem, elem: elem, n: rows, row: canonical, rows: g.cols,
			column: func(i int64) int64 { return i },
		}, nil
	}
	width, err := s.dtype.Bytes(g.cols)
	if err != nil {
		return nil, err
	}
	first, err := s.dtype.Bytes(start)
	if err != nil {
		return nil, err
	}
	base := first / width
	if p.Heads == 0 && (p.Run == 0 || p.Run == rows) {
		return whole{s, (base + p.First) * width, rows * width}, nil
	}
	return gathered{src: s, width: width, rows: rows, row: func(i int64) int64 { return base + canonical(i) }}, nil
}

// shape is the shape of the GGUF tensor.
func (g grid) shape(s source, places []naming.Place, latent, vectors bool) tensor.Shape {
	rows := int64(0)
	for _, p := range places {
		if p.Rows == 0 {
			rows = g.rows
		}
		rows += p.Rows
	}
	switch {
	case latent && places[0].Transposed:
		return tensor.Shape{int64(len(places)), g.cols, places[0].Rows}
	case latent:
		return tensor.Shape{int64(len(places)), places[0].Rows, g.cols}
	case vectors:
		return tensor.Shape{g.stack, rows}
	case len(s.shape) == 3:
		return tensor.Shape{g.stack, rows, g.cols}
	case len(s.shape) == 2:
		return tensor.Shape{rows, g.cols}
	}
	return tensor.Shape{rows}
}
