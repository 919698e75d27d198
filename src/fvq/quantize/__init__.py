"""Code search, bridges and quantizers. Needs torch and nothing else of the project."""

from fvq.quantize.bridge import VQBridge, default_patch
from fvq.quantize.build import QUANTIZERS, build_quantizer
from fvq.quantize.quantizer import Quantized, Quantizer
from fvq.quantize.search import nearest_code
from fvq.quantize.usage import SlidingUsage, UsageCounter, code_counts, usage_ceiling, usage_figures

__all__ = [
    "QUANTIZERS",
    "Quantized",
    "Quantizer",
    "SlidingUsage",
    "UsageCounter",
    "VQBridge",
    "build_quantizer",
    "code_counts",
    "default_patch",
    "nearest_code",
    "usage_ceiling",
    "usage_figures",
]
