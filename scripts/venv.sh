#!/bin/sh
# scripts/venv.sh FOLDER REQUIREMENTS: creates a Python virtual environment with
# the packages of a requirements file. Does nothing if it already exists with
# exactly that file; recreates it if it is incomplete.
set -eu

folder=$1
requirements=$2
stamp=$folder/requirements-installed.txt

if cmp -s "$requirements" "$stamp"; then
    exit 0
fi
echo "python: installing $requirements into $folder"
rm -rf "$folder"
# On Debian, ensurepip is a separate package. Without it, the pip outside of the
# environment can install into it.
if python3 -m venv "$folder" >/dev/null 2>&1; then
    "$folder/bin/python" -m pip install --quiet --disable-pip-version-check -r "$requirements"
else
    rm -rf "$folder"
    python3 -m venv --without-pip "$folder"
    python3 -m pip --python "$folder/bin/python" install --quiet --disable-pip-version-check \
        -r "$requirements"
fi
# Written last, as a mark that the environment is complete.
cp "$requirements" "$stamp"
