# SPDX-License-Identifier: MIT
"""Rate and distortion: files on disk, real decodes, and how the curves compare.

>>> from groupedmixer.evaluation import evaluate
>>> evaluation = evaluate("kodak/", "rt", output="results/")         # doctest: +SKIP
>>> evaluation.curves["groupedmixer-rt"].psnr                        # doctest: +SKIP

Comparing and drawing need the extra: ``pip install 'groupedmixer[eval]'``.
"""

from ..metrics import ms_ssim, psnr
from .bd_rate import Comparison, compare
from .curves import Curve, bpp_at_psnr, read_curve
from .results import OUTPUT_NAMES, Evaluation, Measurement, results_json
from .run import evaluate
from .table import table

__all__ = [
    "OUTPUT_NAMES",
    "Comparison",
    "Curve",
    "Evaluation",
    "Measurement",
    "bpp_at_psnr",
    "compare",
    "evaluate",
    "ms_ssim",
    "psnr",
    "read_curve",
    "results_json",
    "table",
]
