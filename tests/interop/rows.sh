#!/usr/bin/env bash
# Activations that SAELens caches read here, and ours read by its ActivationsStore: equal to the bit.
# ENVIRONMENTS is a folder of virtual environments with one named sae-lens; it is made if absent.
set -euo pipefail
cd "$(dirname "$0")/../.."
[ "${1:-}" = --help ] && { sed -n '2,3s/^# //p' "$0"; exit 0; }
python=${PYTHON:-$PWD/.venv/bin/python}
environment=${1:-$PWD/.interop}/sae-lens
if [ ! -x "$environment/bin/python" ]; then
    "$python" -m venv "$environment"
    "$environment/bin/pip" install -q sae-lens==6.54.12
fi
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
export HF_DATASETS_DISABLE_PROGRESS_BARS=1
PYTHONPATH=$PWD "$python" tests/interop/rows.py export "$scratch"
"$environment/bin/python" tests/interop/rows_saelens.py "$scratch"
PYTHONPATH=$PWD "$python" tests/interop/rows.py import "$scratch"
