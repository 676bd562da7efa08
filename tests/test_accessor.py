"""``.propkit`` on what xarray opened by itself, against ``run.derived`` and against plain NumPy."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import xarray as xr
from torch import nn

import propkit
from propkit import derived
from propkit.derived.xarray_accessor import as_in_a_run
from propkit.testing import TinyPlain

PROBES = ["error_moment", "gradient_norm", "filter_correlation", "activation", "weight"]
PROBES += ["representation", "singular_values"]


def record(path: Path | None, model: nn.Module, x: torch.Tensor, probes: list[str]) -> propkit.Run:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with propkit.attach(model, path, probes=dict.fromkeys(probes, 1)) as recorder:
        for _ in range(4):
            optimizer.zero_grad()
            F.cross_entropy(model(x), torch.arange(len(x)) % 3).backward()
            optimizer.step()
    return recorder.run


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("accessor") / "run.zarr"
    record(path, TinyPlain(), torch.randn(8, 3, 7, 5), PROBES)
    return path


@pytest.mark.parametrize("name", [n for n in derived.QUANTITIES if n != "residual_bound"])
def test_a_tree_gives_what_the_run_gives(store: Path, name: str) -> None:
    options = {"direction": "lower"} if name == "gradient_norm_ratio" else {}
    expected = getattr(propkit.open(store).derived, name)(**options)
    tree = xr.open_datatree(store, engine="zarr")
    found = getattr(tree.propkit, name)(**options)
    xr.testing.assert_identical(found, expected)
    of_a_group = getattr(tree["error_moment"].propkit, name)(**options)  # the others are beside it
    xr.testing.assert_identical(of_a_group, expected)


def test_residual_bound_is_refused_for_the_same_reason(store: Path) -> None:
    with pytest.raises(ValueError, match="inside one of the blocks"):
        xr.open_datatree(store, engine="zarr").propkit.residual_bound()


def test_a_dataset_is_one_group(store: Path) -> None:
    errors = xr.open_zarr(store, group="error_moment")
    weights = xr.open_zarr(store, group="weight")
    q = errors["output"].values[:, [t == "Conv2d" for t in errors["type"].values]]
    np.testing.assert_allclose(errors.propkit.error_ratio(), q / q[:, -1:])
    np.testing.assert_allclose(
        errors.isel(step=[2]).propkit.end_to_end_ratio(), q[2:3, 0] / q[2:3, -1]
    )
    both = errors.propkit.corrected_end_to_end_ratio(weight=weights)
    xr.testing.assert_identical(both, propkit.open(store).derived.corrected_end_to_end_ratio())
    xr.testing.assert_identical(
        both, weights.propkit.corrected_end_to_end_ratio(error_moment=errors)
    )


def test_lazy_values_stay_lazy(store: Path) -> None:
    ratio = xr.open_zarr(store, group="error_moment", chunks={}).propkit.error_ratio()
    assert ratio.chunks is not None


def test_options_are_passed_on(store: Path) -> None:
    tree = xr.open_datatree(store, engine="zarr")
    one = tree.propkit.gradient_norm_ratio(direction="lower")
    np.testing.assert_allclose(one, 1 / tree.propkit.gradient_norm_ratio(direction="upper"))


def test_part_of_a_tree(store: Path) -> None:
    tree = xr.open_datatree(store, engine="zarr")
    late = tree["error_moment"].isel(step=slice(2, None))  # xarray takes it out of the tree
    assert late.parent is None
    expected = tree.propkit.error_ratio().isel(step=slice(2, None))
    xr.testing.assert_identical(late.propkit.error_ratio(), expected)
    with pytest.raises(KeyError, match=r"expected the group 'weight', found error_moment"):
        late.propkit.corrected_error_ratio()
    nameless = xr.DataTree(late.to_dataset())
    with pytest.raises(KeyError, match=r"take tree.to_dataset\(\)\.propkit"):
        nameless.propkit.error_ratio()


def test_spectra(store: Path) -> None:
    run, tree = propkit.open(store), xr.open_datatree(store, engine="zarr")
    sites = run["singular_values"]["site"].values.tolist()
    for site in sites:
        expected = run.spectrum(site, step=2)
        xr.testing.assert_identical(tree.propkit.spectrum(site, step=2), expected)
        group = tree["singular_values"]
        xr.testing.assert_identical(group.propkit.spectrum(site, step=2), expected)
        xr.testing.assert_identical(group.to_dataset().propkit.spectrum(site, step=2), expected)
    with pytest.raises(KeyError, match="has no spectra"):
        tree["weight"].propkit.spectrum(sites[0])


def test_errors_say_what_is_missing(store: Path) -> None:
    tree = xr.open_datatree(store, engine="zarr")
    weights = tree["weight"].to_dataset()
    with pytest.raises(
        ValueError, match=r"expected a variable 'output', found .*norm.*right group"
    ):
        weights.propkit.error_ratio()
    with pytest.raises(
        KeyError, match=r"taken as 'error_moment', it needs weight=\.\.\."
    ) as caught:
        tree["error_moment"].to_dataset().propkit.corrected_error_ratio()
    assert "\n" not in str(caught.value)
    assert not str(caught.value).startswith(("'", '"'))  # as KeyError prints its own
    del tree["error_moment"]
    with pytest.raises(KeyError, match=r"'error_moment', found gradient_norm, .*attach\("):
        tree.propkit.error_ratio()
    with pytest.raises(AttributeError, match="no derived quantity 'eror_ratio'; there are error"):
        tree.propkit.eror_ratio  # noqa: B018 - the access is the test
    assert "error_ratio" in dir(tree.propkit)
    assert "error_ratio" in repr(weights.propkit)


class Late(nn.Module):
    """Its first layer runs from the third step on."""

    def __init__(self) -> None:
        super().__init__()
        self.late, self.early, self.last = (nn.Linear(4, 4) for _ in range(3))
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        if self.calls > 70:  # the columns of the first flush are fixed by then
            x = self.late(x).tanh()
        return self.last(self.early(x).tanh())


def test_sites_are_in_the_order_of_execution(tmp_path: Path) -> None:
    """In the store a site that came late is the last; the ratio is to the last one that runs."""
    model = Late()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    path = tmp_path / "late.zarr"
    with propkit.attach(model, path, probes=["error_moment", "weight"]):
        for _ in range(80):
            optimizer.zero_grad()
            model(torch.randn(8, 4)).square().mean().backward()
            optimizer.step()
    run = propkit.open(path)
    raw = xr.open_zarr(path, group="error_moment")
    assert raw["site"].values.tolist() == ["early", "last", "late"]
    assert run["error_moment"]["site"].values.tolist() == ["late", "early", "last"]
    tidy = as_in_a_run(raw)
    xr.testing.assert_identical(tidy, run["error_moment"])
    xr.testing.assert_identical(as_in_a_run(tidy), tidy)
    ratio = raw.propkit.end_to_end_ratio()
    q = raw["output"].sel(step=79)
    np.testing.assert_allclose(ratio.sel(step=79), q.sel(site="late") / q.sel(site="last"))
    two = raw.isel(site=[1, 2])  # a selection keeps the attribute, which then counts other sites
    np.testing.assert_allclose(two.propkit.end_to_end_ratio(), ratio)
    turned = raw.isel(site=[2, 1, 0])
    np.testing.assert_allclose(turned.propkit.end_to_end_ratio(), ratio)
    weights = xr.open_zarr(path, group="weight")
    by_name = weights.propkit.corrected_end_to_end_ratio(error_moment=raw)
    xr.testing.assert_identical(by_name, run.derived.corrected_end_to_end_ratio())


@pytest.mark.parametrize(
    "code",
    [
        "import propkit.derived",
        "from propkit import open; open(PATH)['error_moment']",
    ],
)
def test_what_registers_it(store: Path, code: str) -> None:
    script = f"import warnings; warnings.simplefilter('error')\nPATH = {str(store)!r}\n{code}\nimport xarray as xr\n"
    script += (
        "t = xr.open_datatree(PATH, engine='zarr'); print(t.propkit.error_ratio().sizes['step'])\n"
    )
    script += "import sys; assert 'torch' not in sys.modules and 'matplotlib' not in sys.modules"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "4\n"
