"""A plan as JSON."""

from collections.abc import Callable, Sequence
from typing import Any

from fvq.plan.devices import GPUS
from fvq.plan.plan import KINDS, Plan, Row
from fvq.plan.work import PRECISIONS, Work


def as_records(plan: Plan, gpus: Sequence[str], utilization: float) -> dict[str, Any]:
    """The plan as JSON, numbers and texts in flat records; bytes, multiply-adds, and hours of one GPU.

    ``rows``: each row with its training (``multiply_adds``, by precision ``multiply_adds_bfloat16``, …; ``hours_a100``,
    …), a GPU's memory at ``batch_size`` over ``accumulate`` (``memory_weights``, …, ``memory_total``), the largest
    batch that fits (``largest_batch_a100``, …), its storage (``storage_weights``, …) and in ``note`` what of it is not
    counted. ``work``: multiply-adds and hours by ``kind`` and ``row``. ``totals``: the same by ``kind``, and of
    ``all``. ``storage_total`` is that of the rows with ``storage_references``.
    """

    def costs(work: Work) -> dict[str, float]:
        hours = {f"hours_{gpu}": GPUS[gpu].hours(work, utilization) for gpu in gpus}
        parts = {f"multiply_adds_{name}": getattr(work, name) for name in PRECISIONS}
        return {"multiply_adds": work.total, **parts, **hours}

    kinds = [kind for kind in KINDS if plan.work(kind).total]
    every = sum((plan.work(kind) for kind in kinds), Work())
    return {
        "format": "fvq.plan",
        "study": plan.study,
        "scale": plan.scale,
        "dataset": plan.dataset,
        "training_images": plan.images.train,
        "validation_images": plan.images.validation,
        "utilization": utilization,
        "rows": [_row_record(row, gpus, costs) for row in plan.rows],
        "work": [{"kind": item.kind, "row": item.row, **costs(item.work)} for item in plan.items],
        "totals": [{"kind": kind, **costs(plan.work(kind))} for kind in kinds] + [{"kind": "all", **costs(every)}],
        "storage_references": plan.reference_bytes,
        "storage_total": plan.reference_bytes + sum(row.storage.total for row in plan.rows),
        "notes": list(plan.notes),
    }


def _row_record(row: Row, gpus: Sequence[str], costs: Callable[[Work], dict[str, float]]) -> dict[str, Any]:
    memory, storage = row.memory, row.storage
    at_once = -(-row.batch_size // row.accumulate)
    return {
        "row": row.row,
        "kind": row.kind,
        "label": row.label,
        "note": "; ".join(row.notes),
        "batch_size": row.batch_size,
        "accumulate": row.accumulate,
        "steps": row.steps,
        "runs": row.runs,
        "step_multiply_adds_per_image": row.step.per_image.total,
        "step_multiply_adds_constant": row.step.constant.total,
        **costs(row.training),
        "memory_weights": memory.weights,
        "memory_gradients": memory.gradients,
        "memory_optimizer": memory.optimizer,
        "memory_average": memory.average,
        "memory_activations_constant": memory.activations_constant,
        "memory_activations_per_image": memory.activations_per_image,
        "memory_quantizer": memory.quantizer,
        "memory_search": memory.search_bytes(at_once),
        "memory_logits": memory.logits_bytes(at_once) if memory.vocabulary else 0,
        "memory_total": memory.total(at_once),
        **{f"largest_batch_{gpu}": memory.largest_batch(GPUS[gpu].memory) for gpu in gpus},
        "storage_weights": storage.weights,
        "storage_state": storage.state,
        "storage_tokens": storage.tokens,
        "storage_images": storage.images,
        "storage_features": storage.features,
        "storage_total": storage.total,
    }
