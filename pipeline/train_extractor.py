"""Stage ``train_extractor``: the network whose features the Fréchet distances are measured on."""

from fvq.config import PublishedExtractor
from fvq.data.open import open_images
from fvq.evaluate.networks.classifier_training import train_extractor
from fvq.evaluate.networks.extractors import save_reference
from fvq.evaluate.networks.pretrained import PUBLISHED, require_pretrained
from pipeline.run import Run, run_stage


def main(run: Run) -> None:
    """Write ``extractor.safetensors``."""
    settings = run.parameters.train_extractor
    if isinstance(settings, PublishedExtractor):
        found = require_pretrained(PUBLISHED[settings.name], settings.weights, "train_extractor.weights")
        save_reference(found, run.output("extractor.safetensors"))
        return
    table = open_images(run.input("prepare_data", "train.parquet"))
    classifier, history = train_extractor(
        table.images(),
        table.labels,
        settings,
        name=settings.name,
        classes=len(table.classes),
        seed=run.seed,
        checkpoint_folder=run.resume_folder,
        checkpoint_every=run.checkpoint_every,
    )
    classifier.save(run.output("extractor.safetensors"))
    print(f"extractor {settings.name}: training accuracy {history[-1]['accuracy']:.1%}")


if __name__ == "__main__":
    run_stage("train_extractor", main)
