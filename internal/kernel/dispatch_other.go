//go:build !amd64 || noasm

package kernel

func best() level { return portable }

func decodeF16(dst []float32, src []byte)  { decodeF16Go(dst, src) }
func decodeBF16(dst []float32, src []byte) { decodeBF16Go(dst, src) }
func encodeF16(dst []byte, src []float32)  { encodeF16Go(dst, src) }
func encodeBF16(dst []byte, src []float32) { encodeBF16Go(dst, src) }

func addPanels(w []float32, stride int, l, panels []float32, rank, rows, n int, scale float32) {
	addPanelsGo(w, stride, l, panels, rank, rows, n, scale)
}
