#!/bin/sh
# scripts/node.sh: installs the Node packages that the tests need, pinned in
# tests/node/package-lock.json, into target/node. Does nothing if they are
# already installed.
set -eu
cd "$(dirname "$0")/.."

home=target/node
if cmp -s tests/node/package-lock.json "$home/installed.json"; then
    exit 0
fi
if ! command -v npm >/dev/null 2>&1; then
    echo "node: npm is not available" >&2
    exit 1
fi
echo "node: installing tests/node/package.json into $home"
rm -rf "$home"
mkdir -p "$home"
cp tests/node/package.json tests/node/package-lock.json "$home"
npm ci --silent --no-audit --no-fund --prefix "$home"
# Written last, as a mark that the folder is complete.
cp tests/node/package-lock.json "$home/installed.json"
