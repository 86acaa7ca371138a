"""What of a page is run, and how."""

import os
import sys
from pathlib import Path
from textwrap import dedent

import pytest

from tests.docs.blocks import blocks_of, without_blocks
from tests.docs.running import run_page
from tests.docs.shell import commands_of, run

PAGE = """\
# A

```python
x = 1
```
```text
1
```

<!-- not run: it is another machine's -->
```sh
ssh there
```

```text
hello
```

* A step:

    ```sh
    saepipe runs \\
        below  # all of them
    ```

    Then

    ```text
    a tree
    ```
"""


def test_a_block_has_its_line_its_output_and_whether_it_is_run():
    blocks = [*blocks_of(PAGE)]
    assert [(b.language, b.line, b.is_run) for b in blocks if b.language != "text"] == [
        ("python", 4, True), ("sh", 12, False), ("sh", 22, True),
    ]  # fmt: skip
    assert [b.shown for b in blocks if b.language != "text"] == ["1\n", "hello\n", ""]
    assert blocks[4].code == "saepipe runs \\\n    below  # all of them\n"
    assert "x = 1" not in without_blocks(PAGE) and "* A step" in without_blocks(PAGE)
    assert len(without_blocks(PAGE).splitlines()) == len(PAGE.splitlines())


def test_commands_are_lines_joined_without_comments_and_texts_that_go_into_files():
    code = "# first\nsaepipe runs \\\n  x\n\ncat > a.toml << 'E'\nlr = 1\n\nE\nls  # all\n"
    assert [*commands_of(code)] == [
        "saepipe runs    x", "cat > a.toml << 'E'\nlr = 1\n\nE", "ls  # all",
    ]  # fmt: skip


@pytest.fixture
def page_of(tmp_path, monkeypatch):
    """Run a page of this text in a folder of its own."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    def run(text: str) -> None:
        page = tmp_path / "page.md"
        page.write_text(dedent(text))
        run_page(page, monkeypatch)

    return run


def test_a_page_runs_in_its_order_in_one_folder_and_one_namespace(page_of):
    page_of("""\
        ```sh
        mkdir -p "a b"  # quoted
        cat > "a b/one" << E
        1
        E
        export KEPT="$PWD/a b" OTHER=x
        cat "a b"/*
        ```
        ```text
        1
        ```
        ```python
        import os
        found = os.listdir(os.environ["KEPT"])
        print(found)
        ```
        ```text
        ['one']
        ```
        ```sh
        .venv/bin/saepipe runs \\
            ../here
        ```
        ```text
        no run in ../here
        ```
        ```python
        assert found == ["one"] and os.environ["OTHER"] == "x"
        ```
        <!-- not run: it is dangerous -->
        ```sh
        rm -rf .
        ```
    """)
    assert Path("a b/one").exists()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("```python\nprint(1)\nprint(1 / 0)\n```", r"page.md\", line 3.*ZeroDivisionError"),
        ("```sh\nsaepipe runs nowhere\n```", "saepipe runs nowhere ended with 1.*not a folder"),
        ("```sh\nsaepipe --nope\n```", "ended with 2"),
        ("```sh\nls\nls nowhere\n```", "nowhere"),
        ("```sh\npip install x\n```", "pip is not run here"),
        ("```sh\nsaepipe runs | head\n```", "stands alone"),
        ("```sh\nsaepipe runs > a\n```", "stands alone"),
        ("```sh\nls && ls\n```", "not run here: ls && ls"),
        ("```python\nprint('a')\n```\n```text\nb\n```", "not printed: b\n.*line 2; printed:\na"),
        ("```sh\nexport A=1\n```\n```python\nexit(1)\n```", "SystemExit"),
    ],
    ids=[
        "python", "error", "usage", "ls", "pip", "pipe", "file", "and", "shown", "exit",
    ],
)  # fmt: skip
def test_what_fails_fails_the_page_and_says_where(page_of, text, told):
    with pytest.raises(pytest.fail.Exception, match=f"(?s){told}"):
        page_of(text)


def test_variables_globs_and_quotes_are_as_in_a_shell(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("B", "b c")
    for name in ("a1", "a2"):
        Path(name).touch()
    before = [*sys.path]

    def echo() -> None:
        sys.stdout.write(f"{sys.argv[1:]}\n")
        sys.path.clear()
        sys.exit()

    monkeypatch.setattr("pipeline.saepipe.main", echo)
    run('saepipe a* "$B" $B \'$B\' --set x="a, b"  # all', monkeypatch)
    said = ["a1", "a2", "b c", "b", "c", "$B", "--set", "x=a, b"]
    assert capsys.readouterr().out == f"{said}\n"
    assert sys.path == before and os.environ["B"] == "b c"
