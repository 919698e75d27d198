"""Stage ``cache_tokens@row``: the training images as a Parquet token table, several views per image."""

from fvq.data.open import open_images
from fvq.tokenizer import Tokenizer
from fvq.tokenizer.inference import encode_views
from fvq.tokens import TokenTableInfo, write_token_table
from pipeline.run import Run, run_stage


def main(run: Run) -> None:
    """Write ``tokens.parquet``."""
    views = run.parameters.cache_tokens.views
    table = open_images(run.input("prepare_data", "train.parquet"))
    weights = run.input("freeze_codebook", "tokenizer.safetensors", run.name)
    tokenizer = Tokenizer.load(weights).to(run.device)
    info = TokenTableInfo(
        tokenizer_sha256=run.inputs[weights],
        codebook_size=tokenizer.config.codebook_size,
        grid=tokenizer.config.grid,
        views=views,
        classes=tuple(table.classes),
    )
    write_token_table(run.output("tokens.parquet"), encode_views(tokenizer, table, views), info)
    print(f"{run.name}: {len(table)} images in {len(views)} views")


if __name__ == "__main__":
    run_stage("cache_tokens", main, each="rows")
