"""What the study trained with, in the words of the paper's Table 6."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fvq.runtime.text import count
from fvq.study.results import GeneratorRow, Study, TokenizerRow
from fvq.study.tables.cells import ABSENT, Cell
from fvq.study.tables.columns import Row


def settings_cells(study: Study, line: str) -> tuple[Cell, Cell]:
    """A line of Table 6, by the paper row's id: what the tokenizers trained with, and the generators.

    Where they differ, the most frequent stands first and each other with its rows. A dash where nothing is trained or
    the parameters do not say.
    """
    training = study.parameters.get("train_tokenizer", {})
    shared = study.parameters.get("train_generator", {})
    tokenizers = [(row.label, _or_dash(_of_tokenizer, line, row, training)) for row in study.rows]
    generators = [(row.label, _or_dash(_of_generator, line, row, shared)) for row in study.generators]
    return Cell(_joined(tokenizers)), Cell(_joined(generators))


def _of_tokenizer(line: str, row: TokenizerRow, training: Mapping[str, Any]) -> str:
    schedule = training.get("schedule", {})
    own = row.settings.get("warmup")
    shape = row.settings["annealing"] if row.annealed else "none"
    match line:
        case "batch_size":
            return count(training["batch_size"])
        case "epochs":
            return row.length
        case "optimizer":
            return "Adam"
        case "learning_rate":
            reference = training.get("reference_batch_size")
            rate = f"{training['learning_rate']:g}"
            return rate if reference is None else f"{rate} for {count(reference)} images, in proportion"
        case "learning_rate_schedule":
            return _schedule({**schedule, **({} if own is None else {"warmup": own}), "shape": shape})
        case "warmup_learning_rate":
            return _warmup({**schedule, **({} if own is None else {"warmup": own})})
        case "linear_learning_rate":
            return _annealing({**schedule, "shape": shape})
        case "optimizer_parameters":
            return _betas(training)
        case "loss_weight":
            weight, start = training["adversarial_weight"], training["adversarial_start"]
            late = f" from step {count(start)}" if weight and start else ""
            commitment, reconstruction = training["commitment_weight"], training["reconstruction_weight"]
            return (
                f"commit loss β = {commitment:g}, squared error {reconstruction:g}, "
                f"perceptual loss {training['perceptual_weight']:g}, discriminative loss {weight:g}{late}"
            )
    return ABSENT


def _of_generator(line: str, row: GeneratorRow, shared: Mapping[str, Any]) -> str:
    recipe = row.settings["recipe"]
    match line:
        case "batch_size":
            return count(recipe["batch_size"])
        case "epochs":
            unit = "steps" if recipe["epochs"] is None else "epochs"
            return f"{count(recipe[unit])} {unit}"
        case "optimizer":
            return "AdamW"
        case "learning_rate":
            return f"{recipe['learning_rate']:g}"
        case "learning_rate_schedule":
            return _schedule(recipe["schedule"])
        case "warmup_learning_rate":
            return _warmup(recipe["schedule"])
        case "linear_learning_rate":
            return _annealing(recipe["schedule"])
        case "optimizer_parameters":
            return f"{_betas(shared)}, weight decay {shared['weight_decay']:g}"
    return ""


def _schedule(schedule: Mapping[str, Any]) -> str:
    """As the paper writes it: warmup(0.1) [baselr(0.3)–linear(0.7)]."""
    warmup, constant, shape = schedule["warmup"], schedule["constant"], schedule["shape"]
    if shape == "none":
        return f"warmup({warmup:g}) baselr"
    return f"warmup({warmup:g}) [baselr({constant:g})–{shape}({1 - constant:g})]"


def _warmup(schedule: Mapping[str, Any]) -> str:
    return f"{schedule['warmup_from']:g} to 1" if schedule["warmup"] else "–"


def _annealing(schedule: Mapping[str, Any]) -> str:
    return "constant" if schedule["shape"] == "none" else f"1 to {schedule['final']:g}"


def _betas(training: Mapping[str, Any]) -> str:
    first, second = training["betas"]
    return f"β = {first:g} and {second:g}"


def _or_dash(text: Callable[[str, Row, Mapping[str, Any]], str], line: str, row: Row, shared: Mapping[str, Any]) -> str:
    try:
        return text(line, row, shared)
    except KeyError:
        return ABSENT


def _joined(entries: Sequence[tuple[str, str]]) -> str:
    """The texts, each once; all but the most frequent one with the labels that it is of."""
    texts = Counter(text for _, text in entries)
    if not texts:
        return ABSENT
    (most, _), *others = texts.most_common()
    named = [f"{text}: {', '.join(f'“{label}”' for label, own in entries if own == text)}" for text, _ in others]
    return "; ".join([most, *named])
