"""Stage ``freeze_codebook@row``: the mapped codebook stays, numbered by use; the bridge goes; nothing else changes."""

from fvq.data.open import open_images
from fvq.runtime.files import write_json
from fvq.tokenizer import Tokenizer
from fvq.tokenizer.freezing import freeze_tokenizer
from pipeline.run import Run, run_stage


def main(run: Run) -> None:
    """Write ``tokenizer.safetensors`` and ``check.json``."""
    table = open_images(run.input("prepare_data", "validation.parquet"))
    tokenizer = Tokenizer.load(run.input("train_tokenizer", "tokenizer.safetensors", run.name)).to(run.device)
    frozen, comparison = freeze_tokenizer(tokenizer, table)
    frozen.save(run.output("tokenizer.safetensors"))
    write_json(run.output("check.json"), comparison)
    print(
        f"{run.name}: {comparison['tokens']} tokens of {comparison['images']} images unchanged, "
        f"codes numbered {comparison['code_order']}"
    )


if __name__ == "__main__":
    run_stage("freeze_codebook", main, each="rows")
