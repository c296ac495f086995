# `make demo` and `make test` each make .venv, install what they need and do their job.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
HEADERS := build/ort-headers
CONFIGURE := cmake -G Ninja -S runtimes/c -DEDGEGEN_ORT_INCLUDE=$(CURDIR)/$(HEADERS)

.PHONY: demo test check test-slow fuzz soak bench native native-aarch64 native-tests clean

# Step by step only: timing the fused candidates too would take the demo above a minute.
demo: $(STAMP)
	$(BIN)/edgegen build digits -o digits.edgegen --set target.form=stepwise
	$(BIN)/edgegen run digits.edgegen --seed 1 --batch 100 --columns 10 \
	  --set label=$$($(BIN)/python -c "print(','.join(str(i % 10) for i in range(100)))") -o digits.png
	@echo "$(CURDIR)/digits.edgegen"
	@echo "$(CURDIR)/digits.png"

test: check native-tests
	$(BIN)/python -m pytest -m "not slow and not fuzz and not soak"

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test-slow: $(STAMP) native-tests
	$(BIN)/python -m pytest -m slow

# The counts of a release (docs/security.md): hours.
fuzz: $(STAMP) native-tests
	$(BIN)/python -m pytest -m fuzz -s

soak: $(STAMP) native
	$(BIN)/python -m pytest -m soak -s

bench: $(STAMP) native-tests
	$(BIN)/pip install --quiet "openvino>=2026.1"
	$(BIN)/python -m benchmarks.peers
	$(BIN)/python -m benchmarks.quality
	$(BIN)/python -m benchmarks.native

# libedgegen.so and edgegen-run, for this machine and for 64-bit ARM.
native: $(HEADERS)/onnxruntime_c_api.h
	runtimes/c/install_tools.sh native
	$(CONFIGURE) -B build/native >build/native.log
	cmake --build build/native

native-aarch64: $(HEADERS)/onnxruntime_c_api.h
	runtimes/c/install_tools.sh aarch64
	$(CONFIGURE) -B build/native-aarch64 -DCMAKE_TOOLCHAIN_FILE=$(CURDIR)/runtimes/c/aarch64.cmake -DEDGEGEN_TESTS=ON >build/native-aarch64.log
	cmake --build build/native-aarch64

# The builds that the tests run: docs/security.md says what each is for.
native-tests: native native-aarch64 build/ort/1.24.4-aarch64 build/ort/1.20.1-x86_64 build/ort/1.19.2-x86_64
	runtimes/c/install_tools.sh test
	$(CONFIGURE) -B build/native-test -DEDGEGEN_TESTS=ON >build/native-test.log && cmake --build build/native-test
	$(CONFIGURE) -B build/native-asan -DEDGEGEN_TESTS=ON -DEDGEGEN_SANITIZE=address,undefined -DCMAKE_BUILD_TYPE=RelWithDebInfo >build/native-asan.log && cmake --build build/native-asan
	$(CONFIGURE) -B build/native-tsan -DEDGEGEN_TESTS=ON -DEDGEGEN_SANITIZE=thread -DCMAKE_BUILD_TYPE=RelWithDebInfo >build/native-tsan.log && cmake --build build/native-tsan
	$(CONFIGURE) -B build/native-checks -DEDGEGEN_TESTS=ON -DEDGEGEN_DELETABLE_CHECKS=ON -DEDGEGEN_SANITIZE=address,undefined >build/native-checks.log && cmake --build build/native-checks
	$(CONFIGURE) -B build/native-O0 -DEDGEGEN_TESTS=ON -DCMAKE_BUILD_TYPE=Debug >build/native-O0.log && cmake --build build/native-O0
	$(CONFIGURE) -B build/native-v3 -DEDGEGEN_TESTS=ON -DCMAKE_CXX_FLAGS=-march=x86-64-v3 >build/native-v3.log && cmake --build build/native-v3
	$(CONFIGURE) -B build/native-armhf -DEDGEGEN_TESTS=ON -DCMAKE_TOOLCHAIN_FILE=$(CURDIR)/runtimes/c/armhf.cmake >build/native-armhf.log && cmake --build build/native-armhf

$(HEADERS)/onnxruntime_c_api.h:
	runtimes/c/get_onnxruntime_headers.sh $(HEADERS)

# ONNX Runtime for 64-bit ARM (newer ones crash in qemu), the oldest that is supported, and one that is too old.
build/ort/%: runtimes/c/get_onnxruntime.sh | $(STAMP)
	runtimes/c/get_onnxruntime.sh $(BIN)/pip $@
	touch $@

$(STAMP): pyproject.toml
	$(PYTHON) -c "import sys; sys.exit('edgegen needs Python 3.11 or newer, found ' + sys.version.split()[0]) if sys.version_info < (3, 11) else 0"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check torch==2.13.0
	$(BIN)/pip install --quiet --disable-pip-version-check -e ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
