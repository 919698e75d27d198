"""The toy of Figure 2, left: one vector descends towards a fixed target through a quantizer."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F

from fvq.quantize import build_quantizer
from fvq.runtime.seeds import generator, seed_all

# Steps below this share of the longest one have no direction worth measuring.
_SHORTEST_STEP = 1e-3


@dataclass(frozen=True)
class Trajectory:
    """A run in the plane; row t is what step t (from 0) starts from.

    Attributes:
        z_e: the encoder's output, float64 (steps + 1, 2).
        z_q: the code chosen for it, float64 (steps + 1, 2).
        indices: the code's index, int64 (steps + 1,).
        target: float64 (2,).
    """

    z_e: NDArray[np.float64]
    z_q: NDArray[np.float64]
    indices: NDArray[np.int64]
    target: NDArray[np.float64]


def run_trajectory(
    quantizer_name: str, *, codebook_size: int, steps: int, learning_rate: float, seed: int, **options: Any
) -> Trajectory:
    """Gradient descent on |z_q - target|² through the straight-through estimator, with the losses of Eq. 5.

    The encoder is a free vector in the plane. It and the quantizer (codes, projector) descend together with plain SGD
    at one rate; all squared distances are means over the two coordinates, as in a tokenizer's training. Start and
    target are uniform in [-1, 1]² and follow from ``seed`` alone, so quantizers with the same seed have the same task.
    The paper gives neither its sizes nor its rate.

    Plain VQ spirals: while one code is chosen, error and lag obey a linear system whose eigenvalues are complex, as the
    code learns no faster than the vector. A mapped code moves with all the projector's weights at once, in the
    bridge some width + 1 times as far per step, and follows without overshooting. So the straight path shows a
    faster codebook, which a larger codebook weight gives plain VQ too, and not the attention between codes.

    Args:
        quantizer_name: a name that ``build_quantizer`` knows.
        codebook_size: number of codes.
        steps: gradient steps, at least 2.
        learning_rate: SGD's rate.
        seed: fixes start, target and weights.
        options: of the quantizer, such as ``width=16, heads=2`` for ``fvq``.

    Raises:
        ValueError: sizes that do not fit, or a rate so large that the run diverges.
    """
    if steps < 2:
        raise ValueError(f"steps must be at least 2, not {steps}")
    if not learning_rate > 0:
        raise ValueError(f"learning_rate must be positive, not {learning_rate}")
    start_d, target_d = torch.rand(2, 2, generator=generator(seed, "start and target")) * 2 - 1
    seed_all(seed, "toy weights")
    quantizer = build_quantizer(quantizer_name, codebook_size=codebook_size, code_dim=2, **options)
    z_e = nn.Parameter(start_d.reshape(1, 2, 1, 1).clone())
    target = target_d.reshape(1, 2, 1, 1)
    optimizer = torch.optim.SGD([z_e, *quantizer.parameters()], lr=learning_rate)
    encoded, chosen, indices = [], [], []
    for _ in range(steps + 1):
        quantized = quantizer(z_e)
        encoded.append(z_e.detach().flatten().tolist())
        chosen.append(quantized.quantized.detach().flatten().tolist())
        indices.append(int(quantized.indices))
        loss = F.mse_loss(quantized.quantized, target) + quantized.loss
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
    return Trajectory(np.array(encoded), np.array(chosen), np.array(indices), target_d.double().numpy())


def describe(trajectory: Trajectory) -> dict[str, float]:
    """A trajectory in figures.

    Returns:
        ``path_ratio``: length of z_e's path over the straight distance between its ends.
        ``turning`` and ``turning_net``: the angles in degrees between z_e's successive steps, summed without and with
        their sign; a spiral has both near each other and large, a zigzag only the first. Steps below a thousandth of
        the longest are left out.
        ``distance_first``, ``distance_middle``, ``distance_last``: mean |z_q - z_e| in each third of the run.
        ``code_switches``: how often another code was chosen than a step before.
        ``target_distance``: |z_q - target| at the end.
    """
    steps_td = np.diff(trajectory.z_e, axis=0)
    lengths_t = np.linalg.norm(steps_td, axis=1)
    moving_td = steps_td[lengths_t > _SHORTEST_STEP * lengths_t.max()]
    (x_t, y_t), (next_x_t, next_y_t) = moving_td[:-1].T, moving_td[1:].T
    angles_t = np.degrees(np.arctan2(x_t * next_y_t - y_t * next_x_t, x_t * next_x_t + y_t * next_y_t))
    thirds = np.array_split(np.linalg.norm(trajectory.z_q - trajectory.z_e, axis=1), 3)
    first, middle, last = (float(third.mean()) for third in thirds)
    return {
        "path_ratio": float(lengths_t.sum()) / math.dist(trajectory.z_e[0], trajectory.z_e[-1]),
        "turning": float(np.abs(angles_t).sum()),
        "turning_net": abs(float(angles_t.sum())),
        "distance_first": first,
        "distance_middle": middle,
        "distance_last": last,
        "code_switches": float((np.diff(trajectory.indices) != 0).sum()),
        "target_distance": math.dist(trajectory.z_q[-1], trajectory.target),
    }
