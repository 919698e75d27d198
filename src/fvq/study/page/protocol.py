"""The fields of a protocol in words."""

from collections.abc import Mapping

from fvq.evaluate.record import NONE
from fvq.runtime.text import grouped

_FIELDS = {
    "protocol": "protocol",
    "protocol_extractor": "extractor",
    "protocol_extractor_sha256": "SHA-256 of its weights",
    "protocol_resize": "resizing for it",
    "protocol_preparation": "preparation of the images",
    "protocol_images": "images",
    "protocol_reference": "reference",
    "protocol_reference_images": "reference images",
    "protocol_reference_sha256": "SHA-256 of the reference",
    "protocol_score": "groups of the score",
    "protocol_neighbours": "neighbours k",
    "protocol_density_neighbours": "neighbours k of density and coverage",
    "protocol_neighbours_on": "network of neighbours",
    "protocol_neighbours_sha256": "SHA-256 of its weights",
    "protocol_neighbours_reference_images": "reference images of neighbours",
    "protocol_distances": "distances of neighbours",
    "protocol_seed": "seeds of what it draws",
    "protocol_lpips_alex": "LPIPS on AlexNet",
    "protocol_lpips_vgg": "LPIPS on VGG16",
}


def protocol_lines(protocol: Mapping[str, str]) -> list[tuple[str, str]]:
    """A protocol's fields as people call them, with their values; without those of figures that were not asked for."""
    fields = [*(field for field in _FIELDS if field in protocol), *sorted(protocol.keys() - _FIELDS)]
    return [
        (_FIELDS.get(field, field.removeprefix("protocol_").replace("_", " ")), _value(field, protocol[field]))
        for field in fields
        if protocol[field] != NONE or field == "protocol_resize"
    ]


def _value(field: str, value: str) -> str:
    return grouped(value) if field.endswith("images") else value
