package merge

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/loratool/loratool/finding"
	"github.com/loratool/loratool/tensor"
)

// TestFloat8Overflow checks that a weight beyond the range of 8 bits is refused, whether it was updated or not:
// torch before 2.15 stores NaN and later ones the largest value.
func TestFloat8Overflow(t *testing.T) {
	const key = "lora_unet_double_blocks_0_img_mlp_0"
	for _, c := range []struct {
		dtype tensor.DType
		value float32 // of a weight that is not updated
		alpha float32
		text  string
	}{
		{tensor.F8E4M3, 464, 1, ""}, // rounds down to 448
		{tensor.F8E4M3, 465, 1, "is 465, which does not fit F8_E4M3"},
		{tensor.F8E5M2, 465, 1, ""},
		{tensor.F8E5M2, 61440, 1, "is 61440, which does not fit F8_E5M2"},
		{tensor.F8E4M3, 1, 1e6, "the updated value"},
	} {
		dir := t.TempDir()
		base, lora := filepath.Join(dir, "base.safetensors"), filepath.Join(dir, "lora.safetensors")
		other := numbered("double_blocks.0.txt_mlp.0.weight", 2, 4, 4)
		other.v[5] = c.value
		saveTensors(t, base, numbered("double_blocks.0.img_mlp.0.weight", 1, 8, 4), other)
		ts, _ := pairOf(key, []int64{8, 4})
		ts[2].v[0] = c.alpha
		saveTensors(t, lora, ts...)
		_, _, err := bakedAs(t, base, lora, c.dtype)
		switch f := finding.Of(err); {
		case c.text == "" && err != nil:
			t.Errorf("%+v: %v", c, err)
		case c.text != "" && (f == nil || f.Code != "numeric.overflow" || !strings.Contains(f.Message, c.text) || f.Hint == ""):
			t.Errorf("%+v: %v", c, err)
		}
	}
}
