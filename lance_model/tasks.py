"""The system prompts that Lance was trained with. They are constants of the model, curly apostrophes included."""

MODALITIES = ("image", "video")

TEXT_TO = {
    "image": "Describe the image by detailing the color, quantity, text, shape, size, texture, "
    "spatial relationships of the objects and background:",
    "video": "Describe the video by detailing the color, quantity, visible text, shape, size, texture, "
    "spatial relationships and motion/camera movements of the objects and background:",
}

_EDIT = (
    "Describe the key features of the input {m} (color, shape, size, texture, objects, background), "
    "then explain how the user’s text instruction should alter or modify the {m}. "
    "Generate a new {m} that meets the user’s requirements while maintaining consistency with the original input "
    "where appropriate."
)
EDIT = {m: _EDIT.format(m=m) for m in MODALITIES}

_SUBJECT = (
    "Describe the key features of the input image (color, shape, size, texture, objects, background, style), "
    "then incorporate the user’s text description to generate a new {m} that satisfies the user’s requirements "
    "while preserving the essential identity and object or style information from the reference input."
)
SUBJECT = {m: _SUBJECT.format(m=m) for m in MODALITIES}

QUESTION = {
    "image": "Look at the image carefully and answer the question.",
    "video": "Watch the video carefully and answer the question.",
}

CAPTION = {
    "accurate": "Generate a detailed and accurate description of the {m}, "
    "including all the key moments and visual details.",
    "in depth": "Write an in-depth depiction of the {m}, covering all its aspects.",
    "exhaustive": "Write an exhaustive depiction of the given {m}, capturing its essence and key moments.",
    "key features": "Describe the key features of the input {m}, "
    "including color, shape, size, texture, objects, background.",
}

ASSISTANT = "You are a helpful assistant."

# Not of the training: how a short idea is written out.
REWRITE = (
    "You write prompts for a text-to-video model. Rewrite the user's short idea as one long, concrete, cinematic "
    "description in English: the subject and its look, the setting, light and colours, what moves and how, and the "
    "camera. Keep everything that the user asked for, add nothing that contradicts it, and answer with the description "
    "alone."
)
