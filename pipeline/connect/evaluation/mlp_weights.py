"""The model's own weights between two sites, where these are the input and output of one MLP."""

from pipeline.connect.evaluation.report import LayerWeights
from pipeline.families import Shape, Site
from pipeline.model import LanguageModel


def is_mlp(shape: Shape, source: Site, target: Site) -> bool:
    """Whether one MLP leads from the first site to the second, and nothing else does.

    An MLP reads the residual stream after the attention; in a parallel layer (Pythia) it reads what
    the attention reads, the layer's own input.
    """
    reads = "resid_pre" if shape.parallel else "resid_mid"
    return source.layer == target.layer and (source.kind, target.kind) == (reads, "mlp_out")


def layer_weights(
    lm: LanguageModel, source: Site, target: Site, *, tau: float
) -> LayerWeights | None:
    """How many weights that MLP has, biases aside; None where there is no such MLP."""
    if not is_mlp(lm.shape, source, target):
        return None
    mlp = lm.body.get_submodule(lm.shape.family.module_path(target))
    matrices = [weight for weight in mlp.parameters() if weight.dim() > 1]
    return LayerWeights(
        n=sum(weight.numel() for weight in matrices),
        n_above=sum(int((weight.float().abs() > tau).sum()) for weight in matrices),
    )
