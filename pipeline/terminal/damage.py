"""What is wrong with a store, in words."""

from collections.abc import Iterable, Sequence

from actstore.verify import Finding
from pipeline.terminal.words import many


def finding_line(finding: Finding) -> str:
    """One finding: where, how many rows, what, and in which file."""
    numbers = {"shard": finding.shard, "chunk": finding.chunk}
    place = [f"{name} {number}" for name, number in numbers.items() if number is not None]
    if finding.rows is not None:
        place.append(many(finding.rows[1] - finding.rows[0], "row"))
    head = ", ".join([finding.array or "store", *place])
    file = "" if str(finding.path) in finding.what else f" ({finding.path})"
    return f"{head}: {finding.what}{file}"


def damage_words(findings: Sequence[Finding]) -> str:
    """What is lost in total: a row that several findings name is one row."""
    shards = {finding.shard for finding in findings if finding.shard is not None}
    if not shards:
        return f"{many(len(findings), 'finding')}, none of them in rows"
    return f"{many(len(shards), 'shard')}, {many(rows_lost(findings), 'row')}"


def rows_lost(findings: Iterable[Finding]) -> int:
    """Rows of the store of which anything cannot be read."""
    lost = end = 0
    for start, stop in sorted(finding.rows for finding in findings if finding.rows is not None):
        lost += max(0, stop - max(start, end))
        end = max(end, stop)
    return lost
