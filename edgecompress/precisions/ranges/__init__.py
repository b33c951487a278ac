"""Ranges: which values the codes of weights and activations cover. One import line each."""

from edgecompress.precisions.ranges import extremes as extremes
from edgecompress.precisions.ranges import learnt as learnt
from edgecompress.precisions.ranges import mean_squared_error as mean_squared_error
from edgecompress.precisions.ranges import percentile as percentile
from edgecompress.precisions.ranges import power_of_two as power_of_two
from edgecompress.precisions.ranges.base import RANGES as RANGES
from edgecompress.precisions.ranges.base import RangeMethod as RangeMethod
