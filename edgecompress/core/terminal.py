"""Printing: names from files cannot move the cursor, forge lines or reverse text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.markup import escape
from rich.segment import Segment
from rich.text import Text

from edgecompress.core.errors import shown


def plain(text: object) -> str:
    """Returns a text after `shown`, with markup escaped."""
    return escape(shown(text))


class SafeConsole(Console):
    """A console that prints every text on its own line, after `shown`.

    Texts are printed literally: markup in brackets and emoji codes have no effect.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def print(self, *objects: Any, **options: Any) -> None:
        """Prints as Console does, after `shown`."""
        super().print(*(_safe(self, item) for item in objects), **options)

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterator[Segment]:
        """Renders as Console does, even if a text is part of something else."""
        for segment in super().render(renderable, options):
            text = segment.text
            if segment.control or text.isprintable() or text == "\n":
                yield segment
            else:
                lines = "\n".join(shown(line) for line in text.split("\n"))
                yield Segment(lines, segment.style)


def _safe(console: Console, item: Any) -> Any:
    if isinstance(item, str):
        return shown(item)
    if isinstance(item, Text):
        return safe_text(item)
    return item


def safe_text(text: Text) -> Text:
    """Returns a text with styles after `shown`."""
    if text.plain.isprintable():
        return text
    # Escapes are longer than the original: each piece keeps its style.
    parts = Text(style=text.style, justify=text.justify, no_wrap=text.no_wrap)
    cuts = sorted({0, len(text), *(p for span in text.spans for p in (span.start, span.end))})
    for piece in text.divide(cuts[1:-1]):
        if piece.plain:
            start = len(parts)
            parts.append(shown(piece.plain))
            for span in piece.spans:
                parts.stylize(span.style, start)
    return parts
