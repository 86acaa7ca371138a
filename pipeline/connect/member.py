"""The run of a connector in training."""

from typing import final

from pipeline.connect.run import ConnectorRun
from pipeline.curves import Curves
from pipeline.errors import DataError
from pipeline.training.record import Record, writing
from pipeline.training.schedule import Schedule


@final
class ConnectorMember(Record):
    """What the run of a connector keeps from step to step."""

    def __init__(self, run: ConnectorRun, *, curves: Curves, n_steps: int) -> None:
        schedule = Schedule.of(run.config, n_steps=n_steps)
        super().__init__(run.path, run.config, curves=curves, schedule=schedule)
        self.run = run

    def fail(self, error: DataError) -> None:
        """Leave word that the run diverged, so that it is not gone on with.

        Raises:
            CheckpointError: the disk is full or fails.
        """
        with writing(self.path):
            self.run.fail(str(error))
