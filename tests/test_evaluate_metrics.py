"""The figures of generators, against the published formulas written out; and what is refused or left out."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
from numpy.typing import NDArray
from tiny_extractor import TinyExtractor, random_images

from fvq.evaluate.evaluation import Evaluation, Options
from fvq.evaluate.frechet import feature_statistics
from fvq.evaluate.generator_metrics import evaluate_samples
from fvq.evaluate.image_sets import TensorImages
from fvq.evaluate.kid import kernel_distance
from fvq.evaluate.neighbours import neighbour_figures
from fvq.evaluate.networks.pretrained import PUBLISHED
from fvq.evaluate.preparation import Preparation
from fvq.evaluate.protocols import PROTOCOLS, check_count
from fvq.evaluate.record import OF_NEIGHBOURS, check_record
from fvq.evaluate.sides import Side, open_side
from fvq.evaluate.statistics_file import StoredStatistics, write_statistics
from fvq.evaluate.uncertainty import extrapolate, half_spread
from fvq.runtime.errors import UserError

ADM, TORCH_FIDELITY = PROTOCOLS["adm"], PROTOCOLS["torch-fidelity"]
ANY = Options(allow_count=True)
Array = NDArray[np.float64]

SAMPLES, REFERENCE = random_images(60, seed=1), (random_images(50, seed=2) * 0.8).byte()


def inception(**changes: object) -> TinyExtractor:
    """What goes by the name of Inception, so that the figures have their published names."""
    return TinyExtractor("inception-2015", **changes)


def side(images: torch.Tensor, name: str = "samples") -> Side:
    return Side(TensorImages(images, name))


def evaluated(
    samples: torch.Tensor | Side = SAMPLES, reference: torch.Tensor | Side = REFERENCE, **changes: object
) -> Evaluation:
    """An evaluation whose record is checked."""
    chosen = {"extractor": inception(), "protocol": ADM, "options": ANY} | changes
    samples = samples if isinstance(samples, Side) else side(samples)
    reference = reference if isinstance(reference, Side) else side(reference, "reference")
    found = evaluate_samples(samples, reference, **chosen)
    assert found is not None
    check_record(found.values, "evaluation")
    return found


def figures(evaluation: Evaluation) -> set[str]:
    return {name for name, value in evaluation.values.items() if not isinstance(value, str)}


# The formulas


def rows(features: torch.Tensor) -> Array:
    return features.numpy().astype(np.float64)


def frechet(first: Array, second: Array) -> float:
    """Heusel et al. 2017, Eq. 6."""
    covariances = np.cov(first, rowvar=False), np.cov(second, rowvar=False)
    root = scipy.linalg.sqrtm(covariances[0] @ covariances[1]).real
    shift = first.mean(axis=0) - second.mean(axis=0)
    return float(shift @ shift + np.trace(covariances[0] + covariances[1] - 2 * root))


def score(logits: Array) -> float:
    """exp of the mean Kullback-Leibler divergence of p(y|x) from p(y)."""
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    return float(np.exp((p * (np.log(p) - np.log(p.mean(axis=0)))).sum(axis=1).mean()))


def share_inside(points: Array, centres: Array, k: int) -> float:
    """The share of points in the ball of some centre, whose radius reaches to its k-th neighbour of the centres."""
    radii = np.sort(np.linalg.norm(centres[:, None] - centres, axis=2), axis=1)[:, k]
    return float((np.linalg.norm(points[:, None] - centres, axis=2) <= radii).any(axis=1).mean())


def test_adm_figures_are_the_published_formulas():
    found = evaluated(reference_words="the second noise")
    samples, reference = (inception()(images, spatial=True) for images in (SAMPLES, REFERENCE))
    features, others = rows(samples.features), rows(reference.features)
    assert figures(found) == {
        *("samples", "fid", "sfid", "inception_score", "inception_score_std", "precision", "recall"),
    }
    values = found.values
    assert values["fid"] == pytest.approx(frechet(features, others), rel=1e-5)
    assert values["sfid"] == pytest.approx(frechet(rows(samples.spatial), rows(reference.spatial)), rel=1e-5)
    assert values["inception_score"] == pytest.approx(score(rows(samples.logits)), rel=1e-5)
    assert values["inception_score_std"] == 0 and not found.notes and not found.errors
    assert values["precision"] == share_inside(features, others, 3) < 1
    assert values["recall"] == share_inside(others, features, 3) < 1
    assert values["precision"] != values["recall"]
    facts = {
        "samples": 60,
        "samples_path": "samples",
        "protocol": "adm",
        "protocol_extractor": "inception-2015",
        "protocol_extractor_sha256": "ab" * 32,
        "protocol_resize": "means of quarters",
        "protocol_preparation": "as stored",
        "protocol_reference": "the second noise",
        "protocol_reference_images": "50",
        "protocol_images": "60",
        "protocol_score": "chunks of 5000 in file order, no bias",
        "protocol_neighbours": "3",
        "protocol_density_neighbours": "none",
        "protocol_neighbours_on": "inception-2015",
        "protocol_neighbours_reference_images": "50",
        "protocol_distances": "exact",
        "protocol_seed": "none",
    }
    assert {name: values[name] for name in facts} == facts


def test_adm_scores_chunks_of_5000_in_the_order_of_the_file():
    images = random_images(10_003, seed=3, size=2).sort(dim=0).values  # the chunks differ
    found = evaluated(images, random_images(40, seed=4, size=2), protocol=replace(ADM, neighbours=None))
    logits = rows(inception()(images).logits)
    scores = [score(logits[start : start + 5000]) for start in (0, 5000, 10_000)]  # the last counts like the others
    assert found.values["inception_score"] == pytest.approx(np.mean(scores), rel=1e-5)
    assert found.values["inception_score_std"] == pytest.approx(np.std(scores), rel=1e-4)
    assert np.std(scores) > 0.01 and found.values["protocol_neighbours"] == "none"


def test_torch_fidelitys_score_is_shuffled_and_its_neighbours_are_on_vgg16():
    vgg16 = TinyExtractor("vgg16", dimension=12, classes=0, spatial=0, weights_sha256="cd" * 32)
    found = evaluated(protocol=TORCH_FIDELITY, neighbour_extractor=vgg16)
    features, others = (rows(vgg16(images).features) for images in (SAMPLES, REFERENCE))
    assert found.values["precision_vgg16"] == share_inside(features, others, 3) < 1
    assert found.values["recall_vgg16"] == share_inside(others, features, 3) < 1
    assert found.values["protocol_neighbours_sha256"] == "cd" * 32
    assert found.values["protocol_neighbours_on"] == "vgg16"
    shuffled = rows(inception()(SAMPLES).logits)[np.random.RandomState(2020).permutation(60)]
    scores = [score(split) for split in np.split(shuffled, 10)]
    assert found.values["inception_score"] == pytest.approx(np.mean(scores), rel=1e-5)
    assert found.values["inception_score_std"] == pytest.approx(np.std(scores), rel=1e-4)
    assert found.values["protocol_seed"] == "shuffle 2020" and not found.notes
    assert figures(found) == {
        *("samples", "fid", "inception_score", "inception_score_std", "precision_vgg16", "recall_vgg16"),
    }


def test_without_vgg16_precision_is_left_out_and_that_is_said():
    found = evaluated(protocol=TORCH_FIDELITY)
    (note,) = found.notes
    file = PUBLISHED["vgg16"][0]
    assert note.startswith(f"no precision and recall: the network vgg16 is not there: {file.name} (553,433,881 bytes, ")
    assert f"SHA-256 {file.sha256}" in note and "$FVQ_WEIGHTS" in note and "fvq doctor --fetch vgg16" in note
    assert {found.values[field] for field in OF_NEIGHBOURS} == {"none"}
    assert figures(found) == {"samples", "fid", "inception_score", "inception_score_std"}


def test_pytorch_fid_has_its_distance_alone():
    found = evaluated(protocol=PROTOCOLS["pytorch-fid"])
    assert figures(found) == {"samples", "fid"} and not found.notes
    assert found.values["protocol_score"] == "none"
    assert found.values["fid"] == evaluated().values["fid"]


@pytest.mark.parametrize("spatial", [0, 6])
def test_another_networks_figures_bear_its_name(spatial):
    found = evaluated(extractor=TinyExtractor("photos", spatial=spatial), protocol=TORCH_FIDELITY)
    assert {"fd_photos", "is_photos", "is_photos_std", "precision", "recall"} < figures(found)
    found = evaluated(extractor=TinyExtractor("photos", spatial=spatial))
    assert {"fd_photos", "is_photos", "is_photos_std", "precision", "recall"} < figures(found)
    assert not any("fid" in name for name in figures(found)) and not found.notes
    assert found.values["protocol_score"] == "chunks of 5000 in file order"
    classless = evaluated(extractor=TinyExtractor("photos", spatial=0, classes=0))
    assert figures(classless) == {"samples", "fd_photos", "precision", "recall"}
    assert classless.values["protocol_score"] == "none"


def test_a_set_against_itself():
    found = evaluated(REFERENCE, REFERENCE)
    assert found.values["fid"] == pytest.approx(0, abs=1e-6) and found.values["sfid"] == pytest.approx(0, abs=1e-6)
    assert found.values["precision"] == found.values["recall"] == 1


# On request


def test_density_and_coverage_have_their_own_neighbours():
    found = evaluated(options=replace(ANY, density_and_coverage=True))
    features, others = (rows(inception()(images).features) for images in (SAMPLES, REFERENCE))
    radii = np.sort(np.linalg.norm(others[:, None] - others, axis=2), axis=1)[:, 5]
    inside = np.linalg.norm(features[:, None] - others, axis=2) < radii
    assert found.values["density"] == pytest.approx(inside.sum(axis=1).mean() / 5, rel=1e-12)
    assert found.values["coverage"] == inside.any(axis=0).mean()
    assert found.values["protocol_neighbours"] == "3" and found.values["protocol_density_neighbours"] == "5"


def test_float16_distances_are_named():
    found = evaluated(options=replace(ANY, distances="float16"))
    features, others = (inception()(images).features for images in (SAMPLES, REFERENCE))
    expected = neighbour_figures(features, others, distances="float16")
    assert found.values["precision_float16"] == expected.precision
    assert found.values["recall_float16"] == expected.recall
    assert not {"precision", "recall"} & figures(found) and found.values["protocol_distances"] == "float16"


def test_float16_distances_of_nothing_are_refused(tmp_path):
    options, told = replace(ANY, distances="float16"), "precision and recall in float16 cannot be measured: "
    with pytest.raises(UserError, match=f"{told}the network vgg16 is not there"):
        evaluated(protocol=TORCH_FIDELITY, options=options)
    with pytest.raises(UserError, match=f"{told}the protocol pytorch-fid has no neighbours"):
        evaluated(protocol=PROTOCOLS["pytorch-fid"], options=options)
    with pytest.raises(UserError, match=rf"{told}.*bare\.npz holds statistics alone"):
        evaluated(reference=open_side(statistics_of(tmp_path / "bare.npz", REFERENCE)), options=options)


def test_too_few_images_are_told_before_the_pass():
    extractor = inception()
    refused = [
        (SAMPLES, REFERENCE, {"kernel_distance": True}, "samples: .* subsets of 1,000 images, and there are 60"),
        (SAMPLES[:3], REFERENCE, {}, "samples: precision and recall at 3 neighbours need at least 4 images"),
        (SAMPLES, REFERENCE[:3], {}, "reference: precision and recall at 3 neighbours need at least 4 images"),
        (
            *(SAMPLES, REFERENCE[:5], {"density_and_coverage": True}),
            "reference: density and coverage at 5 neighbours need at least 6 images, and there are 5",
        ),
    ]
    for samples, reference, changes, told in refused:
        with pytest.raises(UserError, match=told):
            evaluated(samples, reference, extractor=extractor, options=replace(ANY, **changes))
    assert not extractor.seen


@pytest.mark.parametrize("distances", ["exact", "float16"])
def test_all_that_vgg16_is_asked_is_named_after_it(distances):
    vgg16 = TinyExtractor("vgg16", classes=0, spatial=0)
    options = replace(ANY, density_and_coverage=True, distances=distances)
    found = evaluated(protocol=TORCH_FIDELITY, neighbour_extractor=vgg16, options=options)
    ending = "_float16" if distances == "float16" else ""
    expected = {f"precision_vgg16{ending}", f"recall_vgg16{ending}", "density_vgg16", "coverage_vgg16"}
    assert figures(found) - {"samples", "fid", "inception_score", "inception_score_std"} == expected


def test_the_kernel_distance_is_that_of_the_features():
    samples, reference = random_images(1100, seed=5, size=2), random_images(1000, seed=6, size=2)
    options = replace(ANY, kernel_distance=True)
    found = evaluated(samples, reference, protocol=PROTOCOLS["pytorch-fid"], options=options)
    mean, deviation = kernel_distance(*(inception()(images).features for images in (samples, reference)))
    assert found.values["kid"] == pytest.approx(mean, rel=1e-5) and mean != 0
    assert found.values["kid_std"] == pytest.approx(deviation, rel=1e-5)
    assert found.values["protocol_seed"] == "subsets 2020"
    with pytest.raises(UserError, match="draws subsets of 1,000 images, and there are 999"):
        evaluated(samples[:999], reference, protocol=PROTOCOLS["pytorch-fid"], options=options)


def test_uncertainty_is_that_of_the_samples_against_the_reference(tmp_path):
    samples = random_images(400, seed=7)
    found = evaluated(samples, options=replace(ANY, uncertainty=True, seed=5))
    features, others = (inception()(images).features for images in (samples, REFERENCE))
    gaussian = feature_statistics(others).gaussian
    assert found.values["fid_spread"] == pytest.approx(half_spread(features, gaussian, seed=5), rel=1e-4)
    assert found.values["fid_infinity"] == pytest.approx(extrapolate(features, gaussian, seed=5), rel=1e-4)
    assert found.values["protocol_seed"] == "halves 5" and not found.notes
    other_seed = evaluated(samples, options=replace(ANY, uncertainty=True, seed=6), cache=tmp_path)
    assert other_seed.values["fid"] == found.values["fid"]
    assert other_seed.values["fid_spread"] != found.values["fid_spread"]


def test_what_too_few_images_cannot_tell_is_left_out_and_that_is_said():
    options = replace(ANY, uncertainty=True)
    found = evaluated(options=options)
    assert "fid_spread" in figures(found) and "fid_infinity" not in figures(found)
    assert found.notes == (
        "no fid_infinity: the extrapolation needs at least 320 images for 8 dimensions, and there are 60",
    )
    fewer = evaluated(SAMPLES[:20], options=options)
    assert [note.split(":")[0] for note in fewer.notes] == ["no fid_spread", "no fid_infinity"]


def test_all_at_once_draws_under_named_seeds():
    images = random_images(1000, seed=8, size=2)
    everything = Options(True, True, "float16", True, seed=3, allow_count=True)
    found = evaluated(images, images.flip(0), protocol=TORCH_FIDELITY, extractor=TinyExtractor(), options=everything)
    assert found.values["protocol_seed"] == "shuffle 2020, subsets 2020, halves 3"


# What the two sides may be


def statistics_of(path: Path, images: torch.Tensor, *, spatial: bool = True, **protocol: str) -> Path:
    outputs = inception()(images, spatial=spatial)
    gaussians = [
        None if part is None else feature_statistics(part).gaussian for part in (outputs.features, outputs.spatial)
    ]
    write_statistics(path, StoredStatistics(str(path), "", *gaussians, protocol))
    return path


def adm_archive(path: Path, images: torch.Tensor, of: torch.Tensor, *, spatial: bool = True) -> Path:
    """As ADM's references: some images, and statistics of others."""
    outputs = inception()(of, spatial=True)
    arrays = {"arr_0": images.permute(0, 2, 3, 1).numpy()}
    for ending, part in (("", outputs.features), ("_s", outputs.spatial)):
        if spatial or not ending:
            values = rows(part)
            arrays |= {f"mu{ending}": values.mean(axis=0), f"sigma{ending}": np.cov(values, rowvar=False)}
    np.savez(path, **arrays)
    return path


def test_statistics_stand_for_the_images_that_they_are_of(tmp_path):
    expected = evaluated().values
    path = statistics_of(tmp_path / "reference.npz", REFERENCE)
    found = evaluated(reference=open_side(path))
    for name in ("fid", "sfid", "inception_score"):
        assert found.values[name] == pytest.approx(expected[name], rel=1e-6), name
    assert figures(found) == {"samples", "fid", "sfid", "inception_score", "inception_score_std"}
    assert found.notes == (f"no precision and recall: {path} holds statistics alone",)
    assert found.values["protocol_reference"] == str(path) and found.values["protocol_reference_images"] == "50"
    assert found.values["protocol_neighbours"] == "none"
    uncertain = evaluated(reference=open_side(path), options=replace(ANY, uncertainty=True))
    assert uncertain.values["fid_spread"] > 0

    bare = statistics_of(tmp_path / "bare.npz", REFERENCE, spatial=False)
    found = evaluated(reference=open_side(bare))
    assert "sfid" not in figures(found)
    assert found.notes[1:] == (f"no sFID: {bare} holds no spatial statistics (mu_s, sigma_s)",)


def test_in_adms_archives_distances_are_of_the_statistics_and_neighbours_of_the_images(tmp_path):
    all_images = (random_images(300, seed=9) * 0.8).byte()
    reference = open_side(adm_archive(tmp_path / "VIRTUAL.npz", REFERENCE, all_images))
    found, extractor = evaluated(reference=reference).values, inception()
    alone, whole = evaluated().values, evaluated(reference=all_images).values
    assert found["precision"] == alone["precision"] and found["recall"] == alone["recall"]
    assert found["fid"] == pytest.approx(whole["fid"], rel=1e-6) != pytest.approx(alone["fid"], rel=1e-2)
    assert found["sfid"] == pytest.approx(whole["sfid"], rel=1e-6)
    assert found["protocol_reference_images"] == "not known"
    assert found["protocol_neighbours_reference_images"] == "50"
    assert found["protocol_reference_statistics_sha256"] == reference.statistics.digest
    evaluated(reference=reference, protocol=PROTOCOLS["pytorch-fid"], extractor=extractor)
    assert extractor.seen == 60, "the images of the reference are not needed for a distance"

    without = open_side(adm_archive(tmp_path / "without.npz", REFERENCE, all_images, spatial=False))
    found = evaluated(reference=without)
    assert "sfid" not in figures(found) and found.values["precision"] == alone["precision"]
    assert found.notes == (f"no sFID: {tmp_path / 'without.npz'} holds no spatial statistics (mu_s, sigma_s)",)


def test_statistics_against_statistics(tmp_path):
    samples, reference = (
        open_side(statistics_of(tmp_path / f"{name}.npz", images))
        for name, images in (("samples", SAMPLES), ("reference", REFERENCE))
    )
    extractor = inception()
    found = evaluated(samples, reference, extractor=extractor)
    assert figures(found) == {"samples", "fid", "sfid"} and not extractor.seen
    assert found.values["fid"] == pytest.approx(evaluated().values["fid"], rel=1e-6)
    assert found.notes == (
        f"no Inception Score: {tmp_path / 'samples.npz'} holds statistics alone",
        f"no precision and recall: {tmp_path / 'samples.npz'} holds statistics alone",
    )
    for options, what in (
        ({"kernel_distance": True}, "the kernel distance needs images"),
        ({"uncertainty": True}, "the uncertainty is measured on images"),
        ({"density_and_coverage": True}, "density and coverage cannot be measured"),
    ):
        with pytest.raises(UserError, match=what):
            evaluated(samples, reference, options=replace(ANY, **options))


def test_samples_that_hold_both_are_recorded_as_both(tmp_path):
    others = (random_images(300, seed=9) * 0.8).byte()
    both = open_side(adm_archive(tmp_path / "both.npz", SAMPLES, others))
    reference = open_side(statistics_of(tmp_path / "reference.npz", REFERENCE))
    found = evaluated(both, reference).values
    assert found["fid"] == pytest.approx(evaluated(others).values["fid"], rel=1e-6)
    assert found["inception_score"] == evaluated().values["inception_score"]
    assert found["protocol_images"] == "not known" and found["protocol_images_beside_statistics"] == "60"
    assert found["samples_statistics_sha256"] == both.statistics.digest
    with pytest.raises(UserError, match=r"both\.npz: holds statistics, which distances are of, and the uncertainty"):
        evaluated(both, reference, options=replace(ANY, uncertainty=True))


def test_an_archive_with_statistics_has_both_sides_of_the_size_that_is_wanted(tmp_path):
    images = random_images(5, seed=1, size=8)
    for name, wide in (("square", images), ("wide", images[:, :, :4])):
        adm_archive(tmp_path / f"{name}.npz", wide, SAMPLES)
    assert open_side(tmp_path / "square.npz", Preparation(8)).images.width == 8
    for size in (4, 8):
        with pytest.raises(UserError, match=r"wide\.npz: holds statistics of its images of 8x4 pixels"):
            open_side(tmp_path / "wide.npz", Preparation(size))


def test_foreign_statistics_do_not_say_how_many_images_they_are_of(tmp_path):
    values = rows(inception()(SAMPLES).features)
    np.savez(tmp_path / "foreign.npz", mu=values.mean(axis=0), sigma=np.cov(values, rowvar=False))
    found = evaluated(open_side(tmp_path / "foreign.npz"))
    assert "samples" not in found.values and found.values["protocol_images"] == "not known"
    assert found.values["fid"] == pytest.approx(evaluated().values["fid"], rel=1e-6)


@pytest.mark.parametrize(
    ("protocol", "told"),
    [
        ({"extractor": "vgg16"}, "extractor is 'vgg16', and 'inception-2015' here"),
        ({"extractor_sha256": "00" * 32}, f"extractor_sha256 is '{'00' * 32}', and '{'ab' * 32}' here"),
        ({"resize": "bicubic"}, "resize is 'bicubic', and 'means of quarters' here"),
    ],
)
def test_statistics_of_another_network_are_refused(tmp_path, protocol, told):
    path = statistics_of(tmp_path / "reference.npz", REFERENCE, **protocol)
    with pytest.raises(UserError, match=f"reference.npz: its statistics are of another protocol: {told}"):
        evaluated(reference=open_side(path))
    with pytest.raises(UserError, match="statistics of 8 features, and those of inception-2015 are 7"):
        evaluated(reference=open_side(path), extractor=inception(dimension=7))


def test_sides_that_do_not_go_together_are_refused(tmp_path):
    archive = open_side(adm_archive(tmp_path / "VIRTUAL.npz", REFERENCE, REFERENCE))
    with pytest.raises(UserError, match=r"VIRTUAL\.npz: holds images with the statistics .* are SAMPLES and"):
        evaluated(archive, SAMPLES)
    evaluated(archive, archive)
    with pytest.raises(UserError, match="samples: at least 2 images are needed, and there is 1"):
        evaluated(SAMPLES[:1])
    with pytest.raises(UserError, match="reference: at least 2 images are needed, and there is 1"):
        evaluated(reference=SAMPLES[:1])
    with pytest.raises(UserError, match="samples and reference: images differ in size, 4x4 and 6x4 pixels; --size"):
        evaluated(reference=torch.zeros(5, 3, 4, 6, dtype=torch.uint8))
    with pytest.raises(UserError, match="precision and recall at 3 neighbours need at least 4 images"):
        evaluated(SAMPLES[:3])
    with pytest.raises(
        UserError, match="density and coverage cannot be measured: the protocol pytorch-fid has no neighbours"
    ):
        evaluated(protocol=PROTOCOLS["pytorch-fid"], options=replace(ANY, density_and_coverage=True))


def test_a_published_fid_stands_on_a_published_number_of_images(tmp_path):
    of_sixty = replace(ADM, samples=(60,))
    evaluated(protocol=of_sixty, options=Options())
    with pytest.raises(UserError) as told:
        evaluated(SAMPLES[1:], protocol=of_sixty, options=Options())
    assert str(told.value) == (
        "samples: 59 images, and a published figure of the protocol adm stands on 60; --allow-count (in a "
        "study's parameters allow_count) measures these all the same"
    )
    with pytest.raises(UserError, match=r"\(reference has 60: are SAMPLES and --reference swapped\?\)"):
        evaluated(REFERENCE, SAMPLES, protocol=of_sixty, options=Options())
    evaluated(SAMPLES[1:], protocol=of_sixty)
    fewer, sixty = (
        open_side(statistics_of(tmp_path / f"{len(images)}.npz", images)) for images in (SAMPLES[1:], SAMPLES)
    )
    with pytest.raises(UserError, match=r"59\.npz: 59 images, .* stands on 60.* \(.*60\.npz has 60: are SAMPLES"):
        evaluated(fewer, sixty, protocol=of_sixty, options=Options())
    evaluated(sixty, fewer, protocol=of_sixty, options=Options())
    evaluated(SAMPLES[1:], protocol=of_sixty, extractor=TinyExtractor(), options=Options())
    with pytest.raises(UserError, match=r"s\.npz: 49,999 images, and .* protocol adm stands on 50,000; --allow-count"):
        check_count(49_999, ADM.samples, ADM, "inception-2015", "s.npz")
    with pytest.raises(UserError, match="stands on 50,000 or 5,000"):
        check_count(49_999, ADM.pairs, ADM, "inception-2015", "s.npz")
    check_count(50_000, ADM.samples, ADM, "inception-2015", "s.npz")


def test_the_reference_of_many_samples_is_passed_once(tmp_path):
    first, second = inception(), inception()
    expected = evaluated(extractor=first, cache=tmp_path).values
    assert evaluated(extractor=second, cache=tmp_path).values == expected and not second.seen
    evaluated(SAMPLES.flip(3), extractor=second, cache=tmp_path)
    assert (first.seen, second.seen) == (110, 60)
    assert evaluated().values == expected


def test_all_processes_but_the_first_are_given_nothing(monkeypatch):
    monkeypatch.setattr("fvq.evaluate.generator_metrics.is_first", lambda: False)
    assert evaluate_samples(side(SAMPLES), side(REFERENCE), inception(), ADM, ANY) is None


def test_the_protocol_of_reconstructions_is_none_for_samples():
    with pytest.raises(UserError, match="fvq-released measures reconstructions, and samples have no originals"):
        evaluated(protocol=PROTOCOLS["fvq-released"])
