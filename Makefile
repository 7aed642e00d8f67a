# make install set up .venv             make pictures  draw docs/pictures anew
# make demo    evaluate base methods and FreeCP on the embedded benchmark; table on screen, pictures in output/demo
# make test    run the tests            make test-gpu  run those of the operators, the encoder, the head and FreeCP on a GPU
# make gpu-report  tests, vectors, operators, images/s and memory on a GPU, in 9 minutes; docs/performance/gpu-<device>.json
# make crash   kill labelling, evaluation and prepare at KILLS random moments, and compare with undisturbed runs
# make racecheck  the operators' kernels under NVIDIA's compute-sanitizer, on a GPU
# make mutants    change the code in one place at a time, and count what the tests do not notice
# make bench   time FreeCP against the bare CLIP forward and a plain transcription; tables, output/bench
# make compare all base methods, alone and with FreeCP, on the embedded benchmark and, where CAMVID_ROOT is, on CamVid
# make robustness  other names and distractors on the embedded benchmark; table, JSON and picture in output/robustness
# make configs write configs/ from its table anew, configs/generate.py
# make lint    ruff and mypy            make lock      write requirements.lock anew
#
# Each sets up .venv first, once. BASE_PYTHON=/path/to/python chooses the interpreter (3.11 or later) it is made of.

.POSIX:
.PHONY: install demo pictures test crash test-gpu gpu-report racecheck mutants bench compare robustness configs lint lock

VENV = .venv
PYTHON = $(VENV)/bin/python
PIP = $(PYTHON) -m pip --disable-pip-version-check
INSTALLED = $(VENV)/.installed
BASE_PYTHON =
UV = uv

install: $(INSTALLED)

demo: $(INSTALLED)
	$(PYTHON) projects/SceneCLIP/demo.py --output output/demo

pictures: $(INSTALLED)
	$(PYTHON) docs/pictures.py

# One thread a worker: torch would start one per core in each of them.
test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest -n auto --maxprocesses 8

# In `make test` it is 20.
KILLS = 200
crash: $(INSTALLED)
	FREECP_CRASHES=$(KILLS) OMP_NUM_THREADS=1 $(PYTHON) -m pytest $$(find tests -name 'test_crashes_*.py')

# One process: the workers would share the GPU.
test-gpu: $(INSTALLED)
	@$(PYTHON) -c 'import sys, torch; sys.exit(not torch.cuda.is_available() and "make test-gpu: torch finds no CUDA GPU")'
	$(PYTHON) -m pytest tests/ops tests/purification tests/test_cuda_graphs.py tests/test_devices.py

# What it runs of the tests is test-gpu's selection.
gpu-report: $(INSTALLED)
	$(PYTHON) tests/benchmarks/gpu_report.py

# racecheck sees shared memory, which the compiler uses for sums and products; what box_mask's threads hand each other
# goes through global memory, where it is blind: tests/ops/test_compilation.py holds the barriers there, and
# tests/ops/test_box_mask.py the results of many programs. memcheck and synccheck see both. PyTorch's allocator is left
# out, within whose large blocks memcheck sees no overrun.
racecheck: $(INSTALLED)
	@command -v compute-sanitizer >/dev/null || { echo "make racecheck: no compute-sanitizer found; it comes with the CUDA toolkit, put its bin folder on the PATH" >&2; exit 1; }
	@$(PYTHON) -c 'import sys, torch; sys.exit(not torch.cuda.is_available() and "make racecheck: torch finds no CUDA GPU")'
	for tool in racecheck synccheck memcheck; do \
	    PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool $$tool --error-exitcode 1 $(PYTHON) -m pytest -q tests/ops \
	        -k 'programs or definition or patterns or reference' || exit 1; \
	done

# SAMPLE=0 tries all of them, which takes an hour or two.
SAMPLE = 150
mutants: $(INSTALLED)
	$(PYTHON) -W ignore tests/mutants/run.py --sample $(SAMPLE)

bench: $(INSTALLED)
	$(PYTHON) tests/benchmarks/bench.py --output output/bench

compare: $(INSTALLED)
	$(PYTHON) projects/BaseMethods/compare.py --output output/compare

robustness: $(INSTALLED)
	$(PYTHON) -m freecp robustness --config-file scenes/clearclip --output output/robustness

configs: $(INSTALLED)
	$(PYTHON) configs/generate.py

lint: $(INSTALLED)
	$(PYTHON) -m ruff check
	$(PYTHON) -m ruff format --check
	$(PYTHON) -m mypy

# Needs uv. What the lock holds stays as long as pyproject.toml and requirements.in allow it; delete the lock to renew all.
lock:
	$(UV) pip compile --quiet --generate-hashes --extra dev --python-version 3.11 \
	    --python-platform x86_64-manylinux_2_28 --custom-compile-command "make lock" \
	    pyproject.toml requirements.in -o requirements.lock

# The stamp is written last, so that a set-up that was interrupted is taken up again by the next make.
$(INSTALLED): requirements.lock requirements-detectron2.lock pyproject.toml
	@ok='import sys; sys.exit(sys.version_info < (3, 11))'; \
	if [ ! -x $(PYTHON) ]; then \
	    for python in $(BASE_PYTHON) python3.11 python3 python3.12 python3.13 ''; do \
	        [ -n "$$python" ] && "$$python" -c "$$ok" 2>/dev/null && break; \
	    done; \
	    [ -n "$$python" ] || { echo "make: no Python 3.11 or later found; name one: make BASE_PYTHON=/path/to/python" >&2; exit 1; }; \
	    echo "Creating $(VENV) with $$python"; \
	    "$$python" -m venv $(VENV); \
	elif ! $(PYTHON) -c "$$ok"; then \
	    echo "make: $(VENV) has a Python older than 3.11; remove it, and make creates another" >&2; exit 1; \
	fi
	@$(PYTHON) -c 'import pip' 2>/dev/null || $(PYTHON) -m ensurepip
# Some packages come as sources. They are built with the setuptools of the lock, which is therefore installed first.
	sed -n '/^setuptools==/,/[^\\]$$/p' requirements.lock > $(VENV)/setuptools.lock
	$(PIP) install --quiet --require-hashes --no-deps -r $(VENV)/setuptools.lock
	$(PIP) install --require-hashes --no-deps --no-build-isolation --use-pep517 -r requirements.lock
# detectron2, unless one can be imported. It is unpacked aside and moved, so that half of one is never in place.
	@if $(PYTHON) -c 'import importlib.util as u, sys; s = u.find_spec("detectron2"); sys.exit(not (s and s.origin))'; then \
	    $(PYTHON) -c 'import detectron2 as d; print("Keeping detectron2", d.__version__, "of", d.__path__[0])'; \
	else \
	    set -e; \
	    site=$$($(PYTHON) -c 'import sysconfig; print(sysconfig.get_path("purelib"))'); \
	    rm -rf $(VENV)/detectron2; \
	    $(PIP) install --quiet --require-hashes --no-deps --only-binary=:all: --python-version 3.10 \
	        --target $(VENV)/detectron2 -r requirements-detectron2.lock; \
	    mv $(VENV)/detectron2/detectron2 $(VENV)/detectron2/sal_detectron2-*.dist-info "$$site"; \
	    rm -rf $(VENV)/detectron2; \
	fi
	$(PIP) install --quiet --no-deps --no-build-isolation -e .
	@touch $@
