"""What a reader must know about how the numbers of an evaluation came about."""

from collections.abc import Sequence

from pipeline.config import EvalConfig
from pipeline.evaluate.scene import Scene
from pipeline.provenance import Provenance


def notes_on(
    scene: Scene, trained: Provenance, left_out: Sequence[str], config: EvalConfig
) -> tuple[str, ...]:
    """On the model, the text, and which rows count, one sentence each.

    Args:
        scene: The model and the text.
        trained: What the run was trained on.
        left_out: Rows that it was not trained on, in words.
        config: Of the evaluation.
    """
    notes, setting = list[str](), scene.setting
    if setting.model != trained.model:
        notes.append(f"trained on activations of {trained.model}, evaluated in {setting.model}")
    elif trained.model_fingerprint not in ("", scene.lm.fingerprint()):
        notes.append(f"the weights of {setting.model} have changed since its store was harvested")
    if setting.text == trained.text:
        notes.append(f"evaluated on {setting.text}, the text it was trained on: not held out")
    if left_out and not config.as_trained:
        words = ", ".join(left_out)
        notes.append(f"training left out {words}: add --as-trained to leave it out here too")
    if scene.contexts.numel() < config.tokens:
        notes.append(
            f"{setting.text} holds {scene.contexts.numel()} tokens in whole contexts; "
            f"{config.tokens} were asked for"
        )
    return tuple(notes)
