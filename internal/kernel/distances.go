package kernel

// GridDistances sets dst to the squared distances, in float64, of x to the nearest of the values steps·level + offs, where
// levels are the integers from low to low + top; each float32 operation is rounded on its own. Where a step is zero
// that is offs.
func GridDistances(dst []float64, x, steps, offs []float32, low, top float32) {
	n := len(x)
	gridDistances(dst[:n], x, steps[:n], offs[:n], low, top)
}

// gridDistancesGo is the specification of the assembly.
func gridDistancesGo(dst []float64, x, steps, offs []float32, low, top float32) {
	const round = 3 << 22 // added to a number of less than 22 bits and taken off again, it rounds it
	for k, v := range x {
		s, off := steps[k], offs[k]
		value := off
		if s != 0 {
			c := max(0, min(top, float32((v-off)/s)-low))
			value = float32(s*(float32(float32(c+round)-round)+low)) + off
		}
		d := float64(value) - float64(v)
		dst[k] = float64(d * d)
	}
}
