"""Whether members of one shape are computed at once or one after another: measured, not guessed."""

import logging
import time
from collections.abc import Sequence

import torch

from pipeline.sae.stack import Stack

log = logging.getLogger(__name__)

TRIALS, TRIAL_ROWS = 2, 1024
SHARE = 0.02
"""Of a run that may go into finding out; a shorter run is trained in turn."""
WORTH = 0.95
"""A stack must take less than this share of the time: its memory is the larger one."""


def stack_is_faster(stack: Stack, *, n_rows: int, n_steps: int, sparse: bool) -> bool:
    """Time both ways of computing the gradients of random rows, in turns.

    What is learned from does not matter to the time, and nothing is learned here.

    Args:
        stack: Of all members.
        n_rows: Of a batch; no more than TRIAL_ROWS are tried.
        n_steps: How many are to be made.
        sparse: Whether active pairs alone are computed.
    """
    tried = min(n_rows, TRIAL_ROWS)
    if 2 * (TRIALS + 1) * tried > SHARE * n_rows * n_steps:
        return False
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(tried, stack.params["W_dec"].shape[-1], generator=generator)
    whole = stack.subset(range(stack.n_members))  # running thresholds move: not those of `stack`
    alone = [stack.subset([m]) for m in range(stack.n_members)]
    at_once, in_turn = list[float](), list[float]()
    for _ in range(TRIALS + 1):  # the first fills caches and memory
        at_once.append(_seconds([whole], x, sparse=sparse))
        in_turn.append(_seconds(alone, x, sparse=sparse))
    share = min(at_once[1:]) / min(in_turn[1:])
    log.info("%d members at once take %.2f of the time in turn", stack.n_members, share)
    return share < WORTH


@torch.no_grad()
def _seconds(stacks: Sequence[Stack], x: torch.Tensor, *, sparse: bool) -> float:
    device = stacks[0].params["W_dec"].device
    rows = x.to(device)
    start = time.perf_counter()
    for stack in stacks:
        ones = stack.params["b_enc"].new_ones(stack.n_members)
        stack.learn(rows, coefficient=ones, sparse=sparse)
    if device.type != "cpu":
        torch.accelerator.synchronize()
    return time.perf_counter() - start
