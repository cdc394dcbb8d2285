#!/usr/bin/env bash
# Makes again what the repository holds of pictures and graphs, by the demonstration model in a real ComfyUI. Look at the result.
#
#   bash scripts/draw.sh workflows [NAME …] [--screenshots DIR]   workflows/, api/ and their previews, in the page in Chromium
#   bash scripts/draw.sh blueprints [TITLE …] [--screenshots DIR] subgraphs/, made and tried in the page
#   bash scripts/draw.sh inputs                                   api/input: the pictures and the clip that they load
#   bash scripts/draw.sh gallery                                  docs/demonstration.png and the help pages' pictures
#   bash scripts/draw.sh registry                                 docs/icon.png, docs/banner.png
set -euo pipefail
source "$(dirname "$0")/../dev/host/host.sh"
what=${1:-}
case "$what" in
    workflows | blueprints | inputs | gallery | registry) ;;
    *) fail "Say what to draw: workflows, blueprints, inputs, gallery or registry." ;;
esac
shift
exec "$LANCE_PYTHON" -m "comfyui_lance.dev.authoring.$what" "$@"
