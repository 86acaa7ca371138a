import pytest

from pipeline.formats.saelens import model_of
from pipeline.lm.names import HOOKS, hook_of
from pipeline.lm.paths import site_in, site_of
from pipeline.lm.sites import KINDS


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("blocks.3.hook_mlp_out", "mlp_out.3"), ("blocks.0.hook_resid_pre", "resid_pre.0"),
        ("blocks.11.hook_resid_post", "resid_post.11"), ("blocks.2.attn.hook_z", "attn_z.2"),
        ("blocks.2.mlp.hook_post", "mlp_act.2"), ("blocks.2.hook_mlp_in", ""), ("hook_embed", ""),
        ("layers.3.mlp", "mlp_out.3"), ("layers.3", "resid_post.3"), ("h.4.attn", "attn_out.4"),
        ("gpt_neox.layers.3.attention", "attn_out.3"), ("layers.3.mlp.act", "mlp_act.3"),
        ("layers.3.mlp.dense_h_to_4h", "mlp_pre.3"), ("layers.3.mlp.dense_4h_to_h", "mlp_out.3"),
        ("model.layers.7.self_attn.o_proj.input", "attn_z.7"), ("layers.3.input_layernorm", ""),
        ("model.layers.7.output", "resid_post.7"), ("layers.7.input", "resid_pre.7"),
        ("transformer.h.1.mlp.c_proj.input", "mlp_act.1"), ("mlp_out_layer3", "mlp_out.3"),
        ("resid_post_layer_12", "resid_post.12"), ("attn_out_layer0", "attn_out.0"),
        ("mlp_act.4", "mlp_act.4"), ("", ""), ("layers.x.mlp", ""), ("blocks.1", ""),
    ],
)  # fmt: skip
def test_places_by_other_names(theirs, ours):
    assert site_of(theirs) == ours


def test_every_kind_of_site_has_a_hook_and_is_found_by_it():
    assert HOOKS.keys() == KINDS.keys()
    for kind in KINDS:
        assert site_of(hook_of(f"{kind}.7")) == f"{kind}.7"


def test_the_last_folder_that_names_a_place_is_taken():
    assert site_in(["a", "layers.1", "trainer_0", "layers.3.mlp", "seed0"]) == "mlp_out.3"
    assert site_in(["a", "b"]) == ""


def test_models_by_their_ids():
    assert model_of("gpt2-small") == "gpt2"
    assert model_of("pythia-70m-deduped") == "EleutherAI/pythia-70m-deduped"
    assert model_of("org/x") == "org/x"
    assert model_of("my-own-othello-model") == "my-own-othello-model"
