#!/usr/bin/env bash
# SAEs of SAELens, dictionary_learning and sparsify read here, and ours opened there: the same latents
# and reconstructions to 1e-5, by the very packages. ENVIRONMENTS is a folder of virtual environments
# named sae-lens, dictionary-learning and eai-sparsify; those that are not there are made.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${PYTHON:-$PWD/.venv/bin/python}
environments=${1:-$PWD/.interop}
[ "${1:-}" = --help ] && { sed -n '2,4s/^# //p' "$0"; exit 0; }
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
declare -A packages=(
    [saelens]="sae-lens==6.54.12" [dictionary_learning]="dictionary-learning==0.1.0"
    [sparsify]="eai-sparsify==1.3.3"
)
for library in "${!packages[@]}"; do
    package=${packages[$library]}
    environment=$environments/${package%%==*}
    if [ ! -x "$environment/bin/python" ]; then
        "$python" -m venv "$environment"
        "$environment/bin/pip" install -q "$package"
    fi
    theirs=("$environment/bin/python" tests/interop/sae_peers.py "$library")
    "${theirs[@]}" make "$scratch/$library/theirs"
    PYTHONPATH=$PWD "$python" tests/interop/saes.py read "$library" "$scratch/$library/theirs"
    PYTHONPATH=$PWD "$python" tests/interop/saes.py write "$library" "$scratch/$library/ours"
    "${theirs[@]}" check "$scratch/$library/ours"
done
