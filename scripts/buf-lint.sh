#!/bin/sh
# Checks the contract with `buf lint` (its STANDARD rules). buf comes from its
# npm package and stays under target/. Without npm this is passed over, unless
# CHARLSTM_REQUIRE_ALL is set.
set -eu

version=1.75.0
cd "$(dirname "$0")/.."
home=target/buf-$version
buf=$home/node_modules/.bin/buf

if [ ! -x "$buf" ]; then
    if ! command -v npm >/dev/null 2>&1; then
        echo "buf lint: passed over, npm is not there to install @bufbuild/buf $version"
        [ -z "${CHARLSTM_REQUIRE_ALL:-}" ]
        exit
    fi
    mkdir -p "$home"
    if ! npm install --silent --no-audit --no-fund --prefix "$home" "@bufbuild/buf@$version"; then
        echo "buf lint: passed over, npm could not install @bufbuild/buf $version"
        [ -z "${CHARLSTM_REQUIRE_ALL:-}" ]
        exit
    fi
fi
"$buf" lint proto
echo "buf lint: the contract is fine"
