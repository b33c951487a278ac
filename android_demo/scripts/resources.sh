#!/usr/bin/env bash
# Compiles the resources for the tests: R.java, and the file that Robolectric reads them from.
# Usage: resources.sh ANDROID_JAR OUTPUT_FOLDER
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/tools.sh
need aapt2:aapt
link_resources "$1" "$2"
