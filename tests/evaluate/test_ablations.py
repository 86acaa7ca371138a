import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save

from pipeline.evaluate.ablations import ABLATED, SiteMean, Slot
from tests.helpers.evaluations import N_CONTEXTS
from tests.helpers.plain_eval import leave_out
from tests.helpers.slow import slow
from tests.helpers.stores import edit_json
from tests.helpers.tiny import CTX_LEN, make_model, make_sae, make_text


@pytest.fixture
def make_run(evals):
    """A run beside its store; a store is a folder, and no more of it is looked at."""

    def make(name: str = "run", *, seed: int = 0, stored: bool = True, **saved) -> Path:
        run = evals.save(name, make_sae(seed=seed), **saved)
        if stored:
            (run / "gone.actstore").mkdir()
        return run

    return make


def kept_of(run: Path) -> list[Path]:
    return sorted((run / "gone.losses").glob("*"))


def test_a_second_evaluation_runs_no_ablation_and_says_the_same(make_run, evals, passes):
    run = make_run()
    first, n_first = passes(lambda: evals.reports(run, batch_size=N_CONTEXTS))
    again, n_again = passes(lambda: evals.reports(run, batch_size=N_CONTEXTS))
    assert first == again
    assert (n_first, n_again) == (1 + 1 + 2 + 1, 1 + 1)  # mean, clean, two ablations, the run's own
    (kept,) = kept_of(run)
    assert kept.suffix == ".safetensors"


def test_another_run_of_the_same_site_finds_what_the_first_left(make_run, evals, passes):
    one, two = make_run("one"), make_run("two", seed=1, stored=False)
    shutil.copytree(two, two.parent / "alone")
    alone = evals.reports(two.parent / "alone")[0]
    evals.reports(one)
    (_, after), n = passes(lambda: evals.reports(one, two, batch_size=8))
    assert n == 2 * (1 + 2)  # two batches
    for name in ("ce_zero", "ce_mean", "kl_zero", "explained_variance"):
        assert getattr(after, name) == getattr(alone, name), name


def test_a_report_does_not_depend_on_whether_anything_is_kept(make_run, evals):
    run = make_run()
    kept = evals.reports(run), evals.reports(run)
    shutil.rmtree(run / "gone.actstore")
    shutil.rmtree(run / "gone.losses")
    assert (evals.reports(run), evals.reports(run)) == kept
    assert not kept_of(run)


OFTEN = ("text", "batch_size", "site", "exclusion")
RARELY = ("tokens", "precision", "model", "norms")


@pytest.mark.parametrize("change", [*OFTEN, *map(slow, RARELY)])
def test_what_was_measured_otherwise_is_not_used(change, make_run, evals, passes, tmp_path):
    run = make_run()
    store = run / "gone.actstore"
    evals.reports(run, batch_size=4)
    site = "mlp_out.2" if change == "site" else "mlp_out.1"
    other = make_run("other", stored=False, site=site)
    edit_json(other / "run.json", lambda told: told["store"].update(path=str(store)))
    text = make_text(tmp_path / "b.txt", n_contexts=N_CONTEXTS, seed=1)
    changes = {
        "text": {"text": text}, "tokens": {"tokens": 8 * CTX_LEN}, "batch_size": {"batch_size": 5},
        "precision": {"precision": "bf16"},
    }  # fmt: skip
    options = {"batch_size": 4, "as_trained": True} | changes.get(change, {})
    if change == "model":
        options["model"] = str(make_model(tmp_path / "another", seed=3))
    left_out = {"exclusion": {"exclude_positions": [0]}, "norms": {"exclude_norms": 1.2}}
    leave_out(other, **left_out.get(change, {}))
    found, n = passes(lambda: evals.reports(other, **options))
    n_batches = {"tokens": 2, "batch_size": 3}.get(change, 4)
    assert n == n_batches * (1 + (change == "norms") + 1 + 2 + 1)
    assert len(kept_of(run)) == 2
    assert evals.reports(other, **options) == found
    assert len(kept_of(run)) == 2
    shutil.rmtree(run / "gone.losses")
    assert evals.reports(other, **options) == found


def test_a_damaged_file_is_measured_again_and_replaced(make_run, evals, passes):
    run = make_run()
    first = evals.reports(run, batch_size=N_CONTEXTS)
    (path,) = kept_of(run)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    again, n = passes(lambda: evals.reports(run, batch_size=N_CONTEXTS))
    assert again == first
    assert n == 5
    assert path.read_bytes() == whole


@pytest.mark.parametrize("limit", [None, 3.5])
def test_every_byte_that_is_kept_is_checked(limit, tmp_path):
    rng = np.random.default_rng(0)
    ground = SiteMean(mean=torch.from_numpy(rng.standard_normal(3)), limit=limit)
    sums = {name: rng.standard_normal(2) for name in ABLATED}
    slot = Slot(folders=(tmp_path / "absent", tmp_path / "losses"), key="k")
    Slot(folders=(tmp_path / "losses",), key="k").keep(ground, sums)
    same, again = slot.load() or (None, None)
    assert same is not None
    assert torch.equal(same.mean, ground.mean)
    assert same.limit == limit
    np.testing.assert_equal(again, sums)
    (path,) = (tmp_path / "losses").iterdir()
    whole = path.read_bytes()
    path.with_stem("other").write_bytes(whole)
    assert Slot(folders=slot.folders, key="other").load() is None
    for strange in (torch.zeros(32, dtype=torch.bfloat16), torch.tensor(1), torch.zeros(0)):
        path.write_bytes(save({"sha256": strange, "mean": strange.clone()}))
        assert slot.load() is None
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        assert slot.load() is None, at
        path.write_bytes(whole[:at])
        assert slot.load() is None, at


def test_without_the_right_to_write_nothing_is_kept_and_nothing_fails(make_run, evals):
    run = make_run()
    (run / "gone.losses").write_text("in the way")
    assert evals.reports(run) == evals.reports(run)
    assert (run / "gone.losses").read_text() == "in the way"
