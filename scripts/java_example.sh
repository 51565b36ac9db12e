#!/bin/sh
# scripts/java_example.sh PROGRAM: compiles examples/java/Tour.java with the packages of
# Debian, and writes the shell script PROGRAM, which runs it. Exits with code 3 if a tool
# is missing. scripts/java_example.sh --missing prints the packages that are missing.
set -eu
cd "$(dirname "$0")/.."

jars=/usr/share/java
# What is needed (a program, or a library in $jars), and the package that has it.
needed="
javac default-jdk-headless
protoc protobuf-compiler
grpc_java_plugin protobuf-compiler-grpc-java-plugin
grpc-api.jar libgrpc-java
grpc-context.jar libgrpc-java
grpc-core.jar libgrpc-java
grpc-netty.jar libgrpc-java
grpc-protobuf.jar libgrpc-java
grpc-protobuf-lite.jar libgrpc-java
grpc-stub.jar libgrpc-java
protobuf.jar libprotobuf-java
guava.jar libguava-java
gson.jar libgoogle-gson-java
perfmark-api.jar libperfmark-java
netty-buffer.jar libnetty-java
netty-codec.jar libnetty-java
netty-codec-http.jar libnetty-java
netty-codec-http2.jar libnetty-java
netty-common.jar libnetty-java
netty-handler.jar libnetty-java
netty-resolver.jar libnetty-java
netty-transport.jar libnetty-java
netty-tcnative.jar libnetty-tcnative-java
libnetty-tcnative.so libnetty-tcnative-jni
proto-google-common-protos.jar libgoogle-common-protos-java
geronimo-annotation-1.3-spec.jar libgeronimo-annotation-1.3-spec-java
"

# Whether a line of $needed is there.
has() {
    case $1 in
    *.jar) [ -e "$jars/$1" ] ;;
    *.so) ls /usr/lib/*/jni/"$1" ;;
    *) command -v "$1" ;;
    esac >/dev/null 2>&1
}

if [ "$1" = --missing ]; then
    echo "$needed" | while read -r what package; do
        [ -z "$what" ] || has "$what" || echo "$package"
    done | sort -u
    exit
fi

home=$PWD/target/java
path=$home/classes
while read -r what package; do
    [ -n "$what" ] || continue
    has "$what" || {
        echo "the Java example needs $what (Debian's package $package)" >&2
        exit 3
    }
    case $what in *.jar) path=$path:$jars/$what ;; esac
done <<EOF_NEEDED
$needed
EOF_NEEDED
# Debian's netty offers HTTP/2 over TLS only with OpenSSL, and looks for its
# library under another name than that of Debian's package.
set -- "$1" /usr/lib/*/jni/libnetty-tcnative.so
rm -rf "$home"
mkdir -p "$home/source" "$home/classes" "$home/native"
cp "$2" "$home/native/libnetty_tcnative.so"
protoc -Iproto "--java_out=$home/source" "--grpc-java_out=$home/source" \
    "--plugin=protoc-gen-grpc-java=$(command -v grpc_java_plugin)" proto/charlstm/v1/*.proto
# Debian's jar has no google.rpc.ErrorInfo; the Python package has its .proto file.
common=$(.venv/bin/python -c \
    'import pathlib, google.rpc.error_details_pb2 as it; print(pathlib.Path(it.__file__).parents[2])')
protoc "-I$common" "--java_out=$home/source" "$common/google/rpc/error_details.proto"
find "$home/source" -name '*.java' >"$home/sources"
javac -nowarn -d "$home/classes" -cp "$path" "@$home/sources" examples/java/Tour.java
printf '#!/bin/sh\nexec java -Djava.library.path=%s -cp %s Tour "$@"\n' \
    "$home/native" "$path" >"$1"
chmod +x "$1"
