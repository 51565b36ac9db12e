#!/bin/sh
# Checks and measures generation and training on this machine's GPU; the time limits of
# its parts add up to twelve minutes. Part of the bundle that `make gpu-bundle` builds;
# runs in the folder of the bundle. Needs an NVIDIA driver and PyTorch 2.11 for CUDA,
# which contains NVRTC and libtorch; without PyTorch, NVRTC 12 or 13 is enough for the
# kernels alone. Without a GPU, only the server is checked, on the CPU, with the
# libtorch in the folder $CHARLSTM_LIBTORCH or that of PyTorch.
#
#     gpu_check.sh [FOLDER FOR THE LOGS]
set -u
here=$(cd "$(dirname "$0")" && pwd)
logs=${1:-gpu_check_logs}
mkdir -p "$logs"
program=$here/gpu_check
if [ ! -x "$program" ]; then
    echo "gpu_check is not built: run make gpu-bundle" >&2
    exit 1
fi

# The folder of libtorch, which target/release/charlstm-server reads.
if [ -z "${CHARLSTM_LIBTORCH:-}" ]; then
    CHARLSTM_LIBTORCH=$(python3 -c \
        'import importlib.util; print(importlib.util.find_spec("torch").submodule_search_locations[0])' \
        2>/dev/null)/lib
fi
export CHARLSTM_LIBTORCH
failed=0
run() { # name of the log, seconds, command
    log=$logs/$1.txt
    limit=$2
    shift 2
    timeout "$limit" "$@" >"$log" 2>&1
    code=$?
    [ $code -eq 0 ] || failed=1
    return $code
}
finish() {
    [ $failed -eq 0 ] && echo "all checks passed" || echo "CHECKS FAILED; see $logs"
    exit $failed
}
server() { # seconds, flags
    if [ ! -e "$CHARLSTM_LIBTORCH/libtorch.so" ]; then
        echo "libtorch was not found: the server was not checked"
        return
    fi
    limit=$1
    shift
    run server "$limit" python3 -B "$here/bench/gpu_server.py" --logs "$logs" "$@"
    grep '^ok \|^BROKEN\|^speed\|^|\|^memory\|broken$\|^bench:' "$logs/server.txt"
}
if ! nvidia-smi >/dev/null 2>&1; then
    echo "no GPU: only the server is checked, on the CPU"
    server 200 --device cpu --quick
    finish
fi

# NVRTC: of the Python that python3 starts, of a CUDA toolkit, or as installed.
folder=$(python3 - <<'PYTHON' 2>/dev/null
import importlib.util, pathlib
spec = importlib.util.find_spec("nvidia")
for place in spec.submodule_search_locations if spec else []:
    for library in sorted(pathlib.Path(place).glob("**/libnvrtc.so.*")):
        print(library.parent)
        raise SystemExit
PYTHON
)
[ -n "$folder" ] || folder=$(ls -d /usr/local/cuda*/lib64 2>/dev/null | tail -1)
LD_LIBRARY_PATH=$folder${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
export LD_LIBRARY_PATH

nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
run exactness 110 "$program" --only exact || grep -v ' ok ' "$logs/exactness.txt"
tail -1 "$logs/exactness.txt"
run loss 30 "$program" --only loss
grep -v device "$logs/loss.txt"
sanitizer=$(command -v compute-sanitizer || ls -d /usr/local/cuda*/bin/compute-sanitizer 2>/dev/null | tail -1)
if [ -n "$sanitizer" ]; then
    for tool in memcheck racecheck; do
        run $tool 70 "$sanitizer" --tool $tool "$program" --only exact --short
        grep 'checks,\|SUMMARY' "$logs/$tool.txt"
    done
else
    echo "compute-sanitizer is not installed: memory accesses and races were not checked"
fi
run speed 90 "$program" --only speed
cat "$logs/speed.txt"
timeout 60 python3 "$here/bench/reference/predict_cuda.py" 2>/dev/null ||
    echo "PyTorch with CUDA is not installed: no comparison"
server 270 --device cuda:0
finish
