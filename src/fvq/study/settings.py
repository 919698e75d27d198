"""What a row's settings say, and how two rows differ."""

from collections.abc import Mapping
from typing import Any

from fvq.study.results import TokenizerRow

# In ``describe`` only of a row with VQBridge.
BRIDGE_SETTINGS = ("width", "patch", "depth", "heads", "layout", "block")
_COMPOSERS = ("residual", "multiscale")


def projector(row: TokenizerRow) -> str:
    """What makes the codebook: the quantizer, of a composed one the quantizer inside."""
    name = str(row.settings["quantizer"])
    return str(_options(row).get("inner", "vq")) if name in _COMPOSERS else name


def bridge_width(row: TokenizerRow) -> int:
    """d' of a row with VQBridge: the codes' dimension where the settings leave it open."""
    return int(describe(row)["width"])


def bridge_patch(row: TokenizerRow) -> int:
    """p of a row with VQBridge: the bridge's own choice where the settings leave it open."""
    return int(describe(row)["patch"])


def usual_bridge(settings: Mapping[str, Any]) -> dict[str, Any]:
    """VQBridge's own choices at the ``codebook_size`` and ``code_dim`` of ``settings``."""
    # Brings torch with it, which reading a study does without.
    from fvq.quantize.bridge import default_patch

    patch = default_patch(int(settings["codebook_size"]))
    return {"width": settings["code_dim"], "patch": patch, "depth": 2, "heads": 4, "layout": "grid", "block": "vit"}


def describe(row: TokenizerRow) -> dict[str, Any]:
    """What a row is, by name: every setting but its label, with VQBridge's own choices filled in.

    ``quantizer`` is the inner one of a ``composition`` (residual, multiscale; else None); ``annealing`` says whether
    the learning rate falls, ``shape`` how (linear, cosine; else None). Of a VQBridge there are also its ``width``,
    ``patch``, ``depth``, ``heads``, ``layout`` and ``block``.
    """
    settings = row.settings
    found = {name: settings.get(name) for name in ("codebook_size", "code_dim", "ratio", "epochs", "steps", "warmup")}
    found |= {"annealing": row.annealed, "shape": settings["annealing"] if row.annealed else None}
    found["composition"] = settings["quantizer"] if settings["quantizer"] in _COMPOSERS else None
    found["quantizer"] = projector(row)
    found["options"] = {name: value for name, value in _options(row).items() if name != "inner"}
    if found["quantizer"] == "fvq":
        chosen = {name: value for name, value in (settings.get("bridge") or {}).items() if value is not None}
        found |= usual_bridge(settings) | chosen
    return found


def differences(row: TokenizerRow, other: TokenizerRow) -> set[str]:
    """The names in ``describe`` that two rows differ in.

    Another quantizer stands for its bridge and options too, another composition for its options; the shape of
    annealing counts where both rows anneal; a bridge's patch and width are the same where both are VQBridge's own
    choice, which follows codebook size and channels.
    """
    one, two = describe(row), describe(other)
    found = {name for name in one.keys() | two.keys() if one.get(name) != two.get(name)}
    if "annealing" in found:
        found.discard("shape")
    if "composition" in found or ("quantizer" in found and not one["composition"]):
        found.discard("options")
    if "quantizer" in found:
        return found.difference(BRIDGE_SETTINGS)
    return {name for name in found if not (_usual(one, name) and _usual(two, name))}


def _options(row: TokenizerRow) -> Mapping[str, Any]:
    return row.settings.get("options") or {}


def _usual(described: Mapping[str, Any], name: str) -> bool:
    return name in BRIDGE_SETTINGS and bool(described[name] == usual_bridge(described)[name])
