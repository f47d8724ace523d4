// Command grids packs the lattice points of the IQ types into ../grids.bin. Its argument is a JSON file
// with the constants of ggml: {"iq2xxs_grid": {"points", "elements", "hex"}, …}, two hexadecimal digits
// a coordinate, in element order.
//
//	go run grids.go grids.json
package main

import (
	"encoding/hex"
	"encoding/json"
	"log"
	"os"
)

func main() {
	if len(os.Args) != 2 {
		log.Fatal("usage: go run grids.go grids.json")
	}
	data, err := os.ReadFile(os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	var all map[string]json.RawMessage
	if err := json.Unmarshal(data, &all); err != nil {
		log.Fatal(err)
	}
	var out []byte
	for _, g := range []struct {
		name   string
		width  int // bits a coordinate
		levels []byte
	}{
		{"iq2xxs_grid", 2, []byte{8, 25, 43}},
		{"iq2xs_grid", 2, []byte{8, 25, 43}},
		{"iq2s_grid", 2, []byte{8, 25, 43}},
		{"iq1s_grid", 2, []byte{0xff, 0, 1}},
		{"iq3xxs_grid", 4, []byte{4, 12, 20, 28, 36, 44, 52, 62}},
		{"iq3s_grid", 4, []byte{1, 3, 5, 7, 9, 11, 13, 15}},
	} {
		out = append(out, pack(all[g.name], g.width, g.levels)...)
	}
	if err := os.WriteFile("../grids.bin", out, 0o644); err != nil {
		log.Fatal(err)
	}
}

func pack(raw json.RawMessage, width int, levels []byte) []byte {
	var grid struct{ Hex string }
	if err := json.Unmarshal(raw, &grid); err != nil {
		log.Fatal(err)
	}
	coordinates, err := hex.DecodeString(grid.Hex)
	if err != nil {
		log.Fatal(err)
	}
	number := map[byte]byte{}
	for i, l := range levels {
		number[l] = byte(i)
	}
	out := make([]byte, len(coordinates)*width/8)
	for i, c := range coordinates {
		n, ok := number[c]
		if !ok {
			log.Fatalf("coordinate %d has the unknown level %d", i, c)
		}
		out[i*width/8] |= n << (i * width % 8)
	}
	return out
}
