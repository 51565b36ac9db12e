#!/bin/sh
# Checks licences, sources and duplicates of the dependencies with cargo-deny.
# Advisories are not checked: their database has to be fetched.
#
# Without cargo-deny the check is skipped, unless CHARLSTM_REQUIRE_ALL is set.
set -eu

cd "$(dirname "$0")/.."
if ! cargo deny --version >/dev/null 2>&1; then
    message="cargo-deny is not installed (cargo install cargo-deny)"
    if [ -n "${CHARLSTM_REQUIRE_ALL:-}" ]; then
        echo "deny: $message" >&2
        exit 1
    fi
    echo "deny: skipped: $message"
    exit 0
fi
# Duplicates are warnings, which nobody reads in the output of a check.
cargo deny --locked --log-level error check --hide-inclusion-graph licenses sources bans
