"""The cells of `run.py`: what each measures, as a dictionary that is written as one line."""

import gc
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from statistics import median
from threading import Event, Thread
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from actstore.batches import Batches
from actstore.reader import ActStore
from pipeline.config.architectures import (
    ArchConfig,
    BatchTopKConfig,
    JumpReluConfig,
    ReluConfig,
    TopKConfig,
)
from pipeline.config.stages import EvalConfig, FinetuneConfig, HarvestConfig
from pipeline.device import DTYPES
from pipeline.evaluate.evaluate import evaluate
from pipeline.finetune.memory import plan_memory
from pipeline.harvest.forward import CPU_BATCH_TOKENS, GPU_BATCH_TOKENS
from pipeline.harvest.harvest import harvest
from pipeline.lm.hooks import reading
from pipeline.lm.model import load_for_sites
from pipeline.lm.sites import Site
from pipeline.progress import Progress
from pipeline.runs.sae_run import SAERun
from pipeline.sae.kernels import kernels_for
from pipeline.training.batches import device_batches
from pipeline.training.group import Group
from tests.gpu import plain
from tests.gpu.made import (
    CTX_LEN,
    NEVER,
    SITE,
    K,
    make_group,
    pythia,
    weights_drawn,
    write_model,
    write_store,
    write_text,
)
from tests.gpu.roofline import floor
from tests.gpu.timing import seconds_of, wait
from tests.helpers.tiny import make_sae, save_sae
from tests.helpers.tunings import finetune

ROOT = Path(__file__).parents[2]
Told = dict[str, Any]


class Skipped(Exception):  # noqa: N818 - no error
    """A cell that means nothing here; its message says why."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How large everything is."""

    shapes: tuple[tuple[int, int, int], ...]
    """d, F, B; the first ones are measured in more ways."""
    n_first: int
    small: tuple[int, int, int]
    """One of which only the kernels matter."""
    seconds: float
    """Of a timed cell."""
    copied: int
    """Bytes."""
    fed: tuple[tuple[str, int], ...]
    """Architectures and F of the steps that are fed from a store, of the first shape's d and B."""
    fed_rows: int
    fed_steps: int
    harvests: tuple[tuple[str, int, int], ...]
    """Models, tokens of a context, tokens in all."""
    tuned: str
    evaluated: str
    eval_tokens: int
    rows_of_model: int
    """Of a batch of fine-tuning, in contexts."""


REAL = Sizes(
    shapes=(
        (2048, 2**15, 4096), (4096, 2**17, 8192), (4096, 2**15, 8192), (2048, 2**17, 4096),
        (2048, 2**14, 4096), (2048, 2**14, 8192), (2048, 2**15, 8192), (2048, 2**17, 8192),
        (4096, 2**14, 4096), (4096, 2**14, 8192), (4096, 2**15, 4096), (4096, 2**17, 4096),
    ),
    n_first=2, small=(512, 4096, 1024), seconds=0.4, copied=2**30,
    fed=(("topk", 2**15), ("topk", 2**17), ("relu", 2**15)), fed_rows=2**17, fed_steps=40,
    harvests=(
        ("1.4b", 128, 2**19), ("160m", 128, 2**20), ("6.9b", 128, 2**18), ("1.4b", 2048, 2**19),
        ("160m", 2048, 2**20), ("6.9b", 2048, 2**18),
    ),
    tuned="6.9b", evaluated="1.4b", eval_tokens=2**15, rows_of_model=8,
)  # fmt: skip
TOY = Sizes(
    shapes=((32, 64, 64), (32, 128, 64)), n_first=1, small=(32, 64, 64), seconds=0.001,
    copied=2**16, fed=(("topk", 64),), fed_rows=2**11, fed_steps=3,
    harvests=(("toy", 128, 2**11),), tuned="toy", evaluated="toy", eval_tokens=2**9,
    rows_of_model=2,
)  # fmt: skip


@dataclass
class Bench:
    """Where cells run, how large, and what they share."""

    device: torch.device
    sizes: Sizes
    folder: Path
    shared: dict[Any, Any] = field(default_factory=dict)

    def once(self, key: object, make: Callable[[], Any]) -> Any:
        """What was made for this key, made at its first use."""
        if key not in self.shared:
            self.shared[key] = make()
        return self.shared[key]

    def new(self, name: str) -> Path:
        """A folder that is not there."""
        path = self.folder / name
        shutil.rmtree(path, ignore_errors=True)
        return path

    def store(self, d: int) -> Path:
        """Rows of this width, few: what a group must know of those it is fed."""
        path = self.folder / f"few-{d}.actstore"
        return self.once(path, lambda: write_store(path, n_rows=2**13, width=d))

    def rows(self, d: int, B: int) -> Iterator[torch.Tensor]:
        """Batches on the device, without end."""
        make = partial(torch.randn, 4 * B, d, device=self.device)
        return cycle(self.once(("rows", d, B), make).split(B))

    def free(self) -> None:
        """Give back the memory of the cell before."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def peak(self) -> float | None:
        """Bytes of the device that this cell held at most."""
        return torch.cuda.max_memory_allocated() if self.device.type == "cuda" else None


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One line of the file."""

    name: str
    table: str
    limit: float
    """Seconds that it may take."""
    run: Callable[[Bench], Told]


# Right


def pytest_told(bench: Bench, *args: str, **env: str) -> Told:
    """Counts and failures of tests in a process of their own."""
    if importlib.util.find_spec("pytest") is None:
        raise Skipped("pytest is not installed: pip install -e '.[dev]'")
    path = os.pathsep.join([str(ROOT), str(ROOT / "pipeline"), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "pytest", "-q", "-n0", "-rfE", "--tb=line", *args]
    log = bench.folder / "pytest.txt"
    with log.open("wb") as file:  # what was said is there, should it take too long
        child = subprocess.Popen(
            command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT,
            env=os.environ | {"PYTHONPATH": path} | env,
        )  # fmt: skip
        try:
            child.wait()
        except BaseException as error:
            child.kill()
            child.wait()
            raise TimeoutError(f"{error}: {log.read_text()[-400:]}") from error
    said = log.read_text()
    counts = {word: int(n) for n, word in re.findall(r"(\d+) (passed|failed|skipped|error)", said)}
    failures = re.findall(r"^(?:FAILED|ERROR) (.*)", said, re.MULTILINE)
    told: Told = {"code": child.returncode, "tests": counts, "failures": failures[:40]}
    return told if counts else told | {"said": said[-800:]}


def gpu_tests(bench: Bench) -> Told:
    """`pytest -m gpu`; on a CPU all of them skip."""
    return pytest_told(bench, "-m", "gpu", "tests/gpu/test_cuda.py", "tests/sae")


def kernel_tests(bench: Bench) -> Told:
    """The kernels against float64, where they are and else in Triton's interpreter."""
    if importlib.util.find_spec("triton") is None:
        raise Skipped("triton is not installed")
    env = {} if bench.device.type == "cuda" else {"TRITON_INTERPRET": "1"}
    args = ("-m", "not gpu and not slow", "tests/sae/test_kernels_triton.py")
    return pytest_told(bench, *args, **env)


CUBLAS = "cuBLAS without CUBLAS_WORKSPACE_CONFIG=:4096:8"


def nondeterministic(bench: Bench) -> Told:
    """What torch says of the kernels of a step: which need not give the same bits twice."""
    told, shape = Told(), bench.sizes.small
    rows = bench.rows(shape[0], shape[2])
    with ExitStack() as files:
        for way in WAYS:
            group = grouped(bench, files, way, shape, bf16=False)
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                torch.use_deterministic_algorithms(True, warn_only=True)
                try:
                    for _ in range(2):
                        group.advance(next(rows))
                    wait(bench.device)
                finally:
                    torch.use_deterministic_algorithms(False)
            said = {str(w.message).split(" does not have a determin")[0] for w in caught}
            names = {CUBLAS if "CUBLAS_WORKSPACE_CONFIG" in s else s for s in said if "_" in s}
            told[way] = sorted(names) or "none"
    return told


# Fast

WAYS: dict[str, tuple[str, Callable[[], ArchConfig], str]] = {
    "topk": ("topk", lambda: TopKConfig(k=K), "on"),
    "batchtopk": ("batchtopk", lambda: BatchTopKConfig(k=K), "on"),
    "relu": ("relu", lambda: ReluConfig(l0=K), "on"),
    "relu dense": ("relu", lambda: ReluConfig(l0=K), "off"),
    "jumprelu": ("jumprelu", lambda: JumpReluConfig(l0=K), "off"),
    "topk dense": ("topk", lambda: TopKConfig(k=K), "off"),
}
"""Their plain step, their config, and the way that they start, or soon come to, by themselves."""
ALWAYS = ("topk", "batchtopk", "relu", "relu dense", "jumprelu")


def grouped(
    bench: Bench, files: ExitStack, way: str, shape: tuple[int, int, int], *, bf16: bool
) -> Group:
    """A group that steps in this way; of whole matrices where there are no kernels."""
    (d, F, B), (_, arch, sparse) = shape, WAYS[way]
    if kernels_for(bench.device) is None:
        sparse = "off"
    return make_group(
        bench.store(d), bench.new("run"), files, d_sae=F, batch_size=B, arch=arch(),
        device=bench.device, sparse=sparse, precision="bf16" if bf16 else "fp32",
        dead_window=str(NEVER), revive_after=str(NEVER),
    )  # fmt: skip


def speeds(bench: Bench, shape: tuple[int, int, int], *, bf16: bool) -> Told:
    """What the device gives a plain product of the encoder's shape, and a plain copy."""
    return bench.once(("speeds", shape, bf16), lambda: _speeds(bench, shape, bf16=bf16))


def _speeds(bench: Bench, shape: tuple[int, int, int], *, bf16: bool) -> Told:
    d, F, B = shape
    device, most = bench.device, bench.sizes.seconds / 2
    dtype = torch.bfloat16 if bf16 else torch.float32
    x, E = torch.randn(B, d, device=device).to(dtype), torch.randn(F, d, device=device).to(dtype)
    out = torch.empty(B, F, device=device, dtype=dtype)

    def rate() -> float:
        took = seconds_of(lambda: torch.mm(x, E.T, out=out), device, seconds=most)
        return 2.0 * B * F * d / median(took)

    told: Told = {"gemm_flops": rate(), "copy_bytes": bench.once("copy", partial(_copied, bench))}
    if not bf16 and device.type == "cuda":
        before = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = True
        try:
            told["gemm_tf32_flops"] = rate()
        finally:
            torch.backends.cuda.matmul.allow_tf32 = before
        told["tf32"] = before
    return told


def _copied(bench: Bench) -> float:
    """Bytes read and written a second."""
    a = torch.zeros(bench.sizes.copied, dtype=torch.uint8, device=bench.device)
    b = torch.empty_like(a)
    took = seconds_of(lambda: b.copy_(a), bench.device, seconds=bench.sizes.seconds)
    return 2 * a.numel() / median(took)


def step_cell(bench: Bench, way: str, shape: tuple[int, int, int], *, bf16: bool) -> Told:
    """A step of ours beside its floor and a plain one."""
    (d, F, B), kind, width = shape, WAYS[way][0], 2 if bf16 else 4
    known = speeds(bench, shape, bf16=bf16)
    ours, sparse, active = _ours(bench, way, shape, bf16=bf16)
    least = floor(
        B, d, F, pairs=active if sparse else None, width=width, kind=kind,
        rate=known["gemm_flops"], copy=known["copy_bytes"],
    )  # fmt: skip
    told: Told = {
        "way": way, "d": d, "F": F, "B": B, "bf16": bf16, "sparse": sparse,
        "seconds": median(ours), "spread": [min(ours), max(ours)], "n_timed": len(ours),
        "share_of_floor": least / median(ours), "peak_bytes": bench.peak(), "pairs": active,
        **known,
    }  # fmt: skip
    bench.free()
    try:
        theirs = bench.once(
            ("plain", kind, shape, bf16), lambda: _plain(bench, kind, shape, bf16=bf16)
        )
    except Exception as error:  # what was measured of ours stays
        return told | {"plain": f"{type(error).__name__}: {str(error)[:80]}"}
    return told | {"plain_seconds": theirs, "plain_by_ours": theirs / median(ours)}


def _ours(
    bench: Bench, way: str, shape: tuple[int, int, int], *, bf16: bool
) -> tuple[list[float], bool, int]:
    """Seconds of steps, whether they are of active pairs alone, and how many pairs are active."""
    rows = bench.rows(shape[0], shape[2])
    with ExitStack() as files:
        group = grouped(bench, files, way, shape, bf16=bf16)
        step = partial(_advance, group, rows)
        took = seconds_of(step, bench.device, seconds=bench.sizes.seconds)
        return took, group._sparse, active_pairs(group, next(rows))


def _advance(group: Group, rows: Iterator[torch.Tensor]) -> None:
    group.advance(next(rows))


@torch.no_grad()
def active_pairs(group: Group, x: torch.Tensor) -> int:
    """Of a batch, in a step that learns nothing."""
    one = torch.ones(1, device=x.device)
    return int(group._stack.learn(x, coefficient=one, sparse=group._sparse).counts.sum())


def _plain(bench: Bench, kind: str, shape: tuple[int, int, int], *, bf16: bool) -> float:
    d, F, B = shape
    rows = bench.rows(d, B)
    step = plain.stepper(kind, d, F, device=bench.device, bf16=bf16)
    return median(seconds_of(lambda: step(next(rows)), bench.device, seconds=bench.sizes.seconds))


def break_even_cell(bench: Bench) -> Told:
    """Steps of the active pairs alone by the share that is active, and one of whole matrices.

    Where the first ones are no longer faster is what `BREAK_EVEN` of `pipeline.sae.stack` guesses.
    """
    if kernels_for(bench.device) is None:
        raise Skipped("there are no sparse kernels")
    (d, F, B), seconds = bench.sizes.shapes[0], dict[str, float]()
    rows = bench.rows(d, B)
    for share in (*SHARES, None):
        with ExitStack() as files:
            group = make_group(
                bench.store(d), bench.new("run"), files, d_sae=F, batch_size=B,
                arch=ReluConfig(l0=F * (share or SHARES[0])), device=bench.device,
                sparse="on" if share else "off",
                precision="bf16" if bench.device.type == "cuda" else "fp32",
                dead_window=str(NEVER), revive_after=str(NEVER),
            )  # fmt: skip
            step = partial(_advance, group, rows)
            took = seconds_of(step, bench.device, seconds=bench.sizes.seconds)
        seconds[f"{share:.2%}" if share else "whole"] = median(took)
    return {"d": d, "F": F, "B": B, "seconds": seconds}


SHARES = (0.0025, 0.005, 0.01, 0.02, 0.04)


def peer_cell(bench: Bench, package: str, way: str, shape: tuple[int, int, int]) -> Told:
    """A step of another tool's TopK or ReLU in float32, and of ours."""
    if importlib.util.find_spec(package) is None:
        raise Skipped(f"{package} is not installed")
    d, F, B = shape
    rows = bench.rows(d, B)
    step = {"sparsify": _sparsify, "dictionary_learning": _dictionary_learning}[package](
        bench, way, d, F
    )
    theirs = median(seconds_of(lambda: step(next(rows)), bench.device, seconds=bench.sizes.seconds))
    with ExitStack() as files:
        group = grouped(bench, files, way, shape, bf16=False)
        ours = median(
            seconds_of(partial(_advance, group, rows), bench.device, seconds=bench.sizes.seconds)
        )
    return {"package": package, "way": way, "d": d, "F": F, "B": B, "seconds": theirs,
            "ours": ours, "theirs_by_ours": theirs / ours}  # fmt: skip


def _sparsify(bench: Bench, way: str, d: int, F: int) -> Callable[[torch.Tensor], None]:
    """As its trainer does it; see `tests/bench/peer_train_sparsify.py`."""
    from sparsify import SparseCoder
    from sparsify.config import SparseCoderConfig

    if way != "topk":
        raise Skipped("sparsify has TopK alone")
    coder = SparseCoder(d, SparseCoderConfig(num_latents=F, k=K), device=bench.device)
    adam = torch.optim.Adam(coder.parameters(), lr=1e-4)

    def step(x: torch.Tensor) -> None:
        coder.set_decoder_norm_to_unit_norm()
        coder(x).fvu.backward()
        coder.remove_gradient_parallel_to_decoder_directions()
        adam.step()
        adam.zero_grad()

    return step


def _dictionary_learning(bench: Bench, way: str, d: int, F: int) -> Callable[[torch.Tensor], None]:
    """One `update` of its trainer."""
    from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer
    from dictionary_learning.trainers.standard import StandardTrainer
    from dictionary_learning.trainers.top_k import TopKTrainer

    common = {
        "steps": 10**6, "activation_dim": d, "dict_size": F, "layer": 0, "lm_name": "none",
        "device": str(bench.device), "lr": 1e-4,
    }  # fmt: skip
    if way == "relu":
        trainer: Any = StandardTrainer(l1_penalty=1e-3, **common)
    else:
        trainer = {"topk": TopKTrainer, "batchtopk": BatchTopKTrainer}[way](k=K, **common)
    steps = iter(range(10**9))
    return lambda x: trainer.update(next(steps), x)


NO_LAUNCH = {"empty", "empty_like", "new_empty", "empty_strided", "detach", "_local_scalar_dense"}


class Launches(TorchDispatchMode):
    """Counts operators of torch that reach a device, by name; views, which launch nothing, apart.

    An operator may launch several kernels, and kernels of Triton are not among them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.counted: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name().removeprefix("aten::")
        if not func.is_view and name.split(".")[0] not in NO_LAUNCH:
            self.counted[name] += 1
        return func(*args, **kwargs or {})


def launch_cell(bench: Bench, way: str) -> Told:
    """How much the host launches in a step, and on a GPU how often it waits."""
    shape, n = bench.sizes.shapes[0], 4
    rows = bench.rows(shape[0], shape[2])
    with ExitStack() as files:
        group = grouped(bench, files, way, shape, bf16=bench.device.type == "cuda")
        for _ in range(2):
            group.advance(next(rows))
        with Launches() as launches:
            group.advance(next(rows))
        told: Told = {"way": way, "operators": sum(launches.counted.values())}
        if bench.device.type != "cuda":
            return told
        from torch.profiler import ProfilerActivity, profile

        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiled:
            for _ in range(n):
                group.advance(next(rows))
            wait(bench.device)
        events = profiled.events() or []
        names = Counter(event.name for event in events)
        on_device = [event for event in events if "CUDA" in str(event.device_type)]
        told["kernels"] = sum(not e.name.startswith("Mem") for e in on_device) / n
        told["copies"] = sum(e.name.startswith("Memcpy") for e in on_device) / n
        for call in ("cudaStreamSynchronize", "cudaEventSynchronize", "cudaLaunchKernel"):
            told[call] = names[call] / n
        return told


def fed_cell(bench: Bench, kind: str, F: int) -> Told:
    """Steps on rows of a store, and the same steps on rows in the device's memory."""
    sizes, device = bench.sizes, bench.device
    d, _, B = sizes.shapes[0]
    path = bench.folder / "fed.actstore"
    bench.once(path, lambda: write_store(path, n_rows=sizes.fed_rows, width=d))
    opened = ActStore.open(path)
    bf16 = device.type == "cuda"
    took: dict[str, list[float]] = {"memory": [], "store": []}
    with ExitStack() as files:
        group = grouped(bench, files, kind, (d, F, B), bf16=bf16)
        source = Batches(store=opened, sites=(SITE,), batch_size=B, seed=0,
                         window_rows=max(B, sizes.fed_rows // 4))  # fmt: skip
        stream = files.enter_context(closing(device_batches(source.start_at(0), device=device)))
        held = [next(stream) for _ in range(3)]
        for where in ("memory", "store", "memory", "store"):
            batches = cycle(held) if where == "memory" else stream
            for batch in islice(batches, 2):
                group.advance(group._feeder.fed(batch)[group.feed])
            wait(device)
            start = time.perf_counter()
            for batch in islice(batches, sizes.fed_steps):
                group.advance(group._feeder.fed(batch)[group.feed])
            wait(device)
            took[where].append((time.perf_counter() - start) / sizes.fed_steps)
    memory, store = min(took["memory"]), min(took["store"])
    return {
        "way": kind, "d": d, "F": F, "B": B, "bf16": bf16, "memory_seconds": memory,
        "store_seconds": store, "store_rows_per_s": B / store, "ratio": memory / store,
    }  # fmt: skip


class Busy:
    """Share of the time in which the GPU computed something, as its driver samples it, by pynvml.

    `share` is None where that is not installed.
    """

    def __init__(self, device: torch.device) -> None:
        there = device.type == "cuda" and importlib.util.find_spec("pynvml") is not None
        self._device = device if there else None
        self._seen: list[int] = []
        self._end = Event()

    def __enter__(self) -> "Busy":
        if self._device is not None:
            self._thread = Thread(target=self._sample, daemon=True)
            self._thread.start()
        return self

    def _sample(self) -> None:
        while not self._end.wait(0.1):
            self._seen.append(torch.cuda.utilization(self._device))

    def __exit__(self, *_: object) -> None:
        self._end.set()

    @property
    def share(self) -> float | None:
        return float(np.mean(self._seen)) / 100 if self._seen else None


def harvest_cell(bench: Bench, model: str, ctx_len: int, n_tokens: int) -> Told:
    """Tokens a second into a store, beside the bare forward to the same layer."""
    device, precision = bench.device, "bf16" if bench.device.type == "cuda" else "fp32"
    folder = write_model(bench.folder / model, model)
    site = Site.parse(f"mlp_out.{pythia(model)['num_hidden_layers'] // 2}")
    text = bench.once("text", lambda: _text(bench))
    most = CPU_BATCH_TOKENS if device.type == "cpu" else GPU_BATCH_TOKENS
    batch = max(1, most // ctx_len)
    out = bench.new("harvest.actstore")
    tokens = torch.randint(3000, (batch, ctx_len), device=device)
    with weights_drawn():
        bare = tokens.numel() / _forward_seconds(bench, folder, site, tokens, DTYPES[precision])
        bench.free()
        config = HarvestConfig(
            out=out, model=str(folder), text=text, sites=(str(site),), tokens=n_tokens,
            ctx_len=ctx_len, device=device.type, precision=precision,
            check_model=False,  # transformers does not draw its weights
        )  # fmt: skip
        with Busy(device) as busy:
            summary = harvest(config)
    shutil.rmtree(out)
    return {"model": model, "site": str(site), "ctx_len": ctx_len, "tokens": summary.rows_written,
            "bare_per_s": bare, "harvest_per_s": summary.tokens_per_s, "busy": busy.share,
            "ratio": summary.tokens_per_s / bare, "peak_bytes": bench.peak()}  # fmt: skip


@torch.inference_mode()
def _forward_seconds(
    bench: Bench, folder: Path, site: Site, tokens: torch.Tensor, dtype: torch.dtype
) -> float:
    """Of a batch, up to a site; nothing is kept."""
    lm = load_for_sites(str(folder), [site], device=bench.device, dtype=dtype)
    with reading(lm, [site]) as read:
        seconds = 4 * bench.sizes.seconds
        return median(seconds_of(partial(read, tokens), bench.device, seconds=seconds, warm=2))


def _text(bench: Bench) -> str:
    n = max(tokens for _, _, tokens in bench.sizes.harvests)
    return write_text(bench.folder / "text.jsonl", n_tokens=n)


# Large


def spliced_run(bench: Bench, model: str) -> tuple[Path, str]:
    """A run of random weights for the middle of a model, and a text."""
    folder = write_model(bench.folder / model, model)
    shape = pythia(model)
    out = bench.folder / f"sae-{model}"
    site = f"mlp_out.{shape['num_hidden_layers'] // 2}"
    arch = TopKConfig(k=K)

    def save() -> Path:
        sae = make_sae(d_in=shape["hidden_size"], expansion=4, arch=arch)
        return save_sae(out, sae, model=folder, site=site, arch=arch, ctx_len=CTX_LEN)

    bench.once(out, save)
    return out, bench.once("text", lambda: _text(bench))


def finetune_cell(bench: Bench, **settings: Any) -> Told:
    """A few steps: memory at most and as planned, and seconds in all, loading included."""
    model, batch = bench.sizes.tuned, bench.sizes.rows_of_model
    run, text = spliced_run(bench, model)
    config = FinetuneConfig(
        run=run, out=bench.new("tuned"), text=text, batch_size=batch, epochs=1, steps_per_epoch=4,
        ctx_len=CTX_LEN, heldout_contexts=batch, device=bench.device.type, **settings,
    )  # fmt: skip
    if config.quantize is not None and importlib.util.find_spec("bitsandbytes") is None:
        raise Skipped("bitsandbytes is not installed: pip install -e '.[quantize]'")
    plan = plan_memory(config, [SAERun.open(run)])
    ends: list[float] = []

    def ended(progress: Progress) -> None:
        if progress.stage == "finetune":
            ends.append(time.perf_counter())

    start = time.perf_counter()
    with weights_drawn():
        report = finetune(config, on_progress=ended)
    steps = np.diff(ends)
    return {"model": model, "ctx_len": CTX_LEN, "contexts_per_step": batch,
            "steps": report.n_steps, "loss": report.loss_last,
            "seconds_per_step": float(np.median(steps)) if len(steps) else None,
            "seconds": time.perf_counter() - start, "peak_bytes": (peak := bench.peak()),
            "planned_bytes": plan.bytes_needed,
            "peak_by_plan": peak and peak / plan.bytes_needed}  # fmt: skip


def eval_cell(bench: Bench) -> Told:
    """Of one SAE: tokens a second, model loading included."""
    model = bench.sizes.evaluated
    run, text = spliced_run(bench, model)
    config = EvalConfig(
        runs=(run,), text=text, tokens=bench.sizes.eval_tokens, device=bench.device.type,
        n_bootstrap=30, batch_size=bench.sizes.rows_of_model,
    )  # fmt: skip
    start = time.perf_counter()
    with weights_drawn():
        (report,) = evaluate(config)
    seconds = time.perf_counter() - start
    return {"model": model, "tokens": report.n_tokens, "seconds": seconds,
            "tokens_per_s": report.n_tokens / seconds, "ce_added": report.ce_added,
            "peak_bytes": bench.peak()}  # fmt: skip


def cells_of(sizes: Sizes) -> list[Cell]:
    """All, the most valuable first: what is left when time is up is said to be left out."""
    first, rest = sizes.shapes[: sizes.n_first], sizes.shapes[sizes.n_first :]
    cells = [
        Cell(name="pytest -m gpu", table="right", limit=150, run=gpu_tests),
        Cell(name="kernels", table="right", limit=60, run=kernel_tests),
        Cell(name="not deterministic", table="right", limit=30, run=nondeterministic),
    ]
    steps = {
        shape: [_step(way, shape, bf16) for bf16 in (True, False) for way in WAYS]
        for shape in first
    }
    cells += steps[first[0]]
    cells += [Cell(name="break-even", table="break_even", limit=30, run=break_even_cell)]
    cells += [
        Cell(name=f"launches {way}", table="launches", limit=20, run=partial(launch_cell, way=way))
        for way in WAYS
    ]
    cells += [
        Cell(name=f"fed {kind} F{F}", table="fed", limit=30, run=partial(fed_cell, kind=kind, F=F))
        for kind, F in sizes.fed
    ]
    harvests = [_harvest(*harvested) for harvested in sizes.harvests]
    cells += harvests[:3]
    cells += [
        *_finetunes(sizes.tuned),
        Cell(name=f"evaluate {sizes.evaluated}", table="large", limit=45, run=eval_cell),
    ]
    cells += [cell for shape in first[1:] for cell in steps[shape]]
    cells += harvests[3:]
    cells += [_peer(package, way, sizes.shapes[0]) for package, ways in PEERS for way in ways]
    return cells + [
        _step(way, shape, bf16) for bf16 in (True, False) for shape in rest for way in ALWAYS
    ]


PEERS = (("sparsify", ("topk",)), ("dictionary_learning", ("topk", "batchtopk", "relu")))


def _harvest(model: str, ctx_len: int, n_tokens: int) -> Cell:
    return Cell(
        name=f"harvest {model} {ctx_len}", table="harvest", limit=45,
        run=partial(harvest_cell, model=model, ctx_len=ctx_len, n_tokens=n_tokens),
    )  # fmt: skip


def _finetunes(model: str) -> list[Cell]:
    """In the device's precision, and as small as it gets."""
    ways: dict[str, Told] = {
        "": {}, " checkpointing": {"checkpointing": True}, " 4bit": {"quantize": "4bit"},
        " 4bit checkpointing": {"quantize": "4bit", "checkpointing": True},
    }  # fmt: skip
    return [
        Cell(
            name=f"finetune {model}{way}", table="large", limit=60,
            run=partial(finetune_cell, **settings),
        )
        for way, settings in ways.items()
    ]  # fmt: skip


def _peer(package: str, way: str, shape: tuple[int, int, int]) -> Cell:
    return Cell(
        name=f"{package} {way}", table="peers", limit=15,
        run=partial(peer_cell, package=package, way=way, shape=shape),
    )  # fmt: skip


def _step(way: str, shape: tuple[int, int, int], bf16: bool) -> Cell:
    d, F, B = shape
    return Cell(
        name=f"step {way} d{d} F{F} B{B} {'bf16' if bf16 else 'fp32'}", table="steps", limit=25,
        run=partial(step_cell, way=way, shape=shape, bf16=bf16),
    )  # fmt: skip
