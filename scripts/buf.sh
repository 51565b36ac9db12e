#!/bin/sh
# scripts/buf.sh COMMAND: what is done with the contract.
#
#   lint      checks it with the STANDARD rules of buf
#   breaking  checks that it breaks no client of proto/released.binpb, the
#             contract of the last release
#   image     writes proto/released.binpb, for a release
#   json      prints it with its comments, for scripts/api_docs.py
#
# buf comes from its npm package and stays under target/. Without npm this is
# passed over, with exit code 3 for `json`, unless CHARLSTM_REQUIRE_ALL is set.
set -eu

version=1.75.0
command=${1:-lint}
cd "$(dirname "$0")/.."
home=target/buf-$version
buf=$home/node_modules/.bin/buf
released=proto/released.binpb

pass_over() {
    echo "buf $command: passed over, $1" >&2
    [ -z "${CHARLSTM_REQUIRE_ALL:-}" ] || exit 1
    [ "$command" != json ] || exit 3
    exit 0
}

if [ ! -x "$buf" ]; then
    command -v npm >/dev/null 2>&1 \
        || pass_over "npm is not there to install @bufbuild/buf $version"
    mkdir -p "$home"
    npm install --silent --no-audit --no-fund --prefix "$home" "@bufbuild/buf@$version" >&2 \
        || pass_over "npm could not install @bufbuild/buf $version"
fi

case $command in
lint)
    "$buf" lint proto
    echo "buf lint: the contract is fine"
    ;;
breaking)
    "$buf" breaking proto --against "$released"
    echo "buf breaking: clients of the last release go on working"
    ;;
image)
    "$buf" build proto --exclude-source-info -o "$released"
    ;;
json)
    "$buf" build proto -o -#format=json
    ;;
*)
    echo "scripts/buf.sh: lint, breaking, image or json, not $command" >&2
    exit 2
    ;;
esac
