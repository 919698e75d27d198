"""The map of codes: which features and codes it shows, the usage beside them, the embedding."""

import numpy as np
import pytest
import torch
from test_tokenizer_model import tokenizer, uint8_images

from fvq.evaluate.image_sets import TensorImages
from fvq.experiments import code_map
from fvq.experiments.code_map import map_codes
from fvq.quantize.finite_scalar import FiniteScalarQuantizer
from fvq.quantize.usage import usage_ceiling

IMAGES = uint8_images(count=7)  # 16 tokens each
IMAGE_SET = TensorImages(IMAGES, "images")


@pytest.fixture
def flat(monkeypatch):
    """The first two dimensions in place of the embedding."""
    monkeypatch.setattr(code_map, "_embed", lambda points, seed: points[:, :2].numpy())


def features_of(model):
    """(112, 2)"""
    with torch.no_grad():
        z = model.to_codes(model.encoder(IMAGES / 127.5 - 1))
    return z.movedim(1, -1).reshape(-1, 8)[:, :2].numpy()


@pytest.mark.parametrize("quantizer", ["vq", "linear", "fvq"])
def test_features_codes_and_usage(flat, quantizer):
    model = tokenizer(quantizer)
    drawn = map_codes({"row": model}, IMAGE_SET, features=1000, codes=1000, seed=0)["row"]
    np.testing.assert_allclose(drawn.feature_xy, features_of(model), atol=1e-5)
    assert np.array_equal(drawn.code_xy, model.quantizer.mapped_codebook()[:, :2].detach().numpy())
    chosen = model.encode(IMAGES / 127.5 - 1).unique().tolist()
    assert np.flatnonzero(drawn.code_used).tolist() == chosen
    assert 1 < len(chosen) < 64
    assert drawn.usage == len(chosen) / 64
    assert drawn.tokens == 7 * 16
    assert drawn.ceiling == usage_ceiling(112, 64)


def test_draws(flat):
    model = tokenizer("linear")
    whole = map_codes({"row": model}, IMAGE_SET, features=1000, codes=1000, seed=0)["row"]
    drawn = map_codes({"row": model}, IMAGE_SET, features=20, codes=30, seed=0)["row"]
    assert drawn.feature_xy.shape == (20, 2)
    assert drawn.code_xy.shape == (30, 2)
    # Usage is that of all tokens and codes, whatever is shown.
    assert (drawn.usage, drawn.tokens, drawn.ceiling) == (whole.usage, whole.tokens, whole.ceiling)
    used = {tuple(xy): flag for xy, flag in zip(whole.code_xy.tolist(), whole.code_used.tolist(), strict=True)}
    assert [used[tuple(xy)] for xy in drawn.code_xy.tolist()] == drawn.code_used.tolist()
    assert len({tuple(xy) for xy in drawn.code_xy.tolist()}) == 30
    other = map_codes({"row": model}, IMAGE_SET, features=20, codes=30, seed=1)["row"]
    assert not np.array_equal(drawn.code_xy, other.code_xy)
    assert not np.array_equal(drawn.feature_xy, other.feature_xy)


def test_tokenizers_show_the_same_places(flat, monkeypatch):
    models = {"a": tokenizer("vq"), "b": tokenizer("linear", seed=1)}
    monkeypatch.setattr(code_map, "_BATCH", 3)  # the places lie in several batches
    maps = map_codes(models, IMAGE_SET, features=20, codes=20, seed=0)
    assert list(maps) == ["a", "b"]
    places = {}
    for name, model in models.items():
        apart = np.abs(features_of(model)[None] - maps[name].feature_xy[:, None]).max(2)
        places[name] = apart.argmin(1).tolist()
        assert apart.min(1).max() < 1e-5
    assert places["a"] == places["b"]
    assert len({place // 16 for place in places["a"]}) > 3


def test_the_embedding_follows_from_the_seed():
    model = tokenizer("fvq")
    random_state = torch.get_rng_state()
    first, again = (map_codes({"fvq": model}, IMAGE_SET, features=40, codes=40, seed=3)["fvq"] for _ in range(2))
    assert torch.equal(torch.get_rng_state(), random_state)
    assert np.array_equal(first.feature_xy, again.feature_xy)
    assert np.array_equal(first.code_xy, again.code_xy)
    for xy in (first.feature_xy, first.code_xy):
        assert xy.shape == (40, 2)
        assert xy.dtype == np.float32
        assert np.isfinite(xy).all()


def test_neighbours_stay_neighbours():
    """Two far groups of points are two groups on the map."""
    random = torch.Generator().manual_seed(0)
    points = torch.randn(80, 8, generator=random)
    points[40:] += 30
    xy = code_map._embed(points, 0)
    near, far = np.linalg.norm(xy - xy[:40].mean(0), axis=1), np.linalg.norm(xy - xy[40:].mean(0), axis=1)
    assert ((near < far) == (np.arange(80) < 40)).all()


@pytest.mark.parametrize(
    ("features", "codes", "message"),
    [
        (0, 30, "features and codes must be at least 1, not 0 and 30"),
        (30, -1, "features and codes must be at least 1, not 30 and -1"),
        (20, 10, "row: a map needs more than 30 features and codes together, not 30"),
    ],
)
def test_refusals(features, codes, message):
    with pytest.raises(ValueError, match=message):
        map_codes({"row": tokenizer("vq")}, IMAGE_SET, features=features, codes=codes, seed=0)


def test_a_quantizer_without_codes():
    model = tokenizer("vq")
    model.quantizer = FiniteScalarQuantizer(25, 2, levels=(5, 5))
    with pytest.raises(ValueError, match=r"row: a map needs mapped codes \(CodebookQuantizer\), not FiniteScalar"):
        map_codes({"row": model}, IMAGE_SET, features=40, codes=40, seed=0)
