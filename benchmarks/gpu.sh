#!/bin/sh
# Everything that benchmarks.gpu measures, on this machine's GPU: benchmarks/results/<gpu>.json. Minutes.
set -eu
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
name=$("$python" -c "import torch; print(torch.cuda.get_device_name().lower().replace(' ', '-'))")
mkdir -p benchmarks/results
exec "$python" -m benchmarks.gpu --device cuda --json "benchmarks/results/$name.json" "$@"
