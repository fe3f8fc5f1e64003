"""Write docs/reference/cli.md, every command with its options, from the command line itself.

``tests/test_docs.py`` checks that the file is what this script writes.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import click

from longctx_bench.cli.main import cli

PAGE = Path(__file__).parent.parent / "docs" / "reference" / "cli.md"
_HEAD = """# Command line

Every command with its options, as `longctx-bench COMMAND --help` prints them, written by
`python scripts/cli_reference.py`. [Commands](../commands.md) says what they are for.
"""


def commands(group: click.Group, context: click.Context) -> Iterator[click.Context]:
    """Yield a context of each command, depth first, in the order of their names."""
    for name in sorted(group.commands):
        command = group.commands[name]
        inner = click.Context(command, info_name=name, parent=context)
        if isinstance(command, click.Group):
            yield from commands(command, inner)
        else:
            yield inner


def page() -> str:
    """Return the page's text."""
    root = click.Context(cli, info_name="longctx-bench", **cli.context_settings)
    parts = [_HEAD]
    for context in commands(cli, root):
        # The terminal's width must not decide on the text.
        context.terminal_width = context.max_content_width = 100
        help_text = "\n".join(line.rstrip() for line in context.get_help().splitlines())
        parts.append(f"## {context.command_path}\n\n```text\n{help_text}\n```\n")
    return "\n".join(parts)


if __name__ == "__main__":
    sys.exit(PAGE.write_text(page(), encoding="utf-8") == 0)
