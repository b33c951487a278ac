"""The costs that a budget can limit; reading `costs.COSTS` imports this module."""

from __future__ import annotations

from edgecompress.inspection.costs import Macs as Macs
from edgecompress.inspection.costs import Parameters as Parameters
