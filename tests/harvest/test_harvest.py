import errno
import json
import os
import random
import shutil
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from actstore.errors import StoreError
from actstore.ledger import JOURNAL
from actstore.reader import ActStore, peek
from actstore.verify import verify
from pipeline.config.stages import UNSAID, HarvestConfig
from pipeline.errors import ConfigError, ModelError, TextError
from pipeline.harvest.harvest import _carry_out, _writer_of, harvest
from pipeline.harvest.plan import HarvestPlan, make_plan
from pipeline.lm.tokenizer import load_tokenizer
from pipeline.progress import Progress
from tests.helpers.harvests import harvest_config, states_until_complete
from tests.helpers.killing import killed
from tests.helpers.models import reference
from tests.helpers.refusals import refused
from tests.helpers.slow import slow
from tests.helpers.stores import column, files_of, require_same_store
from tests.helpers.tiny import CTX_LEN, make_model, make_text

SITES = ("mlp_out.1", "resid_pre.0", "mlp_act.1")


class StopError(Exception):
    pass


def stop(*_: object) -> None:
    raise StopError


def stop_once_safe(progress: Progress) -> None:
    """Once a shard is safe."""
    if progress.done > 20 * CTX_LEN:
        raise StopError


@pytest.fixture
def config(tiny_model, tmp_path) -> HarvestConfig:
    return harvest_config(tmp_path, model=tiny_model, sites=SITES, dtype="fp32")


def in_text_order(store: ActStore, name: str) -> np.ndarray:
    order = column(store, "context_id") * store.spec.ctx_len + column(store, "position")
    out = np.empty_like(column(store, name))
    out[order] = column(store, name)
    return out


@pytest.fixture
def uninterrupted(config) -> Path:
    config = replace(config, out=config.out.parent / "whole" / "acts.actstore")
    harvest(config)
    return config.out


@torch.no_grad()
def test_rows_equal_the_hooks_of_a_full_forward_bit_for_bit(config, tiny_model):
    summary = harvest(config)
    store = ActStore.open(config.out)
    assert summary.n_rows == summary.rows_written == store.n_rows == 33 * CTX_LEN
    tokens = store.tokens(np.arange(33))
    whole = reference(tiny_model)
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


def test_tokens_are_the_text_and_rows_know_their_token(config):
    harvest(config)
    store = ActStore.open(config.out)
    text = Path(config.text).read_text()
    ids = load_tokenizer(config.model).encode([text])[0][: 33 * CTX_LEN]
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
    """And before the first one nothing is left."""
    met = set[str]()
    for stop_at in range(2, 34, 5):
        out = config.out.parent / str(stop_at) / "acts.actstore"
        stopped = replace(config, out=out)

        def stop_late(progress, stop_at=stop_at):
            if progress.done >= stop_at * CTX_LEN:
                raise StopError

        with pytest.raises(StopError):
            harvest(stopped, on_progress=stop_late)
        with pytest.raises(StoreError, match="not finished" if out.exists() else "there is no"):
            ActStore.open(out)
        state = make_plan(stopped).state
        assert state == ("resume" if out.exists() else "new")
        met.add(state)
        harvest(stopped)
        require_same_store(out, uninterrupted)
    assert met == {"new", "resume"}


@pytest.mark.parametrize(
    ("n_kills", "held"),
    [
        pytest.param(2, (), id="new"),
        pytest.param(1, SITES[:1], id="an addition"),
        slow(20, (), id="often"),
    ],
)
def test_killed_at_random_moments_then_resumed_gives_the_same_bytes(config, n_kills, held):
    """Kills, each at a random moment of one harvest that is resumed until it is done."""
    rng = random.Random(0)
    config = replace(config, batch_size=1)
    whole = replace(config, out=config.out.parent / "one" / "acts.actstore")
    harvest(whole)
    kills, stores = 0, 0
    while kills < n_kills:
        stores += 1
        assert stores < 2 * n_kills, "the harvest is over before it can be killed"
        part = replace(config, out=config.out.parent / f"killed-{stores}" / "acts.actstore")
        if held:
            harvest(replace(part, sites=held))
        for _ in range(4):
            kills += killed(part, after_batches=rng.randrange(20), delay=rng.random() * 0.01)
        harvest(part)
        require_same_store(part.out, whole.out)


FEW = 13 * CTX_LEN


@pytest.mark.parametrize(
    ("first", "then", "states", "to_write", "written"),
    [
        # A shard that was cut short is computed whole.
        ({"tokens": FEW}, {}, ["extend"], 20, 23),
        ({"tokens": FEW}, {"sites": SITES[1:2]}, ["extend"], 20, 23),
        ({"sites": SITES[:1]}, {"sites": SITES[1:]}, ["add"], 33, 33),
        ({"sites": SITES[:2], "tokens": FEW}, {}, ["add", "extend"], 13, 13 + 23),
    ],
    ids=["rows", "rows of one site", "sites", "sites and rows"],
)
def test_what_is_added_gives_what_one_harvest_of_all_would_have_stored(
    config, uninterrupted, first, then, states, to_write, written
):
    harvest(replace(config, **first))
    asked, told = replace(config, **then), []
    plan = make_plan(asked)
    assert plan.rows_to_write == to_write * CTX_LEN
    if states == ["add"]:
        assert tuple(map(str, plan.sites)) == SITES[1:]
        whole = make_plan(replace(config, out=config.out.with_name("new.actstore"), seed=1))
        assert plan.bytes_to_write < whole.bytes_to_write
    summary = harvest(asked, on_plan=lambda plan, _: told.append(plan.state))
    store = ActStore.open(config.out)
    assert told == states
    require_same_store(config.out, uninterrupted)
    assert (summary.n_rows, summary.rows_written) == (33 * CTX_LEN, written * CTX_LEN)
    assert (summary.n_bytes, summary.fingerprint) == (store.n_bytes, store.fingerprint)
    for sites in (SITES, SITES[:1], SITES[1:], SITES[::-1]):
        assert make_plan(replace(config, sites=sites)).state == "complete"


def test_more_of_a_text_that_has_no_more_ends(config):
    """Whether the text ended in a full shard or inside one, known before or found out now."""
    for n_contexts in (30, 33):
        text = make_text(config.out.parent / f"{n_contexts}.txt", n_contexts=n_contexts)
        out = config.out.parent / str(n_contexts) / "acts.actstore"
        exact = replace(config, text=text, out=out, tokens=n_contexts * CTX_LEN, sites=SITES[:1])
        harvest(exact)
        more = replace(exact, tokens=10_000)
        assert states_until_complete(more) == ["extend"]
        assert states_until_complete(replace(more, sites=SITES)) == ["add"]
        assert ActStore.open(out).n_rows == n_contexts * CTX_LEN
        assert ActStore.open(out).manifest.source_exhausted
        assert not verify(out)


def test_a_store_that_is_being_written_is_finished_with_the_sites_it_has(config):
    with pytest.raises(StopError):
        harvest(replace(config, sites=SITES[:2]), on_progress=stop_once_safe)
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
    require_same_store(config.out, uninterrupted)


def test_an_addition_that_only_has_to_join_joins_with_the_next_plan(config, monkeypatch):
    small = replace(config, sites=SITES[:1], tokens=13 * CTX_LEN)
    harvest(small)

    with monkeypatch.context() as m, pytest.raises(StopError):
        m.setattr("actstore.addition.merge", stop)
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


def test_rows_of_a_text_that_ends_inside_a_shard_are_still_shuffled_and_right(config, tmp_path):
    """Equal to a harvest that asked for no more than the text has."""
    text = make_text(tmp_path / "short.txt", n_contexts=37)
    exact = replace(config, text=text, tokens=37 * CTX_LEN, out=tmp_path / "exact.actstore")
    endless = replace(config, text=text, tokens=10_000)
    assert not harvest(exact).source_exhausted
    assert harvest(endless).source_exhausted
    assert ActStore.open(endless.out).n_rows == 37 * CTX_LEN
    stored, of_endless = files_of(exact.out), files_of(endless.out)
    assert all(of_endless[name] == data for name, data in stored.items() if "/c/" in name)
    assert make_plan(endless).state == "complete"


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


def test_another_text_or_model_under_the_same_name_is_refused(config, tmp_path):
    model = make_model(tmp_path / "model")
    config = replace(config, model=str(model))
    harvest(config)
    make_text(Path(config.text), n_contexts=40, seed=1)
    with pytest.raises(ConfigError, match="text_fingerprint"):
        make_plan(config)
    make_text(Path(config.text), n_contexts=40)
    make_model(model, seed=1)
    with pytest.raises(ConfigError, match="model_fingerprint"):
        make_plan(config)


def test_a_process_encodes_only_beside_a_gpu(config, monkeypatch):
    """On a CPU it would be slower than threads."""
    monkeypatch.setattr("actstore.encoding.ProcessEncoder.__init__", Mock(side_effect=StopError))
    harvest(config)
    shutil.rmtree(config.out)
    with pytest.raises(StopError), _writer_of(make_plan(config), own_process=True):
        pass


def test_a_store_without_a_row_is_in_nobodys_way(config):
    """A process that was killed before its first shard was safe left it."""
    with pytest.raises(StopError), _writer_of(make_plan(config), own_process=False):
        raise StopError
    assert peek(config.out).state == "writing"
    journal = config.out / JOURNAL
    journal.write_bytes(b"damaged")  # rows may be there: nothing is removed
    with refused(ConfigError, "holds another harvest"):
        make_plan(replace(config, ctx_len=CTX_LEN // 2))
    journal.unlink()
    other = replace(config, sites=SITES[1:2], ctx_len=CTX_LEN // 2)
    assert make_plan(other).state == "new"
    assert not harvest(other).reused


def test_special_tokens_are_text_unless_parsed_and_the_store_says_which(config, tmp_path):
    text, end = tmp_path / "special.txt", "<|endoftext|>"
    text.write_text(f"one {end} two three four five six seven" * 40)
    eos = load_tokenizer(config.model).eos_id
    config = replace(config, text=str(text), sites=SITES[:1], tokens=10 * CTX_LEN)
    harvest(config)
    store = ActStore.open(config.out)
    assert eos not in column(store, "token_id")
    assert set(column(store, "document_id")) == {0}
    parse = replace(config, special_tokens="parse", out=tmp_path / "parsed.actstore")
    harvest(parse)
    tokens, documents = (
        in_text_order(ActStore.open(parse.out), n) for n in ("token_id", "document_id")
    )
    ended = np.cumsum(tokens == eos)
    assert ended[-1] >= 3
    np.testing.assert_array_equal(documents, [0, *ended[:-1]])
    with refused(ConfigError, r"special_tokens: literal there, parse now"):
        make_plan(replace(parse, out=config.out))
    with refused(ConfigError, r"documents: joined there, separate now"):
        make_plan(replace(config, documents="separate"))


def test_a_store_that_does_not_say_how_special_tokens_were_read_parsed_them(config):
    harvest(config)
    source = dict(peek(config.out).spec.source)
    old = {name: value for name, value in source.items() if name not in UNSAID}
    shutil.rmtree(config.out)
    parse, plan = replace(config, special_tokens="parse"), make_plan(config)
    spec = replace(plan.spec, source=old | {"model_precision": "fp32"})
    _carry_out(replace(plan, spec=spec, config=parse))
    assert make_plan(parse).state == "complete"
    with refused(ConfigError, "special_tokens: parse there, literal now"):
        make_plan(config)


def test_documents_that_are_kept_separate_never_share_a_context(config, tmp_path):
    text = tmp_path / "documents.jsonl"
    lengths = [1, 200, 11, 90, 500]
    text.write_text("".join(json.dumps({"text": "a b " * n}) + "\n" for n in lengths))
    apart = replace(config, text=str(text), documents="separate", tokens=10**4, sites=SITES[:1])
    harvest(apart)
    documents = in_text_order(ActStore.open(apart.out), "document_id").reshape(-1, CTX_LEN)
    assert (documents == documents[:, :1]).all()
    assert {1, 3, 4} <= set(documents[:, 0]) and 0 not in documents
    assert not verify(apart.out)


def test_a_tokenizer_that_knows_more_than_the_model_is_refused_before_anything_is_written(
    config, tmp_path
):
    config = replace(config, model=str(make_model(tmp_path / "model")))
    file = tmp_path / "model/tokenizer.json"
    content = json.loads(file.read_text())
    n = json.loads((file.parent / "config.json").read_text())["vocab_size"]
    ids = [*content["model"]["vocab"].values(), *(t["id"] for t in content["added_tokens"])]
    new = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    more = [{"id": i, "content": f" word {i}"} | new for i in range(max(ids) + 1, n + 1)]
    content["added_tokens"] += more
    file.write_text(json.dumps(content))
    with refused(ModelError, rf"gives ids up to {n} \(' word {n}'\), and .* has {n} embeddings"):
        harvest(config)
    assert not config.out.exists()
    content["added_tokens"][-1]["special"] = True  # nothing that a text spells comes to it
    file.write_text(json.dumps(content))
    assert make_plan(config).state == "new"


def test_a_store_in_use_is_refused(config):
    def second(_progress) -> None:
        with pytest.raises(StoreError, match=str(os.getpid())):
            harvest(config)

    harvest(config, on_progress=second)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"sites": ("mlp_out.7",)}, ConfigError, r"mlp_out\.7 does not exist: .* layers 0 to 2"),
        ({"sites": ()}, ConfigError, "no site to harvest"),
        # Told before the text is looked at.
        (
            {"ctx_len": 65, "text": "/no.txt"},
            ConfigError,
            "which takes 64 at most: type --ctx-len 64 or less",
        ),
        ({"text": "/nowhere/text.txt"}, TextError, "there is no text"),
        ({"model": "/nowhere"}, ModelError, "neither a folder with config.json nor a hub id"),
        (
            {"tokens": 10**14, "shard_rows": None},
            ConfigError,
            "needs about .*B more than the .*B that its disk has free",
        ),
    ],
)
def test_what_cannot_be_harvested_is_said_in_one_line(config, change, error, message):
    with refused(error, message):
        make_plan(replace(config, **change))
    assert not config.out.exists()


def test_a_disk_with_nearly_enough_room_is_told_by_what_it_lacks(config, monkeypatch):
    needed = make_plan(config).bytes_to_write * 1.02
    monkeypatch.setattr(HarvestPlan, "bytes_free", int(needed) - 1000)
    with refused(ConfigError, r"needs about \d+\w+, 1kB more than the .* lower --tokens"):
        make_plan(config)


def test_a_disk_that_can_only_be_read_is_not_told_to_be_full(config, monkeypatch):
    monkeypatch.setattr(HarvestPlan, "bytes_free", 0)
    no = Mock(side_effect=OSError(errno.EROFS, "Read-only file system"))
    monkeypatch.setattr("pipeline.disk.TemporaryFile", no)
    with refused(ConfigError, r"cannot be written \(Read-only file system\): choose another --out"):
        make_plan(config)


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


@pytest.mark.parametrize(("documents", "noted"), [("joined", 1), ("separate", 0)])
def test_documents_with_nothing_between_them_are_told(
    tiny_model, tiny_text, tmp_path, documents, noted
):
    """No end-of-text token is a model's right, and changes what every context holds."""
    model = shutil.copytree(tiny_model, tmp_path / "model")
    config = harvest_config(
        tmp_path, model=str(model), text=tiny_text, documents=documents, tokens=40
    )
    assert make_plan(config).notes == ()
    (model / "tokenizer_config.json").unlink()
    settings = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(settings | {"eos_token_id": None}))
    notes = harvest(config).notes
    assert len(notes) == noted and all("names no end-of-text token" in note for note in notes)
