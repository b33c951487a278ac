"""`edgecompress targets`."""

from __future__ import annotations

import json
from collections.abc import Sequence

import click

from edgecompress.cli.console import Console, print_text
from edgecompress.cli.parameters import Command, json_switch
from edgecompress.core.errors import OK, ArgumentError


def required(targets: Sequence[str]) -> Sequence[str]:
    """Returns targets; refuses none."""
    if not targets:
        raise ArgumentError(
            "--target", "name at least one target", None, "`edgecompress targets` lists them."
        )
    return targets


def run(name: str | None, as_json: bool) -> int:
    """Prints all targets, or one."""
    from edgecompress.reports.text import render_target, render_targets
    from edgecompress.targets.profile import load_target, target_names

    if name is not None:
        profile = load_target(name)
        if as_json:
            print_text(json.dumps(profile.to_dict(), indent=1))
        else:
            render_target(profile, Console())
        return OK
    profiles = [load_target(known) for known in target_names()]
    if as_json:
        print_text(json.dumps([profile.to_dict() for profile in profiles], indent=1))
    else:
        render_targets(profiles, Console())
    return OK


COMMAND = Command(
    "targets",
    run,
    [click.Argument(["name"], required=False, metavar="[NAME]")],
    list,
    [json_switch()],
    [("NAME", "Show only this target, with its sources.")],
)
