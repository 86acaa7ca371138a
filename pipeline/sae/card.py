"""The README.md of an SAE on the hub: what the hub reads of it, and what people do."""

import re
from collections.abc import Sequence

from pipeline.errors import ConfigError

TAGS = ("sparse-autoencoder", "mechanistic-interpretability")
_LICENSE = re.compile(r"[a-z0-9][a-z0-9.-]*")


def head(
    *,
    license: str,
    base_model: str = "",
    datasets: Sequence[str] = (),
    source_datasets: Sequence[str] = (),
) -> str:
    """What the hub reads, between two lines of `---`.

    Args:
        license: Its short name on the hub: `mit`, `apache-2.0`, `cc-by-4.0`.
        base_model: The language model on the hub; empty for one that is not there.
        datasets: Those of the hub that the model was run on.
        source_datasets: Of a data set, those of the hub that it was made from.

    Raises:
        ConfigError: the license cannot be a name of one.
    """
    from huggingface_hub import ModelCardData

    if _LICENSE.fullmatch(license) is None:
        raise ConfigError(
            f"license must be the short name that the hub has for one, as mit, apache-2.0 or "
            f"cc-by-4.0, got {license!r}"
        )
    told = ModelCardData(
        library_name="saepipe", license=license, tags=[*TAGS],
        base_model=base_model or None, datasets=[*datasets] or None,
        source_datasets=[*source_datasets] or None,
    )  # fmt: skip
    return f"---\n{told.to_yaml()}\n---\n"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of Markdown; nothing in a cell ends it."""
    lines = [[*heads], ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(map(plain, line))} |" for line in lines)


def plain(text: str) -> str:
    """A text in one line of a table."""
    return " ".join(text.split()).replace("|", "\\|")


def sae_card(
    name: str,
    *,
    license: str,
    settings: Sequence[tuple[str, str]],
) -> str:
    """The card of an SAE of which nothing is known but itself.

    Args:
        name: As `ORG/NAME`.
        license: As `head` takes it.
        settings: What it is, by words.
    """
    return "\n".join((
        head(license=license),
        f"# {name.rpartition('/')[2]}",
        "",
        "A sparse autoencoder of the activations of a language model, by saepipe.",
        "",
        loading(name),
        "## What it is",
        "",
        table(("", ""), settings),
        "",
    ))  # fmt: skip


def loading(name: str) -> str:
    """How it is loaded, from this repository."""
    return f"""\
## Load it

```python
import saepipe as sp

sae = sp.SAE.from_pretrained("{name}")
z = sae.encode(x)  # [..., d_in] -> [..., d_sae]
x_hat = sae.decode(z)
```
"""
