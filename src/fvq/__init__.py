"""fvq: vector-quantized image tokenizers with full codebook usage.

The parts stand on their own: ``fvq.quantize`` (code search, bridges, quantizers), ``fvq.tokenizer``, ``fvq.tokens``,
``fvq.generate``, ``fvq.evaluate``. The pipeline around them lives in the repository, not in this package.
"""

__version__ = "0.1.0"
