"""Published checkpoints in and out: tokenizers of LlamaGen, FVQ and taming-transformers, LlamaGen's generators."""
