"""Affinity by another ViT's features: timm's forward pass, brute force, files of weights."""

import math

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer

import freecp_d2.affinity.vit
from freecp_d2.affinity import TimmViT, cosine_affinity, load_vit

MEAN, STD = (122.771, 116.746, 104.094), (68.501, 66.632, 70.323)
DINO_MEAN, DINO_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TINY = "vit_tiny_patch16_dinov3_qkvb"


def dino(patch=8, registers=0) -> VisionTransformer:
    """A small ViT as DINO's (registers 0) and DINOv2's are, with random weights."""
    torch.manual_seed(0)
    vit = VisionTransformer(
        img_size=32,
        patch_size=patch,
        embed_dim=24,
        depth=2,
        num_heads=2,
        num_classes=0,
        reg_tokens=registers,
        no_embed_class=bool(registers),
        init_values=0.5 if registers else None,
        dynamic_img_size=True,
    )
    vit.pretrained_cfg = {"mean": DINO_MEAN, "std": DINO_STD}
    return vit


def dinov3():
    torch.manual_seed(0)
    return timm.create_model(TINY, num_classes=0, dynamic_img_size=True)


def provider(vit, **options) -> TimmViT:
    return TimmViT(vit=vit, pixel_mean=MEAN, pixel_std=STD, **options)


def image_pair(size, count=2):
    """Images as CLIP takes them, and as timm normalises them for a DINO."""
    rng = np.random.default_rng(1)
    image = torch.from_numpy(rng.integers(0, 256, (count, 3, *size)).astype(np.float32))
    of_clip = (image - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    scaled = image / 255 - torch.tensor(DINO_MEAN).view(3, 1, 1)
    return of_clip, scaled / torch.tensor(DINO_STD).view(3, 1, 1)


@pytest.mark.parametrize("build", [dino, lambda: dino(registers=4), dinov3])
@pytest.mark.parametrize("size", [(32, 32), (48, 80)])
def test_features_are_timms_own_of_the_last_block(build, size):
    vit = build().eval()
    of_clip, of_dino = image_pair(size)
    (expected,) = vit.forward_intermediates(
        of_dino, indices=1, norm=True, output_fmt="NCHW", intermediates_only=True
    )
    found = provider(vit).features(of_clip)
    assert found.shape == expected.shape and found.shape[2:] != (1, 1)
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=0)


def test_windows_that_are_no_whole_patches_of_the_vit_are_resampled_to_some():
    features = provider(dino(patch=14)).features(image_pair((48, 64))[0])
    assert features.shape == (2, 24, 3, 5)  # 42 x 70 pixels


def test_pixels_that_fill_no_patch_of_clip_are_not_seen():
    affinity = provider(dino()).of_images([], (16, 16))
    pixels, _ = image_pair((40, 50))
    other = pixels.clone()
    other[:, :, 32:], other[:, :, :, 48:] = 0, 0
    found = affinity([], pixels)
    assert found.shape == (2, 6, 6)
    assert found.equal(affinity([], other))
    other[:, :, 31] = 0
    assert not found.equal(affinity([], other))


def brute_force(features, beta, gamma):
    """Of (D, N), in loops."""
    count = features.shape[1]
    unit = [features[:, i] / features[:, i].norm() for i in range(count)]
    cosine = [[float(a @ b) for b in unit] for a in unit]
    mean = sum(map(sum, cosine)) / count**2
    rows = []
    for i, row in enumerate(cosine):
        kept = [
            math.exp(gamma * (c - beta * mean)) if c >= beta * mean or i == j else 0
            for j, c in enumerate(row)
        ]
        rows.append([value / sum(kept) for value in kept])
    return torch.tensor(rows)


@pytest.mark.parametrize(("beta", "gamma"), [(1.2, 3.0), (0.5, 10.0), (0.0, 1.0)])
def test_the_affinity_is_proxyclips(beta, gamma):
    torch.manual_seed(0)
    features = torch.randn(3, 5, 3, 4) + torch.tensor([0.0, 0.5, 3.0]).view(3, 1, 1, 1)
    found = cosine_affinity(features, (3, 4), beta, gamma)
    for one, expected in zip(features, found, strict=True):
        torch.testing.assert_close(brute_force(one.flatten(1), beta, gamma), expected)
        (alone,) = cosine_affinity(one[None], (3, 4), beta, gamma)
        torch.testing.assert_close(alone, expected, atol=1e-6, rtol=0)
    assert found.dtype == torch.float32 and (found >= 0).all() and (found == 0).any()


def test_equal_features_leave_every_patch_to_itself():
    """The mean of their cosines is 1, and ProxyCLIP's threshold 1.2 times that."""
    affinity = cosine_affinity(torch.ones(1, 4, 2, 3), (2, 3))
    assert affinity.equal(torch.eye(6)[None])


def test_features_of_another_grid_are_resampled():
    features = torch.zeros(1, 2, 8, 12)
    features[:, 0, :, :6], features[:, 1, :, 6:] = 1, 1
    affinity = cosine_affinity(features, (4, 6), beta=1.2)[0].view(4, 6, 4, 6)
    assert affinity[:, :2, :, 4:].eq(0).all() and affinity[:, 4:, :, :2].eq(0).all()
    assert affinity[:, :2, :, :2].gt(0).all() and affinity[:, 4:, :, 4:].gt(0).all()
    # Every cell of the finer grid counts.
    spot = torch.zeros(1, 1, 8, 8)
    spot[:, :, 0, 0] = 1
    coarse = torch.nn.functional.interpolate(spot, (2, 2), mode="bilinear", antialias=True)
    assert coarse[0, 0, 0, 0] > 0
    both = torch.cat([spot, 1 - spot], dim=1)
    assert not cosine_affinity(both, (2, 2), 0.0).allclose(torch.full((4, 4), 0.25))


def test_a_batch_is_its_windows_one_by_one():
    affinity = provider(dino()).of_images([], (16, 16))
    pixels, _ = image_pair((48, 64), count=3)
    together = affinity([], pixels)
    for index in range(3):
        alone = affinity([], pixels[index : index + 1])
        torch.testing.assert_close(together[index : index + 1], alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_vit_of_low_precision_gives_float32(dtype):
    pixels, _ = image_pair((32, 32))
    full = provider(dino()).of_images([], (16, 16))([], pixels)
    low = provider(dino().to(dtype)).of_images([], (16, 16))([], pixels)
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, full, atol=0.03, rtol=0)


@pytest.mark.parametrize("wanted", [False, True])
def test_its_products_have_the_precision_of_clips(wanted):
    seen = []
    vit = dino()
    vit.norm.register_forward_pre_hook(
        lambda *_: seen.append(torch.backends.mkldnn.matmul.fp32_precision)
    )
    before = torch.backends.mkldnn.matmul.fp32_precision
    provider(vit, bf16_matmul=wanted).features(image_pair((32, 32))[0])
    assert seen == ["bf16" if wanted else before]
    assert torch.backends.mkldnn.matmul.fp32_precision == before


def test_it_is_frozen_and_stays_in_eval_mode():
    module = provider(dino())
    module.train()
    assert not module.vit.training and not any(p.requires_grad for p in module.parameters())


@pytest.mark.parametrize(
    ("options", "sentence"),
    [({"gamma": 0.0}, "AFFINITY_VIT_GAMMA"), ({"beta": math.nan}, "AFFINITY_VIT_BETA")],
)
def test_options_out_of_range_are_refused(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        provider(dino(), **options)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Files of a ViT's weights."""
    folder, state = tmp_path_factory.mktemp("weights"), dinov3().state_dict()
    save_file(state, folder / "tiny.safetensors")
    torch.save({"model": state}, folder / "tiny.pth")
    state.pop("blocks.3.norm1.weight")
    save_file(state, folder / "less.safetensors")
    (folder / "damaged.safetensors").write_bytes(b"no")
    (folder / "damaged.pth").write_bytes(b"no")
    return folder


@pytest.mark.parametrize("name", ["tiny.safetensors", "tiny.pth"])
def test_weights_are_read_from_a_file(weights, name):
    expected, found = dinov3(), load_vit(TINY, str(weights / name))
    state = found.state_dict()
    assert all(state[key].equal(value) for key, value in expected.state_dict().items())
    pixels, _ = image_pair((48, 80))  # which is not the size that it was trained on
    assert provider(found).features(pixels).equal(provider(expected).features(pixels))


class Code:
    """What a pickle would run."""

    def __reduce__(self):
        return (exec, ("raise SystemExit('it ran')",))


@pytest.mark.parametrize(
    "name", ["less.safetensors", "damaged.safetensors", "damaged.pth", "code.pth"]
)
def test_weights_that_do_not_fit_are_refused(weights, name):
    if name == "code.pth":
        torch.save({"model": Code()}, weights / name)
    with pytest.raises(ValueError, match=f"{name} is damaged, or no state dict of {TINY}") as error:
        load_vit(TINY, str(weights / name))
    assert "\n" not in str(error.value)


def test_weights_that_are_not_there_are_refused(weights):
    with pytest.raises(FileNotFoundError, match="AFFINITY_VIT_WEIGHTS: there is no file"):
        load_vit(TINY, str(weights / "none.pth"))


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("vit_base_patch8_224.dinox", "no model of timm; did you mean .*dino"),
        ("nonsense", "no model of timm; did you mean vit_base_patch8_224.dino?"),
        ("vit_base_patch16_224", "trained on 1000 classes"),
        ("convnext_tiny.dinov3_lvd1689m", "no plain ViT"),
    ],
)
def test_other_models_are_refused(name, sentence):
    with pytest.raises(ValueError, match=sentence):
        load_vit(name)


def test_the_hub_is_asked_for_what_is_not_in_its_cache(monkeypatch, weights):
    module = freecp_d2.affinity.vit
    monkeypatch.setattr(module, "cached_file", lambda repository, names: None)
    monkeypatch.setattr(module, "why_unreachable", lambda url: f"no answer from {url}")
    with pytest.raises(
        FileNotFoundError, match=r"cannot be downloaded \(no answer from .*timm/vit_base_patch8_224"
    ):
        load_vit("vit_base_patch8_224.dino")
    asked = []
    file = weights / "tiny.safetensors"
    monkeypatch.setattr(module, "cached_file", lambda *args: asked.append(args) or file)
    state = load_vit(TINY).state_dict()
    assert (
        asked[0][0] == f"timm/{TINY}.eupe_lvd1689m" and state.keys() == dinov3().state_dict().keys()
    )
    assert state["norm.weight"].equal(dinov3().state_dict()["norm.weight"])
