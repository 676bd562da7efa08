"""Recurrent, convolutional and other networks, each against brute force."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations

import propkit
from tests.zoo import oracle, sequences, vision
from tests.zoo.batches import LABELS, classify, ids, normal
from tests.zoo.harness import check


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_recurrent_layers(kind, bidirectional: bool) -> None:
    check(sequences.Recurrent(kind, bidirectional), classify(ids(4, 6)), blocks=None)


@pytest.mark.parametrize("batch_first", [True, False])
def test_an_lstm_whose_last_state_alone_is_used(batch_first: bool) -> None:
    class LastState(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(9, 5)
            self.rnn = nn.LSTM(5, 6, batch_first=batch_first)
            self.head = nn.Linear(6, 3)

        def forward(self, x):
            return self.head(self.rnn(self.embed(x))[1][0][-1])

    # Its first output, the sequence, gets no gradient: nothing is recorded, rather than something else.
    x = ids(4, 6) if batch_first else ids(6, 4)
    result = check(LastState(), classify(x), blocks=None)
    moments = result.run["error_moment"].set_index(site="site").sel(site="rnn")
    assert np.isnan(moments["output"]).all()
    assert (moments["input"] > 0).all()


def test_packed_sequences() -> None:
    lengths = torch.tensor([5, 2, 4, 3])
    check(sequences.PackedLSTM(), classify(normal(4, 5, 5), lengths), blocks=None)


def test_a_cell_in_a_loop_has_one_site_per_call() -> None:
    result = check(sequences.CellLoop(), classify(normal(4, 5, 5)), blocks=None)
    sites = result.run["error_moment"]["site"].values.tolist()
    assert sites == ["cell", "cell#1", "cell#2", "cell#3", "cell#4", "head"]


def test_calls_that_appear_later() -> None:
    model = sequences.CellLoop()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    lengths, wanted = [2, 4, 3], []
    with propkit.attach(model, probes="error_moment") as recorder:
        for length in lengths:
            loss = classify(normal(4, length, 5))
            wanted.append(oracle.observe(model, loss)["cell"])
            optimizer.zero_grad()
            loss(model).backward()
            optimizer.step()
    moments = recorder.run["error_moment"].set_index(site="site")["output"]
    for step, calls in enumerate(wanted):
        for i in range(4):
            got = moments.sel(site=f"cell#{i}" if i else "cell").values[step]
            want = oracle.mean_square(calls[i].grad_output) if i < len(calls) else np.nan
            np.testing.assert_allclose(got, want, rtol=1e-5)


@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True")  # nn.Transformer's own choice
@pytest.mark.parametrize("norm_first", [False, True])
def test_nn_transformer(norm_first: bool) -> None:
    target = ids(4, 4)

    def loss(model: nn.Module) -> torch.Tensor:
        return F.cross_entropy(model(ids(4, 5, seed=4), target).flatten(0, 1), target.flatten())

    layers = [f"transformer.{side}.layers.{i}" for side in ("encoder", "decoder") for i in (0, 1)]
    unobserved = [f"{name}.self_attn.out_proj" for name in layers]
    unobserved += [f"{name}.multihead_attn.out_proj" for name in layers[2:]]
    check(sequences.Seq2Seq(norm_first), loss, blocks=layers, unobserved=unobserved)


def test_an_evaluated_nn_transformer_gives_what_it_gives_unobserved() -> None:
    model = sequences.Seq2Seq().eval()
    with torch.no_grad():
        bare = model(ids(4, 5), ids(4, 4))
        with propkit.attach(model, probes="activation") as recorder:
            watched = model(ids(4, 5), ids(4, 4))
            recorder.step()
    torch.testing.assert_close(watched, bare)
    sites = set(recorder.run["activation"]["site"].values.tolist())
    assert {"transformer.encoder.layers.0.linear1", "transformer.decoder.layers.1.linear2"} <= sites


def test_multihead_attention_and_learned_queries() -> None:
    unobserved = ["layers.0.attention.out_proj", "layers.1.attention.out_proj", "pool.out_proj"]
    check(
        sequences.AttentionNet(),
        classify(normal(4, 5, 6)),
        blocks=["layers.0", "layers.1"],
        unobserved=unobserved,
    )


def test_unet_with_concatenations() -> None:
    target = torch.randint(0, 3, (4, 8, 8), generator=torch.Generator().manual_seed(5))
    check(vision.UNet(), lambda m: F.cross_entropy(m(normal(4, 3, 8, 8)), target), blocks=None)


def test_convolutions_of_every_kind() -> None:
    check(vision.Dimensions(), classify(normal(4, 2, 4, 5, 6)), blocks=None)


def test_mixer() -> None:
    check(vision.Mixer(), classify(normal(4, 3, 8, 8)), blocks=["blocks.0", "blocks.1"])


def test_densenet_whose_layers_receive_a_list() -> None:
    blocks = ["layers.0", "layers.1", "layers.2"]
    check(vision.DenseNet(), classify(normal(4, 3, 6, 6)), blocks=blocks)


def test_dataclasses() -> None:
    x = normal(4, 6)
    check(
        sequences.Structured(),
        lambda m: F.cross_entropy(m(x).state, LABELS),
        blocks=["blocks.0", "blocks.1"],
    )


def test_everything_in_place() -> None:
    check(vision.Inplace(), classify(normal(4, 3, 6, 6)), blocks=None)


def test_functional_activations_and_a_weight_used_by_a_function() -> None:
    model = vision.Functional()
    check(model, classify(normal(4, 3, 6, 6)), blocks=None, unobserved=["direct"])


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing(reentrant: bool, whole: bool) -> None:
    x = normal(4, 3, 6, 6)

    def without(model: nn.Module) -> torch.Tensor:
        model.reentrant = None
        return classify(x)(model)

    check(
        vision.Checkpointed(reentrant, whole),
        classify(x),
        oracle_loss=without,
        blocks=[f"blocks.{i}" for i in range(3)],
    )


def test_stochastic_depth() -> None:
    blocks = [f"blocks.{i}" for i in range(4)]
    result = check(
        vision.StochasticDepth(0.3), classify(normal(4, 3, 6, 6)), blocks=blocks, ordered=False
    )
    norms = result.run["gradient_norm"]["output"].values
    assert np.isnan(norms).any()  # a block that did not run in a step has no value there


def test_sites_that_appear_later_are_in_the_order_of_execution() -> None:
    model = vision.StochasticDepth()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with propkit.attach(model, probes=["gradient_norm", "error_moment"]) as recorder:
        for kept in ((1, 3), (0, 1, 2, 3), (2,)):
            model.kept = kept
            classify(normal(4, 3, 6, 6))(model).backward()
            optimizer.step()
    norms = recorder.run["gradient_norm"]
    assert norms["site"].values.tolist() == [f"blocks.{i}" for i in range(4)]
    assert recorder.run["error_moment"]["depth"].values.tolist() == list(range(1, 11))


def test_parts_without_gradient() -> None:
    result = check(
        sequences.PartlyFrozen(),
        classify(normal(4, 6)),
        blocks=None,
        unobserved=["extractor.0", "extractor.2"],
    )
    assert "extractor.0" in result.run["activation"]["site"].values


def test_tied_weights() -> None:
    x = ids(4, 5)
    check(
        sequences.TiedLanguageModel(),
        lambda m: F.cross_entropy(m(x).flatten(0, 1), x.roll(1, 1).flatten()),
        blocks=None,
    )


@pytest.mark.parametrize("kind", ["weight_norm", "spectral_norm", "orthogonal"])
def test_parametrised_weights(kind: str) -> None:
    wrap = getattr(parametrizations, kind)
    model = nn.Sequential(
        wrap(nn.Conv2d(3, 6, 3)),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        wrap(nn.Linear(24, 5)),
        nn.Linear(5, 3),
    )
    result = check(model, classify(normal(4, 3, 4, 4)), blocks=None)
    assert result.run["error_moment"]["type"].values.tolist() == ["Conv2d", "Linear", "Linear"]


def test_a_siamese_network() -> None:
    """Several forwards before one backward: they are combined."""
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(inplace=True), nn.Linear(8, 4))
    anchor, positive, negative = normal(4, 6), normal(4, 6, seed=4), normal(6, 6, seed=5)

    def loss(net: nn.Module) -> torch.Tensor:
        a, p, n = net(anchor), net(positive), net(negative)
        return F.triplet_margin_loss(a, p, n[:4]) + n.square().mean()

    calls = oracle.observe(model, loss)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with propkit.attach(model) as recorder:
        loss(model).backward()
        optimizer.step()
    for group in ("error_moment", "gradient_norm", "activation"):
        ds = recorder.run[group]
        for i, site in enumerate(ds["site"].values.tolist()):
            want = getattr(oracle, group)(calls[site])
            for variable in ds.data_vars:
                np.testing.assert_allclose(
                    ds[variable].values[0, i],
                    want[variable],
                    rtol=1e-5,
                    atol=1e-6 if variable == "mean" else 0,
                )
