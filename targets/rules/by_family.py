"""Rules whose answer depends on what runs the file: the target's family knows it."""

from __future__ import annotations

from edgecompress.core.results import CheckResult
from edgecompress.targets.family import Subject
from edgecompress.targets.operator_limits import OperatorOptions, limited
from edgecompress.targets.rule import rule


@rule("flash")
def flash(subject: Subject) -> CheckResult:
    """The file and the code that runs it fit into the flash."""
    return subject.family.flash(subject)


@rule("arena")
def arena(subject: Subject) -> CheckResult:
    """The tensor arena fits into the RAM."""
    return subject.family.arena(subject)


@rule("latency")
def latency(subject: Subject) -> CheckResult:
    """One inference takes no longer than its budget."""
    return subject.latency


@rule("operators", options=OperatorOptions)
def operators(subject: Subject) -> CheckResult:
    """The target's runtime has every operator of the model, and is not known to be wrong."""
    return limited(subject.family.operators(subject), subject.model, subject.rule.operators)
