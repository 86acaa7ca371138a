"""Where an SAE belongs, by others' names and by ours: `blocks.3.hook_mlp_out`, `mlp_out.3`."""

import re
from collections.abc import Iterable

from pipeline.lm.families import FAMILIES
from pipeline.lm.sites import KINDS

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
"""Places as dictionary_learning's scripts name them: `mlp_out_layer3`, `resid_post_layer_3`."""

_OURS = re.compile(rf"({'|'.join(KINDS)})\.(\d+)")
_HOOK = re.compile(r"blocks\.(\d+)\.(.+)")
_PATH = re.compile(r"(?:[a-z_]+\.)*(?:layers|h)\.(\d+)(?:\.([a-z_0-9.]+))?")
_NAMED = re.compile(rf"({'|'.join(_WORDS)})_?layer_?(\d+)")


def site_of(name: str) -> str:
    """Our name of a site that others call `name`; empty where we have no such, or it is no name.

    Known are our own names, TransformerLens' hooks, modules of the families of models that we
    know, whose output is meant unless they end in `.input`, and dictionary_learning's names.
    """
    if found := _OURS.fullmatch(name):
        return f"{found[1]}.{int(found[2])}"
    if found := _HOOK.fullmatch(name):
        kinds = {hook: kind for kind, hook in HOOKS.items()}
        return f"{kinds[found[2]]}.{int(found[1])}" if found[2] in kinds else ""
    if found := _NAMED.fullmatch(name):
        return f"{_WORDS[found[1]]}.{int(found[2])}"
    if found := _PATH.fullmatch(name):
        kind = _kind_of_module(found[2] or "")
        return f"{kind}.{int(found[1])}" if kind else ""
    return ""


def _kind_of_module(inside: str) -> str:
    """The kind of site at a module of a layer; empty where there is none."""
    module, _, side = inside.rpartition(".")
    if side not in ("input", "output"):
        module, side = inside, "output"
    if not module:
        return "resid_post" if side == "output" else "resid_pre"
    side = side.removesuffix("put")
    if side == "out" and module in ("mlp.act", "mlp.act_fn"):
        return "mlp_act" if module == "mlp.act" else ""
    for family in FAMILIES.values():
        parts = {path: part for part, path in family.parts.items()}
        part = {"attention": "attention_out"}.get(parts.get(module, ""), parts.get(module, ""))
        if side == "out" and part == "mlp_out":
            part = "mlp"  # the last module of an MLP gives what the MLP gives
        for kind in KINDS.values():
            if part and (kind.part, kind.side) == (part, side):
                return kind.name
    return ""


def site_in(names: Iterable[str]) -> str:
    """The site that the last of these names of folders is about which is about one."""
    return next((site for name in reversed([*names]) if (site := site_of(name))), "")


def hook_of(site: str) -> str:
    """What TransformerLens calls a site of ours; empty for none."""
    kind, _, layer = site.partition(".")
    return f"blocks.{layer}.{HOOKS[kind]}" if site else ""


def model_of(name: str) -> str:
    """The id on the hub of a model that TransformerLens calls `name`, where it is another."""
    known = {"gpt2-small": "gpt2", "gpt2": "gpt2"}
    if name in known or "/" in name:
        return known.get(name, name)
    owners = {"pythia": "EleutherAI", "gemma": "google", "Qwen": "Qwen", "Llama": "meta-llama"}
    owner = owners.get(name.partition("-")[0].partition("2")[0], "")
    return f"{owner}/{name}" if owner else name
