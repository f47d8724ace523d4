# The two commands a newcomer needs: make demo, make test.

GO      ?= go
BIN     := bin/loratool

.PHONY: build demo test vet runtime portable arm64 fuzz bench generate clean

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
	$(GO) test -race ./merge ./formats/layout ./verify
	@echo "$(GO) test -v ./...   (in full: bin/test.log)"
	@$(GO) test -v ./... > bin/test.log 2>&1; status=$$?; .ci/summary bin/test.log; exit $$status

vet:
	@test -z "$$(gofmt -l .)" || { echo "not gofmt-ed:"; gofmt -l .; exit 1; }
	$(GO) vet ./...

runtime: build
	@$(BIN) runtime info >/dev/null 2>&1 || $(BIN) runtime install || \
		echo "*** ONNX Runtime cannot be had here: its tests will be skipped ***"

# The same bytes on every processor: without assembly, and where the compiler may fuse.
portable:
	$(GO) test -tags noasm ./internal/kernel ./quant ./merge
	GOAMD64=v3 $(GO) test ./internal/kernel ./quant ./merge

# arm64 under emulation (qemu-user).
arm64:
	@command -v qemu-aarch64-static >/dev/null || { echo "needs qemu-aarch64-static (package qemu-user-static)"; exit 1; }
	@for p in internal/kernel quant merge; do \
		GOARCH=arm64 CGO_ENABLED=0 $(GO) test -c -o bin/test-arm64 ./$$p && (cd $$p && qemu-aarch64-static $(CURDIR)/bin/test-arm64) || exit 1; \
	done

# FUZZTIME each, every parser and every pair of scalar and vector code. Without the minimiser, which stalls on them.
FUZZTIME ?= 20s
fuzz:
	@for p in $$(grep -rl --include='*_test.go' '^func Fuzz' . | xargs -n1 dirname | sort -u); do \
		for f in $$($(GO) test -list 'Fuzz.*' $$p | grep ^Fuzz); do \
			$(GO) test -run '^$$' -fuzz "^$$f\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 1x $$p || exit 1; \
		done; \
	done

# Kernels, encoders and decoders, the engine, headers, and a whole merge against copying the file.
bench: build
	$(GO) test -run '^$$' -bench . ./internal/kernel ./quant ./merge ./formats/safetensors ./cmd/loratool
	$(GO) run ./internal/bench -loratool $(BIN) -layers 5 -runs 5

# Assembly is generated and checked in; this must leave the tree clean.
generate:
	$(GO) generate ./...
	git diff --exit-code

clean:
	rm -rf bin .demo
