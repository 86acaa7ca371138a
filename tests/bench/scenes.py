"""Three language models that were really trained, each with a text it models well, and their rows.

`builtin` is the embedded model. Of the two others, `DATA` has the weights: `stories260K`, a Llama,
and `char_gpt_shakespeare`, a GPT-2 of characters, each 64 wide. Their texts are shorter than long
trainings: those read the same rows again.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import saepipe as sp

DATA = Path(__file__).parents[3] / "shared" / "data"
HELD = 0.1
"""Of a text, its end."""


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A model, and what it reads."""

    name: str
    model: str
    text: str
    heldout: str | None
    """None is what goes with the text."""
    ctx_len: int
    rows: int
    """That the text has at most, whole contexts."""
    layer: int = 2

    def site(self, kind: str) -> str:
        return f"{kind}.{self.layer}"

    def harvest(self, kinds: list[str], *, tokens: int, out: Path) -> Path:
        """Rows of these kinds of sites, as many as there are."""
        sp.harvest(
            model=self.model, text=self.text, sites=[self.site(kind) for kind in kinds], out=out,
            tokens=min(tokens, self.rows), ctx_len=self.ctx_len, device="cpu", dtype="fp32",
        )  # fmt: skip
        return out


def scenes(names: list[str], folder: Path) -> list[Scene]:
    """Those of these names; what they need is written into the folder."""
    return [MAKERS[name](folder / name) for name in names]


def _builtin(folder: Path) -> Scene:
    return Scene(
        name="builtin", model="builtin", text="builtin", heldout=None, ctx_len=128, rows=2_000_000
    )


def _stories(folder: Path) -> Scene:
    texts = json.loads((DATA / "tinystories" / "tinystories_1000.json").read_text())
    cut = round(len(texts) * (1 - HELD))
    for name, part in (("text", texts[:cut]), ("heldout", texts[cut:])):
        _write(folder / f"{name}.jsonl", "".join(json.dumps({"text": t}) + "\n" for t in part))
    return Scene(
        name="stories", model=str(DATA / "stories260K" / "hf"), text=str(folder / "text.jsonl"),
        heldout=str(folder / "heldout.jsonl"), ctx_len=128, rows=330_000,
    )  # fmt: skip


def _characters(folder: Path) -> Scene:
    from tokenizers import Tokenizer, models, pre_tokenizers

    source = DATA / "char_gpt_shakespeare"
    model = folder / "model"
    shutil.copytree(source / "hf", model, dirs_exist_ok=True)
    characters = json.loads((source / "hf" / "chars.json").read_text())
    tokenizer = Tokenizer(models.WordLevel(characters, unk_token=" "))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.save(str(model / "tokenizer.json"))
    _write(
        model / "tokenizer_config.json", json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"})
    )
    text = (source / "input.txt").read_text()
    cut = round(len(text) * (1 - HELD))
    _write(folder / "text.txt", text[:cut])
    _write(folder / "heldout.txt", text[cut:])
    return Scene(
        name="characters", model=str(model), text=str(folder / "text.txt"),
        heldout=str(folder / "heldout.txt"), ctx_len=48, rows=cut - 48,
    )  # fmt: skip


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


MAKERS = {"builtin": _builtin, "stories": _stories, "characters": _characters}
