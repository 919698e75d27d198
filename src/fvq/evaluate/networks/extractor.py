"""What turns images into features: the form that every network takes, ours and other people's."""

from typing import Literal, NamedTuple, Protocol

from torch import Tensor

Resize = Literal["tensorflow", "pytorch"]
"""How ``inception-2015`` resizes images: as the published graph, ADM and torch-fidelity do, or as pytorch-fid."""

INCEPTION_RESIZES: dict[Resize, str] = {
    "tensorflow": "bilinear to 299 pixels as in TensorFlow 1, (x - 128) / 128",
    "pytorch": "bilinear to 299 pixels with half-pixel centres, 2x / 255 - 1",
}
"""How Inception-2015 is given its images, by the protocols' names, in the words of a record."""


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
