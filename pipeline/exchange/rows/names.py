"""Names of sites in other libraries: TransformerLens' hooks, which SAELens' caches use."""

import re

from pipeline.errors import ConfigError
from pipeline.lm.families import Site

HOOKS = {
    "hook_resid_pre": "resid_pre",
    "hook_resid_mid": "resid_mid",
    "hook_resid_post": "resid_post",
    "hook_attn_out": "attn_out",
    "attn.hook_z": "attn_z",
    "mlp.hook_pre": "mlp_pre",
    "mlp.hook_post": "mlp_act",
    "hook_mlp_out": "mlp_out",
}
"""Of a layer, `blocks.3.hook_mlp_out`, and our kind of site."""


def site_of(name: str) -> str | None:
    """Our site of a hook's name, or of its own; None for what is neither."""
    found = re.fullmatch(r"blocks\.(\d+)\.(.+)", name)
    if found and found[2] in HOOKS:
        return f"{HOOKS[found[2]]}.{int(found[1])}"
    try:
        return str(Site.parse(name))
    except (ConfigError, ValueError):
        return None


def hook_of(site: str) -> str:
    """The hook of one of our sites; what is none stays as it is."""
    kind, _, layer = site.partition(".")
    hooks = {ours: hook for hook, ours in HOOKS.items()}
    return f"blocks.{layer}.{hooks[kind]}" if kind in hooks else site
