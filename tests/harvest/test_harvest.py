import os
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from actstore.errors import NonFiniteError, StoreError
from actstore.reader import ActStore
from actstore.verify import verify
from pipeline.config.stages import HarvestConfig
from pipeline.errors import ConfigError, ModelError, TextError
from pipeline.harvest.harvest import harvest
from pipeline.harvest.plan import make_plan
from pipeline.lm.tokenizer import load_tokenizer
from tests.helpers.harvests import harvest_config, states_until_complete
from tests.helpers.killing import killed
from tests.helpers.slow import slow
from tests.helpers.stores import column
from tests.helpers.tiny import CTX_LEN, make_model, make_text

SITES = ("mlp_out.1", "resid_pre.0", "mlp_act.1")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return make_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def config(model, tmp_path) -> HarvestConfig:
    return harvest_config(tmp_path, model=model, sites=SITES, dtype="fp32")


def in_text_order(store: ActStore, name: str) -> np.ndarray:
    order = column(store, "context_id") * store.spec.ctx_len + column(store, "position")
    out = np.empty_like(column(store, name))
    out[order] = column(store, name)
    return out


def content(store: ActStore) -> dict[str, bytes]:
    """Every byte of every shard file, and the statistics."""
    files = sorted((store.path / "data.zarr").glob("*/c/**/*"))
    shards = {str(p.relative_to(store.path)): p.read_bytes() for p in files if p.is_file()}
    moments = {f"mean {s}": store.mean(s).tobytes() + store.var(s).tobytes() for s in store.sites}
    return {**shards, **moments}


@pytest.fixture
def uninterrupted(config) -> dict[str, bytes]:
    config = replace(config, out=config.out.parent / "whole" / "acts.actstore")
    harvest(config)
    return content(ActStore.open(config.out))


@torch.no_grad()
def test_rows_equal_the_hooks_of_a_full_forward_bit_for_bit(config, model):
    summary = harvest(config)
    store = ActStore.open(config.out)
    assert summary.n_rows == summary.rows_written == store.n_rows == 33 * CTX_LEN
    tokens = store.tokens(np.arange(33))
    whole = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    layers = whole.gpt_neox.layers
    seen: dict[str, list[torch.Tensor]] = {site: [] for site in SITES}

    def keep(site):
        return lambda _module, args, out=None: seen[site].append(args[0] if out is None else out)

    layers[1].mlp.register_forward_hook(keep("mlp_out.1"))
    layers[0].register_forward_pre_hook(keep("resid_pre.0"))
    layers[1].mlp.dense_4h_to_h.register_forward_pre_hook(keep("mlp_act.1"))
    contexts_per_shard = store.spec.shard_rows // CTX_LEN
    for first in range(0, 33, contexts_per_shard):  # batches start anew with each shard
        for batch in torch.from_numpy(tokens[first : first + contexts_per_shard]).split(4):
            whole(batch.long())
    for site in SITES:
        expected = torch.cat([x.flatten(0, 1) for x in seen[site]]).numpy()
        np.testing.assert_array_equal(in_text_order(store, site), expected, err_msg=site)


def test_tokens_are_the_text_and_rows_know_their_token(config, model):
    harvest(config)
    store = ActStore.open(config.out)
    text = Path(config.text).read_text()
    ids = load_tokenizer(str(model)).encode([text])[0][: 33 * CTX_LEN]
    assert store.tokens(np.arange(33)).ravel().tolist() == ids
    assert in_text_order(store, "token_id").tolist() == ids
    assert set(column(store, "document_id").tolist()) == {0}
    assert column(store, "token_id").tolist() != ids  # rows are shuffled inside their shard


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_stored_dtypes_are_the_rounded_activations(config, dtype):
    exact, rounded = config, replace(config, dtype=dtype, out=config.out.with_name("r.actstore"))
    harvest(exact)
    harvest(rounded)
    whole = column(ActStore.open(exact.out), "mlp_out.1")
    stored = torch.from_numpy(column(ActStore.open(rounded.out), "mlp_out.1"))
    torch_dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[dtype]
    assert torch.equal(stored.view(torch_dtype), torch.from_numpy(whole).to(torch_dtype))


def test_the_same_command_again_reuses_and_so_do_fewer_tokens(config):
    first = harvest(config)
    assert (first.reused, first.store, first.found) == (False, config.out, None)
    for asked in (config, replace(config, tokens=CTX_LEN)):
        plan, again = make_plan(asked), harvest(asked)
        assert (plan.state, plan.rows_to_write) == ("complete", 0)
        assert (again.reused, again.rows_written, again.tokens_per_s) == (True, 0, 0.0)
        assert (again.n_rows, again.n_bytes) == (first.n_rows, first.n_bytes)
        assert again.fingerprint == first.fingerprint


def test_progress_is_told_in_tokens_with_the_size_on_disk(config):
    told = []
    harvest(config, on_progress=told.append)
    assert {(p.stage, p.unit, p.total) for p in told} == {("harvest", "tokens", 33 * CTX_LEN)}
    assert [p.done for p in told][:3] == [4 * CTX_LEN, 8 * CTX_LEN, 10 * CTX_LEN]
    assert told[-1].done == 33 * CTX_LEN
    assert all(p.words.endswith("B on disk") for p in told)


def test_a_stop_between_any_two_shards_changes_nothing(config, uninterrupted):
    for stop_at in range(2, 34, 5):
        out = config.out.parent / str(stop_at) / "acts.actstore"
        stopped = replace(config, out=out)

        def stop(progress, stop_at=stop_at):
            if progress.done >= stop_at * CTX_LEN:
                raise StopError

        with pytest.raises(StopError):
            harvest(stopped, on_progress=stop)
        with pytest.raises(StoreError, match="not finished"):
            ActStore.open(out)
        assert make_plan(stopped).state == "resume"
        harvest(stopped)
        assert content(ActStore.open(out)) == uninterrupted


@pytest.mark.parametrize("n_kills", [2, slow(20)])
def test_killed_at_random_moments_then_resumed_gives_the_same_bytes(config, n_kills):
    """Kills, each at a random moment of one harvest that is resumed until it is done."""
    rng = random.Random(0)
    config = replace(config, batch_size=1)
    whole = replace(config, out=config.out.parent / "one" / "acts.actstore")
    harvest(whole)
    expected = content(ActStore.open(whole.out))
    kills, stores = 0, 0
    while kills < n_kills:
        stores += 1
        assert stores < 2 * n_kills, "the harvest is over before it can be killed"
        part = replace(config, out=config.out.parent / f"killed-{stores}" / "acts.actstore")
        for _ in range(4):
            kills += killed(part, after_batches=rng.randrange(20), delay=rng.random() * 0.01)
        harvest(part)
        store = ActStore.open(part.out)
        assert content(store) == expected
        assert not verify(part.out)


def test_more_tokens_extend_to_what_one_harvest_would_have_stored(config, uninterrupted):
    small = replace(config, tokens=13 * CTX_LEN)
    harvest(small)
    plan = make_plan(config)
    assert (plan.state, plan.rows_to_write) == ("extend", 20 * CTX_LEN)
    summary = harvest(config)
    assert summary.n_rows == 33 * CTX_LEN
    assert summary.rows_written == 23 * CTX_LEN  # a shard that was cut short is computed whole
    assert content(ActStore.open(config.out)) == uninterrupted


def test_a_site_that_is_added_gives_what_one_harvest_of_all_would_have_stored(
    config, uninterrupted
):
    one = replace(config, sites=SITES[:1])
    harvest(one)
    asked = replace(config, sites=SITES[1:])
    plan = make_plan(asked)
    assert plan.state == "add"
    assert tuple(map(str, plan.sites)) == SITES[1:]
    assert (plan.n_rows, plan.rows_to_write) == (33 * CTX_LEN, 33 * CTX_LEN)
    whole = make_plan(replace(config, out=config.out.with_name("new.actstore"), seed=1))
    assert plan.bytes_to_write < whole.bytes_to_write
    summary = harvest(asked)
    store = ActStore.open(config.out)
    assert content(store) == uninterrupted
    assert summary.n_rows == summary.rows_written == 33 * CTX_LEN
    assert (summary.n_bytes, summary.fingerprint) == (store.n_bytes, store.fingerprint)
    for sites in (SITES, SITES[:1], SITES[1:], SITES[::-1]):
        assert make_plan(replace(config, sites=sites)).state == "complete"


def test_more_sites_and_more_rows_take_two_plans_and_one_call(config, uninterrupted):
    harvest(replace(config, sites=SITES[:2], tokens=13 * CTX_LEN))
    states = []
    summary = harvest(config, on_plan=lambda plan, _: states.append(plan.state))
    assert states == ["add", "extend"]
    assert summary.rows_written == (13 + 23) * CTX_LEN  # at one site, then at all
    assert content(ActStore.open(config.out)) == uninterrupted


def test_an_extension_is_of_all_the_sites_there_are(config, uninterrupted):
    harvest(replace(config, tokens=13 * CTX_LEN))
    assert states_until_complete(replace(config, sites=SITES[1:2])) == ["extend"]
    assert content(ActStore.open(config.out)) == uninterrupted


def test_more_of_a_text_that_has_no_more_ends(config):
    """Whether the text ended in a full shard or inside one, known before or found out now."""
    for n_contexts in (30, 33):
        text = make_text(config.out.parent / f"{n_contexts}.txt", n_contexts=n_contexts)
        out = config.out.parent / str(n_contexts) / "acts.actstore"
        exact = replace(config, text=text, out=out, tokens=n_contexts * CTX_LEN, sites=SITES[:1])
        harvest(exact)
        more = replace(exact, tokens=10_000)
        assert states_until_complete(more) == ["extend"]
        assert make_plan(more).source_exhausted
        assert states_until_complete(replace(more, sites=SITES)) == ["add"]
        assert ActStore.open(out).n_rows == n_contexts * CTX_LEN
        assert ActStore.open(out).manifest.source_exhausted
        assert not verify(out)


def test_an_addition_that_is_killed_goes_on(config, uninterrupted):
    rng = random.Random(0)
    config = replace(config, batch_size=4)
    harvest(replace(config, sites=SITES[:1]))
    kills = [
        killed(config, after_batches=rng.randrange(9), delay=rng.random() * 0.01) for _ in range(4)
    ]
    assert any(kills)
    assert states_until_complete(config) in ([], ["add"])
    assert content(ActStore.open(config.out)) == uninterrupted
    assert not verify(config.out)


class StopError(Exception):
    pass


def stop(_progress) -> None:
    raise StopError


def test_a_store_that_is_being_written_is_finished_with_the_sites_it_has(config):
    with pytest.raises(StopError):
        harvest(replace(config, sites=SITES[:2]), on_progress=stop)
    with pytest.raises(
        ConfigError,
        match=r"is being written with mlp_out\.1, resid_pre\.0: finish that first "
        r"\(--site mlp_out\.1 --site resid_pre\.0\), then ask for mlp_act\.1",
    ):
        make_plan(config)
    fewer = replace(config, sites=SITES[1:2])
    assert make_plan(fewer).state == "resume"
    assert states_until_complete(fewer) == ["resume"]
    assert ActStore.open(config.out).sites == SITES[:2]


def test_an_addition_that_was_begun_is_finished_with_the_sites_it_has(config, uninterrupted):
    harvest(replace(config, sites=SITES[:1]))
    with pytest.raises(StopError):
        harvest(replace(config, sites=SITES[:2]), on_progress=stop)
    with pytest.raises(ConfigError, match=r"is just being given resid_pre\.0: finish that first"):
        make_plan(replace(config, sites=SITES[2:]))
    assert make_plan(replace(config, sites=SITES[:1])).state == "complete"
    assert states_until_complete(config) == ["add", "add"]
    assert content(ActStore.open(config.out)) == uninterrupted


def test_an_addition_that_only_has_to_join_joins_with_the_next_plan(config, monkeypatch):
    small = replace(config, sites=SITES[:1], tokens=13 * CTX_LEN)
    harvest(small)

    def crash(*_args):
        raise StopError

    with monkeypatch.context() as m, pytest.raises(StopError):
        m.setattr("actstore.addition.merge", crash)
        harvest(replace(small, sites=SITES[:2]))
    assert ActStore.open(config.out).sites == SITES[:1]
    assert make_plan(small).state == "complete"
    assert ActStore.open(config.out).sites == SITES[:2]
    assert states_until_complete(replace(config, sites=SITES[:1])) == ["extend"]
    store = ActStore.open(config.out)
    assert (store.sites, store.n_rows) == (SITES[:2], 33 * CTX_LEN)


def test_the_layout_is_that_of_the_store(config):
    harvest(replace(config, sites=SITES[:1], shard_rows=20 * CTX_LEN))
    assert make_plan(replace(config, sites=SITES[:1], shard_rows=None)).state == "complete"
    plan = make_plan(replace(config, shard_rows=None))
    assert (plan.state, plan.spec.shard_rows) == ("add", 20 * CTX_LEN)


def test_a_text_that_ends_early_gives_what_it_has_once(config):
    harvest(replace(config, tokens=41 * CTX_LEN, out=config.out.parent / "more" / "acts.actstore"))
    endless = replace(config, tokens=10_000)
    summary = harvest(endless)
    store = ActStore.open(config.out)
    n_tokens = 40 * CTX_LEN + 1  # the text and its end-of-text token
    assert summary.source_exhausted
    assert store.n_rows == n_tokens // CTX_LEN * CTX_LEN
    order = column(store, "context_id") * CTX_LEN + column(store, "position")
    assert sorted(order.tolist()) == list(range(store.n_rows))
    plan = make_plan(endless)
    assert plan.state == "complete"
    assert plan.source_exhausted


def test_rows_of_a_text_that_ends_inside_a_shard_are_still_shuffled_and_right(config, tmp_path):
    """Equal to a harvest that asked for no more than the text has."""
    text = make_text(tmp_path / "short.txt", n_contexts=37)
    exact = replace(config, text=text, tokens=37 * CTX_LEN, out=tmp_path / "exact.actstore")
    endless = replace(config, text=text, tokens=10_000)
    assert not harvest(exact).source_exhausted
    assert harvest(endless).source_exhausted
    assert content(ActStore.open(exact.out)) == content(ActStore.open(endless.out))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"ctx_len": 24}, "ctx_len: 12 there, 24 now"),
        ({"seed": 1}, "seed: 0 there, 1 now"),
        ({"dtype": "bf16"}, "dtype: float32 there, bfloat16 now"),
        ({"codec": "raw"}, "codec: lz4 there, raw now"),
        ({"shard_rows": 20 * CTX_LEN}, "shard_rows: 120 there, 240 now"),
        ({"precision": "bf16"}, "model_precision: fp32 there, bf16 now"),
    ],
)
def test_another_configuration_is_refused_by_name(config, change, named):
    harvest(config)
    with pytest.raises(ConfigError, match=f"holds another harvest.*{named}.*choose another --out"):
        make_plan(replace(config, **change))


def test_another_text_under_the_same_name_is_refused(config):
    harvest(config)
    make_text(Path(config.text), n_contexts=40, seed=1)
    with pytest.raises(ConfigError, match="text_fingerprint"):
        make_plan(config)


def test_a_model_that_changed_is_refused(config, tmp_path):
    model = make_model(tmp_path / "model")
    config = replace(config, model=str(model))
    harvest(config)
    make_model(model, seed=1)
    with pytest.raises(ConfigError, match="model_fingerprint"):
        make_plan(config)


def test_a_store_in_use_is_refused(config):
    def second(_progress) -> None:
        with pytest.raises(StoreError, match=str(os.getpid())):
            harvest(config)

    harvest(config, on_progress=second)


def test_activations_that_are_not_finite_name_site_and_context(config, tmp_path):
    model = make_model(tmp_path / "broken")
    weights = load_file(model / "model.safetensors")
    weights["gpt_neox.layers.1.mlp.dense_4h_to_h.bias"][3] = float("nan")
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(NonFiniteError, match=r"mlp_out\.1 is not finite in context \d+"):
        harvest(replace(config, model=str(model)))


def test_a_disk_without_room_is_seen_before_the_work(config):
    with pytest.raises(ConfigError, match=r"needs about .* GB and its disk has .* GB free"):
        make_plan(replace(config, tokens=10**14))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"sites": ("mlp_out.7",)}, ConfigError, r"mlp_out\.7 does not exist: .* layers 0 to 2"),
        ({"sites": ("mlp_put.1",)}, ConfigError, "bad site 'mlp_put.1'"),
        ({"sites": ()}, ConfigError, "no site to harvest"),
        ({"ctx_len": 65}, ConfigError, "longer than the 64 positions"),
        ({"text": "/nowhere/text.txt"}, TextError, "there is no text"),
        ({"model": "/nowhere"}, ModelError, "neither a folder with config.json nor a hub id"),
    ],
)
def test_what_cannot_be_harvested_is_said_in_one_line(config, change, error, message):
    with pytest.raises(error, match=message) as caught:
        make_plan(replace(config, **change))
    assert "\n" not in str(caught.value)
    assert not config.out.exists()


@pytest.mark.parametrize(
    ("dtype", "codec", "bytes_per_value"),
    [
        ("bf16", "lz4", 1.5),
        ("bf16", "bitround:3", 0.94),
        ("fp16", "bitround:9", 1.5),
        ("fp32", "raw", 4),
    ],
)
def test_a_plan_counts_whole_contexts_and_knows_what_their_bytes_come_to(
    config, dtype, codec, bytes_per_value
):
    plan = make_plan(replace(config, tokens=2 * CTX_LEN + 1, dtype=dtype, codec=codec))
    assert plan.n_rows == 3 * CTX_LEN
    expected = plan.n_rows * ((16 + 16 + 48) * bytes_per_value + 8)
    assert plan.bytes_to_write == pytest.approx(expected, rel=0 if codec == "raw" else 0.01)
