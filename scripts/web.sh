#!/bin/sh
# scripts/web.sh [--check]: builds the web page from web/ into web/dist, which
# the server embeds, and runs the unit tests in web/tests.
#
#   --check   fails if web/dist is not what the sources build
#
# The packages of web/package-lock.json are installed into target/web. If npm is
# not available, the check is skipped, unless CHARLSTM_REQUIRE_ALL is set.
set -eu
cd "$(dirname "$0")/.."

home=target/web
case ${1:-} in
    '') mode=build ;;
    --check) mode=--check ;;
    *)
        echo "web: unknown argument '$1'; usage: scripts/web.sh [--check]" >&2
        exit 2
        ;;
esac

if ! command -v npm >/dev/null 2>&1; then
    echo "web: skipped: npm is not available" >&2
    [ "$mode" = --check ] && [ -z "${CHARLSTM_REQUIRE_ALL:-}" ] && exit 0
    exit 1
fi

mkdir -p "$home"
if ! cmp -s web/package-lock.json "$home/installed.json"; then
    echo "web: installing web/package-lock.json into $home"
    cp web/package.json web/package-lock.json "$home"
    npm ci --silent --no-audit --no-fund --prefix "$home"
    # Written last, as a mark that the folder is complete.
    cp web/package-lock.json "$home/installed.json"
fi
rm -rf "$home/src" "$home/static" "$home/tests" "$home/dist" "$home/built-tests"
cp -R web/src web/static web/tests web/tsconfig.json web/buf.gen.yaml "$home"
# Installs buf if it is not installed.
scripts/buf.sh lint >/dev/null
buf=$(ls -d "$PWD"/target/buf-*/node_modules/.bin/buf | tail -n 1)
(
    cd "$home"
    "$buf" generate ../../proto
    node_modules/.bin/tsc
    node_modules/.bin/esbuild src/main.tsx --bundle --minify --format=iife --target=es2022 \
        --jsx=automatic --jsx-import-source=preact --charset=utf8 --legal-comments=eof \
        --log-level=warning --outfile=dist/app.js
    node_modules/.bin/esbuild src/style.css --bundle --minify --target=es2022 \
        --log-level=warning --outfile=dist/app.css
    cp static/* dist
    node_modules/.bin/esbuild tests/*.test.js --bundle --platform=node --format=esm \
        --target=node20 --log-level=warning --out-extension:.js=.mjs --outdir=built-tests
    node --test --test-reporter=dot built-tests/*.mjs
)
if [ "$mode" = --check ]; then
    if ! diff -rq "$home/dist" web/dist; then
        echo "web: web/dist is not what the sources build; run scripts/web.sh" >&2
        exit 1
    fi
    echo "web: web/dist is what the sources build"
else
    rm -rf web/dist
    cp -R "$home/dist" web/dist
    echo "web: built web/dist ($(cat web/dist/* | wc -c) bytes)"
fi
