"""The published ways to measure images, by name: two figures compare where their protocols are the same."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from fvq.evaluate.figure_names import INCEPTION_2015
from fvq.evaluate.inception_score import ADM_CHUNK, adm_groups, torch_fidelity_groups
from fvq.evaluate.networks.extractor import INCEPTION_RESIZES, Resize
from fvq.evaluate.preparation import AS_STORED, Preparation
from fvq.runtime.errors import UserError

ProtocolName = Literal["adm", "torch-fidelity", "pytorch-fid", "fvq-released"]


@dataclass(frozen=True)
class Protocol:
    """What a protocol fixes. Where the images come from, and how many, is each evaluation's own."""

    name: ProtocolName
    source: str
    """Whose it is."""
    resize: Resize
    """How ``inception-2015`` resizes images; other networks have their own way."""
    preparation: Preparation = AS_STORED
    """What is done to the images of both sides before."""
    of_samples: bool = True
    """Whether it measures samples too, and not reconstructions alone."""
    spatial: bool = False
    """Whether sFID belongs to it."""
    score: Literal["adm", "torch-fidelity"] | None = None
    """How the Inception Score groups images."""
    score_seed: int | None = None
    """Of the score's shuffle, where there is one."""
    neighbours: int | None = None
    """k of precision and recall, where these belong to it."""
    neighbours_on: str | None = None
    """The network of precision and recall; None: the one of all other figures."""
    samples: tuple[int, ...] = ()
    """How many samples a published FID stands on; any number where empty."""
    pairs: tuple[int, ...] = ()
    """How many images a published rFID stands on: ImageNet's validation images, and those of COCO 2017."""

    def score_groups(self, count: int) -> Tensor | None:
        """The group int64 (count,) of each image in the Inception Score; None where there is no score."""
        if self.score == "adm":
            return adm_groups(count)
        return None if self.score is None else torch_fidelity_groups(count, seed=self.score_seed or 0)

    def score_in_words(self, extractor: str) -> str:
        """How images are grouped and, of Inception's last layer, that its bias is left out; for the record."""
        groups = f"chunks of {ADM_CHUNK} in file order"
        if self.score == "torch-fidelity":
            groups = f"10 splits shuffled with seed {self.score_seed}"
        return f"{groups}, no bias" if extractor == INCEPTION_2015 else groups


PROTOCOLS: dict[ProtocolName, Protocol] = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            "adm",
            source="guided-diffusion's evaluator, which LlamaGen and most generators of ImageNet report",
            resize="tensorflow",
            spatial=True,
            score="adm",
            neighbours=3,
            samples=(50_000,),
            pairs=(50_000, 5_000),
        ),
        Protocol(
            "torch-fidelity",
            source="the library's defaults",
            resize="tensorflow",
            score="torch-fidelity",
            score_seed=2020,
            neighbours=3,
            neighbours_on="vgg16",
        ),
        Protocol("pytorch-fid", source="the library's defaults", resize="pytorch"),
        Protocol(
            "fvq-released",
            source="the rFID of FVQ's released code: both sides cut without scaling and stored as JPEG",
            resize="tensorflow",
            preparation=Preparation(256, "plain", 75, keep_jpeg=True),
            of_samples=False,
            pairs=(50_000, 5_000),
        ),
    )
}


def check_resizing(extractor_resize: str, protocol: Protocol) -> None:
    """UserError where Inception resizes images in the way of another protocol."""
    wanted = INCEPTION_RESIZES[protocol.resize]
    if extractor_resize in INCEPTION_RESIZES.values() and extractor_resize != wanted:
        raise UserError(
            f"the protocol {protocol.name} has Inception's images resized {wanted}, and this network resizes them "
            f"{extractor_resize}; load_network of fvq.evaluate.protocol_networks loads the right one"
        )


def check_count(count: int, allowed: tuple[int, ...], protocol: Protocol, extractor: str, what: str) -> None:
    """UserError unless a figure that bears the name FID stands on as many images as published ones do."""
    if extractor != INCEPTION_2015 or not allowed or count in allowed:
        return
    wanted = " or ".join(f"{number:,}" for number in allowed)
    raise UserError(
        f"{what}: {count:,} images, and a published figure of the protocol {protocol.name} stands on {wanted}; "
        "--allow-count (in a study's parameters allow_count) measures these all the same"
    )
