"""Code search, bridges and quantizers. Needs torch and nothing else of the project."""

from fvq.quantize.bridge import VQBridge, default_patch
from fvq.quantize.quantizers import QUANTIZERS, Quantized, Quantizer, build_quantizer
from fvq.quantize.search import nearest_code

__all__ = ["QUANTIZERS", "Quantized", "Quantizer", "VQBridge", "build_quantizer", "default_patch", "nearest_code"]
