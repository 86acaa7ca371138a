"""Conversations as a model reads them: spelled by the chat template that comes with it."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.errors import ModelError, TextError
from pipeline.lm.hub import ModelFiles, read_object
from pipeline.lm.tokenizer import Spans, Tokenizer

_MARKS_ANSWERS = re.compile(r"\{%-?\s*generation\s*-?%\}")

_CLOCK = "strftime_now"
_ONE_DAY = {
    "%d": "26", "%-d": "26", "%m": "07", "%b": "Jul", "%B": "July", "%Y": "2024", "%y": "24",
    "%a": "Fri", "%A": "Friday", "%H": "00", "%M": "00", "%S": "00",
}  # fmt: skip
"""The day that Llama's templates name where there is no clock, as `strftime` spells it."""
_STOPPED = (
    f"{{% macro {_CLOCK}(format) %}}{{{{ format"
    + "".join(f" | replace('{code}', '{word}')" for code, word in _ONE_DAY.items())
    + " }}{% endmacro %}"
)
"""In front of a template, hides the clock that it would read."""


@dataclass(frozen=True, kw_only=True)
class ChatTemplate:
    """What makes a text of messages, each with a `role` and a `content`.

    A template is Jinja of whoever published the model: it runs in a sandbox that reaches nothing
    beside what it is given (transformers' own). One that tells the date is always told the same, so
    that a conversation has the same tokens tomorrow.
    """

    model: str
    source: str
    """In Jinja."""
    named: Mapping[str, str] = field(default_factory=dict[str, str])
    """Special tokens by the names that templates know, as `eos_token`."""

    @property
    def fingerprint(self) -> str:
        """Tells apart templates that may spell a conversation differently."""
        told = json.dumps([self.source, dict(sorted(self.named.items()))])
        return f"sha256:{hashlib.sha256(told.encode()).hexdigest()}"

    def text(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """The text of a conversation.

        Raises:
            TextError: the template does not take these messages.
        """
        return self._text(messages)

    def spelled(self, messages: Sequence[Mapping[str, Any]]) -> tuple[str, Spans]:
        """The text of a conversation, and where in it the assistant speaks.

        Those are the spans that the template marks as `{% generation %}`. Of a template without
        such marks they are what each of the assistant's messages adds to the text before it and
        the prompt for an answer.

        Raises:
            TextError: the template does not take these messages, or spells what came before an
                answer in another way afterwards.
        """
        if _MARKS_ANSWERS.search(self.source):
            (text,), (spans,) = self._render(messages, return_assistant_tokens_mask=True)
            return text, spans
        text, spans = self._text(messages), list[tuple[int, int]]()
        for i, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            asked = self._text(messages[:i], add_generation_prompt=True)
            answered = self._text(messages[: i + 1])
            if not (answered.startswith(asked) and text.startswith(answered)):
                raise TextError(
                    f"the chat template of {self.model} has no generation marks, and spells a "
                    f"conversation of {len(messages)} messages otherwise than its beginning: its "
                    "answers cannot be told apart; give conversations of a single answer"
                )
            spans.append((len(asked), len(answered)))
        return text, spans

    def _text(self, messages: Sequence[Mapping[str, Any]], **options: bool) -> str:
        if not messages and not options:
            return ""
        return self._render(messages, **options)[0][0]

    def _render(self, messages: Sequence[Mapping[str, Any]], **options: bool) -> Any:  # noqa: ANN401 texts and spans
        from transformers.utils.chat_template_utils import render_jinja_template

        conversation = [dict(message) for message in messages]
        given: dict[str, Any] = {**self.named, **options}
        source = _STOPPED + self.source if _CLOCK in self.source else self.source
        try:
            return render_jinja_template([conversation], chat_template=source, **given)
        except Exception as error:  # it is a stranger's program
            reason = str(error).partition("\n")[0] or type(error).__name__
            raise TextError(
                f"the chat template of {self.model} does not take a conversation of "
                f"{', '.join(message['role'] for message in messages) or 'no messages'}: {reason}"
            ) from error


@dataclass(frozen=True)
class ChatEncoder:
    """Tokens of conversations that a template has spelled, as transformers has them.

    Special tokens are those that are spelled, and none is added. A conversation is one document,
    though each of its messages may end with the model's end of text.
    """

    tokenizer: Tokenizer

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each conversation."""
        return self.tokenizer.encode_spelled(texts)

    def parts(self, document: list[int]) -> list[list[int]]:
        """The conversation itself."""
        return [document]


def load_chat_template(name: str, *, revision: str = "main") -> ChatTemplate:
    """The chat template of a model.

    Raises:
        ModelError: it has none.
    """
    files = ModelFiles(name, revision)
    path = files.find("tokenizer_config.json")
    config = {} if path is None else read_object(path)
    own = files.find("chat_template.jinja")
    try:
        source = config.get("chat_template") if own is None else own.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ModelError(f"{own} is not UTF-8 text ({error.reason}): put it back") from error
    if isinstance(source, list):  # several, by name
        several = [one for one in source if isinstance(one, dict)]
        source = {one.get("name"): one.get("template") for one in several}.get("default")
    if not isinstance(source, str) or not source.strip():
        raise ModelError(
            f"{name} has no chat template, and the text holds conversations: take a model that "
            "was made to chat, or a text without conversations"
        )
    spelled = {
        key: value.get("content") if isinstance(value, dict) else value
        for key, value in config.items()
        if key.endswith("_token")
    }
    named = {key: value for key, value in spelled.items() if isinstance(value, str)}
    return ChatTemplate(model=name, source=source, named=named)
