#!/usr/bin/env bash
# What the plugin has to survive, in a real ComfyUI with tiny random weights: a table of checks, then 10,000 damaged files.
#
#   bash scripts/endurance.sh [--jobs N] [--only WORDS]
set -euo pipefail
source "$(dirname "$0")/../dev/host/host.sh"
cd "$repository"
find_test_tools
"$LANCE_PYTHON" -m comfyui_lance.dev.endurance "$@"
LANCE_FUZZ_CASES=${LANCE_FUZZ_CASES:-10000} exec "$LANCE_PYTHON" -m pytest -q tests/test_fuzz.py -k header
