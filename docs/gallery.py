"""Draw the gallery, docs/figures.md: ``python docs/gallery.py [FOLDER]``.

Trains small networks on scikit-learn's digits (about five minutes on one core; runs that are in FOLDER already are
kept), draws every registered figure with the command that the page shows, and writes the page. A figure that has no
entry below is drawn from the first two runs.
"""

import contextlib
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from propkit.__main__ import main as propkit_main
from propkit.figures import registry
from propkit.figures.__main__ import main as figures_main

PAGE = Path(__file__).parent / "figures.md"
IMAGES = Path(__file__).parent / "figures" / "gallery"
MOST_BYTES = 60_000
RESOLUTIONS = (100, 75, 60, 50)

PROBES = (
    "error_moment,gradient_norm,filter_correlation,activation,weight,representation,bn_jacobian,filters,"
    "singular_values,jacobian_spectrum"
)
"""All that the figures of a single run need."""

KINDS = ("plain11", "resnet11", "procresnet13", "plain20", "resnet20", "procresnet22")
GRID = [f"{c}x{d}{how}" for c in (4, 8, 16) for d in (4, 8, 16) for how in ("", "-projected")]

RUNS: dict[str, str] = {
    "l2.zarr": "plain20-l2 --steps 150 --every 1",
    "ortho.zarr": "plain20-ortho --steps 150 --every 1",
    "all.zarr": f"plain20-l2 --steps 100 --every 1 --label 'He + L2' --set probes={PROBES}",
    "modulated.zarr": "plain20-ortho-modulated --steps 120 --every 1 --set modulation_steps=60 "
    "--set probes=error_moment",
    **{
        f"gap/{kind}.zarr": f"generalisation-gap-{kind} --steps 120 --every 5 --set batch_size=32 "
        "--set evaluate_every=20 --set lr=0.05"
        for kind in KINDS
    },
    **{
        f"grid/{name}.zarr": f"procrustes-grid-{name} --steps 60 --every 5 --set batch_size=32"
        for name in GRID
    },
    **{
        f"{part}.zarr": f"plainnet-{part} --steps 10 --every 3 --set probes=activation,representation,activation_maps"
        for part in ("maxnorm", "bn")
    },
}
"""Store -> the arguments of ``python -m propkit train`` that make it."""


@dataclass(frozen=True)
class Entry:
    """A figure in the gallery.

    Attributes:
        seen: What one sees in it.
        runs: The stores, or folders of stores.
        options: Options of its command.
    """

    seen: str
    runs: str = "l2.zarr ortho.zarr"
    options: str = ""


ENTRIES: dict[str, Entry] = {
    "activation_images": Entry(
        "Layers 50 and 99 of a fully connected network of 100 layers. Without normalisation (above) the last "
        "picture is all vertical stripes: whatever the sample, the units do the same. With batch "
        "normalisation (below) the last layer tells samples apart.",
        "maxnorm.zarr bn.zarr",
    ),
    "activations": Entry(
        "Batch normalisation keeps activations of one size in all layers. With L2 they fall to half in the "
        "upper layers at iteration 5; with orthonormality none falls below four fifths.",
    ),
    "bn_spectra": Entry(
        "At the beginning |ρ| is above 1 in all layers but the first: normalisation amplifies errors on their "
        "way down. Training brings it below 1 in the lower layers.",
        "all.zarr",
    ),
    "conditioning": Entry(
        "The networks of activation_images. Without normalisation the effective rank falls towards 1 within "
        "forty layers, the mean cosine rises to 1, and the condition number is infinite (triangles) from the "
        "first layers on. With batch normalisation the rank is lowest in the middle, and 15 at the top.",
        "maxnorm.zarr bn.zarr",
    ),
    "fig2": Entry(
        "Orthonormal filters start at zero and stay near it for some fifteen steps; He's start above, by "
        "chance. Then both rise while the networks learn.",
    ),
    "fig3": Entry(
        "Errors explode at initialisation (R above 1), vanish within five steps, and recover. The orthonormal "
        "network does so first.",
    ),
    "fig4": Entry(
        "The same, layer by layer. At iteration 1 the error grows steadily from the last layer to the first; "
        "at iteration 5 it shrinks. The jumps between layers 7 and 8 and between 13 and 14 are where feature "
        "maps are halved.",
    ),
    "fig5": Entry(
        "The residual network (green) learns faster than the plain one of equal depth; test errors (solid) "
        "follow training errors (dashed).",
        "gap/plain20.zarr gap/resnet20.zarr",
    ),
    "fig6": Entry(
        "The sixteen 3x3 filters of the first convolution, before training and after 57 steps: a few have "
        "changed, most are what they were.",
        "all.zarr",
        "--steps 0 57",
    ),
    "generalisation_gap": Entry(
        "With 11 to 13 layers all three kinds learn alike, with 20 the plain one lags. Most gaps are "
        "negative, since training errors are means over the steps before, when the networks were worse: "
        "nothing is learned by heart in 120 steps.",
        "gap",
    ),
    "intervention": Entry(
        "Modulation of the errors ends at iteration 60. The lines before and after have one shape and are "
        "within a factor of three: at this depth the network can do without.",
        "modulated.zarr",
    ),
    "isometry": Entry(
        "At iteration 1 blocks keep the length of a random vector (line near 1), but not that of every "
        "vector: the largest singular value is about 5. Training makes them shorten it, and spreads the "
        "spectrum of the whole network (points on the right) further than that of any block.",
        "all.zarr",
    ),
    "learning_curves": Entry(
        "What the training loop logged: losses and accuracies of the batches, and at the end, as "
        "markers, those on the test images. The orthonormal network is a few steps ahead.",
    ),
    "mean_field": Entry(
        "Symbols follow the prediction for infinite width in its shape, with the jumps where maps are halved, "
        "and not in its size: on maps of 4x4 and 2x2 pixels much of what a filter sees is zero padding, which "
        "the theory does not count.",
    ),
    "norm_ratios": Entry(
        "The ProcResNet's ratios (right) hardly move during training, those of the plain network (left) do. "
        "All three are furthest from 1 in the first block.",
        "gap/plain20.zarr gap/resnet20.zarr gap/procresnet22.zarr",
    ),
    "overview": Entry(
        "What can be drawn from one run with the default probes; what is missing is named below.",
        "l2.zarr",
    ),
    "parameter_efficiency": Entry(
        "After 120 steps the plain network is worse when it is deeper; the other two are not.",
        "gap",
    ),
    "procrustes_grid": Entry(
        "One run per cell. Without projection (left) the gradient is 330 times smaller behind the layer from "
        "16 to 4 channels; with it (right) all nine layers are between 0.9 and 2.1.",
        "grid",
    ),
    "spectra": Entry(
        "He's initialisation spreads singular values from 0 to about 2.8, far from an isometry (dotted line). "
        "Training adds a tail on the right: some directions are amplified more.",
        "all.zarr",
    ),
    "surface": Entry(
        "Light columns on the left: the explosion at initialisation. Dark ones on the right are batches whose "
        "loss is nearly zero. The horizontal edges are where feature maps are halved.",
    ),
}


def main(folder: Path) -> None:
    """Make the runs, the images and the page."""
    folder.mkdir(parents=True, exist_ok=True)
    IMAGES.mkdir(parents=True, exist_ok=True)
    for old in IMAGES.glob("*.png"):
        old.unlink()
    with contextlib.chdir(folder):
        for store, arguments in RUNS.items():
            if not Path(store).exists():
                Path(store).parent.mkdir(exist_ok=True)
                check(propkit_main(shlex.split(f"{training(store, arguments)} --threads 1")[3:]))
        for name in registry.names():
            draw(name, IMAGES / f"{name}.png")
    PAGE.write_text(page(), encoding="utf-8")


def training(store: str, arguments: str) -> str:
    """The command that makes a run."""
    return f"python -m propkit train {arguments} --quiet -o {store}"


def drawing(name: str) -> str:
    """The command that draws a figure."""
    entry = ENTRIES.get(name, Entry(""))
    return f"python -m propkit.figures {name} {entry.runs} {entry.options}".rstrip()


def page() -> str:
    """The text of the page."""
    parts = [
        "# Gallery",
        "Every figure that propkit draws, from runs at demo scale: small networks, a hundred steps, 8x8 digits. They "
        "show what a figure looks like, and not what the papers found; [paper-figures.md](paper-figures.md) has longer "
        "runs on CIFAR-10.",
        "`python -m propkit.figures NAME --help` says how to read a figure, and what it needs. This page and its "
        "images are made by `python docs/gallery.py`, in about five minutes on one core.",
        "\n".join(f"- [{name}](#{name})" for name in registry.names()),
    ]
    for name in registry.names():
        summary = registry.describe(name).splitlines()[0]
        seen = ENTRIES[name].seen if name in ENTRIES else ""
        image = f"![{summary}](figures/gallery/{name}.png)"
        parts += [f"## {name}", summary, image, f"```\n{drawing(name)}\n```"]
        parts += [seen] if seen else []
    commands = "\n".join(training(store, arguments) for store, arguments in RUNS.items())
    parts += ["## The runs", f"```\nmkdir -p gap grid\n{commands}\n```"]
    return "\n\n".join(parts) + "\n"


def draw(name: str, image: Path) -> None:
    """Draw a figure with fewer colours, and then fewer pixels, until the file is small."""
    for dpi in RESOLUTIONS:
        check(figures_main(shlex.split(f"{drawing(name)} -o {image} --dpi {dpi}")[3:]))
        picture = Image.open(image).convert("RGB")
        for colors in (128, 64):
            few = picture.quantize(colors, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
            few.save(image, optimize=True)
            if image.stat().st_size < MOST_BYTES:
                return
    raise SystemExit(f"{image} has more than {MOST_BYTES} bytes")


def check(status: int) -> None:
    """Stop where a command failed; it has said why."""
    if status:
        raise SystemExit(status)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "demo/gallery"))
