"""The Parquet tables that hold a data set as tokens, several views per image, in shards."""

from fvq.tokens.reader import TokenTable, open_token_table
from fvq.tokens.schema import TokenBatch, TokenTableInfo
from fvq.tokens.shard import TokenPart
from fvq.tokens.size import TableSize, describe_size
from fvq.tokens.writer import link_shards, write_token_shards

__all__ = [
    "TableSize",
    "TokenBatch",
    "TokenPart",
    "TokenTable",
    "TokenTableInfo",
    "describe_size",
    "link_shards",
    "open_token_table",
    "write_token_shards",
]
