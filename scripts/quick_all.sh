#!/usr/bin/env bash
# Runs `make quick` with every Python of 3.11 to 3.13 that is here, each in an environment of its
# own (build/venv-3.12, ...); names those that are not here, and ends with 1 where one fails.
set -uo pipefail
cd "$(dirname "$0")/.."
failed=()
for version in 3.11 3.12 3.13; do
    python=
    # A shim of pyenv may be in PATH and run nothing.
    for found in "python$version" "${PYENV_ROOT:-$HOME/.pyenv}"/versions/"$version".*/bin/python3; do
        if "$found" -c '' 2> /dev/null; then
            python=$found
            break
        fi
    done
    if [[ -z $python ]]; then
        echo "Python $version: skipped, it is not installed here."
        continue
    fi
    echo "Python $version: $python"
    make quick PYTHON="$python" VENV="build/venv-$version" || failed+=("$version")
done
[[ -z ${failed-} ]] || { echo "make quick failed with Python ${failed[*]}"; exit 1; }
