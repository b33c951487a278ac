#!/usr/bin/env bash
# Runs every harness for 60 s (or SECONDS_EACH), two (or FUZZERS) at a time; a finding ends it
# with 1.
set -uo pipefail
cd "$(dirname "$0")"
logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT
export PYTHON=${PYTHON:-python3} SECONDS_EACH=${SECONDS_EACH:-60} logs
[[ $PYTHON == */* && $PYTHON != /* ]] && PYTHON=$(cd ../.. && realpath -s "$PYTHON")
one() {
    "$PYTHON" "fuzz_$1.py" --seconds "$SECONDS_EACH" > "$logs/$1" 2>&1
    status=$?
    units=$(sed -n 's/stat::number_of_executed_units: *//p' "$logs/$1")
    peak=$(sed -n 's/stat::peak_rss_mb: *//p' "$logs/$1")
    echo "$1: ${units:-?} inputs, at most ${peak:-?} MB, status $status"
    [[ $status == 0 ]] || { tail -n 40 "$logs/$1"; exit 1; }
}
export -f one
printf '%s\n' flatbuffer archive npz toml json | xargs -P "${FUZZERS:-2}" -I {} bash -c 'one {}' || exit 1
