"""What turns images into features: the form that every network takes, ours and other people's."""

from typing import Literal, NamedTuple, Protocol

from torch import Tensor

Resize = Literal["tensorflow", "pytorch"]
"""How ``inception-2015`` resizes images: as the published graph, ADM and torch-fidelity do, or as pytorch-fid."""


class Outputs(NamedTuple):
    """What a network says of B images, on its device."""

    features: Tensor
    """float32 (B, D)"""
    logits: Tensor | None
    """float32 (B, C); None where the network knows no classes"""
    spatial: Tensor | None
    """float32 (B, S); None unless asked for, and where the network has none"""


class Extractor(Protocol):
    """A network with features to compare and, maybe, class scores and features that keep the place."""

    @property
    def name(self) -> str:
        """Names the figures: ``photos`` gives ``fd_photos``."""

    @property
    def feature_dimension(self) -> int:
        """D, the length of a feature."""

    @property
    def spatial_dimension(self) -> int:
        """S, the length of a spatial feature; 0 where there are none."""

    @property
    def classes(self) -> int:
        """C, the number of classes; 0 where there are none."""

    @property
    def weights_sha256(self) -> str:
        """SHA-256 of the weights' file; ``not saved`` where there is none."""

    @property
    def resize(self) -> str:
        """In words, how images are brought to the network's size and scale."""

    def __call__(self, images: Tensor, *, spatial: bool = False) -> Outputs:
        """Outputs for images uint8 (B, 3, H, W), taken to the network's device."""
