#!/usr/bin/env bash
# Runs the tests in a real ComfyUI, which it sets up by itself. `--quick` leaves out what is slow or needs a server or a
# browser. Other arguments go to pytest, beside it or alone: `bash scripts/test.sh -k parity`.
set -euo pipefail
source "$(dirname "$0")/../dev/host/host.sh"
cd "$repository"
find_test_tools
unset PYTHONDONTWRITEBYTECODE # else each of some thirty processes compiles again what it imports

quick=
for argument; do
    shift
    if [ "$argument" = --quick ]; then quick=yes; else set -- "$@" "$argument"; fi
done

if [ -z "$quick" ] && ! command -v chromium chromium-browser google-chrome >/dev/null && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "Installing Chromium for the browser tests"
    { apt-get update && apt-get install -y chromium; } >"$LANCE_HOST_DIR/chromium.log" 2>&1 ||
        echo "Chromium could not be installed; the browser tests will be skipped."
fi

if [ $# = 0 ] || [ -n "$quick" ]; then
    "$LANCE_PYTHON" -m ruff check .
    "$LANCE_PYTHON" -m ruff format --check --quiet . || fail "Run \`ruff format\` first."
    [ -z "$quick" ] || set -- -m "not (slow or server or browser)" "$@"
    # The number of processes and the order of the files are conftest.py's.
    set -- -n auto --dist loadfile --no-loadscope-reorder "$@"
fi
exec "$LANCE_PYTHON" -m pytest "$@"
