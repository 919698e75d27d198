"""Stage ``evaluate_generator@row``: samples against the validation images; on several GPUs where there are some."""

from fvq.evaluate.evaluation import Options
from fvq.evaluate.generator_metrics import evaluate_samples
from fvq.evaluate.image_sets import open_image_set
from fvq.evaluate.protocol_networks import load_network, load_network_of_neighbours
from fvq.evaluate.protocols import PROTOCOLS
from fvq.evaluate.sides import Side, open_side
from fvq.runtime.files import write_json
from pipeline.run import Run, run_stage


def main(run: Run) -> None:
    """Write ``metrics.json``."""
    settings = run.parameters.evaluate_generator
    protocol = PROTOCOLS[settings.protocol]
    reference = open_image_set(run.input("prepare_data", "validation.parquet"), protocol.preparation)
    network = load_network(run.input("train_extractor", "extractor.safetensors"), protocol, device=run.device)
    evaluation = evaluate_samples(
        open_side(run.input("sample", "samples.npz", run.name), protocol.preparation),
        Side(reference),
        network,
        protocol,
        Options(**settings.model_dump(exclude={"protocol"})),
        neighbour_extractor=load_network_of_neighbours(protocol, network, run.device),
        reference_words=f"{run.parameters.dataset} validation",
        cache=run.feature_folder,
    )
    if evaluation is None:
        return
    write_json(run.output("metrics.json"), evaluation.values | {"seed": run.seed})
    shown = ", ".join(f"{name} {value:.3f}" for name, value in evaluation.values.items() if isinstance(value, float))
    print(f"{run.name}: {shown}")
    for note in evaluation.notes:
        print(f"{run.name}: {note}")


if __name__ == "__main__":
    run_stage("evaluate_generator", main, each="generators", parallel=True)
