"""The moving average of a tokenizer's weights (EMA), which many train towards and evaluate instead of the weights."""

from collections.abc import Mapping

from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from fvq.tokenizer.tokenizer import Tokenizer


class MovingAverage:
    """After each step, average = decay · average + (1 - decay) · weights; the first step's weights begin it.

    Buffers, such as the codes of ``vq-ema``, are averages already and are copied.
    """

    def __init__(self, tokenizer: Tokenizer, decay: float) -> None:
        self._model = AveragedModel(tokenizer, multi_avg_fn=get_ema_multi_avg_fn(decay))
        averaged = self._model.module
        assert isinstance(averaged, Tokenizer)
        self.tokenizer = averaged.requires_grad_(False).eval()

    def update(self, tokenizer: Tokenizer) -> None:
        """Take in the weights after a step."""
        self._model.update_parameters(tokenizer)

    def state_dict(self) -> dict[str, Tensor]:
        """The averages and their number of steps."""
        return self._model.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor], /) -> None:
        """Go on from saved averages."""
        self._model.load_state_dict(state)
