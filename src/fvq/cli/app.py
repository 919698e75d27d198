"""The commands of ``fvq`` and their options. Their work is imported when one runs: torch alone takes seconds."""

import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import typer

import fvq
from fvq.interop.layouts import Layout
from fvq.plan.devices import DEFAULT_UTILIZATION
from fvq.runtime.errors import one_line_errors

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)

Force = Annotated[bool, typer.Option("--force", help="Overwrite what is there already.")]
TokenizerFile = Annotated[
    Path, typer.Argument(metavar="TOKENIZER", help="The tokenizer's weights (safetensors).", show_default=False)
]
ExtractorName = Annotated[
    str,
    typer.Option(
        metavar="NAME|FILE",
        help="The network whose features are compared: inception-2015, vgg16, dinov2-vit-l14, squeezenet1_0, a "
        "plug-in's name, or a file of this project (.safetensors).",
    ),
]
Weights = Annotated[
    Path | None,
    typer.Option(
        metavar="PATH",
        help="The named network's published weights, or their folder; a folder serves VGG16 and LPIPS too.",
        show_default="$FVQ_WEIGHTS, else torch hub's folder",
    ),
]
Size = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Cut images to a centre square of N pixels.", show_default=False)
]
CropName = Annotated[
    Literal["adm", "plain"] | None,
    typer.Option(help="adm scales an image's shorter side to --size before; plain does not.", show_default="adm"),
]
BatchSize = Annotated[int, typer.Option(min=1, metavar="N", help="Images in the network at once.")]
Cache = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER",
        help="Holds features by the content of images and weights, so that those of stored images are computed once; "
        "reconstructions are measured anew. An interrupted run goes on. May be deleted at any time.",
        show_default="$FVQ_CACHE, else ~/.cache/fvq",
    ),
]
NoCache = Annotated[bool, typer.Option("--no-cache", help="Keep nothing.")]


def _example(command: str) -> str:
    return f"Example:\n\n[bold]{command}[/bold]"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command that ``arguments`` (by default the process's) name, and exit.

    Exit status 0; 1 where input is bad or something is broken, 2 where the arguments themselves are, both with one line
    on standard error; 130 where interrupted.
    """
    words = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # an old terminal's characters may lack a dash
    with one_line_errors():
        try:
            status = app(words, prog_name="fvq", standalone_mode=False)
        except typer.TyperException as error:
            context = getattr(error, "ctx", None)
            command = context.command_path if context else "fvq"
            text = " ".join(error.format_message().split()).rstrip(".")
            print(f"fvq: error: {text}; see {command} --help", file=sys.stderr)
            status = 2
    if status == 130:
        print("fvq: interrupted", file=sys.stderr)
    sys.exit(status)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"fvq {fvq.__version__}")
        raise typer.Exit


@app.callback()
def _fvq(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Vector-quantized image tokenizers with full codebook usage: try them, sample from them, measure them."""


@app.command(epilog=_example("fvq reconstruct tokenizer.safetensors photo.jpg holidays/ --out grid.png"))
def reconstruct(
    tokenizer: TokenizerFile,
    images: Annotated[
        list[Path], typer.Argument(metavar="IMAGES...", help="Image files, or folders of them.", show_default=False)
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="The picture to write (.png).")],
    shown: Annotated[
        int, typer.Option(min=1, metavar="N", help="Images in the picture at most, spread evenly over those given.")
    ] = 16,
    force: Force = False,
) -> None:
    """Images through a tokenizer and back, side by side with what was lost.

    Images are scaled and centre-cropped to the tokenizer's size. Prints PSNR and how many codes all of them use.
    """
    from fvq.cli.reconstruct import reconstruct_images

    reconstruct_images(tokenizer, images, out, shown=shown, force=force)


@app.command(epilog=_example("fvq sample --class 3 --count 16 --out grid.png"))
def sample(
    context: typer.Context,
    out: Annotated[
        Path,
        typer.Option(
            "--out", "-o", metavar="FILE", help="A picture (.png), or images and labels for an evaluation (.npz)."
        ),
    ],
    generator: Annotated[
        Path | None,
        typer.Argument(
            metavar="GENERATOR",
            help="The generator's weights (safetensors).",
            show_default="of the study in this folder",
        ),
    ] = None,
    tokenizer: Annotated[
        Path | None,
        typer.Argument(
            metavar="TOKENIZER",
            help="The tokenizer's weights (safetensors).",
            show_default="of the study in this folder",
        ),
    ] = None,
    row: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Which generator of the study in this folder.", show_default="the last one trained"
        ),
    ] = None,
    wanted_class: Annotated[
        str | None,
        typer.Option(
            "--class",
            metavar="N|NAME",
            help="A class by its number from 0, or by its name.",
            show_default="all classes",
        ),
    ] = None,
    labels: Annotated[
        Literal["balanced", "uniform"] | None,
        typer.Option(help="All classes in turn, or each image's class drawn.", show_default="balanced"),
    ] = None,
    names: Annotated[
        Path | None,
        typer.Option(
            metavar="TABLE",
            help="An image or token table (Parquet, or a folder of it) that names the classes.",
            show_default="the tokens that the generator learned from, if found",
        ),
    ] = None,
    count: Annotated[int, typer.Option(min=1, metavar="N", help="Number of images.")] = 16,
    cfg_scale: Annotated[float, typer.Option(metavar="X", help="Classifier-free guidance; 1 is none.")] = 1.0,
    cfg_start: Annotated[int, typer.Option(metavar="N", help="The first token that is guided, from 0.")] = 0,
    temperature: Annotated[
        float, typer.Option(metavar="X", help="Divides the logits; 0 takes the likeliest token.")
    ] = 1.0,
    top_k: Annotated[int, typer.Option(metavar="N", help="Draw from the N likeliest tokens; 0 is all.")] = 0,
    top_p: Annotated[
        float, typer.Option(metavar="X", help="Draw from the likeliest tokens of joint probability X; 1 is all.")
    ] = 1.0,
    seed: Annotated[int, typer.Option(metavar="N", help="Of the draws; each image has its own stream.")] = 0,
    batch_size: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Images drawn at once.", show_default="as many as memory holds"),
    ] = None,
    precision: Annotated[
        Literal["float32", "bfloat16"], typer.Option(help="Of the generator's weights and sums.")
    ] = "float32",
    force: Force = False,
) -> None:
    """Draw images from a generator.

    In a study's folder its generator is taken, elsewhere files are named. An interrupted run goes on where it was.
    """
    if (generator is None) != (tokenizer is None):
        raise typer.BadParameter("missing; name both files, or none for the study's", context, param_hint="TOKENIZER")
    if generator is not None and row is not None:
        raise typer.BadParameter("is for the study's generators, and files are given", context, param_hint="--row")
    if wanted_class is not None and labels is not None:
        raise typer.BadParameter("is for all classes, and --class names one", context, param_hint="--labels")
    from fvq.cli.sample import sample_images

    sample_images(
        (generator, tokenizer) if generator and tokenizer else row,
        out,
        wanted_class=wanted_class,
        names=names,
        labels=labels or "balanced",
        count=count,
        seed=seed,
        batch_size=batch_size,
        precision=precision,
        force=force,
        settings={
            "cfg_scale": cfg_scale,
            "cfg_start": cfg_start,
            "temperature": temperature,
            "top_k": top_k,
            "top_p": top_p,
        },
    )


@app.command(epilog=_example("fvq evaluate samples.npz --reference VIRTUAL_imagenet256_labeled.npz --out figures.json"))
def evaluate(
    context: typer.Context,
    samples: Annotated[
        Path | None,
        typer.Argument(
            metavar="SAMPLES",
            help="Images or their stored statistics: an npz (arr_0 in uint8 NHWC, or mu and sigma), a folder, a .tar, "
            "a Parquet table. A tokenizer (.safetensors) stands for its reconstructions of the reference.",
            show_default=False,
        ),
    ] = None,
    reference: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="What to compare with, in any of these forms.", show_default=False),
    ] = None,
    protocol: Annotated[
        Literal["adm", "torch-fidelity", "pytorch-fid", "fvq-released"],
        typer.Option(metavar="NAME", help="Whose way of measuring; each is described above."),
    ] = "adm",
    extractor: ExtractorName = "inception-2015",
    weights: Weights = None,
    size: Size = None,
    crop: CropName = None,
    pairs: Annotated[
        bool,
        typer.Option("--pairs", help="SAMPLES are reconstructions of the reference's images, in their order."),
    ] = False,
    measures: Annotated[
        list[str] | None,
        typer.Option(
            "--measure",
            metavar="NAME",
            help="An error of reconstructions, such as psnr_rgb or lpips_vgg; give it once for each.",
            show_default="all but lpips_vgg",
        ),
    ] = None,
    distances: Annotated[
        Literal["exact", "float16"],
        typer.Option(help="Of precision and recall; float16 imitates the published evaluator's rounding."),
    ] = "exact",
    kid: Annotated[bool, typer.Option("--kid", help="Kernel distance, over 100 subsets of 1,000 images.")] = False,
    density_coverage: Annotated[bool, typer.Option("--density-coverage", help="Density and coverage.")] = False,
    uncertainty: Annotated[
        bool,
        typer.Option("--uncertainty", help="Spread of the Fréchet distance, and its value for infinitely many images."),
    ] = False,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Of the halves that --uncertainty draws.")] = 0,
    allow_count: Annotated[
        bool, typer.Option("--allow-count", help="Measure FID on another number of images than published ones.")
    ] = False,
    batch_size: BatchSize = 64,
    cache: Cache = None,
    no_cache: NoCache = False,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="Write the figures as flat JSON (.json).")
    ] = None,
    compare: Annotated[
        tuple[Path, Path] | None,
        typer.Option(
            metavar="A.json B.json",
            help="Instead: the figures of two files beside each other; different protocols are refused.",
            show_default=False,
        ),
    ] = None,
    force: Force = False,
) -> None:
    """FID, sFID, Inception Score, precision and recall of SAMPLES; errors and rFID of reconstructions.

    Figures carry the name of the network they are measured on; only inception-2015 gives a FID. The protocols:

    [bold]adm[/bold]: guided-diffusion's evaluator, without TensorFlow; most generators of ImageNet report it

    [bold]torch-fidelity[/bold]: that library's defaults; precision and recall are on VGG16

    [bold]pytorch-fid[/bold]: that library's FID alone; it resizes images in another way

    [bold]fvq-released[/bold]: the rFID of FVQ's released code: both sides cut to 256 pixels and stored as JPEG
    """
    if compare is not None:
        others = [parameter.name for parameter in context.command.params if parameter.name != "compare"]
        _refuse(context, "goes without --compare", *filter(None, others))
        from fvq.cli.compare import print_comparison

        print_comparison(*compare)
        return
    if samples is None:
        raise typer.BadParameter("missing; name the images to measure", context, param_hint="SAMPLES")
    if reference is None:
        raise typer.BadParameter("missing; name what to compare with", context, param_hint="--reference")
    _check_crop(context, size, crop)
    if protocol == "fvq-released":
        _refuse(context, "is fixed by the protocol fvq-released: a centre crop of 256 pixels", "size", "crop")
    if pairs or protocol == "fvq-released" or samples.suffix.lower() == ".safetensors":
        pairs = True
        _refuse(context, "is for samples, not for reconstructions", "kid", "density_coverage", "distances")
    else:
        _refuse(context, "is for reconstructions; --pairs says that SAMPLES are some", "measures")
    if protocol == "pytorch-fid":
        _refuse(context, "is not in the protocol pytorch-fid", "density_coverage", "distances")
    from fvq.cli.evaluate import evaluate_images
    from fvq.cli.measuring import cache_folder

    evaluate_images(
        samples,
        reference,
        out,
        protocol_name=protocol,
        extractor=extractor,
        weights=weights,
        size=size,
        crop=crop,
        pairs=pairs,
        measures=measures or (),
        options={
            "kernel_distance": kid,
            "density_and_coverage": density_coverage,
            "distances": distances,
            "uncertainty": uncertainty,
            "seed": seed,
            "allow_count": allow_count,
            "batch_size": batch_size,
        },
        cache=None if no_cache else cache_folder(cache),
        force=force,
    )


@app.command(epilog=_example("fvq statistics photos/ --size 256 --out reference.npz"))
def statistics(
    context: typer.Context,
    images: Annotated[
        Path,
        typer.Argument(
            metavar="IMAGES",
            help="An npz (arr_0 in uint8 NHWC), a folder, a .tar or a Parquet table of images.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path,
        typer.Option("--out", "-o", metavar="FILE", help="The statistics to write (.npz); pytorch-fid reads them too."),
    ],
    protocol: Annotated[
        Literal["adm", "torch-fidelity", "pytorch-fid"],
        typer.Option(metavar="NAME", help="Of the later evaluation: adm, torch-fidelity or pytorch-fid."),
    ] = "adm",
    extractor: ExtractorName = "inception-2015",
    weights: Weights = None,
    size: Size = None,
    crop: CropName = None,
    batch_size: BatchSize = 64,
    cache: Cache = None,
    no_cache: NoCache = False,
    force: Force = False,
) -> None:
    """Mean and covariance of the features of IMAGES, for a reference that need not be at hand.

    fvq evaluate --reference takes the file. Precision and recall need the images themselves.
    """
    _check_crop(context, size, crop)
    from fvq.cli.measuring import cache_folder
    from fvq.cli.statistics import store_statistics

    store_statistics(
        images,
        out,
        protocol_name=protocol,
        extractor=extractor,
        weights=weights,
        size=size,
        crop=crop,
        batch_size=batch_size,
        cache=None if no_cache else cache_folder(cache),
        force=force,
    )


def _check_crop(context: typer.Context, size: int | None, crop: str | None) -> None:
    if crop is not None and size is None:
        raise typer.BadParameter("needs the --size that it cuts to", context, param_hint="--crop")


def _refuse(context: typer.Context, why: str, *names: str) -> None:
    """A usage error where the command line gives one of these parameters."""
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name or "")
        if parameter.name in names and source is not None and source.name == "COMMANDLINE":
            name = parameter.opts[0]
            raise typer.BadParameter(why, context, param_hint=name if name.startswith("-") else name.upper())


@app.command(epilog=_example("fvq import-checkpoint vq_ds16_c2i.pt --layout llamagen -o tokenizer.safetensors"))
def import_checkpoint(
    checkpoint: Annotated[
        Path,
        typer.Argument(metavar="CHECKPOINT", help="The published file (.pt, .ckpt, .safetensors).", show_default=False),
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="FILE", help="The tokenizer or generator to write (.safetensors).")
    ],
    layout: Annotated[
        Layout | None,
        typer.Option(
            metavar="NAME",
            help="What published a tokenizer: llamagen has a normalised codebook, fvq (its released form) the same "
            "names and a plain one; fvq-vit and fvq-dit are FVQ's training checkpoints, taming is VQGAN.",
            show_default="recognised where the names tell",
        ),
    ] = None,
    ema: Annotated[bool, typer.Option("--ema", help="Take the averaged weights.")] = False,
    heads: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Attention heads of a tokenizer's bridge, or of a generator.",
            show_default="4 of a bridge, those of the published size of a generator",
        ),
    ] = None,
    image_size: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Side of a tokenizer's images in pixels.", show_default="256"),
    ] = None,
    grid: Annotated[
        str | None,
        typer.Option(
            metavar="N|HxW",
            help="Rows and columns of a generator's tokens.",
            show_default="what the file's arguments tell, or else 16",
        ),
    ] = None,
    codebook_size: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Refuse a checkpoint with another number of codes.")
    ] = None,
    sha256: Annotated[str | None, typer.Option(metavar="HEX", help="Refuse a file with another SHA-256.")] = None,
    force: Force = False,
) -> None:
    """A published tokenizer or class-conditional generator as one of this project, every value as it is.

    Nothing that the file contains is executed. Prints what it is and what of the file was left out.
    """
    from fvq.cli import checkpoints

    checkpoints.import_checkpoint(
        checkpoint,
        out,
        layout=layout,
        ema=ema,
        heads=heads,
        image_size=image_size,
        grid=grid,
        codebook_size=codebook_size,
        sha256=sha256,
        force=force,
    )


@app.command(epilog=_example("fvq export-checkpoint tokenizer.safetensors --out vq_ds16.pt"))
def export_checkpoint(
    weights: Annotated[
        Path,
        typer.Argument(metavar="WEIGHTS", help="A tokenizer or generator (safetensors).", show_default=False),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="The checkpoint to write (.pt).")],
    force: Force = False,
) -> None:
    """A tokenizer or generator as a checkpoint that LlamaGen's and FVQ's published code reads.

    A tokenizer with a projector is frozen first. Prints the settings that the published code needs.
    """
    from fvq.cli import checkpoints

    checkpoints.export_checkpoint(weights, out, force=force)


@app.command(epilog=_example("fvq plan --gpu h100 --json plan.json"))
def plan(
    parameters: Annotated[
        Path, typer.Argument(metavar="PARAMS", help="The study's parameters (composed, as params.yaml is).")
    ] = Path("params.yaml"),
    row: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="A tokenizer or generator of the study; may be repeated.", show_default="all"
        ),
    ] = None,
    gpu: Annotated[
        Literal["a100", "h100", "h200"] | None,
        typer.Option(help="Whose hours and memory (A100 with 80 GB).", show_default="all three"),
    ] = None,
    utilization: Annotated[
        float,
        typer.Option(
            metavar="SHARE",
            help="Of a GPU's peak, reached in all rows. The default is an assumption; --measure finds it.",
        ),
    ] = DEFAULT_UTILIZATION,
    images: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Training images.",
            show_default="those prepared; before, what the data set is known to have",
        ),
    ] = None,
    measure: Annotated[
        bool,
        typer.Option(
            "--measure",
            help="Time training steps of each --row on this device, by default of the first tokenizer and generator, "
            "against the GPU's peak, or where that is not known a large matrix product.",
        ),
    ] = False,
    json_out: Annotated[
        Path | None,
        typer.Option(
            "--json", metavar="FILE|-", help="Write the plan as JSON; - prints nothing else.", show_default=False
        ),
    ] = None,
    force: Force = False,
) -> None:
    """What a study costs before it runs: compute, a GPU's memory and storage of each row.

    Multiply-adds are counted by running the training steps without memory or arithmetic.
    """
    from fvq.cli.plan import print_plan

    print_plan(
        parameters,
        rows=row or (),
        gpu=gpu,
        utilization=utilization,
        images=images,
        measure=measure,
        out=json_out,
        force=force,
    )


@app.command(epilog=_example("fvq status --watch"))
def status(
    parameters: Annotated[
        Path, typer.Option("--params", metavar="FILE", help="The study's parameters (composed, as params.yaml is).")
    ] = Path("params.yaml"),
    watch: Annotated[
        bool, typer.Option("--watch", help="Show it anew every few seconds, until Ctrl-C; on a terminal.")
    ] = False,
) -> None:
    """How far a study is: what is done, runs, waits or failed, told from its files.

    Done: there is a result; dvc status tells whether of the present parameters.
    Queued: snakemake is going to run it, unless something before it fails.
    Lost: its process ended without a word. A dash: nobody has begun it.
    """
    from fvq.cli.status import print_status

    print_status(parameters, watch=watch)


@app.command(epilog=_example("fvq doctor --fetch"))
def doctor(
    context: typer.Context,
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="NETWORK...",
            help="The networks whose weights --fetch fetches.",
            show_default="inception-2015, alexnet and vgg16",
        ),
    ] = None,
    fetch: Annotated[
        bool, typer.Option("--fetch", help="Download published weights that are missing; nothing else ever does.")
    ] = False,
    gpus: Annotated[
        int | None,
        typer.Option(
            min=0,
            metavar="N",
            help="Refuse a machine where torch sees fewer GPUs.",
            show_default="those that Slurm allocated on this node",
        ),
    ] = None,
) -> None:
    """What fvq finds on this machine and in this folder: programs, disk, driver, GPUs, weights.

    Exits with 1 where something needed is broken.
    """
    if names and not fetch:
        raise typer.BadParameter("is for --fetch", context, param_hint="NETWORK")
    from fvq.cli.doctor import examine, fetch_weights

    if fetch:
        fetch_weights(names or ())
    if not examine(gpus):
        raise typer.Exit(1)
