"""A base method of one's own: every token attends to the tokens of like values.

    freecp segment photo.jpg --register projects/OwnBaseMethod/value_attention.py \
        --opts MODEL.CLIP.METHOD valueattention MODEL.CLIP.VALUEATTENTION.TEMPERATURE 2.0
"""

import torch.nn.functional as F
from torch import Tensor

from freecp_d2.clip.blocks import mean_attention
from freecp_d2.clip.methods import BASE_METHODS, LastBlockMethod, Trunk


@BASE_METHODS.register()
class ValueAttention(LastBlockMethod):
    """softmax(t sqrt(d) cos(v, v)) v in the last block, neither residual nor MLP.

    Args:
        temperature: t, above 0.

    Raises:
        ValueError: it is not.
    """

    def __init__(self, *, temperature: float = 1.0, last_block: str = ""):
        super().__init__(last_block=last_block)
        if temperature <= 0:
            raise ValueError(
                f"MODEL.CLIP.VALUEATTENTION.TEMPERATURE is {temperature}; it must be above 0"
            )
        self.temperature = temperature

    def attend(self, trunk: Trunk) -> Tensor:
        """What the tokens attend to, (B, heads, T, d)."""
        *_, value = trunk.qkv
        unit, scaled = self._unit(value)
        return F.scaled_dot_product_attention(scaled, unit, value)

    def similarity(self, trunk: Trunk) -> Tensor:
        """The mean of its heads, (B, N, N), for MODEL.FREECP.AFFINITY "method"."""
        unit, scaled = self._unit(trunk.qkv[2])
        return mean_attention(scaled, unit)[:, 1:, 1:]

    def _unit(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """Values of unit length, and these times t d, of which attention divides by sqrt(d)."""
        unit = F.normalize(value, dim=-1)
        return unit, self.temperature * value.shape[-1] * unit
