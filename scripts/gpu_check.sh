#!/bin/sh
# Checks and measures generation on this machine's GPU, in about two minutes; the
# time limits of its parts add up to seven. Part of the bundle that `make
# gpu-bundle` builds; runs in the folder of the bundle or of the project. Needs an
# NVIDIA driver and NVRTC 12 or 13, which PyTorch for CUDA contains.
#
#     gpu_check.sh [FOLDER FOR THE LOGS]
set -u
here=$(cd "$(dirname "$0")" && pwd)
logs=${1:-gpu_check_logs}
mkdir -p "$logs"
for program in "$here/gpu_check" "$here/../target/v3/release/examples/gpu_check"; do
    [ -x "$program" ] && break
done
if [ ! -x "$program" ]; then
    echo "gpu_check is not built: run make gpu-bundle" >&2
    exit 1
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
loop=$here/predict_cuda.py
[ -f "$loop" ] || loop=$here/../bench/reference/predict_cuda.py
timeout 60 python3 "$loop" 2>/dev/null || echo "PyTorch with CUDA is not installed: no comparison"
[ $failed -eq 0 ] && echo "all checks passed" || echo "CHECKS FAILED; see $logs"
exit $failed
