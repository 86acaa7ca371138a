"""What a reader of an evaluation of connectors must know, one sentence each."""

from pipeline.config import EvalConfig
from pipeline.connect.evaluation.ends import Ends
from pipeline.evaluate.scene import Scene


def notes_on(scene: Scene, ends: Ends, config: EvalConfig) -> tuple[str, ...]:
    """On the model, the text, and which rows count."""
    notes, setting, trained = list[str](), scene.setting, ends.target.provenance
    if setting.model != trained.model:
        notes.append(f"trained on activations of {trained.model}, evaluated in {setting.model}")
    elif trained.model_fingerprint not in ("", scene.lm.fingerprint()):
        notes.append(f"the weights of {setting.model} have changed since its store was harvested")
    if setting.text == trained.text:
        notes.append(f"evaluated on {setting.text}, the text it was trained on: not held out")
    if ends.left_out and not config.as_trained:
        notes.append(
            f"training left out {', '.join(ends.left_out)}: add --as-trained to leave it out here "
            "too"
        )
    if scene.contexts.numel() < config.tokens:
        notes.append(
            f"{setting.text} holds {scene.contexts.numel()} tokens in whole contexts; "
            f"{config.tokens} were asked for"
        )
    return tuple(notes)
