"""From what stands in a page to its bytes: one file that asks nobody for anything."""

import json
from base64 import b64encode
from collections.abc import Sequence
from hashlib import sha256
from importlib.resources import files

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from pipeline.features.token_text import visible
from pipeline.report.parts import PageView
from pipeline.report.words import number

_ESCAPES = {ord(character): f"\\u{ord(character):04x}" for character in "<>&"}


def render(view: PageView) -> bytes:
    """The page in UTF-8: the same for the same view.

    Whatever the templates print is made visible, then escaped: texts come from data sets. The
    policy lets nothing run but this page's own script, and nothing leave or enter the page.
    """
    style, script = _own("page.css"), _script(view.scripts)
    policy = "; ".join([
        "default-src 'none'", f"script-src '{_hash(script)}'", f"style-src '{_hash(style)}'",
        "img-src data:", "base-uri 'none'", "form-action 'none'",
    ])  # fmt: skip
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, finalize=_shown, trim_blocks=True,
        lstrip_blocks=True, keep_trailing_newline=True, loader=FunctionLoader(_own),
    )  # fmt: skip
    environment.filters["number"] = number
    page = environment.get_template("page.html").render(
        view=view, policy=policy, style=Markup(style), script=Markup(script),
        data=embedded_json(view.data),
    )  # fmt: skip
    return page.encode()


def embedded_json(value: object) -> Markup:
    """JSON that can stand inside of `<script>`: pure ASCII without `<`, `>` and `&`."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return Markup(text.translate(_ESCAPES))


def _shown(value: object) -> object:
    """What a template prints for a value: our own markup as it is, texts made visible."""
    return value if isinstance(value, Markup) else visible(str(value))


def _script(names: Sequence[str]) -> str:
    """These files as one script whose names nobody else sees."""
    return '"use strict";\n(() => {\n' + "\n".join(map(_own, names)) + "})();\n"


def _own(name: str) -> str:
    """A file that lies beside this module."""
    return files("pipeline.report").joinpath(name).read_text(encoding="utf-8")


def _hash(content: str) -> str:
    """By which a Content-Security-Policy knows a script or a style sheet."""
    return f"sha256-{b64encode(sha256(content.encode()).digest()).decode()}"
