"""The probe of normalisation layers against the Jacobians that autograd gives, in float64."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.autograd.functional import jacobian
from torch.utils._python_dispatch import TorchDispatchMode

import propkit
from propkit.probes.bn_jacobian import bn_jacobian
from propkit.registry import DEFAULT_PROBES

SCALARS = {"rho_mean", "rho_min", "rho_max", "deviation", "m"}


def _dense(x: torch.Tensor, module: nn.Module) -> torch.Tensor:
    module = copy.deepcopy(module).double()
    return jacobian(module, x.double()).reshape(x.numel(), x.numel())


def _deviation(j: torch.Tensor, mean_square: float) -> float:
    aim = mean_square * torch.eye(len(j), dtype=j.dtype)
    return float(torch.linalg.matrix_norm(j @ j.mT - aim) / torch.linalg.matrix_norm(aim))


def _random(module: nn.Module, seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(torch.randn(p.shape, generator=generator))
        for name, b in module.named_buffers():
            if name.endswith("var"):
                b.copy_(torch.rand(b.shape, generator=generator) + 0.1)
    return module


def _per_set(x: torch.Tensor, module: nn.Module) -> torch.Tensor:
    """gamma/s of every element, of the shape of x: from the layer's definition, with NumPy."""
    a = x.double().numpy()
    shape = a.shape
    if isinstance(module, nn.GroupNorm):
        sets = a.reshape(shape[0], module.num_groups, -1)
        weight_shape = (-1, *[1] * (a.ndim - 2))
    else:
        sets = a.reshape(-1, int(np.prod(module.normalized_shape)))
        weight_shape = tuple(module.normalized_shape)
    moment = (sets**2).mean(-1) if isinstance(module, nn.RMSNorm) else sets.var(-1)
    eps = torch.finfo(x.dtype).eps if module.eps is None else module.eps
    rho = np.broadcast_to(1 / np.sqrt(moment + eps)[..., None], sets.shape).reshape(shape)
    if module.weight is not None:
        rho = rho * module.weight.detach().double().numpy().reshape(weight_shape)
    return torch.from_numpy(rho.copy())


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.integers(2, 3), min_size=2, max_size=4),
    st.sampled_from([1e-5, 0.3]),
    st.booleans(),
    st.sampled_from(["training", "evaluation", "untracked"]),
    st.integers(0, 2**31),
)
def test_batch_norm(shape: list[int], eps: float, affine: bool, mode: str, seed: int) -> None:
    kind = [nn.BatchNorm1d, nn.BatchNorm1d, nn.BatchNorm2d][len(shape) - 2]
    tracked = mode != "untracked"
    module = _random(kind(shape[1], eps=eps, affine=affine, track_running_stats=tracked), seed)
    module.train(mode == "training")
    generator = torch.Generator().manual_seed(seed)
    x = 2 * torch.randn(shape, dtype=torch.float64, generator=generator) + 3
    found = bn_jacobian(x, module)
    assert found.keys() == SCALARS | {"rho", "second"}
    assert all(v.dtype == torch.float64 for v in found.values())
    count = x.numel() // shape[1]
    j = _dense(x, module)
    blocks = j.reshape(*shape, *shape).movedim(1, 0).movedim(len(shape) + 1, 1)
    diagonal = 1 / (x.transpose(0, 1).flatten(1).var(1, correction=0) + eps).sqrt()
    if mode == "evaluation":
        diagonal = 1 / (module.running_var.double() + eps).sqrt()
    if affine:
        diagonal = diagonal * module.weight.detach().double()
    torch.testing.assert_close(found["rho"], diagonal, rtol=1e-9, atol=1e-12)
    for c in range(shape[1]):
        values = torch.linalg.eigvalsh(blocks[c, c].reshape(count, count))
        rho, second = float(found["rho"][c]), float(found["second"][c])
        expected = [rho] * count if mode == "evaluation" else [0, second, *[rho] * (count - 2)]
        np.testing.assert_allclose(values, sorted(expected), atol=1e-9 * max(1, abs(rho)))
    size = diagonal.abs()
    for name, value in (("mean", size.mean()), ("min", size.min()), ("max", size.max())):
        torch.testing.assert_close(found[f"rho_{name}"], value, rtol=1e-9, atol=0)
    assert found["m"] == count
    expected = _deviation(j, float(diagonal.square().mean()))
    assert float(found["deviation"]) == pytest.approx(expected, rel=1e-8, abs=1e-12)


OTHERS = [
    (lambda: nn.LayerNorm(5), (2, 3, 5)),
    (lambda: nn.LayerNorm([3, 4], eps=0.2), (4, 3, 4)),
    (lambda: nn.LayerNorm(6, elementwise_affine=False), (7, 6)),
    (lambda: nn.LayerNorm(6, bias=False), (6,)),
    (lambda: nn.RMSNorm(5), (2, 3, 5)),
    (lambda: nn.RMSNorm([2, 3], eps=0.3), (4, 2, 3)),
    (lambda: nn.RMSNorm(4, elementwise_affine=False), (5, 4)),
    (lambda: nn.GroupNorm(2, 6), (3, 6, 2, 2)),
    (lambda: nn.GroupNorm(1, 4, eps=0.1), (3, 4, 5)),
    (lambda: nn.GroupNorm(4, 4), (2, 4, 6)),
    (lambda: nn.GroupNorm(2, 6, affine=False), (3, 6, 4)),
    (lambda: nn.GroupNorm(2, 6), (5, 6)),
]


@pytest.mark.parametrize("block", [1 << 16, 8])
@pytest.mark.parametrize(("make", "shape"), OTHERS)
def test_layer_group_and_rms_norm(make, shape, block: int, monkeypatch) -> None:
    monkeypatch.setattr("propkit.spectra.batch_norm._BLOCK", block)
    module = _random(make())
    x = torch.randn(shape, dtype=torch.float64) + 1
    found = bn_jacobian(x, module)
    assert found.keys() == SCALARS | {"rho"}
    rho = _per_set(x, module)
    group = isinstance(module, nn.GroupNorm)
    kept = [1] if group else range(len(shape) - len(module.normalized_shape), len(shape))
    others = [d for d in range(len(shape)) if d not in kept]
    per_channel = (rho.mean(others) if others else rho).flatten()
    if module.weight is None and not group:
        per_channel = rho.mean().reshape(1)
    torch.testing.assert_close(found["rho"], per_channel, rtol=1e-10, atol=0)
    size = rho.abs()
    for name, value in (("mean", size.mean()), ("min", size.min()), ("max", size.max())):
        torch.testing.assert_close(found[f"rho_{name}"], value, rtol=1e-10, atol=0)
    sets = x.numel() // int(found["m"])
    assert sets * int(found["m"]) == x.numel()
    expected = _deviation(_dense(x, module), float(rho.square().mean()))
    assert float(found["deviation"]) == pytest.approx(expected, rel=1e-8)


LARGE = [
    (lambda: nn.BatchNorm2d(16), (64, 16, 24, 24)),
    (lambda: nn.LayerNorm(96), (40, 50, 96)),
    (lambda: nn.RMSNorm(96, eps=1e-5), (40, 50, 96)),
    (lambda: nn.GroupNorm(4, 16), (64, 16, 24, 24)),
]


@pytest.mark.parametrize(("make", "shape"), LARGE)
@pytest.mark.parametrize("offset", [0.0, 1e3])
def test_many_blocks_and_a_large_mean(make, shape, offset: float) -> None:
    """float32 input, |mean| up to a thousand standard deviations, more than one block, any memory format."""
    module = _random(make())
    x = torch.randn(shape) + offset
    exact = bn_jacobian(x.double(), module)
    for y in (x, x.transpose(0, 1).contiguous().transpose(0, 1)):
        for name, value in bn_jacobian(y, module).items():
            torch.testing.assert_close(value, exact[name], rtol=1e-9, atol=0, msg=name)
    if isinstance(module, nn.BatchNorm2d):
        variance = x.double().var((0, 2, 3), correction=0)
        expected = module.weight.detach().double() / (variance + module.eps).sqrt()
    else:
        expected = _per_set(x.double(), module).abs().mean()
    name = "rho" if expected.ndim else "rho_mean"
    torch.testing.assert_close(exact[name], expected, rtol=1e-9, atol=0)


class _Largest(TorchDispatchMode):
    """Remembers the size of the largest tensor that an operation makes; a view makes none."""

    size = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        known = {a.untyped_storage().data_ptr() for a in args if isinstance(a, torch.Tensor)}
        if isinstance(out, torch.Tensor) and out.untyped_storage().data_ptr() not in known:
            self.size = max(self.size, out.numel())
        return out


@pytest.mark.parametrize(("make", "shape"), LARGE)
def test_the_input_is_never_copied(make, shape) -> None:
    x, module = torch.randn(shape), make()
    with _Largest() as largest:
        bn_jacobian(x, module)
    assert 0 < largest.size < 0.5 * x.numel()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    "make", [lambda: nn.BatchNorm1d(6), lambda: nn.LayerNorm(6), lambda: nn.GroupNorm(2, 6)]
)
def test_half_precision(make, dtype) -> None:
    module = _random(make())
    x = (300 * torch.randn(9, 6)).to(dtype)  # squares overflow float16
    exact = bn_jacobian(x.double(), module)
    for name, value in bn_jacobian(x, module.to(dtype)).items():
        torch.testing.assert_close(value, exact[name], rtol=2e-2, atol=1e-4, msg=name)


def test_constant_channels_and_empty_batches() -> None:
    module = nn.BatchNorm1d(2, eps=0.01)
    x = torch.ones(5, 2)
    x[:, 1] = torch.randn(5)
    found = bn_jacobian(x, module)
    assert float(found["rho"][0]) == float(found["second"][0]) == pytest.approx(10)
    expected = _deviation(_dense(x, module), float(found["rho"].square().mean()))
    assert float(found["deviation"]) == pytest.approx(expected)
    assert bn_jacobian(torch.empty(0, 2), module) == {}


def test_nan_and_inf_are_seen() -> None:
    for bad in (float("nan"), float("inf")):
        x = torch.randn(4, 2)
        x[0, 0] = bad
        found = bn_jacobian(x, nn.BatchNorm1d(2))
        assert found["rho"].isnan().tolist() == [True, False]
        assert found["deviation"].isnan()
        assert bn_jacobian(x, nn.LayerNorm(2))["deviation"].isnan()


class _Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.bn = nn.BatchNorm2d(8)
        self.group = nn.GroupNorm(2, 8)
        self.fc = nn.Linear(8, 5)
        self.layer = nn.LayerNorm(5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.group(self.bn(self.conv(x)).relu())
        return self.layer(self.fc(x.mean((2, 3))))


def test_it_is_recorded_where_it_is_asked_for() -> None:
    assert "bn_jacobian" not in DEFAULT_PROBES
    net = _random(_Net())
    reference, x = copy.deepcopy(net), torch.randn(6, 3, 9, 9)
    inputs = {}
    for name in ("bn", "group", "layer"):
        reference.get_submodule(name).register_forward_pre_hook(
            lambda _, args, name=name: inputs.__setitem__(name, args[0].detach())
        )
    expected_output = reference(x)
    with propkit.attach(net, probes=["bn_jacobian"]) as recorder:
        output = net(x)
        output.sum().backward()
        recorder.step()
    torch.testing.assert_close(output, expected_output)
    torch.testing.assert_close(net.bn.running_var, reference.bn.running_var, rtol=0, atol=0)
    group = recorder.run["bn_jacobian"].isel(step=0)
    assert group["site"].values.tolist() == ["bn", "group", "layer"]
    sites = group["site"].values[group["site_index"].values]
    for name, received in inputs.items():
        for variable, value in bn_jacobian(received, reference.get_submodule(name)).items():
            found = group[variable].values
            found = found[sites == name] if value.ndim else found[group["site"].values == name]
            np.testing.assert_allclose(found, value, rtol=1e-5, err_msg=variable)


@pytest.mark.parametrize(
    ("module", "x"),
    [
        (nn.BatchNorm2d(4), torch.randn(5, 4, 3, 3)),
        (nn.LayerNorm(4), torch.randn(6, 4)),
        (nn.GroupNorm(2, 4), torch.randn(5, 4, 3)),
        (nn.RMSNorm(4), torch.randn(7, 4)),
    ],
)
def test_it_can_be_part_of_a_graph(module, x) -> None:
    function = bn_jacobian.measurements[0].function
    run = torch.compile(function, backend="aot_eager", fullgraph=True, dynamic=True)
    for part in (x, x[:3]):
        expected = bn_jacobian(part, module)
        for name, value in run(part, module).items():
            torch.testing.assert_close(value, expected[name], msg=name)


def test_synchronised_batch_norm_counts_all_processes(monkeypatch) -> None:
    x, module = torch.randn(6, 3, 2), nn.SyncBatchNorm(3)
    alone = bn_jacobian(x, module)
    assert alone["m"] == 12
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda group: 4)
    found = bn_jacobian(x, module)
    assert found["m"] == 48
    torch.testing.assert_close(found["rho"], alone["rho"], rtol=0, atol=0)
    assert found["deviation"] < alone["deviation"]  # two directions of more
    assert bn_jacobian(x, nn.BatchNorm1d(3))["m"] == 12
    assert bn_jacobian(x, module.eval())["m"] == 12
