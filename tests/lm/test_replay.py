import pytest
import torch

from pipeline.errors import ConfigError
from pipeline.lm.hooks import capture, splice
from pipeline.lm.model import LanguageModel, load_model
from pipeline.lm.replay import Replay
from pipeline.lm.sites import Site
from tests.helpers.models import CPU, FP32, TOKENS, hooks_on, sites_of

OTHER_TOKENS = TOKENS[:1].flip(1)


@pytest.fixture(scope="module")
def lm(folder) -> LanguageModel:
    return load_model(str(folder), device=CPU, dtype=FP32)


@torch.no_grad()
def spliced(lm: LanguageModel, tokens: torch.Tensor, site: Site, value: torch.Tensor):
    with splice(lm, {site: lambda _: value}):
        return lm.hidden(tokens)


@pytest.mark.parametrize("dtype", [FP32, torch.bfloat16])
def test_an_edit_at_any_site_gives_the_bits_of_a_whole_pass_with_it_spliced_in(folder, dtype):
    """Whether the site is recorded with all others or alone; the same value changes nothing."""
    lm = load_model(str(folder), device=CPU, dtype=dtype)
    replay = Replay(lm, sites_of(lm)[::-1])
    torch.manual_seed(1)
    for tokens in (TOKENS, OTHER_TOKENS):
        clean = replay.clean(tokens)
        with torch.no_grad(), capture(lm, sites_of(lm)) as captured:
            assert torch.equal(clean, lm.hidden(tokens))
        for site, acts in captured.items():
            alone = Replay(lm, [site])
            assert torch.equal(alone.clean(tokens), clean)
            for value in (acts, torch.zeros_like(acts), torch.randn_like(acts)):
                whole = spliced(lm, tokens, site, value.clone())
                assert torch.equal(whole, clean) == (value is acts), site
                for edited in (replay.edited(site, value), alone.edited(site, value)):
                    assert edited.dtype == dtype
                    assert torch.equal(edited, whole), site
            for one in (replay, alone):
                assert torch.equal(one.acts(site), acts), site


def inputs_of(lm: LanguageModel, run) -> dict[str, list[torch.Tensor]]:
    """What each module that has weights of its own was given while `run` ran."""
    seen: dict[str, list[torch.Tensor]] = {}
    handles = [
        module.register_forward_hook(
            lambda _, args, __, name=name: seen.setdefault(name, []).append(args[0].clone())
        )
        for name, module in lm.body.named_modules()
        if list(module.parameters(recurse=False))
    ]
    run()
    for handle in handles:
        handle.remove()
    return seen


@torch.no_grad()
def test_only_what_the_site_reaches_runs_and_runs_once(lm):
    clean = inputs_of(lm, lambda: lm.hidden(TOKENS))
    family = lm.shape.family
    for site in sites_of(lm):
        replay = Replay(lm, [site])
        replay.clean(TOKENS)
        value = torch.randn_like(replay.acts(site))
        with splice(lm, {site: lambda _, value=value: value}):
            whole = inputs_of(lm, lambda: lm.hidden(TOKENS))
        reached = {name for name, (x,) in whole.items() if not torch.equal(x, clean[name][0])}
        ran = inputs_of(lm, lambda: replay.edited(site, value))  # noqa: B023
        assert all(len(given) == 1 for given in ran.values()), site
        more = set(ran) - reached
        if site.kind.name == "mlp_pre" and "mlp_gated" in family.parts:  # another way into the MLP
            more -= {family.path(site.layer, part) for part in ("mlp_gated", "mlp_norm")}
        assert not more, site
        assert reached <= set(ran), site


def parts_of(lm: LanguageModel) -> dict[str, int]:
    return {name: id(module) for name, module in lm.module.named_modules()}


def test_the_model_is_left_as_it_was_even_when_an_edit_fails(lm):
    before, n_hooks = parts_of(lm), hooks_on(lm)
    replay = Replay(lm, sites_of(lm))
    replay.clean(TOKENS)
    for site in sites_of(lm):
        replay.edited(site, replay.acts(site))
        assert parts_of(lm) == before, site
        if site != Site.parse("resid_post.2"):  # only the final norm could object there
            with pytest.raises(RuntimeError):
                replay.edited(site, torch.zeros(2, 12, 31))
        assert parts_of(lm) == before, site
    assert hooks_on(lm) == n_hooks


def test_a_site_the_model_lacks_is_refused(lm):
    with pytest.raises(ConfigError, match=r"mlp_out\.3 does not exist: .* has layers 0 to 2"):
        Replay(lm, [Site.parse("mlp_out.3")])
