"""What removing an input feature does to output features: as predicted, and in the model.

At every token of the input's top contexts its contribution is taken out of the activations at the
first site, `x1 - z1_i W_dec1[i]`; what the SAE does not reconstruct stays. The model runs on to the
second site, whose SAE encodes what arrives. The true effect on an output is the drop of its
activation, `z2_o - z2_o'`; the linear one is the drop of the connector's prediction when `z1_i` is
set to zero, through its relu. Both are means over the tokens of those contexts on which the input
is active.

Between the sites there is a norm, and mostly a nonlinearity: the true effect need not be linear in
anything. A removal also changes which other features of the second SAE are active; nothing of that
is in the prediction.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from pipeline.connect.connector import Connector, SAEPair
from pipeline.connect.reading.values import Effect, Equation
from pipeline.lm.hooks import reading, splice
from pipeline.lm.model import LanguageModel
from pipeline.lm.sites import Site

_CELLS = 2**24
"""Latents in memory at once: 64 MiB."""


@dataclass(frozen=True, kw_only=True)
class Link:
    """An input feature and an output feature, whose effect is looked at."""

    input: int
    output: int
    control: bool = False


@dataclass(frozen=True, kw_only=True, eq=False)
class ReadingContext:
    """Where effects are measured: a model with both SAEs and the connector between them."""

    lm: LanguageModel
    pair: SAEPair
    connector: Connector
    contexts: Callable[[int], Int[np.ndarray, "contexts ctx_len"]]
    """Tokens of the top contexts of an input feature; none for a dead one."""

    @property
    def sites(self) -> tuple[Site, Site]:
        """Where features are removed, and where that is felt."""
        first, second = map(Site.parse, self.pair.sites)
        return first, second


def chosen_links(
    equations: Sequence[Equation],
    W: Float[Tensor, "n_in n_out"],
    *,
    n_outputs: int,
    n_terms: int,
    seed: int,
) -> list[Link]:
    """Terms of `n_outputs` outputs, drawn evenly, and as many pairs that nothing connects.

    Of each output these are the `n_terms` of largest contribution. Unconnected is the input, among
    those of all terms, whose weight is the smallest of the output's, mostly zero.
    """
    rng = np.random.default_rng(seed)
    told = [equation for equation in equations if equation.terms]
    drawn: list[Equation] = [
        told[i] for i in sorted(rng.permutation(len(told))[:n_outputs].tolist())
    ]
    links = list[Link]()
    for equation in drawn:
        strongest = sorted(equation.terms, key=lambda term: -abs(term.contribution))
        links += [Link(input=term.feature, output=equation.output) for term in strongest[:n_terms]]
    inputs = list(dict.fromkeys(link.input for link in links))
    for equation in drawn:
        size = W[inputs, equation.output].abs()
        least = (size <= size.min()).nonzero()[:, 0].tolist()
        some = inputs[least[int(rng.integers(len(least)))]]
        control = Link(input=some, output=equation.output, control=True)
        if Link(input=some, output=equation.output) not in links:
            links.append(control)
    return links


@torch.inference_mode()
def measure(
    where: ReadingContext,
    links: Iterable[Link],
    *,
    on_inputs: Callable[[int], None] = lambda _: None,
) -> tuple[Effect, ...]:
    """Predicted and true effects of some pairs, input after input; `on_inputs` is told how many.

    Pairs whose input has no context are left out.
    """
    by_input: dict[int, list[Link]] = {}
    for link in links:
        by_input.setdefault(link.input, []).append(link)
    found: list[Effect] = []
    with reading(where.lm, where.sites) as read:
        for done, (feature, of_it) in enumerate(by_input.items(), 1):
            found += _effects(where, feature, of_it, read)
            on_inputs(done)
    return tuple(found)


def _effects(
    where: ReadingContext,
    feature: int,
    links: Sequence[Link],
    read: Callable[[Tensor], Mapping[Site, Tensor]],
) -> list[Effect]:
    """Those of one input feature."""
    contexts = where.contexts(feature)
    if not len(contexts):
        return []
    outputs = torch.tensor([link.output for link in links])
    width = max(where.pair.source.d_sae, where.pair.target.d_sae)
    n_contexts = max(1, _CELLS // (contexts.shape[1] * width))
    drops, n = np.zeros((2, len(links))), 0
    for tokens in torch.from_numpy(contexts.astype(np.int64)).split(n_contexts):
        some, n_tokens = _drops(where, feature, outputs, tokens.to(where.lm.device), read)
        drops, n = drops + some, n + n_tokens
    linear, true = (drops / max(1, n)).tolist()
    return [
        Effect(
            input=feature,
            output=link.output,
            weight=float(where.connector.W[feature, link.output]),
            linear=linear[i],
            true=true[i],
            n_tokens=n,
            control=link.control,
        )
        for i, link in enumerate(links)
    ]


def _drops(
    where: ReadingContext,
    feature: int,
    outputs: Int[Tensor, " links"],
    tokens: Int[Tensor, "contexts ctx_len"],
    read: Callable[[Tensor], Mapping[Site, Tensor]],
) -> tuple[Float64[np.ndarray, "2 links"], int]:
    """Sums of predicted and true drops where the input is active, and on how many tokens it is."""
    first, second = where.sites
    source, target = where.pair.source, where.pair.target
    clean = read(tokens)
    x1, x2 = clean[first].float(), clean[second].float()
    z1 = source.encode(x1.flatten(0, 1))
    written = (z1[:, feature, None] * source.W_dec[feature]).view_as(x1)
    edited = (x1 - written).to(clean[first].dtype)
    with splice(where.lm, {first: lambda _: edited}):
        x2_edited = read(tokens)[second].float()
    active = z1[:, feature] > 0
    before, after = (target.encode(x.flatten(0, 1)[active]) for x in (x2, x2_edited))
    chosen = outputs.to(before.device)
    true = (before - after)[:, chosen]
    W, b = where.connector.W[:, chosen], where.connector.b[chosen]
    part = Connector(W, b, activation=where.connector.activation)
    with_it, without = z1[active], z1[active]
    without[:, feature] = 0
    linear = part(with_it) - part(without)
    sums = [drop.double().sum(0).cpu().numpy() for drop in (linear, true)]
    return np.stack(sums), int(active.sum())
