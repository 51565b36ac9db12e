#!/bin/sh
# scripts/gpu_bundle.sh: packs what `make gpu-bundle` has built into
# target/gpu-bundle.tar.gz: programs without symbols, scripts, and gpu_check.sh, which
# runs them all. Folders are those of the project, where the scripts expect them.
set -eu
cd "$(dirname "$0")/.."
bundle=target/gpu-bundle
rm -rf "$bundle"
mkdir -p "$bundle/target/release" "$bundle/bench" "$bundle/scripts"
strip -o "$bundle/gpu_check" target/v3/release/examples/gpu_check
strip -o "$bundle/target/release/charlstm-client" target/release/charlstm-client
strip -o "$bundle/target/release/charlstm-server.bin" target/release/charlstm-server
cp scripts/gpu_check.sh "$bundle"
cp scripts/release.py "$bundle/scripts"
cp bench/gpu_server.py bench/measure.py "$bundle/bench"
mkdir "$bundle/bench/reference"
cp bench/reference/notebook.py bench/reference/predict_cuda.py bench/reference/train_loop.py \
    "$bundle/bench/reference"
# The server finds libtorch at run time, and CUDA by a library that it is not linked to.
cat >"$bundle/target/release/charlstm-server" <<'SCRIPT'
#!/bin/sh
LD_LIBRARY_PATH=$CHARLSTM_LIBTORCH${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
export LD_LIBRARY_PATH
if [ -e "$CHARLSTM_LIBTORCH/libtorch_cuda.so" ]; then
    LD_PRELOAD=$CHARLSTM_LIBTORCH/libtorch_cuda.so
    export LD_PRELOAD
fi
unset CHARLSTM_LIBTORCH
exec "$0.bin" "$@"
SCRIPT
chmod +x "$bundle/target/release/charlstm-server"
tar -C target -czf target/gpu-bundle.tar.gz gpu-bundle
size=$(stat -c %s target/gpu-bundle.tar.gz)
echo "target/gpu-bundle.tar.gz: $((size / 1000000)) MB"
# So that it can be copied anywhere.
[ "$size" -le 60000000 ] || { echo "the bundle is larger than 60 MB" >&2; exit 1; }
echo "Copy it to the machine, unpack it, and run gpu-bundle/gpu_check.sh"
