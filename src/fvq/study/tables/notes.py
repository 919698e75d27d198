"""What stands over and under the tables: whose data they hold, and what the figures stand on."""

from collections.abc import Mapping, Sequence

from fvq.evaluate.record import NONE
from fvq.runtime.text import count
from fvq.study.results import GeneratorRow, Study, TokenizerRow

PAPER_LABEL = "paper: ImageNet 256×256, FID on Inception"


def distance_label(study: Study, name: str) -> str:
    """What people call the Fréchet distance of reconstructions ``name``: rFID on Inception alone, else by its name."""
    if not study.inception:
        return name
    return "rFID of JPEGs" if name.endswith("_jpeg75") else "rFID"


def released_set(study: Study) -> str | None:
    """The further image set that has the study's own images as FVQ's released evaluation takes them; None without."""
    sets = (name for name, protocol in study.elsewhere.items() if protocol["protocol"] == "fvq-released")
    # Named after their data set; COCO may be measured by that protocol too.
    return next((name for name in sets if name.startswith(study.dataset)), None)


def beside_paper(study: Study) -> str:
    """How the measured figures stand to the paper's beside them, in a sentence."""
    if study.dataset == "imagenet" and study.image_size == (256, 256) and study.inception:
        return "The two sides are different runs on the same data; the notes say where their protocols differ."
    return (
        "The two sides are different data, not to be compared figure by figure; what can be compared is the order of "
        "the rows."
    )


def measured_label(study: Study) -> str:
    """What the measured columns hold, to stand over them."""
    return f"measured here: {study.dataset} {_what(study)}"


def elsewhere_label(study: Study, image_set: str) -> str:
    """The same of a further image set, with its protocol."""
    return f"measured here: {image_set} {_what(study)}, protocol {study.elsewhere[image_set]['protocol']}"


def images_in_words(rows: Sequence[TokenizerRow] | Sequence[GeneratorRow]) -> str:
    """How many images the rows' figures stand on."""
    return _numbers([row.figures for row in rows])


def samples_in_words(study: Study) -> str:
    """How many samples the generators' figures stand on, and how many reference images."""
    known = study.generator_protocol["protocol_reference_images"]
    reference = f"{count(int(known))} reference images" if known.isdecimal() else "stored statistics of the reference"
    return f"{images_in_words(study.generators)} samples a row against {reference}"


def distance_notes(measured: Mapping[str, Sequence[Mapping[str, float]]]) -> list[str]:
    """What stands beside Fréchet distances in their cells; ``measured`` has the rows' figures by a distance's name."""

    def names(ending: str) -> str:
        found = (name for name, figures in measured.items() if any(f"{name}_{ending}" in each for each in figures))
        return " and ".join(found)

    notes = []
    if spread := names("spread"):
        notes.append(
            f"± after {spread}: its standard deviation by the choice of images, from random halves of them. No more "
            "digits are shown than it supports."
        )
    if infinity := names("infinity"):
        notes.append(f"At ∞: {infinity} extrapolated to infinitely many images (Chong and Forsyth 2020).")
    return notes


def seed_notes(rows: Sequence[TokenizerRow]) -> list[str]:
    """What stands beside the figures of rows with several seeds."""
    if not any(row.repeats for row in rows):
        return []
    return [
        "± with a number of seeds: mean and standard deviation over trainings with that many seeds, each evaluated "
        "alike. No more digits are shown than it supports."
    ]


def reconstruction_notes(study: Study, rows: Sequence[TokenizerRow], keys: Sequence[str]) -> list[str]:
    """What the measured figures of tokenizers stand on; ``keys`` are the paper's columns that stand beside them."""
    if not rows:
        return []
    notes = []
    if "lpips" in keys:
        notes.append("Measured LPIPS: AlexNet.")
        if not any("lpips_alex" in row.figures for row in rows):
            why = study.tokenizer_protocol.get("protocol_lpips_alex", "not asked for").removeprefix("absent: ")
            notes = [f"LPIPS is not measured here: {why}."]
    notes.append(f"{study.rfd} compares the reconstructions of {images_in_words(rows)} images with the originals.")
    distances = {study.rfd: [row.figures for row in rows if not row.repeats]}
    for image_set in _sets_beside(study, keys):
        if figures := [row.elsewhere[image_set] for row in rows if image_set in row.elsewhere]:
            notes.append(_on(study, image_set, figures))
            distances.setdefault(study.rfd_elsewhere(image_set), []).extend(figures)
    notes += distance_notes(distances)
    return notes + seed_notes(rows)


def elsewhere_notes(study: Study, image_set: str, rows: Sequence[TokenizerRow]) -> list[str]:
    """What the figures of ``rows``, one or more, on a further image set stand on."""
    figures = [row.elsewhere[image_set] for row in rows]
    return [_on(study, image_set, figures), *distance_notes({study.rfd_elsewhere(image_set): figures})]


def generation_notes(study: Study) -> list[str]:
    """What the generators' figures stand on."""
    if not study.generators:
        return ["This study has no generator."]
    notes = [f"Measured on {samples_in_words(study)}."]
    network = study.generator_protocol["protocol_neighbours_on"]
    if network not in (NONE, study.extractor):
        notes.append(f"Precision and recall on the features of {network}.")
    if study.precision.endswith("_float16"):
        notes.append("Precision and recall with the ADM evaluator's float16 distances, which lie a little higher.")
    return [*notes, *distance_notes({study.fd: [row.figures for row in study.generators]})]


def _sets_beside(study: Study, keys: Sequence[str]) -> list[str]:
    """The further image sets that have columns beside the study's own, by the paper's columns."""
    released = released_set(study) if "rfid" in keys else None
    return [
        *([released] if released else []),
        *(["coco"] if "rfid_coco" in keys and "coco" in study.elsewhere else []),
    ]


def _on(study: Study, image_set: str, figures: Sequence[Mapping[str, float]]) -> str:
    protocol, name = study.elsewhere[image_set], study.rfd_elsewhere(image_set)
    return (
        f"On {image_set}: {name} compares the reconstructions of {_numbers(figures)} images with the originals; "
        f"protocol {protocol['protocol']}, images {protocol['protocol_preparation']}."
    )


def _what(study: Study) -> str:
    height, width = study.image_size
    distance = "FID on Inception" if study.inception else "Fréchet distance on the study's own classifier, not FID"
    return f"{width}×{height}, {distance}"


def _numbers(figures: Sequence[Mapping[str, float]]) -> str:
    return " or ".join(count(number) for number in sorted({int(each["samples"]) for each in figures}))
