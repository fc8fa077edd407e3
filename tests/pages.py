"""The fenced blocks of the documents, and the commands in them.

A block that no test runs says so to its readers, in the paragraph above it: "*Not run by our tests: REASON.*"
"""

import re
import shlex
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import typer
from typer.core import TyperGroup

from allo.cli import app

ROOT = Path(__file__).resolve().parent.parent
NOT_RUN = re.compile(r"^\*Not run by our tests: [^*]+\.\*$")
FENCE = re.compile(r"^```(?P<language>\S*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    page: str
    line: int
    language: str
    text: str
    is_run: bool

    @property
    def commands(self) -> list[list[str]]:
        """The words of each command, without comments and what it is piped into; a trailing backslash joins lines."""
        lines = self.text.replace("\\\n", " ").splitlines()
        words = (shlex.split(line.split(" | ")[0], comments=True) for line in lines)
        return [each for each in words if each]

    @property
    def file(self) -> str | None:
        """The name in the block's first line, if that is a comment with nothing else."""
        found = re.match(r"# (\S+\.\w+)\n", self.text)
        return found and found[1]


def pages() -> list[str]:
    """Every page with blocks, as a path below the root."""
    paths = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("*/README.md")]
    return sorted(str(path.relative_to(ROOT)) for path in paths if blocks(str(path.relative_to(ROOT))))


def blocks(page: str) -> list[Block]:
    """A page's blocks of code: those with a language, apart from the site's own directives."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return [
        Block(
            page=page,
            line=text.count("\n", 0, match.start()) + 1,
            language=match["language"],
            text=match["text"],
            is_run=not NOT_RUN.match(" ".join(text[: match.start()].rstrip().rpartition("\n\n")[2].split())),
        )
        for match in FENCE.finditer(text)
        if match["language"] and not match["language"].startswith("{")
    ]


def commands(page: str, program: str = "allo", *, run_only: bool = False) -> list[list[str]]:
    """The arguments of a program's commands on a page, in their order."""
    return [
        words[1:]
        for block in blocks(page)
        if block.language == "bash" and (block.is_run or not run_only)
        for words in block.commands
        if words[0] == program
    ]


def parse(arguments: list[str]) -> None:
    """Read a command's arguments as `allo` does, without running it. Raises the parser's error for a wrong one."""
    command, name, rest = typer.main.get_command(app), "allo", arguments
    while isinstance(command, TyperGroup) and not (rest and rest[0].startswith("-")):
        name, *rest = rest
        assert name in command.commands, f"allo has no command {name}"
        command = command.commands[name]
    if isinstance(command, TyperGroup):
        # Parsed, they would be carried out: `--version` and the shell's completion.
        assert {*rest} <= {option for param in command.params for option in param.opts}, rest
    else:
        # `--processes` would start processes while it is parsed.
        with patch("allo.pipeline.launch.launch", return_value=0), suppress(typer.Exit):
            command.make_context(name, [*rest])
