"""Stage ``map_codes``: codes and features of the mapped rows in the plane (Figure 2 of the paper)."""

from fvq.evaluate.image_sets import open_image_set
from fvq.experiments.code_map import CodeMap, map_codes
from fvq.experiments.files import write_code_maps
from fvq.quantize.codebook import CodebookQuantizer
from fvq.tokenizer import Tokenizer
from pipeline.run import Run, run_stage


def main(run: Run) -> None:
    """Write ``code_map.parquet`` and ``code_map.json``."""
    settings = run.parameters.map_codes
    images = open_image_set(run.input("prepare_data", "validation.parquet"))
    maps: dict[str, CodeMap] = {}
    for row in run.parameters.mapped_rows:
        tokenizer = Tokenizer.load(run.input("freeze_codebook", "tokenizer.safetensors", row)).to(run.device)
        if isinstance(tokenizer.quantizer, CodebookQuantizer):
            maps |= map_codes({row: tokenizer}, images, features=settings.features, codes=settings.codes, seed=run.seed)
    folder = run.output("code_map.parquet").parent
    write_code_maps(folder, maps)
    run.output("code_map.json")
    print(f"mapped the codes of {', '.join(maps)}")


if __name__ == "__main__":
    run_stage("map_codes", main)
