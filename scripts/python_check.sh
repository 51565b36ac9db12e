#!/bin/sh
# scripts/python_check.sh: checks the Python package: its generated code, types,
# lints and format. What needs .venv is skipped if `make python` cannot create it,
# unless CHARLSTM_REQUIRE_ALL is set.
set -eu
cd "$(dirname "$0")/.."

scripts/python_stubs.sh --check
if ! scripts/venv.sh .venv tests/python/requirements.txt >&2; then
    echo "python package: skipped: the Python tools of the tests are not available" >&2
    [ -z "${CHARLSTM_REQUIRE_ALL:-}" ] || exit 1
    exit 0
fi
tools=$PWD/.venv/bin
cd python
"$tools/ruff" check --quiet
"$tools/ruff" format --check --quiet
"$tools/mypy"
