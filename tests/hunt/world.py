"""A small world of all that commands read, and commands in it that end well."""

import json
import os
import shutil
from pathlib import Path

from tests.helpers.images import write_images
from tests.helpers.tiny import make_model, make_text
from tests.hunt.child import run

TOLD = "--model model --text text.txt --ctx-len 12 --device cpu"
TRAIN = "--device cpu --expansion 2 --tokens 384 --batch-size 64"
EVAL = "--device cpu --text text.txt --tokens 240"
CONFIG = "--config settings.toml"
STEPS: dict[str, str] = {
    "acts": f"harvest {TOLD} --site mlp_out.0 --site mlp_out.1 --tokens 600 --out acts.actstore",
    "raw": (  # not a link to the other: its contexts are of another length
        f"harvest {TOLD} --site mlp_out.1 --tokens 600 --codec raw --out raw.actstore"
    ).replace("12", "10"),
    "sae": f"train acts.actstore --site mlp_out.0 --l0 4 {TRAIN} --out sae",
    "other": f"train acts.actstore --site mlp_out.1 --l0 4 {TRAIN} --out other",
    "connector": f"train acts.actstore --connect sae:other {TRAIN} --out connector".replace(
        "--expansion 2 ", ""
    ),
    "evaluated": f"eval sae other {EVAL}",
    "read": "features sae --device cpu",
    "tuned": "finetune sae --text text.txt --epochs 1 --steps-per-epoch 2 --device cpu --out tuned "
    "--config finetune.toml",
}
"""What the world is made by."""
COMMANDS: dict[str, str] = {
    "harvest": f"harvest {TOLD} --site mlp_out.1 --tokens 600 --out new.actstore {CONFIG}",
    "harvest jsonl": f"harvest {TOLD} --site mlp_out.1 --tokens 600 --out new.actstore".replace(
        "text.txt", "text.jsonl --text-column body"
    ),
    "extend": STEPS["acts"].replace("600", "900"),
    "train": f"train acts.actstore --site mlp_out.1 --l0 4 {TRAIN} --out new {CONFIG}",
    "train raw": f"train raw.actstore --arch jumprelu --l0 4 {TRAIN} --out new",
    "sweep": f"train acts.actstore --site mlp_out.1 --l0 2,4 {TRAIN} --out new",
    "connect": STEPS["connector"].replace("--out connector", "--out new"),
    "eval": f"eval other {EVAL}".replace("240", "360"),
    "eval connector": f"eval connector {EVAL}",
    "eval several": f"eval sae other {EVAL} --out table",
    "features": "features other --device cpu",
    "features connector": "features connector --device cpu",
    "report": "report sae other --out page.html",
    "plot": "plot other",
    "finetune": STEPS["tuned"].replace("--out tuned", "--out new"),
    "mnist": "mnist --images images --out new --device cpu --config mnist.toml",
    "store info": "store info acts.actstore",
    "store list": "store list .",
    "store verify": "store verify acts.actstore",
    "store repair": "store verify broken.actstore --repair --device cpu",
    "store rm": "store rm raw.actstore --yes",
}
"""By their names, each in a copy of the world."""


def make_world(folder: Path) -> Path:
    """Everything but what the commands make."""
    if not (pid := os.fork()):  # no tensor is computed in the process that forks
        _make_sources(folder)
        os._exit(0)
    if os.waitpid(pid, 0)[1]:
        raise SystemExit("what harvests read could not be made")
    for name, words in STEPS.items():
        ended = run(tuple(words.split()), folder)
        if ended.code:
            raise SystemExit(f"{name}: {words}\n{ended.err}")
    shutil.copytree(folder / "raw.actstore", folder / "broken.actstore")
    shard = max((folder / "broken.actstore").rglob("c/*/*"), key=lambda file: file.stat().st_size)
    shard.write_bytes(shard.read_bytes()[:-9])
    return folder


def _make_sources(folder: Path) -> None:
    folder.mkdir(parents=True)
    make_model(folder / "model")
    make_text(folder / "text.txt", n_contexts=100)
    text = (folder / "text.txt").read_text()
    documents = [json.dumps({"body": text[i : i + 50]}) for i in range(0, len(text), 50)]
    (folder / "text.jsonl").write_text("\n".join(documents))
    write_images(folder / "images", 60)
    (folder / "settings.toml").write_text("")
    (folder / "finetune.toml").write_text("ctx_len = 12\n")
    (folder / "mnist.toml").write_text(
        "hidden = 8\nepochs = 2\nbatch_size = 16\nexpansion = 2\nsae_steps = 20\n"
        "connect_epochs = 2\nconnect_l1 = [0.01]\nchosen_l1 = 0.01\n"
    )
