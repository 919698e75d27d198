"""Stage ``cache_tokens@row``: the training images as a token table, several views per image; on several GPUs, too."""

from dataclasses import asdict
from functools import partial

from fvq.data.open import open_images
from fvq.data.views import describe_crops, expand_views
from fvq.runtime.files import write_json
from fvq.runtime.processes import is_first
from fvq.tokenizer import Tokenizer
from fvq.tokenizer.inference import encode_views
from fvq.tokens import TokenTableInfo, describe_size, link_shards, write_token_shards
from pipeline.run import Run, run_stage


def main(run: Run) -> None:
    """Write the shards in ``tokens/``, and ``size.json``: what they take on disk."""
    images = open_images(run.input("prepare_data", "train.parquet"))
    weights = run.input("freeze_codebook", "tokenizer.safetensors", run.name)
    tokenizer = Tokenizer.load(weights).to(run.device)
    views = expand_views(run.parameters.cache_tokens.views)
    info = TokenTableInfo(
        tokenizer_sha256=run.inputs[weights],
        codebook_size=tokenizer.config.codebook_size,
        grid=tokenizer.config.grid,
        views=views,
        classes=tuple(images.classes),
        crop=describe_crops(views, images.image_size, images.center_crop),
        images=len(images),
        seed=run.seed,
    )
    shards = run.resume_folder / "tokens"
    write_token_shards(shards, partial(encode_views, tokenizer, images, views), info)
    if not is_first():
        return
    tokens = run.output_folder("tokens")
    link_shards(shards, tokens)
    table_size = describe_size(tokens)
    write_json(run.output("size.json"), asdict(table_size))
    print(f"{run.name}: {len(images):,} images in {len(views)} views, {table_size}")


if __name__ == "__main__":
    run_stage("cache_tokens", main, each="rows", parallel=True)
