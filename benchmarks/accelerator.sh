#!/usr/bin/env bash
# All parts of benchmarks/accelerator.py, each in a process of its own that is ended when its time is over: a card that hangs or
# a kernel that breaks the device costs one part and no more. On a new machine a process may take more than a minute to import
# what it needs, which its limit here includes. Options go to every part.
#   OUT=results benchmarks/accelerator.sh [--device cpu --tiny] [--skip PART …]
set -u
cd "$(dirname "$0")/.."
export OUT=${OUT:-build/accelerator} PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
rm -f "$OUT/accelerator.json"
for part in right:190 tuned:150 figures:200; do
    timeout --kill-after=5 "${part#*:}" "$python" benchmarks/accelerator.py --part "${part%:*}" "$@" ||
        echo "${part%:*} ended with status $?"
done
"$python" benchmarks/accelerator.py --summary "$@"
