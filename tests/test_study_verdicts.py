"""The rules behind "holds", "does not hold" and "not measured here"."""

import json

import pytest
from test_study_fabricated import fabricate, parameters

from fvq.study.results import read_study
from fvq.study.verdicts import judge

FULL, ORDER, LOWEST_MSE, LOWEST_RFD, ANNEALING_MSE, ANNEALING_RFD, GENERATORS = range(7)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return fabricate(tmp_path_factory.mktemp("results") / "smoke-photos")


@pytest.fixture
def verdicts(results):
    """Verdicts after changing figures: ``{(stage, row): {figure: value}}``."""
    kept = {}

    def judged(changes=None, **changed_parameters):
        for (stage, row), figures in (changes or {}).items():
            path = results / stage / row / "metrics.json"
            kept.setdefault(path, path.read_text())
            path.write_text(json.dumps(json.loads(path.read_text()) | figures))
        return judge(read_study(results, parameters(**changed_parameters)))

    yield judged
    for path, text in kept.items():
        path.write_text(text)


def tokenizer(row, **figures):
    return {("evaluate_tokenizer", row): figures}


def test_everything_holds_where_the_figures_say_so(verdicts):
    assert [claim.verdict for claim in verdicts()] == ["holds"] * 7


def test_numbers_and_paper_figures_are_printed(verdicts):
    claims = verdicts()
    assert claims[FULL].numbers == ("FVQ 100% (256,000 tokens, ceiling 100%): 1,024 of 1,024 codes",)
    assert "MLP-5 0.00777" in claims[LOWEST_MSE].numbers[0]
    assert "FVQ against MLP-5: −8.4%" in claims[LOWEST_MSE].numbers[0]
    assert "1.30 with annealing, 2.61 without" in claims[ANNEALING_RFD].paper
    assert claims[GENERATORS].numbers == (
        "LlamaGen on FVQ: rfd_photos 25.0, fd_photos 61.7; LlamaGen on VQ: rfd_photos 51.3, fd_photos 125",
    )


def test_one_code_short_of_full_usage(verdicts):
    claims = verdicts(tokenizer("fvq", usage=1023 / 1024, usage_codes=1023))
    assert claims[FULL].verdict == "does not hold"
    assert "1,023 of 1,024" in claims[FULL].numbers[0]


def test_too_few_tokens_to_tell(verdicts):
    claims = verdicts(tokenizer("fvq", usage=0.6, usage_codes=614, usage_tokens=1024, usage_ceiling=0.632))
    assert claims[FULL].verdict == "not measured here"
    assert "too few tokens to tell" in claims[FULL].numbers[0]


def test_usage_out_of_order(verdicts):
    assert verdicts(tokenizer("linear", usage=0.01))[ORDER].verdict == "does not hold"


def test_mlp_as_good_as_the_bridge_is_in_order(verdicts):
    assert verdicts(tokenizer("mlp5", usage=1.0, usage_codes=1024))[ORDER].verdict == "holds"


def test_linear_as_good_as_the_mlp_is_not(verdicts):
    assert verdicts(tokenizer("linear", usage=999 / 1024))[ORDER].verdict == "does not hold"


def test_another_row_reconstructs_better(verdicts):
    claims = verdicts(tokenizer("linear", mse=0.001))
    assert (claims[LOWEST_MSE].verdict, claims[LOWEST_RFD].verdict) == ("does not hold", "holds")


def test_a_difference_that_another_seed_could_make_decides_nothing(verdicts):
    claims = verdicts(tokenizer("fvq", mse=0.0077))
    assert claims[LOWEST_MSE].verdict == "too close to call"
    assert claims[LOWEST_RFD].verdict == "holds"
    clear = verdicts(tokenizer("fvq", mse=0.0070))
    assert clear[LOWEST_MSE].verdict == "holds"


def test_a_difference_that_other_images_could_make_decides_nothing(verdicts):
    # MLP-5 has 48.77 and FVQ 25.05: 2 √(11² + 5²) is 24.2, and 2 √(10² + 5²) is 22.4.
    changes = {("evaluate_tokenizer", "fvq"): {"rfd_photos_spread": 5.0}}
    close = verdicts(changes | {("evaluate_tokenizer", "mlp5"): {"rfd_photos_spread": 11.0}})
    assert close[LOWEST_RFD].verdict == "too close to call"
    assert "2 √(a² + b²) of the spreads" in close[LOWEST_RFD].rule
    assert "√" not in close[LOWEST_MSE].rule
    clear = verdicts(changes | {("evaluate_tokenizer", "mlp5"): {"rfd_photos_spread": 10.0}})
    assert clear[LOWEST_RFD].verdict == "holds"


def test_samples_that_other_draws_could_bring_closer_decide_nothing(verdicts):
    claims = verdicts({("evaluate_generator", "vq"): {"fd_photos_spread": 32.0}})
    assert claims[GENERATORS].verdict == "too close to call"


def test_annealing_does_not_help(verdicts):
    claims = verdicts(tokenizer("fvq_no_annealing", rfd_photos=12.0))
    assert (claims[ANNEALING_MSE].verdict, claims[ANNEALING_RFD].verdict) == ("holds", "does not hold")


def test_better_tokenizer_with_a_worse_generator(verdicts):
    claims = verdicts({("evaluate_generator", "fvq_l"): {"fd_photos": 295.0}})
    assert claims[GENERATORS].verdict == "does not hold"


def test_generators_of_other_sizes_are_not_compared(verdicts):
    generators = parameters()["generators"]
    generators["vq"]["width"] = 32
    claims = verdicts(generators=generators)
    assert claims[GENERATORS].verdict == "not measured here"
    assert claims[GENERATORS].numbers == ()


def test_rows_that_differ_in_length_are_not_compared(verdicts):
    rows = parameters()["rows"]
    for name in ("vq", "linear", "mlp5", "fvq_no_annealing"):
        rows[name]["steps"] = 2000
    assert [claim.verdict for claim in verdicts(rows=rows)[ORDER:GENERATORS]] == ["not measured here"] * 5


def test_without_an_fvq_row_only_generators_can_be_judged(verdicts):
    rows = {"vq": parameters()["rows"]["vq"]}
    assert {claim.verdict for claim in verdicts(rows=rows, generators={})} == {"not measured here"}
