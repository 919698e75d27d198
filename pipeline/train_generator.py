"""Stage ``train_generator@row``: a LlamaGen on one tokenizer's tokens; on several GPUs where there are several."""

from fvq.data.views import expand_views
from fvq.generate.training import train_generator
from fvq.runtime.errors import UserError
from fvq.runtime.processes import is_first
from fvq.runtime.training import Row, write_history
from fvq.tokens import open_token_table
from pipeline.live import live_log
from pipeline.run import Run, run_stage


def main(run: Run) -> None:
    """Write ``generator.safetensors``, ``history.csv``, and for those who watch ``live/``."""
    chosen = run.parameters.generators[run.name]
    tokenizer = run.input("freeze_codebook", "tokenizer.safetensors", chosen.tokenizer)
    folder = run.input_folder("cache_tokens", "tokens", chosen.tokenizer)
    codebook_size = run.parameters.rows[chosen.tokenizer].codebook_size
    table = open_token_table(folder, tokenizer_sha256=run.inputs[tokenizer], codebook_size=codebook_size)
    config = run.parameters.generator_config(
        run.name, len(table.info.classes), tokenizer_sha256=table.info.tokenizer_sha256
    )
    if table.info.grid != config.grid:
        raise UserError(
            f"{folder}: holds grids of {table.info.grid} tokens, and the row {chosen.tokenizer} makes {config.grid}"
        )
    views = expand_views(run.parameters.cache_tokens.views)
    if table.info.views != views:
        raise UserError(
            f"{folder}: holds the views {', '.join(table.info.views)}, and cache_tokens.views are {', '.join(views)}"
        )
    log = live_log(run.output_folder("live"))

    def draw(row: Row) -> None:
        log({name: value for name, value in row.items() if name != "epoch"})

    model, history = train_generator(
        config,
        table,
        chosen.recipe,
        run.parameters.train_generator,
        run.seed,
        run.resume_folder,
        checkpoint_every=run.checkpoint_every,
        device=run.device,
        on_row=draw,
    )
    if not is_first():
        return
    model.save(run.output("generator.safetensors"))
    write_history(run.output("history.csv"), history)
    print(f"{run.name}: {history[-1]['loss']:.3f} nats per token, accuracy {history[-1]['accuracy']:.1%}")


if __name__ == "__main__":
    run_stage("train_generator", main, each="generators", parallel=True)
