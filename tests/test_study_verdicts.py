"""The rules behind "holds", "fails" and "not testable at this scale", on made-up rows."""

import dataclasses
import json
import re

import numpy as np
import pytest

from fvq.study.claims import statement
from fvq.study.claims.verdicts import judge, verdict_records
from fvq.study.paper import paper_tables
from fvq.study.results import GeneratorRow, Study, TokenizerRow
from fvq.study.settings import differences

NOT_TESTABLE = "not testable at this scale"
RFD = "rfd_photos"

# Titles, in the order of the page.
FULL = "FVQ uses every code"
ORDER = "The stronger the projector, the higher the usage: VQ < linear < MLP-5 ≤ VQBridge"
LINEAR_FALLS = "Annealing lowers the linear projector's usage"
LINEAR_SHORT = "The linear projector does not use every code under annealing"
MLP = "MLP-5 fails at a large codebook"
LOWEST_MSE = "FVQ has the lowest squared error (mse)"
LOWEST = "FVQ has the lowest rfd_photos"
ANNEALING_MSE = "Annealing lowers FVQ's squared error (mse)"
ANNEALING = "Annealing lowers FVQ's rfd_photos"
TOGETHER = "VQBridge and annealing are needed together"
CODEBOOK_MSE = "A larger codebook lowers FVQ's squared error (mse)"
CODEBOOK = "A larger codebook lowers FVQ's rfd_photos"
CHANNELS_MSE = "More channels lower FVQ's squared error (mse)"
CHANNELS = "More channels lower FVQ's rfd_photos"
LENGTH_MSE = "Longer training lowers FVQ's squared error (mse)"
LENGTH = "Longer training lowers FVQ's rfd_photos"
WARMUP = "Warm-up lowers FVQ's rfd_photos"
SHAPE = "Linear or cosine annealing makes little difference"
WIDTH = "A bridge as wide as the codes is best"
DEPTH = "A bridge of two blocks is best"
PATCH = "The best patch grows with the codebook"
INNER = "VQBridge generalises to residual and multi-scale quantization"
RATIO = "A lower ratio reconstructs better"
FINE = "FVQ also reconstructs better than VQ at the lower ratio"
GENERATORS = "A better tokenizer gives a better generator"
TITLES = [FULL, ORDER, LINEAR_FALLS, LINEAR_SHORT, MLP, LOWEST_MSE, LOWEST, ANNEALING_MSE, ANNEALING, TOGETHER]
TITLES += [CODEBOOK_MSE, CODEBOOK, CHANNELS_MSE, CHANNELS, LENGTH_MSE, LENGTH, WARMUP, SHAPE, WIDTH, DEPTH, PATCH]
TITLES += [INNER, RATIO, FINE, GENERATORS]

BRIDGE = {"patch": None, "width": None, "depth": 2, "heads": 4, "layout": "grid", "block": "vit"}


def row(name, quantizer="fvq", *, rfd=10.0, mse=0.01, codes=None, spread=None, bridge=None, **changed):
    """A measured row; VQBridge by default, full usage by default; ``bridge`` is what differs in it."""
    settings = {"quantizer": quantizer, "codebook_size": 1024, "code_dim": 32, "ratio": 4, "epochs": None, "steps": 600}
    settings |= {"annealing": "linear", "label": name, "bridge": None} | changed
    if "fvq" in (quantizer, settings.get("options", {}).get("inner")):
        settings["bridge"] = BRIDGE | (bridge or {})
    size = settings["codebook_size"]
    codes = size if codes is None else codes
    figures = {"mse": mse, RFD: rfd, "usage": codes / size, "usage_codes": codes, "codebook_size": size}
    figures |= {"usage_tokens": 256000, "usage_ceiling": 1.0, "samples": 4000}
    if spread is not None:
        figures[f"{RFD}_spread"] = spread
    image = np.zeros((1, 8, 8, 3), np.uint8)
    return TokenizerRow(name, name, settings, figures, {}, {}, None, image, image)


def seeds(base, *repeats):
    """The row with figures of further seeds, each what it changes."""
    found = {seed: base.figures | figures for seed, figures in enumerate(repeats, 1)}
    return dataclasses.replace(base, repeats=found)


def generator(name, tokenizer, fd, **figures):
    return GeneratorRow(name, name, tokenizer, {"width": 64}, {"fd_photos": fd, **figures}, None, {})


def study(*rows, generators=()):
    protocol = {"protocol": "adm", "protocol_extractor": "photos"}
    empty = {field.name: () for field in dataclasses.fields(Study)}
    named = {"name": "made-up", "scale": "smoke", "dataset": "photos", "seed": 0, "image_size": (8, 8)}
    mappings = {"elsewhere": {}, "parameters": {}, "commands": {}, "projector_costs": {}}
    protocols = {"tokenizer_protocol": protocol, "generator_protocol": protocol, "extractor": "photos"}
    return Study(**{**empty, **named, **mappings, **protocols, "rows": rows, "generators": tuple(generators)})


def claim(title, *rows, generators=()):
    return {claim.title: claim for claim in judge(study(*rows, generators=generators))}[title]


def verdict(title, *rows, generators=()):
    return claim(title, *rows, generators=generators).verdict


def paper_like():
    """Rows of every kind whose figures come out as the paper says, each difference above one seed's spread."""
    residual = {"options": {"inner": "fvq", "depth": 4}, "ratio": 8}
    plain = {"options": {"inner": "vq", "depth": 4}, "ratio": 8}
    none = {"annealing": "none"}
    large = {"codebook_size": 16384}
    quarter = {"codebook_size": 256}
    return (
        row("vq", "vq", codes=100, rfd=90, mse=0.05),
        row("linear", "linear", codes=400, rfd=25, mse=0.02),
        row("linear_no_annealing", "linear", codes=1000, rfd=40, mse=0.03, **none),
        row("mlp5", "mlp5", codes=1020, rfd=23, mse=0.015),
        row("fvq"),
        row("fvq_no_annealing", rfd=50, mse=0.03, **none),
        row("mlp5_16x", "mlp5", codes=2000, rfd=8, mse=0.007, **large),
        row("fvq_4x", rfd=5.5, mse=0.007, codebook_size=4096),
        row("fvq_16x", rfd=3, mse=0.005, **large),
        row("fvq_d8", rfd=20, mse=0.015, code_dim=8, bridge={"width": 32}),
        row("fvq_d4", rfd=40, mse=0.02, code_dim=4, bridge={"width": 32}),
        row("fvq_long", rfd=5, mse=0.008, steps=1800),
        row("fvq_no_warmup", rfd=30, warmup=0),
        row("fvq_width_half", rfd=19, bridge={"width": 16}),
        row("fvq_width_double", rfd=18, bridge={"width": 64}),
        row("fvq_depth_1", rfd=21, bridge={"depth": 1}),
        row("fvq_depth_4", rfd=22, bridge={"depth": 4}),
        row("fvq_patch_small", rfd=24, bridge={"patch": 1}),
        row("fvq_quarter_patch_small", rfd=50, mse=0.1, bridge={"patch": 1}, **quarter),
        row("fvq_quarter", rfd=100, mse=0.02, **quarter),
        row("vq_l2", "vq-l2", rfd=30, code_dim=8, **none),
        row("vq_l2_fine", "vq-l2", rfd=15, code_dim=8, ratio=2, **none),
        row("fvq_fine", rfd=4, mse=0.002, ratio=2),
        row("rq_fvq", "residual", rfd=12, **residual),
        row("rq_vq", "residual", rfd=28, **plain),
    )


def pair_of_generators(better=30.0, worse=70.0):
    return (generator("on vq", "vq", worse), generator("on fvq", "fvq", better))


def test_all_that_is_as_the_paper_says():
    found = {claim.title: claim for claim in judge(study(*paper_like(), generators=pair_of_generators()))}
    assert list(found) == TITLES
    # Without further seeds no two rows are close enough to call them alike.
    assert {title: claim.verdict for title, claim in found.items() if claim.verdict != "holds"} == {SHAPE: NOT_TESTABLE}
    assert found[LOWEST].reason == ""


def test_without_rows_to_compare():
    claims = judge(study(row("a", "simvq")))
    assert {claim.verdict for claim in claims} == {NOT_TESTABLE}
    assert all(claim.reason.startswith("This study has no rows to compare: it needs ") for claim in claims)
    assert all(claim.numbers == () for claim in claims)
    needs = {claim.title: claim.reason for claim in claims}
    assert needs[LENGTH].endswith("it needs fvq and fvq_long.")


def test_the_papers_figures_are_those_of_its_tables(monkeypatch):
    printed = {claim.title: claim.paper for claim in judge(study(row("fvq")))}
    assert "2.61 → 1.30" in printed[ANNEALING]
    assert "100% → 53%" in printed[LINEAR_FALLS]
    assert "1.30 → 1.70" in printed[WARMUP]
    tables = {
        name: dataclasses.replace(
            table, rows=tuple(dataclasses.replace(row, cells=dict.fromkeys(row.cells, "?")) for row in table.rows)
        )
        for name, table in paper_tables().items()
    }
    monkeypatch.setattr(statement, "paper_tables", lambda: tables)
    for entry in judge(study(row("fvq"))):
        assert re.search(r"\d\.\d|\d%", entry.paper) is None, entry.paper
        assert "?" in entry.paper or entry.title in (WIDTH, DEPTH, PATCH)


def test_records_are_plain_data():
    records = verdict_records(judge(study(*paper_like())))
    assert [record["title"] for record in records] == TITLES
    assert set(records[0]) == {"title", "paper", "rule", "verdict", "reason", "numbers"}
    assert json.loads(json.dumps(records)) == records


# --- what rows differ in ---------------------------------------------------------------------------------------------


def test_a_default_patch_follows_the_codebook_and_a_default_width_the_channels():
    base = row("fvq")
    assert differences(base, row("a", codebook_size=16384)) == {"codebook_size"}
    assert differences(base, row("b", code_dim=64)) == {"code_dim"}
    assert differences(base, row("c", bridge={"patch": 4, "width": 32})) == set()
    assert differences(base, row("d", codebook_size=16384, bridge={"patch": 64})) == {"codebook_size", "patch"}
    assert differences(base, row("e", code_dim=8, bridge={"width": 32})) == {"code_dim"}


def test_another_quantizer_stands_for_its_bridge_and_options():
    assert differences(row("fvq", bridge={"depth": 4}), row("ema", "vq-ema", options={"decay": 0.9})) == {"quantizer"}
    residual = row("rq_fvq", "residual", options={"inner": "fvq", "depth": 4})
    assert differences(residual, row("rq_vq", "residual", options={"inner": "vq", "depth": 4})) == {"quantizer"}
    assert differences(residual, row("a", "residual", options={"inner": "vq", "depth": 2})) == {"quantizer", "options"}
    assert differences(residual, row("fvq")) == {"composition"}
    plain = row("a", "residual", options={})
    assert differences(residual, plain) == {"quantizer", "options"}
    assert differences(plain, row("vq", "vq", options={"decay": 0.9})) == {"composition"}


def test_the_shape_of_annealing_counts_where_both_rows_anneal():
    assert differences(row("fvq"), row("fvq_cosine", annealing="cosine")) == {"shape"}
    assert differences(row("fvq_cosine", annealing="cosine"), row("a", annealing="none")) == {"annealing"}
    assert differences(row("a", annealing="none"), row("b", annealing="none")) == set()
    assert verdict(SHAPE, row("fvq"), row("fvq_no_annealing", annealing="none")) == NOT_TESTABLE


# --- the spread ------------------------------------------------------------------------------------------------------


def test_a_difference_that_another_seed_could_make_decides_nothing():
    close = claim(LOWEST_MSE, row("fvq", mse=0.0095), row("vq", "vq", mse=0.01))
    assert (close.verdict, close.reason) == (NOT_TESTABLE, "The differences lie within the spread.")
    assert close.numbers == ("mse: fvq 0.00950, vq 0.0100 (−5.0%, within the spread)",)
    assert "up to 8.2% of the larger figure" in close.rule
    assert verdict(LOWEST_MSE, row("fvq", mse=0.009), row("vq", "vq", mse=0.01)) == "holds"
    assert verdict(LOWEST_MSE, row("fvq", mse=0.012), row("vq", "vq", mse=0.01)) == "fails"


def test_a_difference_that_other_images_could_make_decides_nothing():
    # 2 √(11² + 5²) is 24.2, and 2 √(10² + 5²) is 22.4.
    close = claim(LOWEST, row("fvq", rfd=25, spread=5.0), row("vq", "vq", rfd=48.7, spread=11.0))
    assert close.verdict == NOT_TESTABLE
    assert "halves of the images" in close.rule
    assert close.numbers == ("rfd_photos: fvq 25 ± 5, vq 50 ± 10 (−50%, within the spread)",)
    assert verdict(LOWEST, row("fvq", rfd=25, spread=5.0), row("vq", "vq", rfd=48.7, spread=10.0)) == "holds"


def test_seeds_replace_the_assumed_spread():
    # Means 10 and 11, each with a standard deviation of 1/√2 or 1 over two seeds or three.
    fvq = seeds(row("fvq", rfd=9.5), {RFD: 10.5})
    vq = seeds(row("vq", "vq", rfd=10.0), {RFD: 11.0}, {RFD: 12.0})
    close = claim(LOWEST, fvq, vq)
    assert close.verdict == NOT_TESTABLE  # 2 √(0.5/2 + 1/3) is 1.53
    assert close.numbers == (
        "rfd_photos: fvq 10.0 ± 0.7 over 2 seeds, vq 11 ± 1 over 3 seeds (−9%, within the spread)",
    )
    assert "n seeds of deviation s" in close.rule
    vq = seeds(row("vq", "vq", rfd=10.6), {RFD: 11.6}, {RFD: 12.6})
    assert verdict(LOWEST, fvq, vq) == "holds"  # 1.6 lower
    # With one seed only, 14 % would decide nothing.
    assert verdict(LOWEST, row("fvq", rfd=10), row("vq", "vq", rfd=11.6)) == NOT_TESTABLE


def test_one_row_with_seeds_is_not_enough_for_them_to_decide():
    fvq = seeds(row("fvq", rfd=10.0), {RFD: 10.0})
    assert verdict(LOWEST, fvq, row("vq", "vq", rfd=12.0)) == NOT_TESTABLE


def test_the_spread_of_an_fid_is_called_an_assumption():
    rows = [row("fvq"), row("vq", "vq")]
    for each, value in zip(rows, (10.0, 10.2), strict=True):
        each.figures["rfid"] = value
    made = dataclasses.replace(study(*rows), extractor="inception-2015")
    assert (made.rfd, made.inception) == ("rfid", True)
    found = {claim.title: claim for claim in judge(made)}
    assert "up to 3% (an assumption) of the larger figure" in found["FVQ has the lowest rfid"].rule
    assert found["FVQ has the lowest rfid"].verdict == NOT_TESTABLE
    assert "assumption" not in found[LOWEST_MSE].rule


def test_seeds_do_not_hide_the_chance_of_the_images():
    fvq = seeds(row("fvq", rfd=10.0, spread=1.0), {RFD: 10.0})
    vq = seeds(row("vq", "vq", rfd=12.0, spread=1.0), {RFD: 12.0})
    assert verdict(LOWEST, fvq, vq) == NOT_TESTABLE


def test_some_undecided_and_none_wrong_holds_with_the_number():
    some = claim(LOWEST, row("fvq", rfd=10), row("vq", "vq", rfd=90), row("linear", "linear", rfd=11))
    assert some.verdict == "holds"
    assert some.reason == "1 of 2 comparisons decides nothing: the differences lie within the spread."


def test_one_the_other_way_fails_with_the_number():
    some = claim(LOWEST, row("fvq", rfd=30), row("vq", "vq", rfd=90), row("linear", "linear", rfd=10))
    assert (some.verdict, some.reason) == ("fails", "1 of 2 comparisons comes out the other way.")
    assert some.numbers[1] == "rfd_photos: fvq 30.0, linear 10.0 (+200.0%, the other way)"


# --- codebook usage --------------------------------------------------------------------------------------------------


def test_one_code_short_of_full_usage():
    short = claim(FULL, row("fvq"), row("fvq_d8", code_dim=8), row("fvq_16x", codebook_size=16384, codes=16383))
    assert (short.verdict, short.reason) == ("fails", "1 of 3 comparisons comes out the other way.")
    assert short.numbers == (
        "fvq; fvq_d8: 1,024 of 1,024 codes (256,000 tokens, ceiling 100%)",
        "fvq_16x: 16,383 of 16,384 codes (256,000 tokens, ceiling 100%)",
    )


def test_full_usage_counts_rows_without_annealing_and_inner_bridges():
    assert verdict(FULL, row("fvq", annealing="none", codes=1000)) == "fails"
    assert verdict(FULL, row("rq", "residual", codes=1000, options={"inner": "fvq"})) == "fails"
    assert verdict(FULL, row("rq", "residual", codes=1000, options={"inner": "vq"})) == NOT_TESTABLE


def test_full_usage_with_every_seed():
    short = claim(FULL, seeds(row("fvq"), {"usage_codes": 1000}))
    assert short.verdict == "fails"
    assert short.numbers == ("fvq: 1,000 to 1,024 of 1,024 codes over 2 seeds (256,000 tokens, ceiling 100%)",)
    full = claim(FULL, seeds(row("fvq"), {"usage": 1.0}))
    assert full.numbers == ("fvq: 1,024 of 1,024 codes with each of 2 seeds (256,000 tokens, ceiling 100%)",)


def few_tokens(base):
    base.figures.update(usage_tokens=1024, usage_ceiling=0.632)
    return base


def test_too_few_tokens_to_tell():
    few = claim(FULL, few_tokens(row("fvq", codes=614)))
    assert (few.verdict, few.reason) == (NOT_TESTABLE, "There are too few tokens to tell.")
    assert verdict(LINEAR_SHORT, few_tokens(row("linear", "linear", codes=614))) == NOT_TESTABLE
    # What is full all the same is full.
    assert verdict(FULL, few_tokens(row("fvq"))) == "holds"


@pytest.mark.parametrize(
    ("vq", "linear", "mlp5", "fvq", "expected"),
    [
        (100, 400, 1000, 1024, "holds"),
        (100, 400, 1024, 1024, "holds"),  # MLP-5 may equal VQBridge
        (100, 400, 1020, 600, "fails"),
        (400, 100, 1020, 1024, "fails"),
    ],
)
def test_order_of_usage(vq, linear, mlp5, fvq, expected):
    rows = [row("vq", "vq", codes=vq), row("linear", "linear", codes=linear), row("mlp5", "mlp5", codes=mlp5)]
    assert verdict(ORDER, *rows, row("fvq", codes=fvq)) == expected


def test_mlp_above_the_bridge_by_what_chance_could_do_decides_nothing():
    rows = [row("vq", "vq", codes=100), row("mlp5", "mlp5", codes=1020), row("fvq", codes=1010)]
    some = claim(ORDER, *rows)
    assert (some.verdict, some.reason) == (
        "holds",
        "1 of 2 comparisons decides nothing: the differences lie within the spread.",
    )
    assert some.numbers[1].endswith("(256,000 tokens, ceiling 100%); within the spread")
    assert verdict(ORDER, *rows[1:]) == NOT_TESTABLE
    assert verdict(ORDER, row("mlp5", "mlp5", codes=1010), row("fvq", codes=1020)) == "holds"


def test_order_of_usage_takes_the_usual_bridge_and_rows_of_one_length():
    rows = [row("fvq_depth_4", codes=10, bridge={"depth": 4}), row("fvq"), row("linear", "linear", codes=400)]
    assert verdict(ORDER, *rows) == "holds"
    assert verdict(ORDER, row("fvq"), row("linear", "linear", codes=400, steps=1200)) == NOT_TESTABLE


def test_usages_that_another_seed_could_swap_decide_nothing():
    close = claim(ORDER, row("linear", "linear", codes=900), row("fvq"))
    assert (close.verdict, close.reason) == (NOT_TESTABLE, "The differences lie within the spread.")
    linear = seeds(row("linear", "linear", codes=900), {"usage": 0.87})
    settled = claim(ORDER, linear, seeds(row("fvq"), {}))
    assert settled.verdict == "holds"
    # 87.9 % and 87 %; the spread stands once.
    assert settled.numbers == (
        "linear 87.4% ± 0.6% over 2 seeds, fvq 100% ± 0% over 2 seeds (256,000 tokens, ceiling 100%)",
    )


def test_linear_under_annealing():
    def linear(annealed, before):
        return row("linear", "linear", codes=annealed), row("none", "linear", codes=before, annealing="none")

    assert verdict(LINEAR_FALLS, *linear(500, 1024)) == "holds"
    assert verdict(LINEAR_FALLS, *linear(1024, 500)) == "fails"
    assert verdict(LINEAR_FALLS, *linear(480, 500)) == NOT_TESTABLE
    assert verdict(LINEAR_SHORT, *linear(500, 1024)) == "holds"
    assert verdict(LINEAR_SHORT, *linear(1024, 500)) == "fails"
    assert verdict(LINEAR_SHORT, seeds(row("linear", "linear", codes=500), {"usage_codes": 1024})) == "fails"


def test_mlp_at_the_largest_size_alone():
    base, large = [row("fvq"), row("mlp5", "mlp5")], {"codebook_size": 16384}
    assert verdict(MLP, *base, row("a", **large), row("b", "mlp5", codes=3000, **large)) == "holds"
    assert verdict(MLP, *base, row("a", codes=3000, **large), row("b", "mlp5", codes=9000, **large)) == "fails"
    close = [row("a", **large), row("b", "mlp5", codes=16000, **large)]
    assert claim(MLP, *base, *close).reason == "The differences lie within the spread."
    full = claim(MLP, *base, row("a", **large), row("b", "mlp5", **large))
    assert full.verdict == "fails"
    assert full.numbers[0].endswith("MLP-5 uses every code")


def test_mlp_at_the_smallest_size_says_nothing():
    at_one_size = claim(MLP, row("fvq"), row("mlp5", "mlp5", codes=100))
    assert (at_one_size.verdict, at_one_size.numbers) == (NOT_TESTABLE, ())
    assert at_one_size.reason.endswith("it needs mlp5_16x and fvq_16x beside fvq.")
    assert verdict(MLP, row("fvq"), row("mlp5", "mlp5", codes=100), row("a", codebook_size=256)) == "holds"


# --- the error -------------------------------------------------------------------------------------------------------


def test_error_and_distance_are_claims_of_their_own():
    rows = row("fvq", mse=0.02), row("vq", "vq", mse=0.01, rfd=90)
    assert (verdict(LOWEST_MSE, *rows), verdict(LOWEST, *rows)) == ("fails", "holds")


def test_annealing_at_every_codebook_size():
    base = [row("fvq"), row("fvq_no_annealing", rfd=50, annealing="none")]
    assert verdict(ANNEALING, *base) == "holds"
    large = [row("a", codebook_size=16384, rfd=50), row("b", codebook_size=16384, annealing="none")]
    assert claim(ANNEALING, *base, *large).reason == "1 of 2 comparisons comes out the other way."


def test_the_square_of_projector_and_annealing_needs_all_four():
    square = [row("fvq"), row("a", rfd=50, annealing="none"), row("linear", "linear", rfd=30)]
    assert verdict(TOGETHER, *square) == NOT_TESTABLE
    assert verdict(TOGETHER, *square, row("b", "linear", rfd=40, annealing="none")) == "holds"
    assert verdict(TOGETHER, *square, row("b", "linear", rfd=4, annealing="none")) == "fails"


def test_codebooks_are_compared_with_their_neighbours():
    rows = [row("fvq"), row("fvq_16x", rfd=2, codebook_size=16384), row("fvq_4x", rfd=5, codebook_size=4096)]
    found = claim(CODEBOOK, *rows)
    assert found.verdict == "holds"
    assert [re.findall("fvq[_0-9x]*", line) for line in found.numbers] == [["fvq_4x", "fvq"], ["fvq_16x", "fvq_4x"]]
    assert verdict(CODEBOOK, *rows[:2], row("fvq_4x", rfd=20, codebook_size=4096)) == "fails"
    # Rows that differ in more than the size are none of them.
    assert verdict(CODEBOOK, row("fvq"), row("a", codebook_size=4096, steps=1200)) == NOT_TESTABLE


def test_codebooks_in_the_default_design():
    # The paper's patch grows with the codebook: a larger codebook with a patch that does not fit says nothing.
    rows = [row("fvq"), row("a", rfd=30, bridge={"patch": 1}), row("b", rfd=20, codebook_size=256, bridge={"patch": 1})]
    assert verdict(CODEBOOK, *rows, row("fvq_quarter", rfd=20, codebook_size=256)) == "holds"
    assert [line.split()[1] for line in claim(CODEBOOK, *rows).numbers] == []


def test_channels_with_the_bridge_of_one_width_or_of_theirs():
    few = row("fvq_d8", rfd=30, code_dim=8, bridge={"width": 32})
    assert verdict(CHANNELS, row("fvq"), few) == "holds"
    assert verdict(CHANNELS, row("fvq"), row("wide", rfd=30, code_dim=64)) == "fails"
    assert verdict(CHANNELS, row("fvq"), row("a", rfd=30, code_dim=8, bridge={"width": 16})) == NOT_TESTABLE


@pytest.mark.parametrize("unit", ["epochs", "steps"])
def test_longer_training(unit):
    short, long = ({"epochs": None, "steps": None, unit: length} for length in (40, 120))
    assert verdict(LENGTH, row("fvq", rfd=20, **short), row("fvq_long", **long)) == "holds"
    assert verdict(LENGTH, row("fvq", **short), row("fvq_long", rfd=20, **long)) == "fails"
    assert verdict(LENGTH, row("fvq", **short), row("fvq_long", **long)) == NOT_TESTABLE


# --- schedule and bridge ---------------------------------------------------------------------------------------------


def test_warm_up():
    assert verdict(WARMUP, row("fvq_no_warmup", rfd=30, warmup=0), row("fvq")) == "holds"
    assert verdict(WARMUP, row("fvq_no_warmup", rfd=3, warmup=0), row("fvq")) == "fails"
    assert verdict(WARMUP, row("fvq_no_warmup", rfd=11, warmup=0), row("fvq")) == NOT_TESTABLE


def test_linear_and_cosine_are_alike_only_where_the_spread_could_tell():
    def shapes(linear, cosine, *repeats):
        rows = row("fvq", rfd=linear), row("fvq_cosine", rfd=cosine, annealing="cosine")
        return [seeds(each, *({RFD: each.figures[RFD] + change} for change in repeats)) for each in rows]

    assert verdict(SHAPE, *shapes(10, 10.1)) == NOT_TESTABLE  # one seed may move it by 43 %
    assert verdict(SHAPE, *shapes(10, 10.1, 0.1)) == "holds"
    assert verdict(SHAPE, *shapes(10, 12, 0.1)) == "fails"
    assert verdict(SHAPE, *shapes(10, 12, 3.0)) == NOT_TESTABLE
    assert verdict(SHAPE, *shapes(10, 30)) == "fails"


@pytest.mark.parametrize(("title", "name", "less", "more"), [(WIDTH, "width", 16, 64), (DEPTH, "depth", 1, 4)])
def test_width_and_depth(title, name, less, more):
    def swept(low, high):
        return row("less", rfd=low, bridge={name: less}), row("fvq"), row("more", rfd=high, bridge={name: more})

    assert verdict(title, *swept(30, 30)) == "holds"
    assert verdict(title, *swept(30, 3)) == "fails"
    assert verdict(title, *swept(11, 9)) == NOT_TESTABLE
    assert claim(title, *swept(30, 9)).reason.startswith("1 of 2 comparisons decides nothing")


@pytest.mark.parametrize(
    ("quarter", "base", "expected"),
    [
        ((10, 30, 50), (50, 10, 30), "holds"),
        ((30, 10, 50), (50, 10, 30), "fails"),
        ((50, 30, 10), (10, 30, 50), "fails"),
        ((10, 11, 50), (50, 10, 30), NOT_TESTABLE),  # 4 may be the best of both
    ],
)
def test_patches(quarter, base, expected):
    patches = (1, None, 16)  # None is 4 at both sizes
    rows = [row(f"base {patch}", rfd=rfd, bridge={"patch": patch}) for patch, rfd in zip(patches, base, strict=True)]
    rows += [
        row(f"quarter {patch}", rfd=rfd, codebook_size=256, bridge={"patch": patch})
        for patch, rfd in zip(patches, quarter, strict=True)
    ]
    assert verdict(PATCH, *rows) == expected
    assert verdict(PATCH, *rows[:4]) == NOT_TESTABLE


# --- reach -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("quantizer", ["residual", "multiscale"])
def test_inner_bridge_against_inner_vq(quantizer):
    vq = row("plain", quantizer, rfd=30, options={"inner": "vq", "depth": 4})
    assert verdict(INNER, row("fvq"), vq, row("a", quantizer, options={"inner": "fvq", "depth": 4})) == "holds"
    assert verdict(INNER, vq, row("a", quantizer, rfd=90, options={"inner": "fvq", "depth": 4})) == "fails"
    assert verdict(INNER, vq, row("a", quantizer, options={"inner": "fvq", "depth": 2})) == NOT_TESTABLE


def test_ratio():
    vq = {"code_dim": 8, "annealing": "none", "warmup": 0}
    rows = [row("fvq"), row("fine", rfd=3, ratio=2), row("vq_fine", "vq-l2", rfd=9, ratio=2, **vq)]
    assert (verdict(RATIO, *rows), verdict(FINE, *rows)) == ("holds", "holds")
    worse = [row("fvq"), row("fine", rfd=30, ratio=2), row("vq_fine", "vq-l2", rfd=9, ratio=2, **vq)]
    assert (verdict(RATIO, *worse), verdict(FINE, *worse)) == ("fails", "fails")
    assert verdict(FINE, *rows[1:]) == NOT_TESTABLE


def test_generators():
    rows = row("vq", "vq", rfd=90), row("fvq")
    found = claim(GENERATORS, *rows, generators=pair_of_generators())
    assert found.verdict == "holds"
    assert found.numbers == ("on fvq: rfd_photos 10.0, fd_photos 30.0; on vq: rfd_photos 90.0, fd_photos 70.0",)
    assert verdict(GENERATORS, *rows, generators=pair_of_generators(70, 30)) == "fails"
    assert verdict(GENERATORS, *rows, generators=pair_of_generators(30, 31)) == NOT_TESTABLE


def test_generators_of_other_settings_or_on_one_tokenizer_are_not_compared():
    rows = row("vq", "vq", rfd=90), row("fvq")
    one, other = pair_of_generators()
    wide = dataclasses.replace(one, settings={"width": 128})
    assert claim(GENERATORS, *rows, generators=(wide, other)).numbers == ()
    assert claim(GENERATORS, *rows, generators=(generator("a", "fvq", 3.0), other)).numbers == ()


def test_tokenizers_that_other_images_could_swap_decide_nothing():
    rows = row("vq", "vq", rfd=11, spread=1.0), row("fvq", spread=1.0)
    close = claim(GENERATORS, *rows, generators=pair_of_generators())
    assert close.verdict == NOT_TESTABLE
    assert close.reason == "The tokenizers lie within the spread of each other."
