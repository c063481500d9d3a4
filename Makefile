# The one list of commands; CI calls the same targets.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INT8 := models/facenet-20170512-110547-int8.onnx models/facenet-20180408-102900-int8.onnx
BESIDE := -n 2 --dist loadfile  # tests side by side, those of a file one after the other

.PHONY: help install install-light models demo test test-slow test-light bench chaos docs reference lint proto clean

help:  ## what there is
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-13s %s\n", $$1, $$2}' Makefile

install: $(VENV)/.installed-dev  ## a virtual environment with everything, in .venv

install-light: $(VENV)/.installed-dev-light  ## the same without TensorFlow: to work on the client or the server

$(VENV)/.installed-%: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "FaceNet Serve needs Python 3.11 or later: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --editable ".[$*]"
	@touch $(VENV)/.installed-dev-light $@  # dev holds dev-light

models: install  ## the pretrained networks as verified ONNX files, in models/
	$(BIN)/facenet-convert all --out models

demo: models  ## the main job: a server and its SDK on two portraits
	$(BIN)/python examples/demo.py --models models --out out

test: models lint  ## what must hold, in minutes
	$(BIN)/python -m pytest $(BESIDE) -m "not slow and not alone"
	$(BIN)/python -m pytest -m "alone and not slow"

test-slow: models  ## all the rest: full-size conversions, faults and load with their controls, bare wheels
	$(BIN)/python -m pytest $(BESIDE) -m "slow and not alone"
	$(BIN)/python -m pytest -m "alone and slow"

test-light: install-light lint  ## what holds without TensorFlow, and without models if there are none
	$(BIN)/python -m pytest $(BESIDE) -m "not slow and not alone"
	$(BIN)/python -m pytest -m "alone and not slow"

bench: $(INT8)  ## the server beside its peers: a table, and benchmarks/results (BENCH='--quick --only a,b')
	$(BIN)/python -m benchmarks --models models $(BENCH)

chaos: models  ## the promises under load and faults; long forms write docs/promises.md (CHAOS='T1 T4 --short')
	$(BIN)/python -m chaos --models models --page docs/promises.md $(CHAOS)

docs: install-light  ## the pages as a site, in out/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

reference: install  ## docs/reference.md, anew from the code
	$(BIN)/python tools/reference.py

$(INT8): %-int8.onnx: models
	test -e $@ || $(BIN)/facenet-convert quantize $*.onnx --precision int8

lint: install-light  ## style, types, architecture, sentences
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tools/sentences.py

proto: install-light  ## the generated code, anew from face.proto
	$(BIN)/python -m grpc_tools.protoc -I protos --python_out=protos --pyi_out=protos \
		--grpc_python_out=protos facenet_proto/v1/face.proto

clean:  ## remove what the other targets made
	rm -rf $(VENV) models out build dist benchmarks/.venvs benchmarks/results .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
