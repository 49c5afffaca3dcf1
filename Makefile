# Each target stands alone: on a machine with Python 3.11 or newer and make, it first builds .venv from the pins.
PYTHON ?= python3
PYTEST_ARGS ?=
# Test processes: one per core, at most eight, since each imports torch. `make test JOBS=0` runs them in this one.
JOBS ?= $(shell cores=$$(getconf _NPROCESSORS_ONLN); echo $$((cores < 8 ? cores : 8)))
QUICKSTART_ARGS ?=
# Options for the benchmarks of record below, such as `make nab BENCH_ARGS='--quick true'`, and where their files go.
BENCH_ARGS ?=
RUNS ?= runs

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PINNED_TORCH := $(shell sed -n 's/^\(torch==[^ ;]*\).*/\1/p' constraints.txt)
PIP_INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --quiet --constraint constraints.txt

NATIVE := $(VENV)/.native
LIBRARY := kernels/native/_native.so
SOURCES := $(wildcard kernels/native/*.cpp)
HEADERS := $(wildcard kernels/native/*.h kernels/native/*.hpp)
COMPILE := $(BIN)/python -W ignore setup.py --quiet build_ext --inplace

# What `make test-sanitized` compiles for itself, what must be in the process before Python is, and what is tested: not
# what starts processes of its own with another library, nor what only compiles graphs.
SANITIZED := build/sanitized
SANITIZE := -O1 -g1 -fsanitize=address,undefined -fno-sanitize-recover=all
PRELOAD = $(foreach name,asan ubsan stdc++,$(shell $(CXX) -print-file-name=lib$(name).so))
SANITIZED_TESTS := $(filter-out %_process.py %_graphs.py,$(wildcard tests/kernels/test_native*.py))

# What is tested where nothing could be compiled: all of the kernels but what needs a library or is slow, and a model.
# On one thread, like what is sanitized: two that wait for a core which is not there are ten times slower (LOG.md).
PLAIN := build/plain
PLAIN_TESTS := $(filter-out tests/kernels/test_native% tests/kernels/test_targets.py tests/kernels/test_triton%, \
	$(wildcard tests/kernels/test_*.py)) tests/tsgdn2/test_online_audit.py

.DEFAULT_GOAL := help
.PHONY: help install native quickstart test test-without-compiler test-sanitized sanitized-best sanitized-baseline \
	probe gift-eval rivals nab calibration serving service prequential language language-mixers language-tokens tables lint format clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 32

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit( \
		"tsgdn2 needs Python 3.11 or newer, but $(PYTHON) is " + sys.version.split()[0] + \
		"; name another one: make PYTHON=python3.11")'
	@echo "[1/4] creating $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv --clear $(VENV)
	@echo "[2/4] installing $(PINNED_TORCH)"
	@$(PIP_INSTALL) "$(PINNED_TORCH)" setuptools
	@echo "[3/4] installing what tsgdn2 depends on (a minute or two)"
	@$(PIP_INSTALL) --no-build-isolation --editable ".[dev,service]"
	@echo "[4/4] $(VENV) is ready"
	@touch $(READY)

# The install above has compiled the library already; this is for sources that changed since. Where it cannot be
# compiled, the stamp says that it was tried, and the scans run in torch.
$(NATIVE): setup.py $(SOURCES) $(HEADERS) | $(READY)
	@if [ ! -e $(LIBRARY) ] || [ -n "$$(find $^ -newer $(LIBRARY))" ]; then $(COMPILE); fi
	@touch $(NATIVE)

install: $(NATIVE)  ## create .venv with the pinned packages, nothing else

native: $(READY)  ## compile kernels/native in place, and say what this machine can run of it
	@$(COMPILE)
	@$(BIN)/python -c "from tsgdn2.kernels.native import library as native; \
		exit(native.refusal() or print('native targets:', *native.targets()))"
	@touch $(NATIVE)

quickstart: $(NATIVE)  ## train, backtest, stream and audit on the New York weather; about three minutes
	@$(BIN)/tsgdn2 quickstart $(QUICKSTART_ARGS)

# What the tables of the READMEs are made of. Data come from TSGDN2_DATA where it is set, else from their homes.
probe: $(NATIVE)  ## memory probes, the small table: all mixers, three seeds; under two hours on two cores
	@$(BIN)/tsgdn2 probe --table small --runs $(RUNS) $(BENCH_ARGS)

gift-eval: $(NATIVE)  ## GIFT-Eval on ETT and Jena, ours, three seeds; two hours on two cores, goes on where it was stopped
	@$(BIN)/tsgdn2 backtest --protocol gift-eval --seeds '[0,1,2]' --runs $(RUNS) $(BENCH_ARGS)

rivals: $(NATIVE)  ## the same beside GluonTS's models at the same budget; eight hours on two cores, goes on too
	@$(BIN)/tsgdn2 backtest --protocol gift-eval --seeds '[0,1,2]' --runs $(RUNS) --models \
		'["tsgdn2","naive","SeasonalNaive","DeepAR","PatchTST","TFT","DLinear","iTransformer"]' $(BENCH_ARGS)

nab: $(NATIVE)  ## anomalies in telemetry by NAB's rules, three seeds; some minutes
	@$(BIN)/tsgdn2 bench --what nab --runs $(RUNS) $(BENCH_ARGS)

calibration: $(NATIVE)  ## coverage under drift, adaptive and split-conformal, three seeds; some ten minutes
	@$(BIN)/tsgdn2 bench --what calibration --seeds '[5,6,7]' --runs $(RUNS) $(BENCH_ARGS)

serving: $(NATIVE)  ## one update and one forecast against rivals, by age and number of streams; half an hour
	@OMP_NUM_THREADS=1 $(BIN)/tsgdn2 bench --what serving --runs $(RUNS) $(BENCH_ARGS)

service: $(NATIVE)  ## 10,000 streams through HTTP, MQTT and in-process, latency and rate; some twenty minutes
	@OMP_NUM_THREADS=1 $(BIN)/tsgdn2 bench --what service --runs $(RUNS) $(BENCH_ARGS)

prequential: $(NATIVE)  ## ETTh1 row by row with values six hours late: trains, scores, then observes; some minutes
	@test -e $(RUNS)/prequential-model/predictor || $(BIN)/tsgdn2 train --data ett:ETTh1 --targets multivariate \
		--hold_out 2880 --prediction_length 30 --model.epochs 6 --model.batches 30 --model.seconds 120 \
		--runs $(RUNS) --output $(RUNS)/prequential-model
	@$(BIN)/tsgdn2 backtest --protocol prequential --predictor $(RUNS)/prequential-model --data ett:ETTh1 --delay 6 \
		--windows 119 --runs $(RUNS) --output $(RUNS)/prequential $(BENCH_ARGS)

# A tiny language model of Python's own sources; each command goes on where it was stopped.
LANGUAGE := $(RUNS)/language
language: language-tokens  ## prepare, train, judge and export a tiny language model; some ten minutes on two cores
	@$(BIN)/tsgdn2 pretrain run --config tiny --data $(LANGUAGE)/tokens --runs $(RUNS) --output $(LANGUAGE)/tiny
	@$(BIN)/tsgdn2 pretrain evaluate --checkpoint $(LANGUAGE)/tiny --data $(LANGUAGE)/tokens --runs $(RUNS) \
		--output $(LANGUAGE)/judged --needle_samples 20 $(BENCH_ARGS)
	@$(BIN)/tsgdn2 pretrain export --checkpoint $(LANGUAGE)/tiny --runs $(RUNS) --output $(LANGUAGE)/exported

language-mixers: language-tokens  ## the tiny one with GDN-2, KDA and Gated DeltaNet, three seeds; under an hour on two cores
	@$(BIN)/tsgdn2 pretrain compare --data $(LANGUAGE)/tokens --runs $(RUNS) --output $(LANGUAGE)/mixers $(BENCH_ARGS)

language-tokens: $(NATIVE)
	@$(BIN)/tsgdn2 pretrain prepare --tokenizer bpe --vocabulary 2048 --runs $(RUNS) --output $(LANGUAGE)/tokens

tables: $(NATIVE)  ## make the tables of the READMEs anew from evaluation/results
	@$(BIN)/python -m tsgdn2.evaluation.tables

test: $(NATIVE)  ## run every test
	@OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest -q --numprocesses=$(JOBS) $(PYTEST_ARGS)

test-without-compiler: $(READY)  ## install where no compiler is on PATH, and test that install on the torch path
	@rm -rf $(PLAIN) && mkdir -p $(PLAIN)/empty
	@$(BIN)/python -W ignore -c "import setuptools.build_meta as backend; backend.build_sdist('$(PLAIN)')" \
		>$(PLAIN)/log 2>&1 || { cat $(PLAIN)/log; false; }
	@env -u CC -u CXX PATH=$(CURDIR)/$(PLAIN)/empty $(abspath $(BIN))/python -m pip install --disable-pip-version-check \
		--quiet --no-deps --no-build-isolation --target $(PLAIN)/site $(PLAIN)/*.tar.gz
	@test -e $(PLAIN)/site/tsgdn2/$(dir $(LIBRARY))library.py && test ! -e $(PLAIN)/site/tsgdn2/$(LIBRARY)
	@env -u CC -u CXX PATH=$(CURDIR)/$(PLAIN)/empty PYTHONPATH=$(CURDIR)/$(PLAIN)/site PYTHONSAFEPATH=1 OMP_NUM_THREADS=1 \
		$(abspath $(BIN))/python -m pytest -q --numprocesses=$(JOBS) -p no:cacheprovider $(PLAIN_TESTS) \
		$(PYTEST_ARGS)

ifneq ($(shell command -v $(CXX) 2>/dev/null),)
test-sanitized: sanitized-best sanitized-baseline  ## run the native tests under address and behaviour sanitizers

sanitized-baseline: export TSGDN2_NATIVE_TARGET := baseline

# Both run at once under --jobs.
sanitized-best sanitized-baseline: $(READY) $(SANITIZED)/_native.so
	@LD_PRELOAD="$(PRELOAD)" ASAN_OPTIONS=detect_leaks=0 OMP_NUM_THREADS=1 \
		TSGDN2_NATIVE=$(CURDIR)/$(SANITIZED)/_native.so $(BIN)/python -m pytest -q -p no:cacheprovider \
		$(SANITIZED_TESTS) $(PYTEST_ARGS)

$(SANITIZED)/_native.so: $(SOURCES:kernels/native/%.cpp=$(SANITIZED)/%.o)
	@$(CXX) -shared -pthread $(SANITIZE) -o $@ $^

$(SANITIZED)/%.o: kernels/native/%.cpp $(HEADERS) Makefile
	@mkdir -p $(SANITIZED)
	@$(CXX) -std=c++17 -fPIC -pthread -ffp-contract=fast -fvisibility=hidden $(SANITIZE) -c -o $@ $<
else
test-sanitized:
	@echo "no C++ compiler ($(CXX)) on PATH: nothing to sanitize"
endif

lint: $(READY)  ## ruff check, ruff format --check, mypy --strict
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy --strict

format: $(READY)  ## let ruff rewrite what it can
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

clean:  ## remove .venv and the caches
	@rm -rf $(VENV) build dist *.egg-info $(LIBRARY) .pytest_cache .mypy_cache .ruff_cache .hypothesis
