"""What others call a site: one table, read both ways. It holds words alone, and imports nothing.

    ours        TransformerLens           dictionary_learning        nnsight, transformers
    mlp_out.3   blocks.3.hook_mlp_out     mlp_out_layer3             a module and a side of it
    attn_z.3    blocks.3.attn.hook_z

A path of a module is the model's own: which kind of site it is, if any, is in
`pipeline.lm.paths`.
"""

import re

HOOKS = {
    "resid_pre": "hook_resid_pre",
    "attn_z": "attn.hook_z",
    "attn_out": "hook_attn_out",
    "resid_mid": "hook_resid_mid",
    "mlp_pre": "mlp.hook_pre",
    "mlp_act": "mlp.hook_post",
    "mlp_out": "hook_mlp_out",
    "resid_post": "hook_resid_post",
}
"""What TransformerLens, and with it SAELens, calls each kind of site inside `blocks.LAYER`."""

_WORDS = {
    "resid_post": "resid_post", "resid_out": "resid_post", "resid": "resid_post",
    "resid_pre": "resid_pre", "resid_mid": "resid_mid",
    "mlp_out": "mlp_out", "mlp": "mlp_out",
    "attn_out": "attn_out", "attention_out": "attn_out", "attn": "attn_out",
}  # fmt: skip
"""Kinds as dictionary_learning's scripts name them: `mlp_out_layer3`, `resid_post_layer_3`."""

_KIND_OF = {hook: kind for kind, hook in HOOKS.items()}
_KIND_OF_SHORT = {hook.rpartition(".")[2]: kind for kind, hook in HOOKS.items()}
_LAYER = r"(\d+)"
_BLOCK = re.compile(rf"blocks\.{_LAYER}\.(.+)")
_SHORT = re.compile(rf"(hook_[a-z_]+)\.{_LAYER}")
_WORD = re.compile(rf"({'|'.join(_WORDS)})_?layer_?{_LAYER}")

_SIDE = re.compile(r"[.:](in|out|inputs?|outputs?)((?:\[0\])*)$")
_INDEX = re.compile(r"\[(\d+)\]")
_PATH = re.compile(r"[A-Za-z_]\w*(?:\.\w+)*", re.ASCII)


def kind_and_layer(name: str) -> tuple[str, int] | None:
    """The kind of site and the layer that a name of another tool says; None if it says none."""
    if found := _BLOCK.fullmatch(name):
        layer, hook = found.groups()
        kind = _KIND_OF.get(hook) or _KIND_OF_SHORT.get(hook)
        return (kind, int(layer)) if kind else None
    if found := _SHORT.fullmatch(name):
        kind = _KIND_OF_SHORT.get(found[1])
        return (kind, int(found[2])) if kind else None
    if found := _WORD.fullmatch(name):
        return _WORDS[found[1]], int(found[2])
    return None


def path_and_side(name: str) -> tuple[str, str] | None:
    """A module's path and the side of it, `in` or `out`, that is meant; None if it is no path.

    Known are `model.layers.3.mlp`, which is its output, with `:in` and `:out`, and nnsight's
    `model.layers[3].mlp.output[0]` and `.input`.
    """
    side = "out"
    if found := _SIDE.search(name):
        name, side = name[: found.start()], "in" if found[1].startswith("in") else "out"
    path = _INDEX.sub(r".\1", name)
    return (path, side) if _PATH.fullmatch(path) else None


def hook_of(site: str) -> str:
    """What TransformerLens calls a site of ours; a module's path, as SAELens does, itself."""
    kind, _, layer = site.partition(".")
    return f"blocks.{layer}.{HOOKS[kind]}" if kind in HOOKS else site
