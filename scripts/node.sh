#!/bin/sh
# scripts/node.sh: puts what the Node client of the tests needs into
# target/node, by tests/node/package-lock.json. Does nothing when it is there.
set -eu
cd "$(dirname "$0")/.."

home=target/node
if cmp -s tests/node/package-lock.json "$home/installed.json"; then
    exit 0
fi
if ! command -v npm >/dev/null 2>&1; then
    echo "node: npm is not there" >&2
    exit 1
fi
echo "node: installing tests/node/package.json into $home"
rm -rf "$home"
mkdir -p "$home"
cp tests/node/package.json tests/node/package-lock.json "$home"
npm ci --silent --no-audit --no-fund --prefix "$home"
# Written last: without it the folder is not used.
cp tests/node/package-lock.json "$home/installed.json"
