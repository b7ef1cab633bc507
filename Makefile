# Every target makes its own set-up first. Nothing is installed outside .venv, save by `make tools`.

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready
SUPPORTED = import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for python in python3 python3.12 python3.11 python3.13; do \
	$$python -c '$(SUPPORTED)' 2>/dev/null && echo $$python && break; done)

export PATH := $(CURDIR)/$(BIN):$(PATH)
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help setup demo test storm lint fuzz lock tools

help: ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | while IFS="$$(printf '\t')" read -r target what; \
	do printf 'make %-8s %s\n' "$$target" "$$what"; done

setup: $(READY) ## make .venv, with exactly what requirements.lock names
	@:

demo: $(READY) ## the whole daemon against four simulated vendors, a real Redis and an S3; ARGS="--keep" leaves it running
	@lastcall demo $(ARGS)

test: $(READY) ## the full test suite; ARGS="tests/test_settings.py -x" for a part of it
	@python -m pytest -q -n auto --dist loadfile --no-loadscope-reorder $(ARGS)

.PHONY: bench
bench: $(READY) peers ## measure: prints the tables of docs/benchmarks.md and writes them there; ARGS="small" for one part
	@python -m bench $(ARGS)

PEERS := .peers
.PHONY: peers
peers: $(PEERS)/ready ## what benchmarks compare with and write to (awscli, rclone, smart_open, Swift), in an environment of its own: .peers
	@:

$(PEERS)/ready: $(READY) bench/requirements.lock
	@$(BIN)/python -m venv $(PEERS)
	@$(PEERS)/bin/python -m pip install --quiet --require-hashes --only-binary :all: -r bench/requirements.lock \
		|| echo 'the peers cannot be installed here; the tables name what is missing' >&2
	@touch $@

storm: $(READY) ## random kills and faults over the whole daemon, then proof that nothing is lost; MINUTES=5 SEED=7 OUTPUTS=1500
	@python -m tests.storm.storm --minutes $(or $(MINUTES),5) --outputs $(or $(OUTPUTS),1500) $(if $(SEED),--seed $(SEED)) $(ARGS)

lint: $(READY) ## style, types, the direction of imports; silent when all is well
	@ruff check --quiet .
	@ruff format --check --quiet .
	@mypy --no-error-summary
	@lint-imports > $(VENV)/lint-imports.log 2>&1 || { cat $(VENV)/lint-imports.log; exit 1; }
	@! git grep --no-index --exclude-standard -nIE '[p]ypi\.org|[p]ythonhosted\.org|^ *--(extra-)?[i]ndex-url' \
		|| { echo 'lint: the lines above name a package index; where packages come from is the user'\''s choice' >&2; exit 1; }
	@! git grep --no-index --exclude-standard -nIE '$(SECRETS)' \
		|| { echo 'lint: the lines above look like real keys or tokens; take them out, and change them where they are from' >&2; exit 1; }

# Keys that can be told by their form: AWS, GitHub, Slack, Google, Stripe, a signed token, a private key.
SECRETS = (AKIA|ASIA)[0-9A-Z]{16}|gh[opsu]_[0-9A-Za-z]{36}|github_pat_[0-9A-Za-z_]{40}|xox[abprs]-[0-9A-Za-z-]{10}|AIza[0-9A-Za-z_-]{35}|[rs]k_live_[0-9A-Za-z]{20}|eyJ[0-9A-Za-z_-]{16,}\.eyJ|BEGIN [A-Z ]*PRIVATE KEY

FUZZ = decode disposition reading receipt configuration sellercloud api2convert spaaza crayon

fuzz: $(READY) ## each parser against inputs that are made to break it; SECONDS=600, ARGS="decode crayon" (Linux x86-64)
	@python -c 'import atheris' 2>/dev/null || python -m pip install --quiet --require-hashes --only-binary :all: -r fuzz/requirements.lock
	@PYTHONPATH=. python fuzz/seeds.py .fuzz
	@set -e; for target in $(or $(ARGS),$(FUZZ)); do echo "$$target:"; \
		PYTHONPATH=. python fuzz/target.py $$target -max_total_time=$(or $(SECONDS),60) -timeout=10 -max_len=8192 -verbosity=0 \
			-print_final_stats=1 -artifact_prefix=.fuzz/found-$$target- .fuzz/$$target 2>&1 | grep -E 'Uncaught|Error|found|executed' ; \
		if ls .fuzz/found-$$target-* 2>/dev/null; then exit 1; fi; done

lock: $(READY) ## write requirements.lock anew from pyproject.toml; ARGS="--upgrade" takes the newest versions
	@UV_CUSTOM_COMPILE_COMMAND="make lock" uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
		--no-emit-index-url --no-emit-find-links --extra demo --group dev $(ARGS) pyproject.toml -o requirements.lock
	@UV_CUSTOM_COMPILE_COMMAND="make lock" uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
		--no-emit-index-url --no-emit-find-links --group build --constraint requirements.lock pyproject.toml \
		-o deploy/docker/requirements.lock
	@UV_CUSTOM_COMPILE_COMMAND="make lock" uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
		--no-emit-index-url --no-emit-find-links $(ARGS) bench/requirements.in -o bench/requirements.lock
	@$(MAKE) --no-print-directory setup

tools: $(READY) ## what some tests need from outside and are skipped without: Chromium, Redis with TLS, promtool, hadolint, … (Debian, as root)
	apt-get update -q
	apt-get install -q -y --no-install-recommends chromium redis-server systemd curl
	@command -v promtool >/dev/null || { cd "$$(mktemp -d)" && apt-get download -q prometheus && \
		dpkg-deb --fsys-tarfile prometheus_*.deb | tar -xO ./usr/bin/promtool > promtool && \
		install promtool /usr/local/bin; }  # the package itself would start a server
	@$(BIN)/python -m pip install --quiet --require-hashes --only-binary :all: -r deploy/requirements.lock

$(READY): requirements.lock pyproject.toml
	@test -n '$(PYTHON)' && $(PYTHON) -c '$(SUPPORTED)' || { \
		echo 'lastcall needs Python 3.11 or newer. Install it (Debian: apt-get install python3 python3-venv), or name yours:' >&2; \
		echo '    make $(or $(MAKECMDGOALS),setup) PYTHON=/path/to/python3.12' >&2; exit 2; }
	@echo 'setting up $(VENV), once …' >&2
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --require-hashes --only-binary :all: -r requirements.lock
	@$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@
