"""Where the dictionary's directions lie."""

from jaxtyping import Bool, Float, Float64
from torch import Tensor
from torch.nn import functional as F


def dead_cosine(
    W_dec: Float[Tensor, "d_sae d_in"], dead: Bool[Tensor, " d_sae"]
) -> Float64[Tensor, " d_sae"] | None:
    """Cosine of each latent's dictionary row with the mean row of the dead; None without dead.

    Dead latents trained from one start tend to point the same way; living ones do not.
    """
    if not dead.any():
        return None
    rows = W_dec.detach().cpu().double()
    return F.cosine_similarity(rows, rows[dead.cpu()].mean(0, keepdim=True), dim=-1)
