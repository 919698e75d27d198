"""Stage ``train_generator@row``: a LlamaGen on one tokenizer's tokens."""

from fvq.generate.training import train_generator
from fvq.runtime.training import write_history
from fvq.tokens import read_token_table
from pipeline.run import Run, run_stage


def main(run: Run) -> None:
    """Write ``generator.safetensors`` and ``history.csv``."""
    row = run.parameters.generators[run.name].tokenizer
    table = read_token_table(run.input("cache_tokens", "tokens.parquet", row))
    model, history = train_generator(
        run.parameters.generator_config(run.name, len(table.info.classes)),
        table.codes,
        table.labels,
        run.parameters.train_generator,
        run.seed,
        run.resume_folder,
        checkpoint_every=run.checkpoint_every,
        device=run.device,
    )
    model.save(run.output("generator.safetensors"))
    write_history(run.output("history.csv"), history)
    print(f"{run.name}: {history[-1]['loss']:.3f} nats per token, accuracy {history[-1]['accuracy']:.1%}")


if __name__ == "__main__":
    run_stage("train_generator", main, each="generators")
