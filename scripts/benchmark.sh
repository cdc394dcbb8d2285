#!/usr/bin/env bash
# Runs one of the benchmarks in a real ComfyUI, which it sets up by itself. NAME is a file of benchmarks/, without .py.
#
#   bash scripts/benchmark.sh NAME [OPTION …]
set -euo pipefail
source "$(dirname "$0")/../dev/host/host.sh"
[ -f "$repository/benchmarks/${1:-}.py" ] || fail "Name one of: $(cd "$repository/benchmarks" && echo *.py | sed 's/\.py//g')."
name=$1
shift
exec "$LANCE_PYTHON" "$repository/benchmarks/$name.py" "$@"
