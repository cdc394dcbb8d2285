"""The system prompts that Lance was trained with. They are constants of the model, curly apostrophes included."""

TEXT_TO = {
    "image": "Describe the image by detailing the color, quantity, text, shape, size, texture, spatial relationships of the "
             "objects and background:",
    "video": "Describe the video by detailing the color, quantity, visible text, shape, size, texture, spatial relationships "
             "and motion/camera movements of the objects and background:",
}
MODALITIES = tuple(TEXT_TO)
