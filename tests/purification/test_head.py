"""PurificationHead against the published vectors."""

import pytest
import torch

from freecp_d2 import ops, transfers
from freecp_d2.clip import DenseFeatures
from freecp_d2.purification import NonFiniteInput, PurificationHead, stages
from freecp_d2.purification import head as head_module

WHOLE = ("maskclip", "sclip", "clearclip", "gem", "clearclip_background")


def head(case: dict, **options) -> PurificationHead:
    return PurificationHead(
        case["redundancy_threshold"], case["ambiguity_threshold"], case["num_background"], **options
    )


@pytest.fixture
def run(encoder, inputs, cases):
    """The head's result on a case, with options."""

    def purify(name: str, **options):
        clip = encoder(name)
        image = inputs["image"]
        return head(cases[name], **options)(
            image, clip(image), inputs["text"], inputs["descriptions"], clip
        )

    return purify


@pytest.mark.parametrize("name", WHOLE)
def test_every_stage_is_the_published(name, run, vectors):
    result, expected = run(name), vectors(name)
    num_background = expected["probabilities"].shape[1] - result.refined.shape[1]
    torch.testing.assert_close(result.probabilities, expected["probabilities"], atol=1e-5, rtol=0)
    refined = expected["refined"][:, num_background:]
    torch.testing.assert_close(result.refined, refined, atol=1e-4, rtol=0)
    torch.testing.assert_close(result.consistency[0], expected["consistency"], atol=1e-5, rtol=0)
    for kept, key in ((result.kept_redundancy, "kept_redundancy"), (result.kept, "kept")):
        assert kept[0].nonzero()[:, 0].tolist() == expected[key].tolist()
    maps = refined * result.kept[..., None, None]
    torch.testing.assert_close(result.maps, maps, atol=1e-4, rtol=0)


def test_windows_of_a_batch_do_not_meet(encoder, inputs, cases):
    clip, case = encoder("clearclip"), cases["clearclip"]
    image = inputs["image"]
    batch = torch.cat([image, image.flip(3), image.flip(2) * 0.5])
    text, descriptions = inputs["text"], inputs["descriptions"]
    together = head(case)(batch, clip(batch), text, descriptions, clip)
    for i, window in enumerate(batch):
        alone = head(case)(window[None], clip(window[None]), text, descriptions, clip)
        assert together.kept[i].equal(alone.kept[0])
        torch.testing.assert_close(together.maps[i], alone.maps[0], atol=1e-5, rtol=0)


def test_crops_of_all_windows_go_through_clip_together(encoder, inputs, cases, monkeypatch):
    clip, case = encoder("clearclip"), cases["clearclip"]
    batch = torch.cat([inputs["image"], inputs["image"].flip(3)])
    features = clip(batch)
    sizes = []
    encode = clip.encode_cls
    monkeypatch.setattr(clip, "encode_cls", lambda x: sizes.append(tuple(x.shape)) or encode(x))
    arguments = (batch, features, inputs["text"], inputs["descriptions"], clip)
    whole = head(case)(*arguments)
    assert len(sizes) == 1 and sizes[0][0] > 4 and sizes[0][1:] == (3, 112, 112)
    count = sizes.pop()[0]
    split = head(case, crop_batch_size=2)(*arguments)
    assert len(sizes) == -(-count // 2)
    assert whole.kept.equal(split.kept)


def test_consistency_may_be_the_papers(run, cases):
    code, paper = run("maskclip"), run("maskclip", consistency="paper")
    assert paper.refined.equal(code.refined) and (paper.consistency > code.consistency).all()
    threshold = cases["maskclip"]["redundancy_threshold"]
    assert paper.kept_redundancy.equal(paper.consistency > threshold)
    with pytest.raises(ValueError, match="MODEL.FREECP.CONSISTENCY is 'iou'; choose one of code"):
        run("maskclip", consistency="iou")


def test_each_stage_can_be_switched_off(run):
    both, without_ambiguity = run("maskclip"), run("maskclip", ambiguity=False)
    assert without_ambiguity.kept.equal(both.kept_redundancy)
    assert not both.kept.equal(both.kept_redundancy)
    without_redundancy = run("maskclip", redundancy=False)
    assert without_redundancy.kept_redundancy.all() and not without_redundancy.kept.all()
    assert without_ambiguity.beaten_by.eq(-1).all() and both.beaten_by.ge(0).any()
    neither = run("maskclip", redundancy=False, ambiguity=False)
    assert neither.kept.all() and neither.maps.equal(neither.refined)


def test_full_extent_changes_boxes_at_the_edge(run):
    assert not run("clearclip").refined.equal(run("clearclip", box_full_extent=True).refined)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"redundancy_threshold": float("nan")}, "REDUNDANCY_THRESHOLD is nan; give a number from"),
        ({"redundancy_threshold": -1.0}, "REDUNDANCY_THRESHOLD is -1.0"),
        ({"redundancy_threshold": True}, "REDUNDANCY_THRESHOLD is True"),
        ({"redundancy_threshold": "0.5"}, "REDUNDANCY_THRESHOLD is 0.5; give a number"),
        ({"ambiguity_threshold": float("inf")}, "AMBIGUITY_THRESHOLD is inf"),
        ({"ambiguity_threshold": 2}, "AMBIGUITY_THRESHOLD is 2"),
        ({"crop_batch_size": 0}, "CROP_BATCH_SIZE is 0; it must be at least 1"),
    ],
)
def test_options_out_of_range_are_named(options, said):
    with pytest.raises(ValueError, match=f"MODEL.FREECP.{said}"):
        PurificationHead(**{"redundancy_threshold": 0.0, "ambiguity_threshold": 1.0, **options})


def test_one_class_alone_is_not_nan(encoder, inputs):
    clip = encoder("clearclip")
    image, one = inputs["image"], inputs["text"][:1]
    result = PurificationHead(0.05, 0.7)(image, clip(image), one, one, clip)
    assert result.maps.isfinite().all() and result.probabilities.eq(1).all()


def test_no_class_is_refused(encoder, inputs):
    clip = encoder("clearclip")
    image, text = inputs["image"], inputs["text"][:3]
    with pytest.raises(ValueError, match="name a class"):
        PurificationHead(0.05, 0.7, 3)(image, clip(image), text, text, clip)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    ("where", "said", "window"),
    [
        ("patches", "in the patch features:", 1),
        ("attention", "in the attention:", 1),
        ("text", "in the text features:", None),
        ("descriptions", "in the description features:", None),
    ],
)
def test_nan_is_refused(where, said, window, value, encoder, inputs):
    clip = encoder("clearclip")
    images = inputs["image"].repeat(2, 1, 1, 1)
    features = clip(images)
    given = {
        "patches": features.patches.clone(),
        "attention": features.attention.clone(),
        "text": inputs["text"].clone(),
        "descriptions": inputs["descriptions"].clone(),
    }
    given[where].flatten()[-5] = value
    broken = DenseFeatures(given["patches"], features.cls, given["attention"], features.grid)
    with pytest.raises(NonFiniteInput, match=said) as caught:
        PurificationHead(0.05, 0.7)(images, broken, given["text"], given["descriptions"], clip)
    assert caught.value.window == window


def test_maps_of_any_model_are_selected_alike(encoder, inputs, cases):
    """`select_maps` of the probabilities that `select` finds is the same selection."""
    clip, case = encoder("clearclip_background"), cases["clearclip_background"]
    features = clip(inputs["image"])
    purification = head(case)
    arguments = (features, inputs["text"], inputs["descriptions"], clip.logit_scale)
    expected, probabilities = purification.select(*arguments)
    candidates = purification.select_maps(probabilities, features.attention)
    for name in ("refined", "consistency", "kept"):
        torch.testing.assert_close(getattr(candidates, name), getattr(expected, name))
    (fetched,) = purification.fetch([candidates])
    kept = fetched.kept
    assert (kept == candidates.kept.numpy()).all() and kept.any() and not kept.all()


def test_batches_come_to_the_host_together(encoder, inputs, cases):
    clip, purification = encoder("clearclip"), head(cases["clearclip"])
    text, descriptions = inputs["text"], inputs["descriptions"]

    def selected(images):
        return purification.select(clip(images), text, descriptions, clip.logit_scale)[0]

    image = inputs["image"]
    batches = [selected(image), selected(torch.cat([image.flip(3), image.flip(2)]))]
    for fetched, candidates in zip(purification.fetch(batches), batches, strict=True):
        assert fetched.kept.dtype == bool and (fetched.kept == candidates.kept.numpy()).all()
        assert (fetched.consistency == candidates.consistency.numpy()).all()
        most = fetched.kept.sum(axis=1).max()
        assert fetched.maps.shape[:2] == (len(fetched.kept), most) and most > 1
        for window, stays in enumerate(fetched.kept):
            maps = candidates.refined[window, stays]
            assert (fetched.maps[window, : len(maps)] == maps.numpy()).all()
            soft_iou = fetched.soft_iou[window, : len(maps), : len(maps)]
            assert (soft_iou == ops.soft_iou(maps).numpy()).all()
    broken = image.clone()
    broken[0, 0, 0, 0] = torch.nan
    with pytest.raises(NonFiniteInput, match="in the patch features:") as caught:
        purification.fetch([*batches, selected(torch.cat([image, broken])), selected(image)])
    assert caught.value.window == 4


@pytest.mark.parametrize(("lacking", "waits"), [(-3, 1), (0, 1), (1, 2), (3, 2)])
def test_where_more_stay_than_are_compared_at_once(lacking, waits, encoder, inputs, monkeypatch):
    """One wait more for all batches, which is said once, and the same as on a CPU."""
    clip, purification = encoder("clearclip"), PurificationHead(0.02, 0.3)
    image, text, descriptions = (inputs[name] for name in ("image", "text", "descriptions"))

    def selected(images):
        return purification.select(clip(images), text, descriptions, clip.logit_scale)[0]

    waited, said, to_host = [], [], transfers.to_host
    monkeypatch.setattr(transfers, "to_host", lambda t: waited.append(t) or to_host(t))
    monkeypatch.setattr(head_module.log, "warning", lambda *message: said.append(message))
    head_module._say_that_more_stay.cache_clear()
    batches = [selected(image), selected(torch.cat([image.flip(3), image.flip(2)]))]
    expected = purification.fetch(batches)
    assert len(waited) == 1 and not said
    most = max(fetched.kept.sum(axis=1).max() for fetched in expected)
    assert 4 < most < len(text)
    monkeypatch.setattr(transfers, "is_accelerator", lambda device: True)
    monkeypatch.setattr(stages, "COMPARED", most - lacking)
    for _ in range(2):
        for fetched, other in zip(purification.fetch(batches), expected, strict=True):
            for window, stays in enumerate(other.kept):
                count = stays.sum()
                assert (fetched.kept[window] == stays).all()
                assert (fetched.maps[window, :count] == other.maps[window, :count]).all()
                matrices = fetched.soft_iou[window], other.soft_iou[window]
                assert (matrices[0][:count, :count] == matrices[1][:count, :count]).all()
    assert len(waited) == 1 + 2 * waits and len(said) == waits - 1


@pytest.mark.parametrize(("ambiguity", "threshold"), [(False, 0.02), (True, 0.999)])
@pytest.mark.parametrize("accelerator", [True, False])
def test_where_nothing_competes(accelerator, ambiguity, threshold, encoder, inputs, monkeypatch):
    """No map comes to the host without the stage, nor on a CPU where no window has two classes."""
    monkeypatch.setattr(transfers, "is_accelerator", lambda device: accelerator)
    clip, purification = encoder("clearclip"), PurificationHead(threshold, 0.3, ambiguity=ambiguity)
    image, text, descriptions = (inputs[name] for name in ("image", "text", "descriptions"))
    candidates, _ = purification.select(clip(image), text, descriptions, clip.logit_scale)
    (fetched,) = purification.fetch([candidates])
    assert fetched.maps.shape[1] == (len(text) if ambiguity and accelerator else 0)
    kept, beaten_by = purification.compete(image, fetched, descriptions, clip)
    assert kept.equal(candidates.kept) and beaten_by.eq(-1).all()
    assert kept.any() != ambiguity


@pytest.mark.parametrize("background", [1, 3, 4])
def test_maps_of_no_class_are_refused(background):
    maps, attention = torch.rand(1, background, 4, 5), torch.rand(1, 20, 20)
    message = f"{background} queries, {background} of them background: name a class"
    with pytest.raises(ValueError, match=message):
        PurificationHead(0.05, 0.7, background).select_maps(maps, attention)
    more = torch.rand(1, background + 1, 4, 5)
    assert PurificationHead(0.05, 0.7, background).select_maps(more, attention).kept.shape == (1, 1)


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("probabilities", "in the probabilities:"),
        ("attention", "in the attention:"),
        ("zero row", "a whole row or column is zero"),
        ("zero column", "a whole row or column is zero"),
    ],
)
def test_maps_with_nan_are_refused(where, said):
    maps, attention = torch.rand(3, 4, 4, 5), torch.rand(3, 20, 20)
    if where == "probabilities":
        maps[1, 2, 3, 4] = torch.nan
    elif where == "attention":
        attention[1, 2, 3] = torch.nan
    else:
        attention[1].select(int(where == "zero column"), 7).zero_()
    with pytest.raises(NonFiniteInput, match=said) as caught:
        purification = PurificationHead(0.05, 0.7)
        purification.fetch([purification.select_maps(maps, attention)])
    assert caught.value.window == 1
