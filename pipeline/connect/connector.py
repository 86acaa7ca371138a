"""The connector: latents of one SAE, linearly combined, are latents of another."""

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.train_config import Rectify


class Connector(nn.Module):
    """`z2 = relu(z1 @ W + b)`, or `z1 @ W + b` where it is linear.

    `W[i, o]` is what an activation of input feature `i` adds to output feature `o`: the transpose
    of `W2` in Riggs, Mitchell and Kaufman, "Finding Sparse Linear Connections between Features in
    LLMs" (2023).
    """

    def __init__(
        self,
        W: Float[Tensor, "n_in n_out"],
        b: Float[Tensor, " n_out"],
        *,
        activation: Rectify = "relu",
    ) -> None:
        super().__init__()
        self.W = nn.Parameter(W)
        self.b = nn.Parameter(b)
        self.activation: Rectify = activation

    @property
    def n_in(self) -> int:
        """Latents it reads."""
        return self.W.shape[0]

    @property
    def n_out(self) -> int:
        """Latents it predicts."""
        return self.W.shape[1]

    def forward(self, z1: Float[Tensor, "*batch n_in"]) -> Float[Tensor, "*batch n_out"]:
        """Predicted latents of each row."""
        z2 = F.linear(z1, self.W.T, self.b)
        return z2.relu() if self.activation == "relu" else z2
