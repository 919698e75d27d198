"""The drawing of a study's stages: what it shows of their records, where it puts them, safe to inline."""

import itertools
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest

from fvq.runtime.errors import UserError
from fvq.runtime.text import duration
from fvq.study.drawings.graph import chain_svg, stage_edges
from fvq.study.drawings.layered import place
from fvq.study.runs import StageRun

SVG = "{http://www.w3.org/2000/svg}"
MACHINE = "AMD EPYC, 2 cores, 25.3 GB"
TRAIN, VALIDATION = "prepare_data/train.parquet", "prepare_data/validation.parquet"
EXTRACTOR = "train_extractor/extractor.safetensors"


def run(stage, row, inputs, outputs, seconds=1.0, memory=800.0, hardware=MACHINE):
    folder = f"results/smoke/{stage}/" + (f"{row}/" if row else "")
    return StageRun(
        stage=stage,
        row=row,
        path=Path(folder, "provenance.json"),
        wall_seconds=seconds,
        commit=None,
        dirty=None,
        hardware=hardware,
        peak_memory_mb=memory,
        seed=None,
        started_at=None,
        inputs={f"results/smoke/{path}": "ab" for path in inputs},
        outputs={folder + name: "ab" for name in outputs},
        versions={},
        parameters={},
    )


def unrecorded(made):
    return replace(made, wall_seconds=None, hardware=None, peak_memory_mb=None, inputs={}, outputs={})


def runs_of(rows, generators):
    """A study's records, as its stages leave them."""
    frozen = {row: f"freeze_codebook/{row}/tokenizer.safetensors" for row in rows}
    sets = "prepare_evaluation_set/coco/images.parquet"
    return [
        run("prepare_data", None, [], ["train.parquet", "validation.parquet"], 6.2),
        run("train_extractor", None, [TRAIN], ["extractor.safetensors"], 27.0),
        run("small_experiments", None, [TRAIN], ["sizes.csv"], 31.0),
        *(run("train_tokenizer", r, [TRAIN], ["tokenizer.safetensors"], 60.0 + n) for n, r in enumerate(rows)),
        *(
            run(
                "freeze_codebook",
                r,
                [VALIDATION, f"train_tokenizer/{r}/tokenizer.safetensors"],
                ["tokenizer.safetensors"],
            )
            for r in rows
        ),
        *(run("evaluate_tokenizer", r, [VALIDATION, EXTRACTOR, frozen[r]], ["metrics.json"], 4.0) for r in rows),
        *(run("evaluate_elsewhere", r, [EXTRACTOR, frozen[r], sets], ["metrics/coco.json"]) for r in rows[:2]),
        *(run("repeat_tokenizer", f"{r}-1", [TRAIN, VALIDATION, EXTRACTOR], ["metrics.json"]) for r in rows[:2]),
        run("map_codes", None, [VALIDATION, *frozen.values()], ["code_map.json"]),
        *(run("cache_tokens", g, [TRAIN, frozen[g]], ["tokens.parquet"]) for g in generators),
        *(
            run("train_generator", g, [frozen[g], f"cache_tokens/{g}/tokens.parquet"], ["generator.safetensors"], 42.0)
            for g in generators
        ),
        *(
            run("sample", g, [f"train_generator/{g}/generator.safetensors", frozen[g]], ["samples.npz"])
            for g in generators
        ),
        *(
            run("evaluate_generator", g, [VALIDATION, EXTRACTOR, f"sample/{g}/samples.npz"], ["metrics.json"])
            for g in generators
        ),
    ]


EDGES = {
    "prepare_data": "train_extractor small_experiments train_tokenizer freeze_codebook evaluate_tokenizer "
    "repeat_tokenizer map_codes cache_tokens evaluate_generator",
    "train_extractor": "evaluate_tokenizer evaluate_elsewhere repeat_tokenizer evaluate_generator",
    "train_tokenizer": "freeze_codebook",
    "freeze_codebook": "evaluate_tokenizer evaluate_elsewhere map_codes cache_tokens train_generator sample",
    "cache_tokens": "train_generator",
    "train_generator": "sample",
    "sample": "evaluate_generator",
}
IMPLIED = {(maker, reader) for maker, readers in EDGES.items() for reader in readers.split()}


def small():
    return runs_of(["vq", "fvq"], ["vq", "fvq"])


def large():
    return runs_of([f"fvq_quarter_patch_{number}" for number in range(37)], ["fvq_quarter_patch_0"])


def chain(runs):
    """The parsed drawing of a study with these runs."""
    return ElementTree.fromstring(chain_svg(SimpleNamespace(name="smoke", runs=tuple(runs))))


def nodes(svg):
    """The stages' links by name, in words."""
    return {node.find(f"{SVG}text[@class='chain-name']").text: node for node in svg.findall(f"{SVG}a")}


def texts(node):
    return [text.text for text in node.findall(f"{SVG}text")]


def tooltip(node):
    return node.find(f"{SVG}title").text.splitlines()


def boxes(svg):
    """Left, top, right and bottom of every stage by its name in words."""
    found = {}
    for name, node in nodes(svg).items():
        x, y, width, height = (float(node.find(f"{SVG}rect").get(key)) for key in ("x", "y", "width", "height"))
        found[name] = (x, y, x + width, y + height)
    return found


def edge_paths(svg):
    """The drawn edges with their paths, by the stages' names in words."""
    names = list(nodes(svg))
    return {
        tuple(names[int(number)] for number in re.findall(r"chain-(?:from|to)-(\d+)", path.get("class"))): path.get("d")
        for path in svg.findall(f"{SVG}path")
    }


@pytest.mark.parametrize("runs", [small, large])
def test_edges_are_those_that_the_records_imply(runs):
    made = runs()
    assert set(stage_edges(SimpleNamespace(name="smoke", runs=made))) == IMPLIED
    in_words = {(maker.replace("_", " "), reader.replace("_", " ")) for maker, reader in IMPLIED}
    assert set(edge_paths(chain(made))) == in_words
    # One path an edge.
    assert len(chain(made).findall(f"{SVG}path")) == len(IMPLIED)


def test_edges_count_files_once():
    edges = stage_edges(SimpleNamespace(name="smoke", runs=small()))
    assert edges["freeze_codebook", "map_codes"] == 2
    assert edges["prepare_data", "train_tokenizer"] == 1
    assert "reads 1 file of prepare data, 2 files of freeze codebook" in tooltip(nodes(chain(small()))["map codes"])


def test_files_of_an_unrecorded_maker_are_told_by_their_folder():
    runs = [unrecorded(made) if made.stage in ("prepare_data", "train_tokenizer") else made for made in small()]
    edges = set(stage_edges(SimpleNamespace(name="smoke", runs=runs)))
    assert ("train_tokenizer", "freeze_codebook") in edges
    # What it read itself is not known.
    assert edges == IMPLIED - {("prepare_data", "train_tokenizer")}


def test_another_studys_files_make_no_edge():
    runs = [replace(made, inputs={p.replace("smoke", "other"): "ab" for p in made.inputs}) for made in small()]
    assert stage_edges(SimpleNamespace(name="smoke", runs=runs)) == {}


def test_every_stage_is_there_once_and_links_to_its_first_run():
    made = large()
    svg = chain(made)
    names = [node.find(f"{SVG}text[@class='chain-name']").text for node in svg.findall(f"{SVG}a")]
    assert names == [stage.replace("_", " ") for stage in dict.fromkeys(entry.stage for entry in made)]
    assert nodes(svg)["train tokenizer"].get("href") == "#run-train_tokenizer-fvq_quarter_patch_0"
    assert nodes(svg)["prepare data"].get("href") == "#run-prepare_data"


@pytest.mark.parametrize(
    "runs",
    [small, large, lambda: [unrecorded(made) for made in large()], lambda: small()[:1], lambda: small()[:2]],
    ids=["small", "large", "no records", "one stage", "two stages"],
)
def test_no_stage_overlaps_another_and_all_are_inside(runs):
    svg = chain(runs())
    _, _, width, height = map(float, svg.get("viewBox").split())
    placed = boxes(svg)
    for left, top, right, bottom in placed.values():
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height
    for (name, one), (other, two) in itertools.combinations(placed.items(), 2):
        apart = one[2] <= two[0] or two[2] <= one[0] or one[3] <= two[1] or two[3] <= one[1]
        assert apart, (name, other)


@pytest.mark.parametrize("runs", [small, large])
def test_edges_lead_rightwards_from_box_to_box_and_pass_no_third(runs):
    svg = chain(runs())
    placed = boxes(svg)
    for (maker, reader), path in edge_paths(svg).items():
        line, _, _ = path.partition("m")
        points = [tuple(map(float, point.split())) for point in re.findall(r"[\d.]+ [\d.]+", line)]
        assert points[0][0] == pytest.approx(placed[maker][2], abs=0.1)
        assert points[-1][0] == pytest.approx(placed[reader][0], abs=0.1)
        assert placed[maker][1] < points[0][1] < placed[maker][3]
        assert placed[reader][1] < points[-1][1] < placed[reader][3]
        assert points[0][0] < points[-1][0]
        # Curves stay between columns; what crosses a column are the level pieces, at the height they start from.
        for start, end in re.findall(r"([\d.]+ [\d.]+)H([\d.]+)", line):
            x, y = map(float, start.split())
            for name, (left, top, right, bottom) in placed.items():
                if left < float(end) and x < right:
                    assert y < top or y > bottom, (maker, reader, name)


def test_times_stand_as_elsewhere():
    runs = runs_of(["vq", "fvq", "mlp5"], [])
    node = nodes(chain(runs))["train tokenizer"]
    shown = texts(node)
    assert duration(60 + 61 + 62) in shown
    assert "3 rows" in shown
    assert "peak 800 MB" in shown
    assert f"longest {duration(62)}:" in shown
    assert "mlp5" in shown
    assert tooltip(node)[-3:] == [f"vq: {duration(60)}", f"fvq: {duration(61)}", f"mlp5: {duration(62)}"]
    assert texts(nodes(chain(runs))["prepare data"])[1] == duration(6.2)


def test_bars_are_shares_of_the_recorded_time():
    svg = chain(small())
    total = sum(made.wall_seconds for made in small())
    shares = {}
    for name, node in nodes(svg).items():
        track, bar = (float(node.find(f"{SVG}rect[@class='chain-{kind}']").get("width")) for kind in ("track", "share"))
        shares[name] = bar / track
    assert shares["train tokenizer"] == pytest.approx(121 / total, abs=0.001)
    assert sum(shares.values()) == pytest.approx(1, abs=0.01)


def test_stages_without_a_record_are_dashed_and_have_no_time():
    runs = [unrecorded(made) if made.stage in ("train_tokenizer", "map_codes") else made for made in small()]
    svg = chain(runs)
    dashed = {name for name, node in nodes(svg).items() if "chain-unrecorded" in node.get("class")}
    assert dashed == {"train tokenizer", "map codes"}
    assert re.search(r"\.chain-unrecorded \.chain-box\{[^}]*stroke-dasharray", svg.find(f"{SVG}style").text)
    assert texts(nodes(svg)["train tokenizer"])[1] == "not recorded"
    assert nodes(svg)["train tokenizer"].find(f"{SVG}rect[@class='chain-share']") is None


def test_stages_with_some_records_say_how_many():
    runs = [unrecorded(made) if made.name == "train_tokenizer@vq" else made for made in small()]
    node = nodes(chain(runs))["train tokenizer"]
    assert "1 of 2 recorded" in texts(node)
    assert "chain-recorded" in node.get("class")
    assert duration(61) in texts(node)
    assert "vq: not recorded" in tooltip(node)


def test_hardware_stands_where_it_differs():
    runs = [replace(made, hardware="NVIDIA H100") if made.stage == "train_generator" else made for made in small()]
    svg = chain(runs)
    assert {name for name, node in nodes(svg).items() if "on NVIDIA H100" in texts(node)} == {"train generator"}
    assert not any(MACHINE in text for node in nodes(svg).values() for text in texts(node))
    assert MACHINE in tooltip(nodes(svg)["sample"])


def test_names_are_text_whatever_they_hold():
    hostile = '</title></svg><script>alert("1")</script>&\'{0}'
    svg = chain_svg(SimpleNamespace(name="smoke", runs=runs_of([hostile, "fvq"], ["fvq"])))
    assert "<script" not in svg
    node = nodes(ElementTree.fromstring(svg))["train tokenizer"]
    assert f"{hostile}: {duration(60)}" in tooltip(node)
    assert node.get("href") == f"#run-train_tokenizer-{hostile}"


def test_the_sentence_says_what_is_recorded():
    svg = chain(small())
    total = sum(made.wall_seconds for made in small())
    assert svg.get("role") == "group"
    label = svg.get("aria-label")
    assert f"{len(small())} of {len(small())} runs are recorded, with {duration(total)} of wall time" in label
    assert f"train tokenizer took the longest, {duration(121)}." in label
    assert chain([unrecorded(made) for made in small()]).get("aria-label").endswith(" 0 of 22 runs are recorded.")


def test_colours_are_the_pages():
    svg = chain_svg(SimpleNamespace(name="smoke", runs=small()))
    assert set(re.findall(r"(?:fill|stroke):([^;}]+)", svg)) <= {
        "none",
        "currentColor",
        "var(--ink)",
        "var(--soft)",
        "var(--rule)",
        "var(--tint)",
    }
    # Style rules reach nothing else on the page.
    rules = svg[svg.index("<style>") + 7 : svg.index("</style>")].strip().splitlines()
    assert all(rule.startswith(".chain-") for rule in rules)


def test_the_drawing_is_the_same_every_time():
    study = SimpleNamespace(name="smoke", runs=large())
    assert chain_svg(study) == chain_svg(study)


def test_columns_are_those_of_the_longest_path():
    edges = [("a", "b"), ("b", "c"), ("a", "c"), ("d", "c")]
    placement = place(dict.fromkeys("abcde", 10.0), edges, 3)
    assert {name: placement.columns[name] for name in "abcd"} == {"a": 0, "b": 1, "c": 2, "d": 0}
    # The edge from a to c passes b's column beside it.
    ((column, height),) = placement.lanes["a", "c"]
    assert column == 1
    assert abs(height - placement.centres["b"]) > 5
    assert placement.centres["e"] > max(placement.centres[name] for name in "abcd")


def test_avoidable_crossings_are_avoided():
    placement = place(dict.fromkeys("abcdef", 10.0), [("a", "f"), ("b", "e"), ("c", "d")], 3)
    assert [placement.centres[one] < placement.centres[two] for one, two in [("a", "b"), ("b", "c")]] == [
        placement.centres[one] < placement.centres[two] for one, two in [("f", "e"), ("e", "d")]
    ]


def test_stages_that_read_each_others_files_are_told():
    with pytest.raises(UserError, match=r"near (a and b|b and a);"):
        place(dict.fromkeys("ab", 10.0), [("a", "b"), ("b", "a")], 3)
