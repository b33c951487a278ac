"""A toy plugin: a format with an option, an int8 file whose notes carry a tag."""

from dataclasses import dataclass

from edgecompress.converters.formats import FormatRequest, FormatResult, make_int8, register
from edgecompress.core.options import Text, option


@dataclass(frozen=True)
class TaggedOptions:
    """Options of `--format tagged`."""

    tag: str = option("none", "What the notes call the file.", Text("WORD"))


@register("tagged", options=TaggedOptions, families=("host",), why="It is a toy.")
def make(request: FormatRequest) -> FormatResult:
    """Makes the int8 file under another name."""
    floats, int8 = make_int8(request)
    file = int8.having(kind="tagged")
    notes = (f"The tag is {request.options.tag}.",)
    return FormatResult((floats.artifact, file), file, notes=notes)
