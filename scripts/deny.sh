#!/bin/sh
# Checks licences, sources and duplicates of the dependencies with cargo-deny,
# which is installed into target/deny if it is not there. Advisories are not
# checked: their database has to be fetched.
#
# If cargo-deny cannot be installed, the check is skipped, unless
# CHARLSTM_REQUIRE_ALL is set.
set -eu

cd "$(dirname "$0")/.."
if deny=$(command -v cargo-deny); then
    :
elif scripts/venv.sh target/deny scripts/deny-requirements.txt; then
    deny=target/deny/bin/cargo-deny
elif [ -n "${CHARLSTM_REQUIRE_ALL:-}" ]; then
    echo "deny: cargo-deny cannot be installed" >&2
    exit 1
else
    echo "deny: skipped: cargo-deny cannot be installed"
    exit 0
fi
# Duplicates are warnings, which nobody reads in the output of a check.
"$deny" --locked --log-level error check --hide-inclusion-graph licenses sources bans
