"""Sparsity schedules: pure functions from a training step to a value."""

from edgecompress.schedules.base import SCHEDULES as SCHEDULES
from edgecompress.schedules.base import Schedule as Schedule
from edgecompress.schedules.base import deserialize as deserialize
from edgecompress.schedules.base import serialize as serialize
from edgecompress.schedules.constant import ConstantSparsity as ConstantSparsity
from edgecompress.schedules.custom import CustomSchedule as CustomSchedule
from edgecompress.schedules.iterative import IterativeSparsity as IterativeSparsity
from edgecompress.schedules.one_shot import OneShotSparsity as OneShotSparsity
from edgecompress.schedules.polynomial import PolynomialDecay as PolynomialDecay
