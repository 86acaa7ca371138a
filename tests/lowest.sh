#!/usr/bin/env bash
# The tests with the lowest releases that pyproject.toml admits, in an environment of their own:
#   tests/lowest.sh [PYTHON] [--torch VERSION] [-- ARGUMENTS OF PYTEST]
# PYTHON is python3.11 by default. With --torch, pip installs that release in place of the lowest:
# for where a small build of a newer one is at hand, and of the lowest only one of gigabytes.
set -euo pipefail
cd "$(dirname "$0")/.."

python=python3.11
torch=
while [ $# -gt 0 ]; do
    case $1 in
        --torch) torch=${2:?--torch wants a version}; shift 2 ;;
        --) shift; break ;;
        -*) sed -n '2,5s/^# //p' "$0" >&2; exit 2 ;;
        *) python=$1; shift ;;
    esac
done

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
"$python" -m venv "$scratch/venv"
bin=$scratch/venv/bin
"$bin/pip" install -q uv
touch "$scratch/overrides"
if [ -n "$torch" ]; then
    "$bin/pip" install -q "torch==$torch"
    echo "torch==$torch" > "$scratch/overrides"  # uv then keeps the build that is there
fi
"$bin/uv" pip install --python "$bin/python" --resolution lowest-direct \
    --overrides "$scratch/overrides" -e '.[dev]'
"$bin/python" -m pytest -p no:cacheprovider "$@"
