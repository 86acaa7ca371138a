"""What other tools call a site."""

from pipeline.errors import ConfigError, ModelError
from pipeline.lm.families import Shape, Site
from pipeline.lm.hub import ModelFiles

_HOOKS = {
    "resid_pre": "hook_resid_pre",
    "attn_z": "attn.hook_z",
    "attn_out": "hook_attn_out",
    "resid_mid": "hook_resid_mid",
    "mlp_pre": "mlp.hook_pre",
    "mlp_act": "mlp.hook_post",
    "mlp_out": "hook_mlp_out",
    "resid_post": "hook_resid_post",
}
"""In TransformerLens, inside a block."""


def hook_name(site: Site) -> str:
    """What TransformerLens calls a site: `mlp_out.3` is `blocks.3.hook_mlp_out`."""
    return f"blocks.{site.layer}.{_HOOKS[site.kind.name]}"


def module_name(site: Site, *, model: str, revision: str) -> str:
    """The module inside the base model whose output a site is, `layers.3.mlp`.

    Where it is the input of one, or the model's config.json is not to be had, the site itself.
    """
    if site.kind.side == "out":
        try:
            shape = Shape.of(ModelFiles(model, revision or "main").config, name=model)
        except (ModelError, ConfigError):
            return str(site)
        return shape.family.module_path(site)
    return str(site)
