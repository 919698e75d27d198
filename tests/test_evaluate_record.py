"""Files of evaluations: what is one, and which two may be compared."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from fvq.evaluate.figure_names import (
    density_names,
    distance_name,
    kid_name,
    reconstruction_distance_name,
    score_name,
    share_names,
)
from fvq.evaluate.protocols import PROTOCOLS
from fvq.evaluate.record import SCHEMA, Record, check_record, compare, read_record
from fvq.runtime.errors import UserError

SHA = "0123456789abcdef" * 4
ADM: dict[str, float | int | str] = {
    "fid": 3.94,
    "fid_spread": 0.02,
    "fid_infinity": 3.1,
    "sfid": 6.14,
    "inception_score": 215.8,
    "inception_score_std": 3.4,
    "precision": 0.826,
    "recall": 0.531,
    "samples": 50_000,
    "samples_path": "samples.npz",
    "samples_sha256": "a" * 64,
    "protocol": "adm",
    "protocol_extractor": "inception-2015",
    "protocol_extractor_sha256": SHA,
    "protocol_resize": "TF1 bilinear to 299",
    "protocol_reference": "VIRTUAL_imagenet256_labeled.npz",
    "protocol_reference_sha256": "b" * 64,
    "protocol_reference_images": "10000",
    "protocol_images": "50000",
    "protocol_preparation": "as stored",
    "protocol_score": "chunks of 5000 in file order",
    "protocol_neighbours": "3",
    "protocol_density_neighbours": "5",
    "protocol_neighbours_on": "inception-2015",
    "protocol_neighbours_reference_images": "10000",
    "protocol_distances": "float32",
    "protocol_seed": "halves 0",
    "versions_fvq": "0.1.0",
    "versions_torch": "2.15.0",
    "seed": 0,
}
RECONSTRUCTION = {name: value for name, value in ADM.items() if isinstance(value, str)} | {
    "protocol_score": "none",
    "protocol_neighbours": "none",
    "protocol_density_neighbours": "none",
    "protocol_neighbours_on": "none",
    "protocol_neighbours_reference_images": "none",
    "protocol_distances": "none",
    "protocol_seed": "none",
    "protocol_lpips_alex_sha256": "c" * 64,
    "rfid": 2.2,
    "rfid_spread": 0.01,
    "rfid_jpeg75": 2.1,
    "rfd_dinov2-vit-l14": 31.5,
    "rfd_squeezenet1_0_jpeg75": 40.5,
    "rfd_squeezenet1_0_infinity": -0.1,
    "psnr_rgb": 20.79,
    "psnr_y": 22.36,
    "ssim_g11": 0.6,
    "ssim_g11_dr2": 0.65,
    "ssim_u7": 0.61,
    "ssim_u7_dr2": 0.67,
    "lpips_alex": 0.13,
    "lpips_vgg": 0.2,
    "mse": 0.008,
    "usage": 1.0,
    "usage_codes": 16384,
    "codebook_size": 16384,
    "usage_tokens": 12_800_000,
    "usage_ceiling": 1.0,
    "perplexity": 9000.5,
    "kid": -1e-5,
    "kid_std": 1e-4,
    "precision_vgg16": 0.9,
    "recall_float16": 0.6,
    "density": 1.1,
    "coverage": 0.9,
}
VALIDATOR = Draft202012Validator(SCHEMA)


def write(path: Path, values: Any) -> Path:
    path.write_text(json.dumps(values), encoding="utf-8")
    return path


def record(name: str = "a.json", without: tuple[str, ...] = (), **changes: float | int | str) -> Record:
    return check_record({key: value for key, value in (ADM | changes).items() if key not in without}, name)


def test_the_schema_is_one_and_describes_every_figure():
    Draft202012Validator.check_schema(SCHEMA)
    rules = {**SCHEMA["properties"], **SCHEMA["patternProperties"]}
    assert all(rule["description"] for rule in rules.values())
    assert all(rule["unit"] for rule in rules.values() if rule["type"] != "string")
    assert set(SCHEMA["required"]) < set(SCHEMA["properties"])


@pytest.mark.parametrize("values", [ADM, RECONSTRUCTION])
def test_a_record_is_read_as_it_was_written(tmp_path: Path, values: dict[str, float | int | str]):
    VALIDATOR.validate(values)
    read = read_record(write(tmp_path / "a.json", values))
    assert read.values == values
    assert read.name == str(tmp_path / "a.json")
    assert set(read.protocol) | set(read.figures) < set(values)
    assert not {"samples", "seed", "samples_path"} & set(read.figures)


@pytest.mark.parametrize("extractor", ["inception-2015", "squeezenet1_0", "dinov2-vit-l14", "photos"])
def test_the_names_that_figures_are_given_are_known(extractor: str):
    scores = [score_name(extractor), kid_name(extractor)]
    distances = [distance_name(extractor), *(reconstruction_distance_name(extractor, name) for name in PROTOCOLS)]
    shares = [share_names(extractor, on, kind) for on in (extractor, "vgg16") for kind in ("exact", "float16")]
    pairs = [*shares, *(density_names(extractor, on) for on in (extractor, "vgg16"))]
    values = ADM | dict.fromkeys([*scores, *distances], 2.5) | {f"{name}_std": 0.1 for name in scores}
    values |= {f"{name}_{ending}": 0.1 for name in distances for ending in ("spread", "infinity")}
    values |= {name: 0.5 for pair in pairs for name in pair}
    VALIDATOR.validate(values)
    check_record(values, "a.json")


def test_published_names_are_those_of_inception_alone():
    assert distance_name("inception-2015") == "fid" and distance_name("photos") == "fd_photos"
    assert score_name("inception-2015") == "inception_score" and score_name("photos") == "is_photos"
    assert kid_name("inception-2015") == "kid" and kid_name("squeezenet1_0") == "kd_squeezenet1_0"
    assert reconstruction_distance_name("inception-2015", "fvq-released") == "rfid_jpeg75"
    assert reconstruction_distance_name("photos", "adm") == "rfd_photos"
    assert share_names("inception-2015", "inception-2015", "exact") == ("precision", "recall")
    assert share_names("inception-2015", "vgg16", "float16") == ("precision_vgg16_float16", "recall_vgg16_float16")
    assert density_names("inception-2015", "vgg16") == ("density_vgg16", "coverage_vgg16")


# What a slip of the hand may leave, and what is valid though it looks odd.
MUTATIONS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from(["", "none", "3.94", "NaN", SHA, SHA.upper(), SHA[:-1], [3.94], {"fid": 3.94}, 10**400 // 7]),
)
KEYS = st.sampled_from(
    [
        *(key for key in SCHEMA["properties"]),
        *("fd_photos", "fd_photos_infinity", "rfd_photos", "is_photos", "is_photos_std", "kd_photos", "fd_"),
        *("fid_", "FID", "protocol_new", "protocol_new_sha256", "versions_python", "samples_crop", "note", "protocolx"),
    ]
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(KEYS, MUTATIONS, max_size=2), st.lists(KEYS, max_size=1))
def test_reading_agrees_with_the_schema(changes: dict[str, Any], removed: list[str]):
    """jsonschema judges independently; only a number beyond float64 is refused by reading alone."""
    values = {key: value for key, value in (ADM | changes).items() if key not in removed}
    beyond = any(isinstance(value, int) and abs(value) > 1e308 for value in values.values())
    if VALIDATOR.is_valid(values) and not beyond:
        assert check_record(values, "a.json").values == values
    else:
        with pytest.raises(UserError, match=r"^a\.json: "):
            check_record(values, "a.json")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"fid": "3.94"}, "fid must be a finite number of at least 0, not '3.94'"),
        ({"fid": math.nan}, "fid must be a finite number of at least 0, not nan"),
        ({"fid_infinity": -math.inf}, "fid_infinity must be a finite number, not -inf"),
        ({"fid": True}, "fid must be a finite number of at least 0, not True"),
        ({"fid": None}, "fid must be a finite number of at least 0, not None"),
        ({"precision": 82.6}, "precision must be a finite number of 0 to 1, not 82.6"),
        ({"samples": 1.5}, "samples must be a whole number of at least 1, not 1.5"),
        ({"protocol_images": 50_000}, "protocol_images must be a text, not 50000"),
        ({"protocol_reference_sha256": "b" * 8}, "protocol_reference_sha256 must be 64 hexadecimal digits, not 'bbbb"),
        ({"fdi": 3.94}, "fdi is no known figure, and no field of an evaluation"),
    ],
)
def test_a_damaged_record_is_refused(tmp_path: Path, changes: dict[str, Any], expected: str):
    path = write(tmp_path / "a.json", ADM | changes)
    with pytest.raises(UserError) as caught:
        read_record(path)
    assert str(caught.value).startswith(f"{path}: {expected}")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[1, 2]", "holds no evaluation, which is a mapping"),
        (
            "{}",
            "holds no complete evaluation: lacks protocol, protocol_extractor, protocol_extractor_sha256 and 15 more",
        ),
        ("{", "not valid JSON"),
        ('{"fid": 1e999}', "holds no complete evaluation"),
    ],
)
def test_another_file_is_refused(tmp_path: Path, text: str, expected: str):
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(UserError, match=expected):
        read_record(path)
    with pytest.raises(UserError, match="no such file"):
        read_record(tmp_path / "b.json")


@pytest.mark.parametrize("field", SCHEMA["required"])
def test_every_required_field_is_required(field: str):
    with pytest.raises(UserError, match=rf"a\.json: .* lacks {field}$"):
        record(without=(field,))


def test_figures_of_one_protocol_are_compared():
    rows = {row.figure: row for row in compare(record(), record("b.json", fid=4.0, precision=0.8, usage=1.0))}
    assert list(rows) == ["fid", "fid_infinity", "sfid", "inception_score", "precision", "recall", "usage"]
    assert (rows["fid"].first, rows["fid"].second) == (3.94, 4.0)
    assert rows["fid"].difference == pytest.approx(0.06)
    assert rows["fid"].difference_spread == pytest.approx(0.02 * math.sqrt(2))
    assert rows["fid"].exceeds_spread is True
    assert rows["inception_score"].exceeds_spread is False
    assert rows["precision"].difference == pytest.approx(-0.026)
    assert rows["precision"].exceeds_spread is None
    assert (rows["usage"].first, rows["usage"].difference) == (None, None)


@pytest.mark.parametrize(
    ("second", "second_spread", "exceeds"),
    [(5.0, 0.3, False), (5.01, 0.3, True), (3.0, 0.3, False), (2.99, 0.3, True), (5.01, 0.31, False)],
)
def test_a_difference_exceeds_two_standard_deviations_of_itself(second: float, second_spread: float, exceeds: bool):
    rows = compare(record(fid=4.0, fid_spread=0.4), record("b.json", fid=second, fid_spread=second_spread))
    assert rows[0].exceeds_spread is exceeds


def test_no_verdict_without_both_spreads():
    one_sided = compare(record(), record("b.json", without=("fid_spread",), fid=9.0))
    assert one_sided[0].exceeds_spread is None
    # The Inception Score of a single group has a standard deviation of 0 that says nothing.
    single = record(inception_score_std=0.0)
    row = next(row for row in compare(single, single) if row.figure == "inception_score")
    assert row.first_spread is None


def test_different_protocols_are_refused_with_each_field_and_both_values():
    second = record("b.json", protocol="torch-fidelity", protocol_resize="PIL bicubic", protocol_new="y")
    with pytest.raises(UserError) as caught:
        compare(record(), second)
    assert str(caught.value) == (
        "a.json and b.json are of different protocols: protocol is 'adm' in a.json and 'torch-fidelity' in b.json; "
        "protocol_resize is 'TF1 bilinear to 299' in a.json and 'PIL bicubic' in b.json; "
        "protocol_new is missing in a.json and 'y' in b.json"
    )
    with pytest.raises(UserError, match=r"protocol_new is 'y' in b\.json and missing in a\.json$"):
        compare(second, record())


@pytest.mark.parametrize(
    "field", [name for name in SCHEMA["required"] if name.startswith("protocol") and name != "protocol_seed"]
)
def test_each_protocol_field_counts_but_the_references_path(field: str):
    second = record("b.json", **{field: "d" * 64})
    if field == "protocol_reference":
        assert compare(record(), second)
    else:
        with pytest.raises(UserError, match=f"protocols: {field} is '.*' in a.json and 'd{{64}}' in b.json$"):
            compare(record(), second)


def test_another_reference_is_named_with_its_path():
    second = record("b.json", protocol_reference="val.npz", protocol_reference_sha256="e" * 64)
    with pytest.raises(UserError, match=r"protocol_reference is .*val\.npz.*; protocol_reference_sha256 is"):
        compare(record(), second)


def test_versions_and_samples_may_differ():
    second = record("b.json", versions_torch="3", versions_python="4", samples_path="b", samples_sha256=SHA, seed=3)
    assert all(row.difference == 0 for row in compare(record(), second))


@pytest.mark.parametrize(
    "field",
    [
        *("protocol_score", "protocol_distances", "protocol_neighbours"),
        *("protocol_density_neighbours", "protocol_neighbours_on", "protocol_neighbours_reference_images"),
    ],
)
def test_a_part_that_one_evaluation_left_out_does_not_keep_the_rest_apart(field: str):
    lacking = record("b.json", **{field: "none"})
    assert compare(record(), lacking)[0].difference == 0
    assert compare(lacking, record())[0].difference == 0
    with pytest.raises(UserError, match=field):
        compare(record(), record("b.json", **{field: "another"}))
    with pytest.raises(UserError, match="protocol_preparation"):
        compare(record(), record("b.json", protocol_preparation="none"))


def test_a_record_without_neighbours_lacks_their_networks_hash_as_well():
    on_vgg16 = {
        "precision_vgg16": 0.8,
        "protocol_neighbours_on": "vgg16",
        "protocol_neighbours_sha256": "e" * 64,
    }
    fields = ("", "_on", "_reference_images")
    lacking = record("b.json", **{f"protocol_neighbours{field}": "none" for field in fields})
    with_vgg16 = record(**on_vgg16)
    assert compare(with_vgg16, lacking)[0].difference == compare(lacking, with_vgg16)[0].difference == 0
    with pytest.raises(UserError, match="protocol_neighbours_sha256"):
        compare(with_vgg16, record("b.json", **on_vgg16 | {"protocol_neighbours_sha256": "f" * 64}))
    with pytest.raises(UserError, match="protocol_neighbours_on"):
        compare(with_vgg16, record("b.json"))


def test_the_seed_of_each_draw_counts_where_both_have_drawn():
    drawn = record(protocol_seed="shuffle 2020, subsets 2020, halves 0")
    for seeds in ("halves 0", "subsets 2020, halves 0", "shuffle 2020", "none"):
        assert compare(drawn, record("b.json", protocol_seed=seeds))
        assert compare(record("b.json", protocol_seed=seeds), drawn)
    assert compare(record(protocol_seed="shuffle 2020"), record("b.json", protocol_seed="halves 1"))
    with pytest.raises(UserError, match=r"protocol_seed is 'shuffle 2020, .*' in a\.json and 'halves 1' in b\.json$"):
        compare(drawn, record("b.json", protocol_seed="halves 1"))


def test_the_comparison_is_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    from fvq.cli.compare import print_comparison

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    write(Path("a.json"), ADM | {"usage_codes": 16384})
    write(Path("b.json"), ADM | {"fid": 4.12345678, "usage_codes": 16000, "density": 1.25})
    print_comparison(Path("a.json"), Path("b.json"))
    out = capsys.readouterr().out
    lines = {line.split()[0]: line.split() for line in out.splitlines() if line.strip()}
    assert "protocol adm, inception-2015: 50000 images against VIRTUAL_imagenet256_labeled.npz" in out
    assert lines["figure"][:3] == ["figure", "a.json", "b.json"]
    assert lines["fid"][-1] == "yes" and lines["inception_score"][-1] == "no" and lines["precision"][-1] == "–"
    assert lines["fid"][-2].startswith("+0.18") and "4.1234" not in out
    assert lines["usage_codes"][1:4] == ["16,384", "16,000", "-384"]
    assert lines["density"][1] == "–"
    assert "fid_spread" not in out and "2 sqrt(a² + b²)" in out
    assert max(map(len, out.splitlines()[1:])) <= 80


@pytest.mark.parametrize(
    ("images", "reference", "expected"),
    [
        ("50000", "10000", "50,000 against 10,000"),
        ("50000", "not known", "50,000 against stored statistics"),
        ("not known", "10000", "stored statistics against 10,000"),
    ],
)
def test_beside_a_distance_the_images_that_it_stands_on_are_printed(
    images: str, reference: str, expected: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    from fvq.cli.figures import print_figures

    monkeypatch.setenv("COLUMNS", "120")
    print_figures(record(protocol_images=images, protocol_reference_images=reference))
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.strip()}
    assert expected in lines["fid"] and expected in lines["sfid"] and "against" not in lines["precision"]
