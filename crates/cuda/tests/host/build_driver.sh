#!/bin/sh
# build_driver.sh FOLDER: builds the stand-in for libcuda and libnvrtc (driver.cpp). A
# program that is started with LD_LIBRARY_PATH=FOLDER finds a GPU.
set -eu
folder=$1
here=$(cd "$(dirname "$0")" && pwd)
"${CXX:-g++}" -std=c++17 -O2 -Wall -Wextra -Wno-unknown-pragmas -ffp-contract=off \
    -fPIC -shared -o "$folder/libcuda.so.1" "$here/driver.cpp"
ln -sf libcuda.so.1 "$folder/libcuda.so"
ln -sf libcuda.so.1 "$folder/libnvrtc.so"
