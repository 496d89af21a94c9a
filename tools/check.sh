#!/usr/bin/env bash
# Everything that can be said about the code without running it. Prints one line per check; stops at the first that fails.
set -euo pipefail
bin=$1
cd "$(dirname "$0")/.."
export PATH="$bin:$PATH"

step() { # name, command...
  local name=$1 out
  shift
  if out=$("$@" 2>&1); then
    echo "check: $name ok"
  else
    echo "check: $name FAILED: $*" >&2
    echo "$out" >&2
    exit 1
  fi
}

step format ruff format --check .
step lint ruff check .
step contracts lint-imports
step protos buf lint
step proto-format buf format -d --exit-code
step generated python protos/generate.py --check
step manual python -m tools.cli_manual --check
step chart-readme python -m tools.chart_readme --check
step types mypy agent/swingbus_agent controller/swingbus_controller controller/swingctl sim/swingbus_sim protos/swingbus tests tools
