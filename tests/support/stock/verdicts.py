"""What is known of ComfyUI's nodes, by name: everything that the survey cannot tell by itself."""

from __future__ import annotations

ENCODES = "asks the CLIP for the tokens of text encoders that Lance has not"
FITS = "makes a latent in another model's space, into which Lance's does not fit"
SHAPES = "works with shapes in space"
SOUND = "works with sound"
PARTS = "calls a part of another model"

# Fail inside ComfyUI's own code, for these reasons, in one of the versions that were tried.
OTHER_MODELS = {
    "CLIPTextEncodeFlux": ENCODES,
    "CLIPTextEncodeHiDream": ENCODES,
    "CLIPTextEncodeHunyuanDiT": ENCODES,
    "CLIPTextEncodeKandinsky5": ENCODES,
    "CLIPTextEncodeSD3": ENCODES,
    "CLIPTextEncodeSDXL": ENCODES,
    "CosmosImageToVideoLatent": FITS,
    "CosmosPredict2ImageToVideoLatent": FITS,
    "FreeU": "changes the skip connections of a UNet",
    "FreeU_V2": "changes the skip connections of a UNet",
    "HiDreamO1PatchSeamSmoothing": "joins the patches of a model that works on pixels",
    "HunyuanImageToVideo": FITS,
    "HunyuanVideo15ImageToVideo": FITS,
    "HunyuanVideo15SuperResolution": "wants a VAE, which it calls optional, and a picture beside the noise",
    "LTXVAudioVAEDecode": SOUND,
    "LTXVAudioVAEEncode": SOUND,
    "LTXVEmptyLatentAudio": SOUND,
    "LTXVImgToVideo": FITS,
    "LTXVReferenceAudio": SOUND,
    "LTXVSeparateAVLatent": "takes a latent with sound apart",
    "RTDETR_detect": PARTS,
    "SAM3_Detect": PARTS,
    "SAM3_VideoTrack": PARTS,
    "StableCascade_StageC_VAEEncode": "encodes at Stable Cascade's sizes",
    "Trellis2TextureStage": SHAPES,
    "Trellis2UpsampleStage": SHAPES,
    "TripoSplatSamplingPreview": PARTS,
    "VAEDecodeTripoSplat": PARTS,
    "VAEEncodeAudio": SOUND,
    "VaeDecodeShapeTrellis": SHAPES,
    "VaeDecodeStructureTrellis2": SHAPES,
    "WanCameraImageToVideo": FITS,
    "WanFunControlToVideo": FITS,
    "WanPhantomSubjectToVideo": FITS,
    "WanSCAILToVideo": FITS,
    "WanSoundImageToVideo": FITS,
    "WanSoundImageToVideoExtend": FITS,
    "WanVaceToVideo": FITS,
}

# Fail in places inside ComfyUI's own code, for any model whose latents have frames.
LIMITED = {
    "LatentCompositeMasked": "counts 8 pixels a cell where Lance has 16: give half of x and y; leave resize_source off"
}

WEIGHTS = "multiplies weights of other models; Lance's have other names"
READ_BY = "sets a value that only {} reads"
TWO = "acts where prompts with areas, masks or hooks leave room"
DEVICE = "moves it to another device; the picture stays the same"

# Run, and must leave the picture as it is.
UNCHANGED = {
    "CLIPAttentionMultiply": WEIGHTS,
    "CLIPMergeSimple": "between two equal CLIPs there is nothing to choose",
    "CLIPSetLastLayer": "Lance has one text layer to give",
    "CLIPTextEncodeControlnet": READ_BY.format("a ControlNet"),
    "ChromaRadianceOptions": READ_BY.format("Chroma Radiance"),
    "ConditioningAverage": "at full strength it gives the prompt back",
    "ConditioningMultiply": "at 1 it gives the prompt back",
    "ConditioningSetDefaultCombine": TWO,
    "ConditioningStableAudio": READ_BY.format("Stable Audio"),
    "FluxDisableGuidance": "Lance has no guidance in the prompt to switch off",
    "FluxKontextMultiReferenceLatentMethod": READ_BY.format("Flux Kontext"),
    "HiDreamO1PatchSeamSmoothing": "joins the patches of a model that works on pixels",
    "LTXVConditioning": READ_BY.format("LTX-Video"),
    "LTXVCropGuides": "there are no guide frames to crop",
    "LatentCrop": "crops frames and height instead of height and width; crop the picture",
    "ModelComputeDtype": "the number format may change, the picture hardly",
    "MultiGPU_WorkUnits": "shares the work; the picture stays the same",
    "PairConditioningSetDefaultCombine": TWO,
    "ReferenceLatent": "without a latent it does nothing",
    "ReferenceTimbreAudio": "without a latent it does nothing",
    "ResolutionBucket": "sorts training data",
    "SaveLatent": "saves it",
    "ScaleROPE": "at its defaults it does nothing",
    "SeedVR2TemporalMerge": "one chunk is the clip itself",
    "SelectCLIPDevice": DEVICE,
    "SelectModelDevice": DEVICE,
    "SelectVAEDevice": DEVICE,
    "T5TokenizerOptions": READ_BY.format("T5"),
    "UNetCrossAttentionMultiply": WEIGHTS,
    "UNetSelfAttentionMultiply": WEIGHTS,
    "UNetTemporalAttentionMultiply": WEIGHTS,
    "wanBlockSwap": "does nothing; ComfyUI offloads by itself",
}

EMPTY = "gives an empty latent alone; use Empty Lance Latent or Lance Image to Video"
AXES = "takes frames for height and height for width in latents with frames; do it to the picture"
NOISE = "sets the noise schedule of models that were trained otherwise; pictures come out wrong"
DOUBLE = "counts 8 pixels a cell where Lance has 16: the result is twice the size asked for"
MEANINGLESS = "takes the latent for something else, and gives nothing of use"
PLAIN = "encodes the text as a prompt; its other widgets are for another model"

FRAMES = "spreads CFG over frames that are a batch; here CFG becomes min_cfg, and a batch fails"

# Run, and give nothing that Lance should have been asked for.
FOREIGN = {
    "ARVideoI2V": "starts clips of models that go frame by frame; use Lance Image to Video",
    "BerniniConditioning": EMPTY,
    "Kandinsky5ImageToVideo": EMPTY,
    "ModelSamplingContinuousEDM": NOISE,
    "ModelSamplingContinuousV": NOISE,
    "ModelSamplingDiscrete": NOISE,
    "ModelSamplingStableCascade": NOISE,
    "SDTurboScheduler": "makes SD Turbo's noise levels, which are above 1 here",
    "StableCascade_SuperResolutionControlnet": MEANINGLESS,
    "VAEDecodeAudio": MEANINGLESS,
    "VAEDecodeAudioTiled": MEANINGLESS,
    "VAEDecodeHunyuan3D": MEANINGLESS,
    "VideoLinearCFGGuidance": FRAMES,
    "VideoTriangleCFGGuidance": FRAMES,
    "WanDancerVideo": EMPTY,
    "WanImageToVideo": EMPTY,
}

# Work, but not as one would think.
REMARKS = {
    "CLIPMergeAdd": "adds the second one's weights, which is for differences",
    "CLIPMergeSubtract": "subtracts the second one's weights, which is for differences",
    "CLIPTextEncodeLumina2": "sends Lumina's own system prompt along as text",
    "CLIPTextEncodePixArtAlpha": PLAIN,
    "CLIPTextEncodeSDXLRefiner": PLAIN,
    "EasyCache": "not together with LazyCache",
    "LatentBlend": "both latents have to be of one size",
    "LatentComposite": AXES,
    "LatentFlip": AXES,
    "LatentRotate": AXES,
    "LatentUpscale": DOUBLE,
    "LazyCache": "not together with EasyCache",
    "MiniMaxH3SigmaShift": "sets the flow shift; ModelSamplingSD3 says so plainly",
    "ModelMergeAdd": "adds the second one's weights, which is for differences",
    "ModelMergeSubtract": "subtracts the second one's weights, which is for differences",
    "RenormCFG": "one picture at a time: it fails on a batch",
    "TemporalScoreRescaling": "one picture at a time: it fails on a batch",
    "TextEncodeAceStepAudio": PLAIN,
    "TextEncodeAceStepAudio1.5": PLAIN,
    "TextEncodeZImageOmni": PLAIN,
}

# Types that only other models' files give, in words.
NEEDS = {
    "a file": "a file of another model",
    "CLIP_VISION": "a CLIP vision model",
    "CLIP_VISION_OUTPUT": "a CLIP vision model",
    "CONTROL_NET": "a ControlNet",
    "GLIGEN": "a GLIGEN model",
    "LATENT_UPSCALE_MODEL": "another model's latent upscaler",
    "MODEL_PATCH": "another model's patch file",
    "PHOTOMAKER": "PhotoMaker",
    "STYLE_MODEL": "a style model",
}

# Not run, as they take long.
UNTRIED = {"TorchCompileModel": "compiles once; the first picture takes a minute longer"}
