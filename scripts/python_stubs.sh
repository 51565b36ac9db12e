#!/bin/sh
# scripts/python_stubs.sh [--check]: generates python/src/charlstm/v1 from the
# .proto files, or checks that it is up to date.
#
# The generators (python/stubs-requirements.txt) are installed into target/. If
# that is not possible, the check is skipped, unless CHARLSTM_REQUIRE_ALL is set.
set -eu
cd "$(dirname "$0")/.."

home=target/python-stubs
target=python/src/charlstm/v1
check=
case ${1:-} in
'') ;;
--check) check=1 ;;
*)
    echo "scripts/python_stubs.sh: unknown argument \"$1\" (use --check, or none)" >&2
    exit 2
    ;;
esac

if ! scripts/venv.sh "$home" python/stubs-requirements.txt >&2; then
    echo "python stubs: skipped: pip failed to install python/stubs-requirements.txt" >&2
    [ -n "$check" ] && [ -z "${CHARLSTM_REQUIRE_ALL:-}" ] || exit 1
    exit 0
fi

generated=$(mktemp -d)
trap 'rm -rf "$generated"' EXIT
# The generators of mypy-protobuf warn about their own generated code.
PYTHONWARNINGS=ignore PATH="$PWD/$home/bin:$PATH" "$home/bin/python" -m grpc_tools.protoc -Iproto \
    "--python_out=$generated" "--grpc_python_out=$generated" \
    "--mypy_out=quiet:$generated" "--mypy_grpc_out=quiet:$generated" proto/charlstm/v1/*.proto

if [ -n "$check" ]; then
    if ! diff -rq --exclude=__init__.py --exclude=__pycache__ "$generated/charlstm/v1" "$target" >&2; then
        echo "$target is out of date; run \`make python-stubs\`" >&2
        exit 1
    fi
    echo "$target is up to date"
else
    rm -f "$target"/*_pb2*.py "$target"/*_pb2*.pyi
    cp "$generated"/charlstm/v1/* "$target"
    echo "wrote $target"
fi
