#!/usr/bin/env bash
# The tests where a machine is unlike the one they were written on: another clock, CPU, language,
# user. Two minutes on two cores; --full runs all tests but the slow ones in each place.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
python=$root/.venv/bin/python
case "${1:-}" in
    "") full=false ;;
    --full) full=true ;;
    *) sed -n '2,3s/^# //p' "$0" >&2; exit 2 ;;
esac
[ -x "$python" ] || { echo "there is no .venv: README's second command makes it" >&2; exit 2; }

memory=/dev/shm # as in tests/conftest.py: a disk is slow to remove small files
[ -w "$memory" ] && [ "$(df --output=avail -k "$memory" | tail -n 1)" -gt $((4 * 2**20)) ] || memory=/tmp
scratch=$(mktemp -d -p "$memory")
trap 'chmod -R u+rwX "$scratch"; rm -rf "$scratch"' EXIT
chmod 711 "$scratch" # for another user to pass through
mkdir "$scratch/clock"
mkdir -m 777 "$scratch/tmp"
mkdir -m 555 "$scratch/home" # where nothing can be kept
export HYPOTHESIS_STORAGE_DIRECTORY=$scratch/tmp/hypothesis
unset PYTHONDONTWRITEBYTECODE # each leg would compile all modules again

# What other CPUs, libraries of products and numbers of threads may round otherwise.
numbers=(
    tests/sae tests/evaluate/test_metrics.py tests/evaluate/test_geometry.py
    tests/evaluate/test_plain_script.py tests/lm/test_cross_entropy.py tests/connect/test_scores.py
    tests/connect/test_moments.py tests/connect/test_start.py tests/connect/test_equations.py
)
# What else has arrays in its signatures: each shape is checked, in every call.
shapes=(tests/lm/test_hooks.py)
# What reads and writes files and texts, and tells of them.
files=(
    tests/text/test_sources.py tests/text/test_contexts.py tests/config tests/runs tests/terminal
    tests/actstore/test_reader.py tests/actstore/test_writer.py
)
some="not hub and not damaged and not plain_script and not torch_warns" # which take their time
$full && numbers=(tests) shapes=() files=(tests) some=

failed=0
# leg NAME COMMAND...: run it; its output is shown if it fails.
leg() {
    local name=$1 began=$SECONDS result=ok
    shift
    "$@" > "$scratch/out" 2>&1 || result=FAILED
    printf '%-72s %4d s  %s\n' "$name" $((SECONDS - began)) "$result"
    [ "$result" = ok ] || { tail -n 60 "$scratch/out"; failed=1; }
}

# tests [NAME=VALUE...] -- ARGUMENTS: pytest with these arguments, where these variables are set.
tests() {
    local settings=()
    while [ "$1" != -- ]; do settings+=("$1") && shift; done
    shift
    env "${settings[@]}" "$python" -m pytest -q -p no:cacheprovider \
        --basetemp="$(mktemp -d -p "$scratch/tmp")/t" "$@"
}

# A year and some seconds later, by the clock that Python's own library (gzip, say) asks.
cat > "$scratch/clock/sitecustomize.py" << 'PYTHON'
import time

seconds, nanoseconds = time.time, time.time_ns
time.time = lambda: seconds() + 31_622_417
time.time_ns = lambda: nanoseconds() + 31_622_417 * 10**9
PYTHON

# collect NAME=VALUE...: the names of all tests, in the order in which they would run.
collect() {
    env "$@" "$python" -m pytest -n 0 -q -p no:cacheprovider --collect-only -m "" \
        --rootdir="$root" -c "$root/pyproject.toml" "$root/tests"
}

same_names() {
    local here=$scratch/names-here there=$scratch/names-there first second=0
    collect PYTHONHASHSEED=1 > "$here" 2>&1 & # both at once, one on each core
    first=$!
    (cd "$scratch/tmp" && collect PYTHONHASHSEED=4242 PYTHONPATH="$scratch/clock" \
        HOME="$scratch/home" TMPDIR="$scratch/tmp" TZ=Pacific/Chatham > "$there" 2>&1) || second=1
    wait "$first" && [ "$second" = 0 ] || { tail -n 20 "$here" "$there" && return 1; }
    diff <(grep :: "$here") <(grep :: "$there") && [ "$(grep -c :: "$here")" -gt 1000 ]
}

leg "the same names: another hash seed, clock and folder" same_names

other_cpu=(ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=AVX2 MKL_CBWR=COMPATIBLE)
leg "numbers on an older CPU, one thread; shapes are those of signatures" \
    tests "${other_cpu[@]}" OMP_NUM_THREADS=1 -- \
    --jaxtyping-packages=actstore,pipeline,beartype.beartype "${numbers[@]}" "${shapes[@]}"

# As nobody. Where nobody cannot reach the interpreter (it may lie in a closed home), as nobody who
# may read all files; who may write is the same in both.
as=() who="this user"
if [ "$(id -u)" = 0 ]; then
    nobody=(setpriv --reuid=65534 --regid=65534 --clear-groups)
    only=-all,+dac_read_search
    reader=("${nobody[@]}" --inh-caps=$only --ambient-caps=$only --bounding-set=$only)
    reaches() { "$@" env "$python" -c 'import cli, pytest, torch' 2> /dev/null; }
    if reaches "${nobody[@]}"; then
        as=("${nobody[@]}") who=nobody
    elif reaches "${reader[@]}"; then
        as=("${reader[@]}") who="nobody, who reads all files"
    else
        echo "left out: another user (this is root, and setpriv does not make it nobody)"
    fi
fi

elsewhere() {
    umask 077
    "${as[@]}" env HYPOTHESIS_STORAGE_DIRECTORY="$scratch/tmp/of-another" HOME="$scratch/home" \
        TMPDIR="$scratch/tmp" LC_ALL=C TZ=Asia/Kolkata "${other_cpu[@]}" \
        OMP_NUM_THREADS=4 OMP_WAIT_POLICY=passive \
        "$python" -m pytest -q -p no:cacheprovider --basetemp="$scratch/tmp/elsewhere" \
        -k "${some:-}" $(printf '%s\n' "${files[@]}" "${numbers[@]}" | sort -u)
}
leg "four threads, LC_ALL=C, TZ=Asia/Kolkata, umask 077, HOME read-only, $who" elsewhere

exit "$failed"
