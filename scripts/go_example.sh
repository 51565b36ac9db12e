#!/bin/sh
# scripts/go_example.sh PROGRAM: compiles examples/go/tour.go with the packages of
# Debian (golang-go, protoc-gen-go, protoc-gen-go-grpc), without the Go module proxy.
# The libraries are unpacked below target/go, because not all of their packages can be
# installed next to each other. Exits with code 3 if a tool is missing.
set -eu
for tool in go protoc protoc-gen-go protoc-gen-go-grpc apt-get dpkg; do
    command -v "$tool" >/dev/null || {
        echo "the Go example needs $tool (apt-get install golang-go protoc-gen-go protoc-gen-go-grpc)" >&2
        exit 3
    }
done
cd "$(dirname "$0")/.."

home=$PWD/target/go
libraries="golang-google-protobuf-dev golang-github-golang-protobuf-1-5-dev \
    golang-google-grpc-dev golang-google-genproto-dev \
    golang-golang-x-net-dev golang-golang-x-sys-dev golang-golang-x-text-dev"

if [ ! -e "$home/complete" ]; then
    rm -rf "$home"
    mkdir -p "$home/packages"
    # shellcheck disable=SC2086 # A list of names.
    (cd "$home/packages" && apt-get download -qq $libraries >&2)
    for package in "$home"/packages/*.deb; do
        dpkg -x "$package" "$home"
    done
    # Written last, as a mark that the folder is complete.
    touch "$home/complete"
fi
export GOPATH="$home/usr/share/gocode" GO111MODULE=off GOFLAGS= GOCACHE="$home/cache"
rm -rf "$GOPATH/src/charlstm"
protoc -Iproto "--go_out=$GOPATH/src" "--go-grpc_out=$GOPATH/src" proto/charlstm/v1/*.proto
go build -o "$1" examples/go/tour.go
