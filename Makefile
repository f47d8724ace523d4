# The two commands a newcomer needs: make demo, make test.

GO      ?= go
BIN     := bin/loratool

.PHONY: build demo test vet runtime gpu-software portable arm64 llamacpp fuzz fidelity bench generate clean

build:
	$(GO) build -trimpath -o $(BIN) ./cmd/loratool

# Bakes testdata's adapters into safetensors, GGUF and ONNX models and proves each one.
demo: build
	$(GO) run ./internal/demo -loratool $(BIN)

# Everything a change must pass. ONNX Runtime is installed when it is missing; without it its tests skip.
# The last line counts passed, failed and skipped tests; why tests were skipped stands above it.
test: vet runtime
	@mkdir -p bin && : > bin/test.log
	CGO_ENABLED=0 $(GO) build ./...
	GOOS=darwin GOARCH=arm64 CGO_ENABLED=0 $(GO) vet ./...
	GOOS=windows CGO_ENABLED=0 $(GO) vet ./...
	$(GO) test -race -short ./merge ./formats/layout ./verify
	@echo "$(GO) test -v ./...   (in full: bin/test.log)"
	@$(GO) test -v ./... > bin/test.log 2>&1; status=$$?; .ci/summary bin/test.log; exit $$status

vet:
	@test -z "$$(gofmt -l .)" || { echo "not gofmt-ed:"; gofmt -l .; exit 1; }
	$(GO) vet ./...

runtime: build
	@$(BIN) runtime info >/dev/null 2>&1 || $(BIN) runtime install || \
		echo "*** ONNX Runtime cannot be had here: its tests will be skipped ***"

# The GPU path of the runtime check without a GPU: on a Vulkan driver that computes on the CPU (docs/gpu.md).
gpu-software: build runtime
	@GO="$(GO)" LORATOOL="$(CURDIR)/$(BIN)" .ci/gpu-software

# The same bytes on every processor: without assembly, and where the compiler may fuse.
portable:
	$(GO) test -tags noasm ./internal/kernel ./quant ./quant/rounding ./merge
	GOAMD64=v3 $(GO) test ./internal/kernel ./quant ./quant/rounding ./merge

# arm64 under emulation (qemu-user).
arm64:
	@command -v qemu-aarch64-static >/dev/null || { echo "needs qemu-aarch64-static (package qemu-user-static)"; exit 1; }
	@for p in internal/kernel quant quant/rounding merge; do \
		GOARCH=arm64 CGO_ENABLED=0 $(GO) test -c -o bin/test-arm64 ./$$p && (cd $$p && qemu-aarch64-static $(CURDIR)/bin/test-arm64 -test.short) || exit 1; \
	done

# Loads what we write in llama.cpp, prebuilt in node-llama-cpp, and compares merged weights with the adapter applied
# by llama.cpp at run time. Needs npm and Node.js 20.
LLAMACPP := bin/llamacpp
T := testdata/tiny-llama
llamacpp: build
	@command -v npm >/dev/null && command -v node >/dev/null || { echo "needs npm and Node.js 20: nothing was checked"; exit 1; }
	@mkdir -p $(LLAMACPP) && npm install --silent --no-audit --no-fund --ignore-scripts --prefix $(LLAMACPP) node-llama-cpp@3.22.1
	@set -e; l="$(BIN) --quiet"; o=$(LLAMACPP)/out; rm -rf $$o; mkdir $$o; \
	$$l convert $T/base --to gguf --dtype f16 -o $$o/converted.gguf; \
	$$l convert $T/adapter --to gguf --base $T/base -o $$o/adapter.gguf; \
	$$l merge $T/base -a $T/adapter -o $$o/merged.gguf --dtype f16; \
	$$l merge $T/base-f16.gguf -a $T/adapter -o $$o/merged-gguf.gguf; \
	$$l merge $T/base -a $T/adapter -o $$o/merged-q8_0.gguf --quantize Q8_0; \
	$$l merge $T/base -a $T/adapter -o $$o/merged-q4_0.gguf --quantize Q4_0; \
	node internal/llamacpp/check.mjs $(CURDIR)/$(LLAMACPP) base=$T/base-f16.gguf converted=$$o/converted.gguf converted==base \
		"at-run-time=$$o/converted.gguf+$$o/adapter.gguf" merged=$$o/merged.gguf merged==at-run-time \
		merged-gguf=$$o/merged-gguf.gguf merged-gguf==merged q8_0=$$o/merged-q8_0.gguf q4_0=$$o/merged-q4_0.gguf

# FUZZTIME each, every parser and every pair of scalar and vector code. Without the minimiser, which stalls on them.
FUZZTIME ?= 20s
fuzz:
	@for p in $$(grep -rl --include='*_test.go' '^func Fuzz' . | xargs -n1 dirname | sort -u); do \
		for f in $$($(GO) test -list 'Fuzz.*' $$p | grep ^Fuzz); do \
			$(GO) test -run '^$$' -fuzz "^$$f\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 1x $$p || exit 1; \
		done; \
	done

# Measures anew what merging into quantized bases keeps: docs/fidelity.json, and the table and plot made of it. Needs
# the texts of the trained model (LORATOOL_CORPUS).
fidelity:
	LORATOOL_MEASURE=1 $(GO) test -timeout 60m -run '^TestFidelity$$' -v ./merge

# Kernels, encoders and decoders, the engine, headers, and a whole merge against copying the file.
bench: build
	$(GO) test -run '^$$' -bench . ./internal/kernel ./quant ./merge ./formats/safetensors ./cmd/loratool
	$(GO) run ./internal/bench -loratool $(BIN) -layers 5 -runs 5
	$(GO) run ./internal/bench -loratool $(BIN) -convert -runs 5

# Assembly is generated and checked in; this must leave the tree clean.
generate:
	$(GO) generate ./...
	git diff --exit-code

clean:
	rm -rf bin .demo
