"""What the papers report, seen through the whole path: recipe, trainer, probes, store, derived quantities."""

from pathlib import Path

import pytest

import propkit
from propkit import derived, recipes
from propkit.data import digits
from propkit.experiment import run_recipe


def _ratios(kind: str, size: int, steps: int, store: Path) -> list[float]:
    recipe = recipes.find(f"plain44-{kind}")
    run_recipe(recipe, digits(size=size), store, steps=steps, seed=0, every=1, progress=False)
    return derived.end_to_end_ratio(propkit.open(store)["error_moment"]).values.tolist()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["l2", "ortho"])
def test_errors_explode_in_a_new_plain_44(kind: str, tmp_path: Path) -> None:
    """Each layer of a new Conv-BN-ReLU network adds about π/(π-1) on the way down, whatever the initialisation.

    Real images of 32x32 pixels, batch 128. On CIFAR-10 the ratio lay between 1e5 and 2e6 for 12 seeds.
    """
    assert 1e5 < _ratios(kind, 32, 1, tmp_path / "run.zarr")[0] < 2e6


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["l2", "ortho"])
def test_they_vanish_a_few_steps_later(kind: str, tmp_path: Path) -> None:
    """arXiv:1703.01827, Sec. 5.2: all vanishing except at initialisation, hence Fig. 3 without the first steps."""
    ratios = _ratios(kind, 16, 10, tmp_path / "run.zarr")
    assert ratios[0] > 1e4
    assert min(ratios) < 1
    assert max(ratios[7:]) < 1e-3 * ratios[0]
