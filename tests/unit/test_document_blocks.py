"""The tools that run a document's blocks: nothing is left out, and what goes wrong in a block is seen."""

import os
from pathlib import Path

import pytest

from tests.service.documents import Block, PythonSession, ShellSession, blocks, check

DOCUMENT = """# Title

```python
one = 1
print(one)
```
```
1
```

Words.

```sh
true
```

```text
not an output: words stand between
```
"""


def document(folder: Path, text: str) -> Path:
    path = folder / "document.md"
    path.write_text(text)
    return path


def test_blocks_with_and_without_output(tmp_path: Path) -> None:
    assert blocks(document(tmp_path, DOCUMENT)) == [
        Block("document.md", 3, "python", "one = 1\nprint(one)\n", "1\n"),
        Block("document.md", 13, "sh", "true\n", ""),
        Block("document.md", 17, "text", "not an output: words stand between\n", ""),
    ]


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("```\nx\n```\n", "document.md:1: output of no code"),
        ("```sh\nx\n```\nwords\n```\nx\n```\n", "document.md:5: output of no code"),
        ("```sh\nx\n```\n```\nx\n```\n\n```\nx\n```\n", "document.md:8: output of no code"),
        ("\n```sh\nx\n", "document.md:2: the fence is never closed"),
    ],
)
def test_a_fence_out_of_place_is_refused(tmp_path: Path, text: str, error: str) -> None:
    with pytest.raises(ValueError, match=error):
        blocks(document(tmp_path, text))


@pytest.mark.parametrize(
    ("output", "printed", "fits"),
    [
        ("1\n", "1\n", True),
        ("1\n", "2\n", False),
        ("", "1\n", False),
        ("1\n", "", False),
        ("a ... c\n", "a b\nb c\n", True),
        ("a ... c\n", "a b d\n", False),
        (" a\n", "a\n", False),
    ],
)
def test_check(output: str, printed: str, fits: bool) -> None:
    block = Block("document.md", 3, "sh", "x\n", output)
    if fits:
        check(block, printed)
    else:
        with pytest.raises(AssertionError, match=r"document\.md:3"):
            check(block, printed)


@pytest.mark.parametrize(
    ("code", "shown"),
    [
        ("print(one)\n", "1\n"),
        ("for _ in range(2):\n    print(one)\n", "1\n1\n"),
        ("raise KeyError(one)\n", "KeyError: 1"),
        ("for _ in range(2):\n    print(one)\nprint(one)\n", "SyntaxError"),  # what the interpreter makes of that paste
    ],
)
def test_python_session(code: str, shown: str) -> None:
    with PythonSession() as session:
        assert session.run("one = 1\n") == ""
        assert shown in session.run(code)


def test_python_session_closes_the_client() -> None:
    with PythonSession() as session:
        session.run("closed = []\nclass client:\n    close = lambda: closed.append(1)\n\n")
    assert session.run("print(closed)\n") == "[1]\n"


def test_shell_session(tmp_path: Path) -> None:
    with ShellSession(tmp_path, {"PATH": os.environ["PATH"], "GREETING": "hello"}) as session:
        assert session.run('say() { echo "$GREETING $1"; }\n') == ""
        assert session.run("say you; say all >&2\n") == "hello you\nhello all\n"
        assert "not found" in session.run("no-such-command\n")
        with pytest.raises(AssertionError, match="the shell ended in"):
            session.run("exit 3\n")
