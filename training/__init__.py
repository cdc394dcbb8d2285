"""How the demonstration model is made: `bash scripts/train_nano.sh`.

ComfyUI looks at its settings when its modules are imported, so they are made here.
"""

import torch
from comfy.cli_args import args

args.cpu = args.cpu or not torch.cuda.is_available()
args.use_pytorch_cross_attention = True
