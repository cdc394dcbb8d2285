"""Guidance and patches of ComfyUI's own nodes: each does what it says, or one sentence says why it does not."""

import comfy.controlnet
import pytest
import torch
from comfy_extras.nodes_edit_model import ReferenceLatent
from comfy_extras.nodes_flux import FluxGuidance
from comfy_extras.nodes_hypertile import HyperTile
from comfy_extras.nodes_ip2p import InstructPixToPixConditioning
from comfy_extras.nodes_lumina2 import RenormCFG
from comfy_extras.nodes_model_downscale import PatchModelAddDownscale
from comfy_extras.nodes_nag import NAGuidance
from comfy_extras.nodes_pag import PerturbedAttentionGuidance
from comfy_extras.nodes_sag import SelfAttentionGuidance
from comfy_extras.nodes_slg import SkipLayerGuidanceDiT, SkipLayerGuidanceDiTSimple
from comfy_extras.nodes_tomesd import TomePatchModel
from comfyui_lance.lance_model import diffusion
from support.sampling import ksample, relative, sample, schedule

import nodes


def branches(model) -> tuple[object, list]:
    """The model, and a list that gets noise level, cond and uncond predictions of each step."""
    model, seen = model.clone(), []

    def note(args):
        seen.append((float(args["sigma"][0]), *args["conds_out"]))
        return args["conds_out"]

    model.set_model_sampler_pre_cfg_function(note)
    return model, seen


def test_an_unconditional_branch_alone_is_computed_at_every_noise_level(lance, pair, noise):
    skipping = SkipLayerGuidanceDiTSimple.execute(lance[0], 0.0, 1.0, "1", "").result[0]
    model, seen = branches(skipping)
    ksample(model, noise, pair, 8)
    assert min(sigma for sigma, *_ in seen) < 0.4
    for _, cond, uncond in seen:
        assert uncond.abs().max() > 0.1 and relative(uncond, cond) > 1e-4


def test_skip_layer_guidance_changes_the_picture(lance, pair, noise):
    plain = ksample(lance[0], noise, pair, 4)
    for model in (
        SkipLayerGuidanceDiTSimple.execute(lance[0], 0.0, 1.0, "1", "").result[0],
        SkipLayerGuidanceDiT.execute(lance[0], 3.0, 0.0, 1.0, "1", "").result[0],
    ):
        assert relative(ksample(model, noise, pair, 4), plain) > 1e-3


def test_renorm_cfg_limits_the_norm_of_what_is_predicted(lance, pair, noise):
    model = RenormCFG.execute(lance[0], 100.0, 1.0).result[0]
    model, seen = branches(model)
    guided = []
    model.set_model_sampler_post_cfg_function(lambda args: guided.append(args["denoised"]) or args["denoised"])
    assert relative(ksample(model, noise, pair, 4), ksample(lance[0], noise, pair, 4)) > 1e-4
    for (_, cond, uncond), result in zip(seen, guided):
        expected = uncond + 4 * (cond - uncond)
        expected *= min(1.0, float(cond.norm() / expected.norm()))
        assert torch.allclose(result, expected, atol=1e-4)


def test_renorm_cfg_leaves_guidance_out_above_its_limit(lance, pair, noise):
    never = RenormCFG.execute(lance[0], 0.0, 1.0).result[0]
    assert torch.allclose(ksample(never, noise, pair, 4), ksample(lance[0], noise, pair, 4, cfg=1.0), atol=1e-4)


class NoControl(comfy.controlnet.ControlBase):
    """A ControlNet without a model."""

    def copy(self):
        return NoControl()


def with_boxes(conditioning, model):
    return [[c, values | {"gligen": ("position", model, [])}] for c, values in conditioning]


@pytest.mark.parametrize(
    ("add", "says"),
    [
        (
            lambda c, model, vae: ReferenceLatent.execute(c, {"samples": torch.zeros(1, 48, 1, 4, 6)}).result[0],
            "Encode Ref",
        ),
        (lambda c, model, vae: FluxGuidance.execute(c, 3.5).result[0], "set CFG in the sampler"),
        (
            lambda c, model, vae: InstructPixToPixConditioning.execute(c, c, torch.rand(1, 64, 96, 3), vae).result[0],
            "Use Lance Encode Image Edit",
        ),
        (lambda c, model, vae: nodes.unCLIPConditioning().apply_adm(c, object(), 1.0, 0.0)[0], "unCLIP"),
        (
            lambda c, model, vae: nodes.ControlNetApply().apply_controlnet(
                c, NoControl(), torch.rand(1, 64, 96, 3), 1.0
            )[0],
            "Co",
        ),
        (lambda c, model, vae: with_boxes(c, model), "GLIGEN"),
    ],
)
def test_what_lance_does_not_read_is_said(add, says, lance, pair, noise):
    with pytest.raises(ValueError, match=f"Lance does not read .*{says}"):
        ksample(lance[0], noise, (add(pair[0], lance[0], lance[2]), pair[1]), 1)


def test_inpainting_conditioning_works_with_its_mask(lance, pair):
    mask = torch.zeros(1, 64, 96)
    mask[:, :, 48:] = 1
    picture = torch.rand(1, 64, 96, 3)
    positive, negative, latent = nodes.InpaintModelConditioning().encode(*pair, picture, lance[2], mask)
    kept = lance[0].get_model_object("latent_format").process_in(latent["samples"])
    start, sigmas = torch.randn_like(kept), schedule(2, 3.5)
    out = sample(lance[0], positive, negative, start, sigmas, latent=kept, mask=latent["noise_mask"])
    assert torch.allclose(out[..., :2], kept[..., :2], atol=1e-4)
    without = nodes.InpaintModelConditioning().encode(*pair, picture, lance[2], mask, noise_mask=False)
    with pytest.raises(ValueError, match="Lance does not read a picture beside the noise"):
        ksample(lance[0], start, without[:2], 1)


# Patches of attention


def patched(model, **its):
    model = model.clone()
    for name, patch in its.items():
        model.set_model_patch(patch, name)
    return model


def unchanged(q, k, v, pe, attn_mask, extra_options):
    return {"q": q, "k": k, "v": v, "pe": pe, "attn_mask": attn_mask}


def test_patches_see_the_targets_tokens_in_every_layer(lance, pair, noise):
    seen = []

    def before(q, k, v, pe, attn_mask, extra_options):
        seen.append((extra_options["block_index"], *(tuple(x.shape) for x in (q, k, v)), extra_options["img_slice"]))
        return {}

    def after(out, extra_options):
        seen.append((tuple(out.shape), extra_options["cond_or_uncond"], extra_options["img_slice"]))
        return out

    out = ksample(patched(lance[0], attn1_patch=before, attn1_output_patch=after), noise, pair, 1)
    assert torch.allclose(out, ksample(lance[0], noise, pair, 1), atol=1e-5)
    layer = lance[0].model.diffusion_model.layers[0].self_attn
    q, k = ((2, heads, 26, layer.head_dim) for heads in (layer.heads, layer.kv_heads))
    expected = []
    for i in range(len(lance[0].model.diffusion_model.layers)):
        expected += [(i, q, k, k, [2, 26]), ((2, 26, layer.heads * layer.head_dim), [0, 1], [2, 26])]
    assert seen == expected


def test_what_patches_return_is_used(lance, pair, noise):
    plain = ksample(patched(lance[0], attn1_patch=unchanged), noise, pair, 2)
    assert torch.allclose(plain, ksample(lance[0], noise, pair, 2), atol=1e-5)
    for name in "qkv":
        changed = patched(
            lance[0], attn1_patch=lambda q, k, v, name=name, **_: {name: 0 * {"q": q, "k": k, "v": v}[name]}
        )
        assert relative(ksample(changed, noise, pair, 2), plain) > 1e-3, name
    halved = patched(lance[0], attn1_output_patch=lambda out, extra_options: out / 2)
    assert relative(ksample(halved, noise, pair, 2), plain) > 1e-3


@pytest.mark.parametrize("one_pass", [diffusion.ONE_PASS, 0])
def test_normalised_attention_guidance(one_pass, lance, pair, noise, monkeypatch):
    """Compares the branches, so both go through the model together even where they are too large for that."""
    monkeypatch.setattr(diffusion, "ONE_PASS", one_pass)
    plain = ksample(lance[0], noise, pair, 4, cfg=1.0)
    none, some = (NAGuidance.execute(lance[0], 5.0, alpha, 1.5).result[0] for alpha in (0.0, 0.5))
    assert torch.allclose(ksample(none, noise, pair, 4, cfg=1.0), plain, atol=1e-4)
    assert relative(ksample(some, noise, pair, 4, cfg=1.0), plain) > 1e-2


def test_perturbed_attention_is_each_tokens_own_value_in_the_middle_layer(lance, pair, noise):
    model = PerturbedAttentionGuidance.execute(lance[0], 1.5).result[0]
    middle, tokens = len(lance[0].model.diffusion_model.layers) // 2, 26
    perturbed = lance[0].clone()

    def own_values(attention, q, k, v, heads, *args, transformer_options, **kwargs):
        out = attention(q, k, v, heads, *args, transformer_options=transformer_options, **kwargs)
        if transformer_options.get("block_index") != middle:
            return out
        own = v[:, :, -tokens:].repeat_interleave(heads // v.shape[1], dim=1)[:, :, -out.shape[1] :]
        return own.transpose(1, 2).flatten(2)

    # Where `block_index` is missing the context is computed, once.
    perturbed.model_options["transformer_options"]["optimized_attention_override"] = own_values
    levels = torch.tensor([0.9, 0.3])  # the last step alone gives the prediction itself
    predictions = [ksample(m, noise, pair, cfg=1.0, sigmas=levels, steps=1) for m in (lance[0], perturbed, model)]
    plain, other, guided = predictions
    assert relative(other, plain) > 1e-3
    assert torch.allclose(guided, plain + 1.5 * (plain - other), atol=1e-4)


@pytest.mark.parametrize(
    "patch",
    [
        lambda m: HyperTile.execute(m, 256, 2, 0, False)[0],
        lambda m: TomePatchModel.execute(m, 0.3).result[0],
        lambda m: patched(m, output_block_patch=lambda h, hsp, options: (h, hsp)),
        lambda m: PatchModelAddDownscale.execute(m, 3, 2.0, 0.0, 0.35, True, "bicubic", "bicubic").result[0],
        lambda m: SelfAttentionGuidance.execute(m, 0.5, 2.0).result[0],
        lambda m: patched(m, post_input=lambda args: args),
        lambda m: patched(m, attn2_patch=unchanged),
        lambda m: patched(m, double_block=lambda args: args),
    ],
)
def test_patches_that_nothing_would_call_are_refused(patch, lance, pair, noise):
    with pytest.raises(ValueError, match="in a place that other models have and Lance does not"):
        ksample(patch(lance[0]), noise, pair, 1)


def test_masks_of_attention_are_refused(lance, pair, noise):
    masking = patched(lance[0], attn1_patch=lambda q, k, v, **_: {"attn_mask": torch.ones(1, 1, 26, 26)})
    with pytest.raises(ValueError, match="masks the model's attention"):
        ksample(masking, noise, pair, 1)


@pytest.mark.parametrize("layers", [("7, 8, 9", ""), ("", "0")])
def test_skipping_layers_that_are_not_there_is_refused(layers, lance, pair, noise):
    model = SkipLayerGuidanceDiTSimple.execute(lance[0], 0.0, 1.0, *layers).result[0]
    with pytest.raises(ValueError, match="double_layers 0 to 2"):
        ksample(model, noise, pair, 1)
