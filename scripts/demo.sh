#!/usr/bin/env bash
# Runs every shipped workflow but those that train in a real ComfyUI, which it sets up by itself, and leaves the
# pictures and clips in a folder.
#
#   bash scripts/demo.sh [--out DIR] [--weights DIR] [--serve]
set -euo pipefail
source "$(dirname "$0")/../dev/host/host.sh"
exec "$LANCE_PYTHON" -m comfyui_lance.dev.demo "$@"
