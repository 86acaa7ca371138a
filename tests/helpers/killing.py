"""Harvests that are killed half way, from a server that has imported everything already."""

import multiprocessing
import signal
import time
from multiprocessing.connection import Connection

import torch
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from pipeline.config.stages import HarvestConfig
from pipeline.harvest.forward import Forward
from pipeline.harvest.harvest import harvest

# Imported once by the server, not by each child.
WARM = (torch, GPTNeoXConfig, GPTNeoXForCausalLM, Forward)

server = multiprocessing.get_context("forkserver")
server.set_forkserver_preload(["tests.helpers.killing"])


def killed(config: HarvestConfig, *, after_batches: int, delay: float) -> bool:
    """Start a harvest, kill -9 it some batches in; False when it was done before."""
    here, there = server.Pipe(duplex=False)
    process = server.Process(target=_harvest, args=(config, there))
    process.start()
    there.close()
    try:
        for _ in range(after_batches):
            here.recv()
    except EOFError:
        pass
    time.sleep(delay)
    process.kill()
    process.join()
    return process.exitcode == -signal.SIGKILL


def _harvest(config: HarvestConfig, told: Connection) -> None:
    harvest(config, on_progress=lambda progress: told.send(progress.done))
