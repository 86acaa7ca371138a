"""Are our losses and gradients the peers', for the same weights and rows?

    OMP_NUM_THREADS=1 .venv/bin/python tests/bench/losses_agree.py \
        --saelens ENVS/sae-lens/bin/python --sparsify ENVS/eai-sparsify/bin/python \
        --dictionary-learning ENVS/dictionary-learning/bin/python

`peer_train_common.py` says how to make those environments, `peer_losses.py` what they answer. Any
of the three will do. Everything is compared part by part, in our scale:

    fit      all that is minimised without penalty and without dead latents
    penalty  what the penalty adds, its coefficient included
    aux      what AuxK adds, for every mask of dead latents

Ours is computed twice: of all pairs in float64, and of the active pairs alone in float32. A loss
is off by |ours - theirs| / |theirs|, a weight's gradient by max |ours - theirs| / max |theirs|: of
the weights, the worst counts. What divides is at least a share of the sum of our parts, for what is
zero but for rounding: 1e-3, in float32 0.1, as there a part is the difference of two sums.

Where definitions coincide, more than 1e-10 (float64) or 1e-4 (float32: the active pairs alone, and
dictionary_learning's AuxK) is a failure, and the exit code 1. Where they do not, the table says
how, and the figures are for information.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from losses_given import D_IN, D_SAE, SETTINGS, WIDTHS, Arrays, Setting, make, pre_of
from losses_ours import Learned, arch_of, learn

from pipeline.sae.architecture import architecture_of

EXACT, SINGLE = 1e-10, 1e-4


@dataclass(frozen=True, kw_only=True)
class Lined:
    """How a peer's parts make one of ours."""

    scales: Mapping[str, float]
    """What to multiply each of them by before they are summed."""
    gradients: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """The same for the gradients of weights for which it is something else; none: left out."""
    note: str = ""
    same: bool = True
    limit: float = EXACT


W_DEC_ALONE: Mapping[str, Mapping[str, float]] = {"W_enc": {}, "b_enc": {}, "b_dec": {}}


def fit_lined(peer: str, case: str, given: Arrays, setting: Setting) -> Lined:
    both = {"recon": 1.0, "aux": 1.0}
    match peer, case:
        case "saelens", "gated":
            return Lined(
                scales=both, gradients={"W_dec": {"recon": 1.0}, "b_dec": {}},
                note="aux left out of W_dec, and b_dec: not frozen there",
            )  # fmt: skip
        case "saelens", "topk" | "batchtopk" | "matryoshka" if not setting.unit:
            return Lined(
                scales={"recon": 1.0}, same=False, note="unit rows there, 0/0 of a zero one"
            )
        case "saelens", "matryoshka":
            return Lined(scales=dict.fromkeys(("recon", "nested"), 1 / len(WIDTHS)))
        case "dictionary_learning", "gated":
            return Lined(scales={"recon_aux": 1.0})
        case "dictionary_learning", "matryoshka":
            return Lined(scales={"recon": len(WIDTHS)})
        case "sparsify", _ if np.sort(pre_of(given))[:, -setting.k].min() <= 0:
            return Lined(
                scales={"recon": spread(given["x"])}, gradients=W_DEC_ALONE,
                note="W_dec alone: picked latents at zero learn there",
            )  # fmt: skip
        case "sparsify", _:
            return Lined(scales={"recon": spread(given["x"])})
        case _:
            return Lined(scales={"recon": 1.0})


def penalty_lined(peer: str, case: str, setting: Setting) -> Lined:
    same = {"sparsity": 1.0}
    match peer, case:
        case "saelens", "gated" if setting.unit:
            left_out = {"W_dec": {}}
            return Lined(scales=same, gradients=left_out, note="but for W_dec: weighs by its norms")
        case "saelens", "gated":
            return Lined(scales=same, same=False, note="weighs by norms of W_dec")
        case "dictionary_learning", "jumprelu":
            return Lined(scales=same, same=False, note="square of L0's distance from an aim there")
        case _:
            return Lined(scales=same)


def aux_lined(
    peer: str, given: Arrays, dead: np.ndarray, residual: np.ndarray, setting: Setting
) -> Lined:
    k = D_IN // 2
    share = min(dead.sum() / k, 1)
    if peer == "dictionary_learning":
        return Lined(scales={"aux": spread(residual)}, limit=SINGLE, note="in float32 there")
    if peer == "sparsify":
        return Lined(
            scales={"aux": spread(given["x"]) / share}, gradients=W_DEC_ALONE,
            note="W_dec alone: it trains no other",
        )  # fmt: skip
    scales = {"aux": 1 / share}
    if not setting.unit:
        return Lined(scales=scales, same=False, note="unit rows there, 0/0 of a zero one")
    if np.sort(pre_of(given)[:, dead])[:, -k:].min() < 0:
        return Lined(scales=scales, same=False, note="negative latents count")
    return Lined(scales=scales)


def spread(a: np.ndarray) -> float:
    """Mean over rows of the squared distance to their mean."""
    return float(np.square(a - a.mean(0)).sum() / len(a))


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What one comparison found: loss and gradients, of all pairs and of the active ones."""

    peer: str
    what: str
    lined: Lined
    where: str
    dense: tuple[float, float]
    sparse: tuple[float, float]
    weight: str
    """With the largest difference of gradients."""

    @property
    def verdict(self) -> str:
        if not self.lined.same:
            return f"other: {self.lined.note}"
        good = max(self.dense) <= self.lined.limit and max(self.sparse) <= SINGLE
        note = f", {self.lined.note}" if self.lined.note else ""
        return f"same{note}" if good else f"DIFFERS{note}"


def off(found: np.ndarray, wanted: np.ndarray, floor: float) -> float:
    gap = float(np.abs(found - wanted).max())
    if not np.isfinite(gap):
        return float("inf")
    return gap / max(float(np.abs(wanted).max()), floor) if gap else 0.0


def lined_up(
    answers: Arrays, case: str, lined: Lined, ours: Learned, floor: Learned
) -> tuple[float, float, str]:
    """How far off the loss and the gradients of one part are, and the worst weight."""

    def summed(scales: Mapping[str, float], suffix: str, like: np.ndarray) -> np.ndarray:
        parts = (answers.get(f"{case}/{part}{suffix}") for part in scales)  # None: constant zero
        scaled = (a * s for a, s in zip(parts, scales.values(), strict=True) if a is not None)
        return sum(scaled, np.zeros_like(like))

    loss = np.asarray(ours.loss)
    worst = [(0.0, "none")]
    for name, grad in ours.grads.items():
        scales = lined.gradients.get(name, lined.scales)
        if scales:
            least = float(np.abs(floor.grads[name]).max())
            worst.append((off(grad, summed(scales, f"/{name}", grad), least), name))
    return off(loss, summed(lined.scales, "", loss), abs(floor.loss)), *max(worst)


def compare(setting: Setting, given: Arrays, peer: str, answers: Arrays) -> Iterator[Finding]:
    """Every part of every case that the peer has answered."""
    for full in sorted({name.partition("/")[0] for name in answers}):
        case, _, mask = full.partition(".")
        arch = arch_of(case, given)
        fits, residual = learn(arch, given)
        if mask:
            dead = answers[f"{full}/dead"]
            lined = aux_lined(peer, given, dead, residual, setting)
            sums = learn(arch, given, dead=dead)[0]
            todo = [("aux", lined, [s - f for s, f in zip(sums, fits, strict=True)], sums)]
        else:
            todo = [("fit", fit_lined(peer, case, given, setting), fits, fits)]
            if architecture_of(arch, d_in=D_IN, d_sae=D_SAE).coefficient:
                lined = penalty_lined(peer, case, setting)
                sums = learn(arch, given, penalised=True)[0]
                extra = [s - f for s, f in zip(sums, fits, strict=True)]
                todo.append(("penalty", lined, extra, sums))
        for part, lined, ours, sums in todo:
            *dense, weight = lined_up(answers, full, lined, ours[0], sums[0].times(1e-3))
            *sparse, _ = lined_up(answers, full, lined, ours[1], sums[1].times(0.1))
            yield Finding(
                peer=peer, what=f"{case} {part}", lined=lined, weight=weight,
                where=f"{setting.name}{mask and f', {mask}'}",
                dense=tuple(dense), sparse=tuple(sparse),
            )  # fmt: skip


def asked(python: str, peer: str, given: Arrays, folder: Path) -> dict[str, np.ndarray]:
    """What the peer answers, from its own environment."""
    source, target = folder / "in.npz", folder / f"{peer}.npz"
    np.savez(source, **given)
    script = Path(__file__).with_name("peer_losses.py")
    done = subprocess.run(
        [python, script, peer, source, target], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{peer} failed: {done.stderr}")
    with np.load(target) as file:
        return dict(file)


def show(findings: list[Finding]) -> None:
    """One line for each part of each peer; of all settings and masks the worst."""
    print("worst relative difference; all pairs in float64 | active pairs in float32")
    print(
        f"{'peer':20}{'part':20}{'n':>3} {'loss':>8}{'gradient':>9} |{'loss':>8}{'gradient':>9}",
        end="",
    )
    print("  verdict (worst gradient)")
    groups: dict[tuple[str, str, str], list[Finding]] = {}
    for finding in findings:
        groups.setdefault((finding.peer, finding.what, finding.verdict), []).append(finding)
    for (peer, what, verdict), group in sorted(groups.items()):
        figures = [max(f.dense[i] for f in group) for i in (0, 1)]
        figures += [max(f.sparse[i] for f in group) for i in (0, 1)]
        loss, gradient, *active = (f"{figure:.1e}" for figure in figures)
        worst = max(group, key=lambda f: f.dense[1])
        print(f"{peer:20}{what:20}{len(group):3} {loss:>8}{gradient:>9} |", end="")
        print(f"{active[0]:>8}{active[1]:>9}  {verdict} ({worst.where}: {worst.weight})")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    peers = ("saelens", "dictionary_learning", "sparsify")
    for peer in peers:
        parser.add_argument(f"--{peer.replace('_', '-')}", help="Its environment's python.")
    pythons = {peer: python for peer, python in vars(parser.parse_args()).items() if python}
    if not pythons:
        parser.error("no peer given: type --saelens PYTHON or the like")
    findings: list[Finding] = []
    with tempfile.TemporaryDirectory() as folder:
        for setting in SETTINGS:
            given = make(setting)
            for peer, python in pythons.items():
                answers = asked(python, peer, given, Path(folder))
                findings += compare(setting, given, peer, answers)
    show(findings)
    failed = [f for f in findings if f.verdict.startswith("DIFFERS")]
    print(f"{len(findings)} comparisons, {len(failed)} failed")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
