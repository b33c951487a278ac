"""Techniques: what a search may do. To add one: a module here, its test, one import line below."""

from edgecompress.searching.techniques import blocks as blocks
from edgecompress.searching.techniques import channels as channels
from edgecompress.searching.techniques import coding as coding
from edgecompress.searching.techniques import depth as depth
from edgecompress.searching.techniques import distillation as distillation
from edgecompress.searching.techniques import low_rank as low_rank
from edgecompress.searching.techniques import mixup as mixup
from edgecompress.searching.techniques import quantization as quantization
from edgecompress.searching.techniques import resolution as resolution
from edgecompress.searching.techniques import training as training
from edgecompress.searching.techniques.base import TECHNIQUES as TECHNIQUES
from edgecompress.searching.techniques.base import Fit as Fit
from edgecompress.searching.techniques.base import Subject as Subject
from edgecompress.searching.techniques.base import Technique as Technique
from edgecompress.searching.techniques.base import own_values as own_values
