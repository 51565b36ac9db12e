#!/usr/bin/env bash
# Usage: scripts/fuzz.sh [--optional] SECONDS
# Runs each fuzz target for SECONDS seconds, within 512 MB. Installs cargo-fuzz into
# target/ if it is missing. With --optional, does nothing if that is not possible,
# unless CHARLSTM_REQUIRE_ALL is set. The stable compiler is used, with the features
# that cargo-fuzz needs.
set -euo pipefail
cd "$(dirname "$0")/.."
is_optional=
if [ "$1" = --optional ]; then
    is_optional=1
    shift
fi
[ -z "${CHARLSTM_REQUIRE_ALL:-}" ] || is_optional=
seconds=$1
version=0.13.2
export RUSTC_BOOTSTRAP=1
root=$PWD/target/cargo-fuzz
if ! "$root/bin/cargo-fuzz" --version 2>/dev/null | grep -q "$version"; then
    if ! cargo install cargo-fuzz --version "$version" --locked --quiet --root "$root"; then
        [ -n "$is_optional" ] || exit 1
        echo "fuzz: skipped: cargo-fuzz cannot be installed"
        exit 0
    fi
fi
export PATH=$root/bin:$PATH
cargo fuzz build --target-dir target/fuzz
for target in $(cargo fuzz list); do
    mkdir -p "fuzz/corpus/$target"
    folders=("fuzz/corpus/$target")
    # Valid inputs to start from.
    case $target in
    torch_checkpoint) folders+=(tests/golden/checkpoints) ;;
    model_file) folders+=(tests/golden/data-0.1/models/small/1) ;;
    session_snapshot) folders+=(crates/store/tests/data) ;;
    esac
    # A pickle can be 2 MiB long; a longer input tests that limit.
    log=target/fuzz/$target.log
    if ! cargo fuzz run --target-dir target/fuzz "$target" "${folders[@]}" -- \
        -max_len=4194304 -rss_limit_mb=512 -max_total_time="$seconds" >"$log" 2>&1; then
        tail -n 60 "$log" >&2
        echo "fuzz: $target: FAILED" >&2
        exit 1
    fi
    echo "fuzz: $target: $(grep -E '^Done ' "$log" | tail -n 1)"
done
