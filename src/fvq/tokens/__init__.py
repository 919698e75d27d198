"""The Parquet tables that hold a data set as tokens, several views per image."""

from fvq.tokens.reader import TokenTable, read_token_table
from fvq.tokens.schema import TokenBatch, TokenTableInfo
from fvq.tokens.writer import write_token_table

__all__ = ["TokenBatch", "TokenTable", "TokenTableInfo", "read_token_table", "write_token_table"]
