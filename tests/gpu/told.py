"""The lines of `run.py` as Markdown tables; a line that was cut off is left out."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

Line = Mapping[str, Any]


def lines_of(path: Path) -> list[Line]:
    """The whole lines of a file, which may end in the middle of one."""
    found: list[Line] = []
    for text in path.read_text(errors="replace").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict):
            found.append(line)
    return found


def tell(path: Path) -> str:
    """All tables of a file."""
    lines = lines_of(path)
    about = next((line for line in lines if line.get("table") == "about"), {})
    parts = [" · ".join(f"{key} {about[key]}" for key in ABOUT if about.get(key)) or "cut off"]
    for name, (title, columns) in TABLES.items():
        rows = [line for line in lines if line.get("table") == name and _measured(line)]
        if rows:
            parts += [f"## {title}", _table(columns, rows)]
    failed = [line for line in lines if not _measured(line) and line.get("table") != "about"]
    if failed:
        said = [f"* {line.get('cell')}: {_why(line)}" for line in failed]
        parts += ["## Not measured", "\n".join(said)]
    return "\n\n".join(parts)


ABOUT = ("device", "torch", "cuda", "triton", "python", "date", "commit", "toy")


def _measured(line: Line) -> bool:
    return not {"error", "skipped", "left_out"} & line.keys()


def _why(line: Line) -> str:
    word = next(key for key in ("error", "skipped", "left_out") if key in line)
    return f"{word.replace('_', ' ')}, {str(line[word])[:300]}"


def _table(columns: Mapping[str, Callable[[Line], object]], rows: list[Line]) -> str:
    def cell(row: Line, value: Callable[[Line], object]) -> str:
        try:
            told = value(row)
        except (KeyError, TypeError):  # a run of another version, or on a CPU
            return ""
        return "" if told is None else str(told).replace("|", "/").replace("\n", " ")

    head = [" | ".join(columns), " | ".join("---" for _ in columns)]
    body = [" | ".join(cell(row, value) for value in columns.values()) for row in rows]
    return "\n".join(f"| {line} |" for line in [*head, *body])


def _is(key: str, pattern: str = "{}", scale: float = 1.0) -> Callable[[Line], object]:
    def told(line: Line) -> object:
        value = line[key]
        return pattern.format(value * scale if isinstance(value, float) else value)

    return told


_SHAPE = {"d": _is("d"), "F": _is("F"), "B": _is("B")}
_GB = _is("peak_bytes", "{:,.1f}", 1e-9)


def _rest(line: Line) -> str:
    own = {"cell", "table", "took"}
    return ", ".join(f"{k} {v}" for k, v in line.items() if k not in own and v not in ([], None))


TABLES: dict[str, tuple[str, dict[str, Callable[[Line], object]]]] = {
    "right": ("Right", {"": _is("cell"), "told": _rest, "s": _is("took", "{:.0f}")}),
    "steps": ("Steps, against their floor and a plain step", {
        "way": _is("way"), **_SHAPE, "precision": lambda x: "bf16" if x["bf16"] else "fp32",
        "pairs alone": lambda x: "yes" if x["sparse"] else "no",
        "ms": _is("seconds", "{:.2f}", 1e3),
        "lowest..highest": lambda x: "..".join(f"{1e3 * s:.2f}" for s in x["spread"]),
        "floor / ours": _is("share_of_floor", "{:.2f}"),
        "plain / ours": lambda x: x.get("plain") or f"{x['plain_by_ours']:.2f}",
        "GEMM TFLOP/s": _is("gemm_flops", "{:.1f}", 1e-12),
        "with TF32": _is("gemm_tf32_flops", "{:.1f}", 1e-12),
        "copy GB/s": _is("copy_bytes", "{:,.0f}", 1e-9), "peak GB": _GB,
    }),
    "break_even": ("Active pairs alone, by their share, and whole matrices", {
        **_SHAPE,
        "ms": lambda x: ", ".join(f"{k}: {1e3 * s:.2f}" for k, s in x["seconds"].items()),
    }),
    "launches": ("Launches and waits of a step", {
        "way": _is("way"), "operators": _is("operators"), "kernels": _is("kernels"),
        "copies": _is("copies"), "stream waits": _is("cudaStreamSynchronize"),
        "event waits": _is("cudaEventSynchronize"),
    }),
    "fed": ("Steps fed from a store (goal 0.95)", {
        "way": _is("way"), **_SHAPE, "ms, from memory": _is("memory_seconds", "{:.2f}", 1e3),
        "ms, from the store": _is("store_seconds", "{:.2f}", 1e3),
        "rows/s": _is("store_rows_per_s", "{:,.0f}"), "ratio": _is("ratio", "{:.2f}"),
    }),
    "harvest": ("Harvests, against the bare forward (goal 0.92)", {
        "model": _is("model"), "site": _is("site"), "context": _is("ctx_len"),
        "tokens": _is("tokens"), "bare tokens/s": _is("bare_per_s", "{:,.0f}"),
        "harvest tokens/s": _is("harvest_per_s", "{:,.0f}"), "ratio": _is("ratio", "{:.2f}"),
        "busy": _is("busy", "{:.2f}"), "peak GB": _GB,
    }),
    "large": ("Large", {"": _is("cell"), "told": _rest}),
    "peers": ("Steps of others, float32", {
        "tool": _is("package"), "way": _is("way"), **_SHAPE,
        "ms": _is("seconds", "{:.2f}", 1e3), "ours, ms": _is("ours", "{:.2f}", 1e3),
        "theirs / ours": _is("theirs_by_ours", "{:.2f}"),
    }),
}  # fmt: skip
