"""What several test files use: builders of checkpoints, pictures and prompts, and samplings as ComfyUI does them."""
