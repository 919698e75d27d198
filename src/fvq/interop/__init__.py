"""Published tokenizer checkpoints in and out: LlamaGen, FVQ and taming-transformers."""
