"""The exponential moving average of a model's weights."""

from __future__ import annotations

from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


def moving_average(model: nn.Module, decay: float) -> AveragedModel:
    """A copy of the model (`module`) that holds the average: after each `update_parameters` it is decay * average + (1 - decay) * model.

    It starts at the initial weights, without warm-up. The statistics of batch norms are averaged as weights are; whole numbers are copied.
    As timm's ModelEmaV3, except that a weight with two names is averaged once.
    """
    update = get_ema_multi_avg_fn(decay)

    def averaged(mine: list[Tensor], theirs: list[Tensor], count: Tensor) -> None:
        if mine[0].is_floating_point():
            update(mine, theirs, count)
        else:
            for one, other in zip(mine, theirs, strict=True):
                one.copy_(other)

    average = AveragedModel(model, multi_avg_fn=averaged, use_buffers=True)
    average.update_parameters(model)  # the first call copies
    return average
