"""Costs: what a budget limits. To add one: a class here or in a plugin, decorated with `@cost`."""

from edgecompress.costs.base import COSTS as COSTS
from edgecompress.costs.base import Cost as Cost
from edgecompress.costs.base import cost as cost
