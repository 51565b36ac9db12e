#!/bin/sh
# scripts/venv.sh FOLDER REQUIREMENTS: a Python virtual environment with the
# packages of a requirements file. Does nothing when it is there already with
# exactly that file; a half-made one is made anew.
set -eu

folder=$1
requirements=$2
stamp=$folder/requirements-installed.txt

if cmp -s "$requirements" "$stamp"; then
    exit 0
fi
echo "python: installing $requirements into $folder"
rm -rf "$folder"
# Debian keeps ensurepip in a package of its own; the pip outside can fill the
# environment as well.
if python3 -m venv "$folder" >/dev/null 2>&1; then
    "$folder/bin/python" -m pip install --quiet --disable-pip-version-check -r "$requirements"
else
    rm -rf "$folder"
    python3 -m venv --without-pip "$folder"
    python3 -m pip --python "$folder/bin/python" install --quiet --disable-pip-version-check \
        -r "$requirements"
fi
# Written last: without it the environment is not used.
cp "$requirements" "$stamp"
