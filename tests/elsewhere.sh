#!/usr/bin/env bash
# The tests where a machine is unlike the one they were written on: another clock, CPU, language,
# user. At most two minutes on two cores; --full runs all tests but the slow ones in each place.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
python=$root/.venv/bin/python
case "${1:-}" in
    "") full=false ;;
    --full) full=true ;;
    *) echo "usage: tests/elsewhere.sh [--full]" >&2 && exit 2 ;;
esac
[ -x "$python" ] || { echo "there is no .venv: README's second command makes it" >&2; exit 2; }

scratch=$(mktemp -d)
trap 'chmod -R u+rwX "$scratch"; rm -rf "$scratch"' EXIT
mkdir -m 777 "$scratch/tmp"
mkdir -m 555 "$scratch/home" # where nothing can be kept
export HYPOTHESIS_STORAGE_DIRECTORY=$scratch/tmp/hypothesis PYTHONDONTWRITEBYTECODE=1

# What other CPUs, libraries of products and numbers of threads may round otherwise.
numbers=(
    tests/evaluate tests/sae tests/connect/test_scores.py tests/connect/test_moments.py
    tests/connect/test_baselines.py tests/connect/test_equations.py
    tests/connect/test_evaluate.py tests/lm/test_cross_entropy.py
)
# What reads and writes files and texts, and tells of them.
files=(
    tests/text/test_sources.py tests/text/test_contexts.py tests/config tests/runs tests/terminal
    tests/actstore/test_reader.py tests/actstore/test_writer.py
)
$full && numbers=(tests) files=(tests)

failed=0
# leg NAME COMMAND...: run it; its output is shown if it fails.
leg() {
    local name=$1 began=$SECONDS result=ok
    shift
    "$@" > "$scratch/out" 2>&1 || result=FAILED
    printf '%-58s %4d s  %s\n' "$name" $((SECONDS - began)) "$result"
    [ "$result" = ok ] || { tail -n 60 "$scratch/out"; failed=1; }
}

left_out() { printf '%-58s left out: %s\n' "$1" "$2"; }

# tests [NAME=VALUE...] -- PYTEST'S ARGUMENTS: pytest where these variables are set.
tests() {
    local settings=()
    while [ "$1" != -- ]; do settings+=("$1") && shift; done
    shift
    env "${settings[@]}" "$python" -m pytest -q -p no:cacheprovider \
        --basetemp="$(mktemp -d -p "$scratch/tmp")/t" "$@"
}

# collect NAME=VALUE...: the names of all tests, in the order in which they would run.
collect() {
    env "$@" "$python" -m pytest -n 0 -q -p no:cacheprovider --collect-only -m "" \
        --rootdir="$root" -c "$root/pyproject.toml" "$root/tests"
}

# A year and some seconds later, by the clock that Python's own library asks.
mkdir "$scratch/clock"
cat > "$scratch/clock/sitecustomize.py" << 'PYTHON'
import time

seconds, nanoseconds = time.time, time.time_ns
time.time = lambda: seconds() + 31_622_417
time.time_ns = lambda: nanoseconds() + 31_622_417 * 10**9
PYTHON

same_names() {
    local here=$scratch/names-here there=$scratch/names-there first second=0
    collect PYTHONHASHSEED=1 > "$here" & # both at once, one on each core
    first=$!
    (cd "$scratch/tmp" && collect PYTHONHASHSEED=4242 PYTHONPATH="$scratch/clock" \
        HOME="$scratch/home" TMPDIR="$scratch/tmp" TZ=Pacific/Chatham > "$there") || second=1
    wait "$first" && [ "$second" = 0 ] || { tail -n 20 "$here" "$there" && return 1; }
    diff <(grep :: "$here") <(grep :: "$there") && [ "$(grep -c :: "$here")" -gt 1000 ]
}

leg "same names: another hash seed, clock, folder" same_names

one=(OMP_NUM_THREADS=1) four=(OMP_NUM_THREADS=4)
plain=(ATEN_CPU_CAPABILITY=default)
older=(ONEDNN_MAX_CPU_ISA=AVX2 MKL_CBWR=COMPATIBLE)
if $full; then
    leg "no vector instructions of torch's own" tests "${plain[@]}" -- "${numbers[@]}"
    leg "products by AVX2, in the order of every CPU" tests "${older[@]}" -- "${numbers[@]}"
    leg "one thread" tests "${one[@]}" -- "${numbers[@]}"
    leg "four threads" tests "${four[@]}" -- "${numbers[@]}"
else
    leg "numbers: one thread, no vector instructions of torch's own" \
        tests "${one[@]}" "${plain[@]}" -- "${numbers[@]}"
    leg "numbers: four threads, products by AVX2" \
        tests "${four[@]}" "${older[@]}" -- "${numbers[@]}"
fi

# As nobody, who may read all files (the interpreter may lie in a closed home) and write none.
as=()
if [ "$(id -u)" != 0 ]; then
    : # as who runs this, who is not root
elif command -v setpriv > /dev/null; then
    only=-all,+dac_read_search
    as=(setpriv --reuid=65534 --regid=65534 --clear-groups
        --inh-caps=$only --ambient-caps=$only --bounding-set=$only)
    "${as[@]}" true 2> /dev/null || { as=() && left_out "another user" "setpriv is not allowed to"; }
else
    left_out "another user" "run as root, and there is no setpriv"
fi

elsewhere() {
    umask 077
    "${as[@]}" env HOME="$scratch/home" TMPDIR="$scratch/tmp" LC_ALL=C TZ=Asia/Kolkata \
        "$python" -m pytest -q -p no:cacheprovider --basetemp="$scratch/tmp/elsewhere" "${files[@]}"
}
leg "LC_ALL=C, TZ=Asia/Kolkata, umask 077, HOME read-only${as[0]:+, nobody}" elsewhere

exit "$failed"
