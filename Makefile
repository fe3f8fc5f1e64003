# The two commands of a newcomer: `make demo` and `make test`. Both work on a fresh machine with Python >= 3.11.

PYTHON ?= python3
BIN := .venv/bin
DEMO := results/demo

REFERENCE := results/reference/tiny
RESULTS := $(REFERENCE).bundle
METHODS := $(REFERENCE)-methods
SMOLLM := results/reference/smollm
RULER := results/reference/ruler
RATIOS := results/benchmarks.jsonl
NEEDLES := niah,niah_multikey,niah_multiquery,niah_multivalue
RULER_TASKS := niah_single_1,niah_single_2,niah_single_3,niah_multikey_1,niah_multikey_2,niah_multikey_3,niah_multiquery,$\
  niah_multivalue,vt,cwe,fwe,qa_1,qa_2

.PHONY: demo test wheels docs vllm lowest newest lint lock audit benchmarks reference browser clean

demo: .venv/.installed
	$(BIN)/longctx-bench run --model rope-tiny,ntk-tiny,yarn-tiny,drope-tiny --tasks niah \
	  --scale 1x,2x,4x,8x --limit 22 --out $(DEMO)
	$(BIN)/longctx-bench figures $(DEMO)

# Bytecode is kept, or each of the many processes that the tests start would compile everything again.
test: export PYTHONDONTWRITEBYTECODE :=
test: .venv/.installed-dev lint
	$(BIN)/pytest -q -n 3 --dist worksteal

# All distributions into dist/, their sizes, and what they do in new environments without a checkout.
wheels: .venv/.installed-dev
	$(BIN)/python scripts/wheels.py
	$(BIN)/python scripts/try_wheels.py

# The site into site/; a dead link or a page that is nowhere in the navigation is an error.
docs: .venv/.installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# vLLM's CPU build against transformers. It holds packages back that the other environment has newer, so it has its own.
vllm: .venv-vllm/.installed
	.venv-vllm/bin/python -m pytest -q tests/engines/vllm_backend/test_vllm_engine.py \
	  tests/engines/vllm_backend/test_vllm_server.py tests/methods/kernels/test_flash_decoding.py \
	  tests/engines/hf/test_fused_rope.py tests/analysis/parity/test_parity.py

# The tests with the lowest and the newest versions that pyproject.toml allows together, as uv resolves them. Torch for the
# CPU alone: UV_TORCH_BACKEND=cpu. The stubs and linters are not what is tested, so `make lint` is no part of it.
lowest: RESOLUTION := lowest-direct
newest: RESOLUTION := highest
lowest newest:
	$(PYTHON) -m venv --clear .venv-$@
	.venv-$@/bin/python -m pip install --quiet uv
	.venv-$@/bin/uv pip compile --quiet --no-header --no-annotate --resolution $(RESOLUTION) --extra dev \
	  --python .venv-$@/bin/python --output-file .venv-$@/versions.txt pyproject.toml
	.venv-$@/bin/uv pip install --quiet --python .venv-$@/bin/python --no-deps --requirement .venv-$@/versions.txt
	.venv-$@/bin/uv pip install --quiet --python .venv-$@/bin/python --no-deps --editable .
	.venv-$@/bin/uv pip check --python .venv-$@/bin/python
	.venv-$@/bin/python -m pytest -q -n 3 --dist worksteal

# Tables, figures and the page of the reference results, again from their records: what docs/results.md shows.
reference: .venv/.installed
	$(BIN)/longctx-bench probe factors tiny --scale 8x --out $(REFERENCE)
	$(BIN)/longctx-bench probe attention drope-tiny --scale 1x,2x,4x,8x --out $(REFERENCE)
	$(BIN)/longctx-bench probe attention yarn-tiny --scale 1x,2x,4x,8x --out $(REFERENCE)
	$(BIN)/longctx-bench report $(RESULTS) --table all --format md --out $(REFERENCE)/report.md
	$(BIN)/longctx-bench report $(RESULTS) --format latex --out $(REFERENCE)/tables.tex
	$(BIN)/longctx-bench compare drope-tiny yarn-tiny-control $(RESULTS) --format md --out $(REFERENCE)/drope-and-yarn.md
	$(BIN)/longctx-bench compare drope-tiny drope-plain-tiny $(RESULTS) --format md --out $(REFERENCE)/drope-and-plain.md
	$(BIN)/longctx-bench compare all yarn-tiny $(METHODS).bundle --format md --out $(METHODS)/against-yarn.md
	$(BIN)/longctx-bench figures $(METHODS).bundle --kind tasks --scale 4x --task $(NEEDLES) --out $(METHODS)/needles-4x.png
	$(BIN)/longctx-bench figures $(RESULTS) --kind all
	$(BIN)/longctx-bench figures $(RESULTS) --kind curves
	$(BIN)/longctx-bench figures $(RESULTS) --kind heatmap --format pdf
	$(BIN)/longctx-bench figures $(RESULTS) --paper drope --base tiny --format png
	$(BIN)/longctx-bench report $(RESULTS) --format html --out $(REFERENCE)/page.html
	$(BIN)/longctx-bench figures results/reference/demo.bundle --out results/reference/demo/niah-heatmap.png
	$(BIN)/longctx-bench report $(RULER).bundle --table all --format md --out $(RULER)/report.md
	$(BIN)/longctx-bench compare all yarn-tiny $(RULER).bundle --format md --out $(RULER)/against-yarn.md
	$(BIN)/longctx-bench figures $(RULER).bundle --kind tasks --scale 2x --out $(RULER)/ruler-2x.png
	$(BIN)/longctx-bench report $(SMOLLM).bundle --table all --format md --out $(SMOLLM)/report.md
	$(BIN)/longctx-bench report $(SMOLLM).bundle --format latex --out $(SMOLLM)/tables.tex
	$(BIN)/longctx-bench compare drope-smollm yarn-smollm $(SMOLLM).bundle --format md --out $(SMOLLM)/drope-and-yarn.md
	$(BIN)/longctx-bench compare drope-smollm yarn-heads-smollm $(SMOLLM).bundle --format md --out $(SMOLLM)/drope-and-yarn-heads.md
	$(BIN)/longctx-bench compare drope-smollm rope-smollm $(SMOLLM).bundle --format md --out $(SMOLLM)/drope-and-rope.md
	$(BIN)/longctx-bench figures $(SMOLLM).bundle
	$(BIN)/longctx-bench figures $(SMOLLM).bundle --kind length --task $(NEEDLES) --out $(SMOLLM)/figures/by-length.png
	for scale in 2x 4x 8x; do $(BIN)/longctx-bench figures $(SMOLLM).bundle --kind tasks --scale $$scale --task $(RULER_TASKS) \
	  --out $(SMOLLM)/figures/ruler-$$scale.png || exit; done
	$(BIN)/longctx-bench figures $(SMOLLM).bundle --paper drope --base smollm --format png
	$(BIN)/longctx-bench report $(SMOLLM)-methods.bundle --column price --format md --out $(SMOLLM)-methods/report.md
	$(BIN)/longctx-bench compare all yarn-smollm $(SMOLLM)-methods.bundle --format md --out $(SMOLLM)-methods/against-yarn.md
	$(BIN)/longctx-bench figures $(SMOLLM)-methods.bundle --kind tasks --scale 2x --out $(SMOLLM)-methods/tasks-2x.png
	$(BIN)/longctx-bench figures $(SMOLLM)-methods.bundle --task niah --out $(SMOLLM)-methods/niah-heatmap.png

# The page's tests drive a real browser; without one they are skipped. Debian's names, as root.
browser:
	apt-get install --yes --no-install-recommends chromium chromium-driver

# Timings, as ratios measured in one run; see docs/performance.md.
benchmarks: .venv/.installed-dev
	rm -f $(RATIOS)
	LONGCTX_BENCH_RATIOS=$(RATIOS) $(BIN)/python -m bench.niah_vs_lm_eval
	LONGCTX_BENCH_RATIOS=$(RATIOS) $(BIN)/python -m bench.niah_vs_lm_eval --length 8192 --batch-sizes 1
	LONGCTX_BENCH_RATIOS=$(RATIOS) $(BIN)/python -m bench.decoding_throughput --examples 2
	LONGCTX_BENCH_RATIOS=$(RATIOS) $(BIN)/python -m bench.decoding_throughput --model rope-smollm --length 2048 --dtype bfloat16 --examples 2
	LONGCTX_BENCH_RATIOS=$(RATIOS) $(BIN)/python -m bench.loglikelihood_vs_lm_eval
	LONGCTX_BENCH_RATIOS=$(RATIOS) $(BIN)/python -m bench.roofline
	OMP_NUM_THREADS=1 LONGCTX_BENCH_RATIOS=$(RATIOS) $(BIN)/python -m bench.ray_scaling
	LONGCTX_BENCH_RATIOS=$(RATIOS) $(BIN)/python -m bench.ruler_prompt_generation
	$(BIN)/python -m bench.results $(RATIOS)
	$(BIN)/python -m bench.report_speed
	-$(BIN)/python -m bench.page_load

lint: .venv/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

# constraints.txt again: one version of everything for each supported Python and system. What pyproject.toml still allows
# stays as it is; UPGRADE=1 takes the newest of everything, UPGRADE=NAME of one package.
lock:
	$(PYTHON) -m venv --clear .venv-lock
	.venv-lock/bin/python -m pip install --quiet uv
	.venv-lock/bin/uv pip compile --quiet --universal --python-version 3.11 --extra dev --extra docs --no-annotate \
	  --custom-compile-command 'make lock' --output-file constraints.txt \
	  $(if $(UPGRADE),$(if $(filter 1,$(UPGRADE)),--upgrade,--upgrade-package $(UPGRADE))) pyproject.toml

# The pinned dependencies against the known vulnerabilities; what the package index does not know is listed as skipped.
audit:
	$(PYTHON) -m venv .venv-audit
	.venv-audit/bin/python -m pip install --quiet pip-audit
	.venv-audit/bin/pip-audit --requirement constraints.txt --no-deps --disable-pip --progress-spinner off

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[hf]'
	touch $@

.venv/.installed-dev: .venv/.installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

.venv-vllm/.installed: pyproject.toml requirements-vllm.txt tests/helpers/vllm_metadata.py
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/python -m pip install --quiet --constraint constraints.txt torch
	.venv-vllm/bin/python -m pip install --quiet --no-deps --requirement requirements-vllm.txt
	.venv-vllm/bin/python -m pip install --quiet --no-deps --editable .
	.venv-vllm/bin/python tests/helpers/vllm_metadata.py
	touch $@

clean:
	rm -rf .venv .venv-vllm .venv-audit .venv-lock .venv-lowest .venv-newest dist site results/demo
