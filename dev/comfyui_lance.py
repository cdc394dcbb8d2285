"""The plugin as a package of this name, whatever its folder is called: `import comfyui_lance.lance_model`.

It is found by having the folder of this file on the path, as `dev/host/host.sh` puts it.
"""

import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
__path__ = [str(REPOSITORY)]
# `python -m` puts the working directory first; were it the repository, its folder `nodes` would hide ComfyUI's module.
sys.path[:] = [path for path in sys.path if Path(path).resolve() != REPOSITORY]
