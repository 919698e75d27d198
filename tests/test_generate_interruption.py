"""A generator's training that is killed, asked to stop or damaged ends with the bits of an undisturbed one."""

import json

from projects import run_script

# Views, dropouts, parts of a batch: what a step draws. Each run is a fork: torch is imported once.
TRAIN = """
    import hashlib, json, os, signal, socket, sys, time
    from pathlib import Path

    import torch
    from torch.distributed.tensor import DTensor

    from fvq.generate import LlamaGenConfig, GeneratorTraining, Recipe, TokensInMemory, train_generator
    from fvq.generate.step import GeneratorStep
    from fvq.runtime import checkpoint
    from fvq.runtime.errors import one_line_errors
    from fvq.runtime.processes import is_first, process_group

    STEPS = 12
    work = Path(sys.argv[1])
    write = checkpoint.write_state

    def train(name, dropout=0.1, folder=None, **changes):
        torch.set_num_threads(1)
        # Nothing divides by two: 7 tokens, 3 classes with the null class, 12 channels in heads of 4.
        config = LlamaGenConfig(
            vocabulary_size=7, classes=2, grid=(2, 3), width=12, depth=2, heads=3, feedforward_multiple_of=1,
            class_dropout=dropout, token_dropout=dropout, residual_dropout=dropout, feedforward_dropout=dropout,
            drop_path=dropout,
        )
        settings = GeneratorTraining(**{
            **dict(weight_decay=0.05, betas=(0.9, 0.95), gradient_clip=1.0, accumulate=2, precision="float32",
                   compile=False, sharding="none", log_every=3), **changes,
        })
        schedule = dict(warmup=0.2, warmup_from=0.01, constant=0.2, final=0.01, shape="linear")
        recipe = Recipe(batch_size=8, epochs=None, steps=STEPS, learning_rate=1e-2, schedule=schedule)
        labels = torch.arange(24) % 2
        stream = torch.Generator().manual_seed(0)
        tokens = 3 * labels[:, None, None] + torch.randint(4, (24, 2, 6), generator=stream)
        with process_group(), one_line_errors():
            model, history = train_generator(
                config, TokensInMemory(tokens, labels), recipe, settings, 5, work / (folder or name),
                checkpoint_every=4,
            )
            if is_first():
                path = work / f"{name}.safetensors"
                model.save(path)
                digest = hashlib.sha256(path.read_bytes()).hexdigest()
                (work / f"{name}.json").write_text(json.dumps({"weights": digest, "history": history}))

    def start(name, disturb=None, processes=1, **changes):
        with socket.create_server(("localhost", 0)) as free:
            address = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(free.getsockname()[1])}
        children = []
        for rank in range(processes):
            children.append(os.fork())
            if children[-1] == 0:
                if processes > 1:
                    os.environ.update(address, RANK=str(rank), WORLD_SIZE=str(processes))
                try:
                    if disturb:
                        disturb()
                    train(name, **changes)
                except SystemExit as end:
                    os._exit(end.code)
                except BaseException:
                    import traceback
                    traceback.print_exc()
                    os._exit(1)
                os._exit(0)
        return {os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children}

    def at_step(number, action):
        # Counted from where this run begins.
        call, count = GeneratorStep.__call__, [0]
        def wrapped(self, *arguments):
            count[0] += 1
            if count[0] == number + 1:
                action()
            return call(self, *arguments)
        GeneratorStep.__call__ = wrapped

    def tell(number):
        os.kill(os.getpid(), number)

    def kill():
        tell(signal.SIGKILL)
"""

KILLS = """
    def inside_a_write():
        count = [0]
        def second(state, path):
            count[0] += 1
            write(state, path)
            if count[0] == 2:
                with open(path, "r+b") as file:
                    file.truncate(path.stat().st_size // 2)
                kill()
        checkpoint.write_state = second

    def before_the_hash():
        real = checkpoint.write_atomically
        def stop(path):
            if path.name == "step-00000008.sha256":
                kill()
            return real(path)
        checkpoint.write_atomically = stop

    assert start("whole") == {0}
    # They begin at step 0, 0, 4 and 4: the state of step 8 lacks its hash.
    for disturb in (lambda: at_step(2, kill), inside_a_write, before_the_hash, lambda: at_step(6, kill)):
        assert start("killed", disturb) == {-signal.SIGKILL}
    newest = work / "killed" / "step-00000008.pt"
    newest.write_bytes(newest.read_bytes()[:-100])
    assert start("killed") == {0}
    for number, step in ((signal.SIGTERM, 5), (signal.SIGUSR1, 3)):
        status = start("stopped", lambda: at_step(step, lambda: tell(number)))
        assert status == {75}, status
    assert start("stopped") == {0}
"""


def test_killed_stopped_or_damaged_it_ends_with_the_same_bits(tmp_path):
    told = run_script(TRAIN, KILLS, tmp_path)
    whole, killed, stopped = (
        json.loads((tmp_path / f"{name}.json").read_text()) for name in ("whole", "killed", "stopped")
    )
    assert killed == whole
    assert stopped == whole
    lines = told.splitlines()
    assert [line for line in lines if "received" in line] == [
        "fvq: training the generator: SIGTERM received; saved after step 6 of 12, the same command goes on from there",
        "fvq: training the generator: SIGUSR1 received; saved after step 10 of 12, the same command goes on from there",
    ]
    # Once its hash was never written, once it lost its end.
    assert sum("step-00000008.pt is damaged; going back to the state before it" in line for line in lines) == 2
