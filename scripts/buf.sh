#!/bin/sh
# scripts/buf.sh COMMAND: runs buf on the contract in proto/.
#
#   lint      checks it against the STANDARD rules of buf
#   breaking  checks that it is backward compatible with proto/released.binpb,
#             the contract of the last release
#   image     writes proto/released.binpb; run it at a release
#   json      prints the contract, with comments, for scripts/api_docs.py
#
# buf is installed from its npm package into target/. If npm is not available,
# the command is skipped (`json` then exits with code 3), unless
# CHARLSTM_REQUIRE_ALL is set.
set -eu

version=1.75.0
command=${1:-lint}
cd "$(dirname "$0")/.."
home=target/buf-$version
buf=$home/node_modules/.bin/buf
released=proto/released.binpb

skip() {
    echo "buf $command: skipped: $1" >&2
    [ -z "${CHARLSTM_REQUIRE_ALL:-}" ] || exit 1
    [ "$command" != json ] || exit 3
    exit 0
}

if [ ! -x "$buf" ]; then
    command -v npm >/dev/null 2>&1 \
        || skip "npm, which installs @bufbuild/buf $version, is not available"
    mkdir -p "$home"
    npm install --silent --no-audit --no-fund --prefix "$home" "@bufbuild/buf@$version" >&2 \
        || skip "npm failed to install @bufbuild/buf $version"
fi

case $command in
lint)
    "$buf" lint proto
    echo "buf lint: passed"
    ;;
breaking)
    "$buf" breaking proto --against "$released"
    echo "buf breaking: the contract is backward compatible with the last release"
    ;;
image)
    "$buf" build proto --exclude-source-info -o "$released"
    ;;
json)
    "$buf" build proto -o -#format=json
    ;;
*)
    echo "scripts/buf.sh: unknown command \"$command\" (use lint, breaking, image or json)" >&2
    exit 2
    ;;
esac
