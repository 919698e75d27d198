"""The size of token tables in the study: read as written, on the page, and what is refused."""

import re
import shutil

import pytest
from test_study_fabricated import fabricate, parameters, write_json
from test_study_render import Page, page_of

from fvq.runtime.errors import UserError
from fvq.study.results import read_study

SIZE = {
    "images": 40000,
    "rows": 80000,
    "tokens": 5120000,
    "bytes": 6234567,
    "codebook_size": 1024,
    "codes_used": 1001,
    "bits_per_token": 9.7415,
    "entropy_bits_per_token": 9.6542,
    "index_bits": 10,
    "ratio": 1.00904,
}


@pytest.fixture(scope="module")
def fabricated(tmp_path_factory):
    folder = fabricate(tmp_path_factory.mktemp("results") / "smoke-photos")
    write_json(folder / "cache_tokens/fvq/size.json", SIZE)
    return folder


@pytest.fixture
def results(fabricated, tmp_path):
    """A copy to change."""
    return shutil.copytree(fabricated, tmp_path / "smoke-photos")


def text(html):
    return " ".join(re.sub(r"<[^>]*>", " ", html).split())


def page(results):
    html = page_of(read_study(results, parameters()))
    Page(html)
    return text(html)


def test_as_written_of_the_rows_that_generators_learn_from(results):
    write_json(results / "cache_tokens/vq/size.json", {**SIZE, "bytes": 1})
    write_json(results / "cache_tokens/mlp5/size.json", {**SIZE, "bytes": 2})  # of an earlier study
    tables = read_study(results, parameters()).token_tables
    assert [table.tokenizer for table in tables] == ["vq", "fvq"]
    kept = ("rows", "bytes", "bits_per_token", "entropy_bits_per_token", "index_bits", "ratio")
    assert {name: getattr(tables[1], name) for name in kept} == {name: SIZE[name] for name in kept}


def test_the_page_shows_them(results):
    assert "FVQ 80,000 6.23 9.74 9.65 10 1.009 " in page(results)
    write_json(results / "cache_tokens/fvq/size.json", {**SIZE, "entropy_bits_per_token": 0.0, "ratio": None})
    assert "FVQ 80,000 6.23 9.74 0.00 10 none " in page(results)


def test_without_one_nothing_of_it_is_there(results):
    (results / "cache_tokens/fvq/size.json").unlink()
    assert "Token tables" not in page(results)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "must hold one object of figures, not list"),
        ({name: value for name, value in SIZE.items() if name != "ratio"}, "lacks ratio"),
        ({**SIZE, "bits_per_token": "9.7"}, "bits_per_token must be a number from 0, not '9.7'"),
        ({**SIZE, "bytes": None}, "bytes must be a number from 0, not None"),
        ({**SIZE, "ratio": -1}, "ratio must be a number from 0, not -1"),
    ],
)
def test_a_damaged_file_is_named(results, content, message):
    write_json(results / "cache_tokens/fvq/size.json", content)
    with pytest.raises(UserError, match=rf"cache_tokens/fvq/size\.json: {re.escape(message)}$"):
        read_study(results, parameters())
