"""The one loop of every training: batches of the store to whatever groups learn from them.

Ctrl-C takes effect between steps, never inside one.
"""

import signal
import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from types import FrameType

from torch import Tensor

from actstore.batches import Batches
from actstore.reader import ActStore
from pipeline.config.training import LoopConfig
from pipeline.device import pick_device
from pipeline.errors import CheckpointError, DataError
from pipeline.runs.curves import StepReport, last_report
from pipeline.runs.kinds import AnyGroup, Source
from pipeline.training.batches import device_batches


@contextmanager
def deferred_interrupt() -> Generator[list[int], None, None]:
    """Within the block, the first Ctrl-C is only noted; the second raises where it strikes.

    So is every signal that is handled in Python's own way of handling Ctrl-C. Outside the main
    thread, or where there is none, nothing changes: then Ctrl-C does not arrive here, or is someone
    else's to handle.

    Yields:
        A signal for each time it was pressed.
    """
    presses = list[int]()

    def note(number: int, frame: FrameType | None) -> None:
        presses.append(number)
        if len(presses) > 1:
            raise KeyboardInterrupt

    in_main = threading.current_thread() is threading.main_thread()
    noted = [
        number
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        if in_main and signal.getsignal(number) is signal.default_int_handler
    ]
    for number in noted:
        signal.signal(number, note)
    try:
        yield presses
    finally:
        for number in noted:
            signal.signal(number, signal.default_int_handler)


Outcome = StepReport | DataError
"""How a run ended: complete, or no longer finite."""
OnStep = Callable[[StepReport], None]
OnEnd = Callable[[Path, Outcome], None]


def stream_of(
    store: ActStore, source: Source, config: LoopConfig, *, start: int, stop: int
) -> Generator[dict[str, Tensor], None, None]:
    """The batches for steps `start + 1` to `stop`."""
    batches = Batches(
        store=store,
        sites=source.sites,
        metadata=source.metadata,
        batch_size=config.rows_per_step,
        seed=config.order_seed,
        window_rows=config.window_rows,
        threads=config.threads,
    )
    return device_batches(batches.start_at(start, stop - start), device=pick_device(config.device))


def advance_all(
    groups: Sequence[AnyGroup],
    source: Source,
    stream: Generator[dict[str, Tensor], None, None],
    *,
    curves: type[StepReport],
    on_step: OnStep | None,
    on_end: OnEnd,
) -> None:
    """Give every group the batches of its steps until all are done.

    The stream begins with the first batch that any of them needs.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed; each member has written a checkpoint, unless it was
            pressed twice.
    """
    active = list(groups)
    first = min(group.step for group in active)
    with deferred_interrupt() as presses, closing(stream):
        try:
            for step, batch in enumerate(stream, start=first):
                fed = source.fed(batch)
                for group in [group for group in active if group.step == step]:
                    reports = group.advance(fed[group.feed])
                    if on_step is not None:
                        for report in reports:
                            on_step(report)
                    end(group, curves, on_end)
                active = [group for group in active if group.members and not group.done]
                if not active:
                    return
                if presses:
                    raise KeyboardInterrupt  # noqa: TRY301 - the place where it is safe
        except KeyboardInterrupt:
            if len(presses) < 2:
                for group in active:
                    group.save()
            raise


def end(group: AnyGroup, curves: type[StepReport], on_end: OnEnd) -> None:
    """Part with members that diverged, and finish the others when they are done.

    Raises:
        CheckpointError: the disk is full or fails; what was learned is kept in a checkpoint, if
            there is room for one.
    """
    for member, error in group.part_with_failures():
        member.fail(error)
        on_end(member.path, error)
    if group.members and group.done:
        try:
            group.finish()
        except CheckpointError:
            group.save()
            raise
        for member in group.members:
            report = last_report(member.path, curves, n_steps=member.n_steps, reused=False)
            on_end(member.path, report)
