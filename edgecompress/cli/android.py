"""`edgecompress android build` and `android install`."""

from __future__ import annotations

from typing import Any

import click

from edgecompress.cli.console import print_text, progress_of
from edgecompress.cli.parameters import (
    Command,
    Sections,
    json_switch,
    quiet_switch,
    verbose_switch,
)
from edgecompress.core.errors import OK


def _build_sections() -> Sections:
    from edgecompress.pipeline import options

    return [("Options", [options.AppOptions])]


def _install_sections() -> Sections:
    from edgecompress.pipeline import options

    return [("Options", [options.PhoneOptions])]


def build(bundle: str | None, as_json: bool, quiet: bool, verbose: bool, **options: Any) -> int:
    """Builds the app."""
    from edgecompress.pipeline import build_app

    with progress_of(quiet) as progress:
        made = build_app(bundle, progress=progress, **options)
    print_text(made.to_json().rstrip("\n") if as_json else made.text())
    return OK


def install(file: str | None, as_json: bool, quiet: bool, verbose: bool, **options: Any) -> int:
    """Installs the app."""
    from edgecompress.pipeline import install_app

    with progress_of(quiet) as progress:
        given = () if file is None else (file,)
        installed = install_app(*given, progress=progress, **options)
    print_text(installed.to_json().rstrip("\n") if as_json else installed.text())
    return OK


COMMAND = click.Group("android", no_args_is_help=False)
COMMAND.add_command(
    Command(
        "build",
        build,
        [click.Argument(["bundle"], required=False, metavar="[BUNDLE]")],
        _build_sections,
        [json_switch(), quiet_switch(), verbose_switch()],
        [("BUNDLE", "Export folder that the app ships instead of its own models.")],
    )
)
COMMAND.add_command(
    Command(
        "install",
        install,
        [click.Argument(["file"], required=False, metavar="[FILE.apk]")],
        _install_sections,
        [json_switch(), quiet_switch(), verbose_switch()],
        [("FILE.apk", "APK written by `edgecompress android build`.")],
    )
)
COMMAND.commands["build"].help = "Build the demo app as an APK signed with a debug key."
COMMAND.commands["install"].help = "Install the demo app on the phone that adb is connected to."
