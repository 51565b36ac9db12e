#!/bin/sh
# scripts/java_example.sh PROGRAM: compiles examples/java/Tour.java with the packages of
# Debian (default-jdk-headless, protobuf-compiler, protobuf-compiler-grpc-java-plugin,
# libgrpc-java, libprotobuf-java, libnetty-java, libnetty-tcnative-java,
# libnetty-tcnative-jni, libperfmark-java, libgoogle-common-protos-java,
# libgeronimo-annotation-1.3-spec-java), and writes the shell script PROGRAM, which
# runs it. Exits with code 3 if a tool is missing.
set -eu
for tool in javac protoc grpc_java_plugin; do
    command -v "$tool" >/dev/null || {
        echo "the Java example needs $tool (see scripts/java_example.sh)" >&2
        exit 3
    }
done
cd "$(dirname "$0")/.."

home=$PWD/target/java
jars=/usr/share/java
path=$home/classes
for name in grpc-api grpc-context grpc-core grpc-netty grpc-protobuf grpc-protobuf-lite \
    grpc-stub protobuf guava gson perfmark-api netty-buffer netty-codec netty-codec-http \
    netty-codec-http2 netty-common netty-handler netty-resolver netty-tcnative netty-transport \
    proto-google-common-protos geronimo-annotation-1.3-spec; do
    [ -e "$jars/$name.jar" ] || {
        echo "the Java example needs $jars/$name.jar (see scripts/java_example.sh)" >&2
        exit 3
    }
    path=$path:$jars/$name.jar
done
# Debian's netty offers HTTP/2 over TLS only with OpenSSL, and looks for its
# library under another name than that of Debian's package.
set -- "$1" /usr/lib/*/jni/libnetty-tcnative.so
[ -e "$2" ] || {
    echo "the Java example needs libnetty-tcnative.so (see scripts/java_example.sh)" >&2
    exit 3
}
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
