"""Small networks of sequences and vectors: recurrent, attention, dataclasses, tied and frozen weights."""

from dataclasses import dataclass

import torch
from torch import nn


class Recurrent(nn.Module):
    """An `nn.LSTM` or `nn.GRU` of two layers and a linear head on the last state."""

    def __init__(self, kind: type[nn.Module], bidirectional: bool = False) -> None:
        super().__init__()
        self.embed = nn.Embedding(9, 5)
        self.rnn = kind(5, 6, num_layers=2, batch_first=True, bidirectional=bidirectional)
        self.head = nn.Linear(6 * (1 + bidirectional), 3)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.rnn(self.embed(ids))[0].mean(1))


class PackedLSTM(nn.Module):
    """Sequences of different lengths, packed."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(5, 5)
        self.rnn = nn.LSTM(5, 6, batch_first=True)
        self.head = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(
            self.inner(x), lengths, batch_first=True, enforce_sorted=False
        )
        out, _ = nn.utils.rnn.pad_packed_sequence(self.rnn(packed)[0], batch_first=True)
        return self.head(out.sum(1))


class CellLoop(nn.Module):
    """An `nn.LSTMCell` called once per position: as many calls as the sequence is long."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(5, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        state = None
        for t in range(x.shape[1]):
            state = self.cell(x[:, t], state)
        return self.head(state[0])


class Seq2Seq(nn.Module):
    """`nn.Transformer` with its embeddings."""

    def __init__(self, norm_first: bool = False) -> None:
        super().__init__()
        self.embed = nn.Embedding(9, 8)
        self.transformer = nn.Transformer(
            8, 2, 2, 2, 16, dropout=0.0, batch_first=True, norm_first=norm_first
        )
        self.head = nn.Linear(8, 9)

    def forward(self, source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return self.head(self.transformer(self.embed(source), self.embed(target)))


class AttentionBlock(nn.Module):
    """`nn.MultiheadAttention` and a skip connection."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)
        self.mlp = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return x + self.mlp(x).relu_()


class AttentionNet(nn.Module):
    """Two attention blocks; `queries`, a parameter, is the input of the last attention (as in DETR)."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([AttentionBlock(), AttentionBlock()])
        self.queries = nn.Parameter(torch.randn(1, 2, 6))
        self.project = nn.Linear(6, 6)
        self.pool = nn.MultiheadAttention(6, 1, batch_first=True)
        self.head = nn.Linear(12, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        queries = self.project(self.queries).expand(len(x), -1, -1)
        return self.head(self.pool(queries, x, x)[0].flatten(1))


@dataclass
class Features:
    """What `Structured` hands from part to part."""

    label: str
    state: torch.Tensor
    extra: dict[str, torch.Tensor]


class FeatureBlock(nn.Module):
    """Takes and returns a dataclass."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, features: Features) -> Features:
        hidden = self.fc1(features.state).tanh()
        return Features("done", features.state + self.fc2(hidden), {"hidden": hidden})


class Structured(nn.Module):
    """Its parts speak in dataclasses, and it returns one."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([FeatureBlock(), FeatureBlock()])
        self.head = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> Features:
        features = Features("start", x, {})
        for block in self.blocks:
            features = block(features)
        return Features("end", self.head(features.state), features.extra)


class PartlyFrozen(nn.Module):
    """A feature extractor under no_grad, a frozen layer behind it that passes gradients on, and trained ends."""

    def __init__(self) -> None:
        super().__init__()
        self.extractor = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6))
        self.adapter = nn.Linear(6, 6)
        self.frozen = nn.Linear(6, 6).requires_grad_(False)
        self.head = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            x = self.extractor(x)
        return self.head(self.frozen(self.adapter(x).tanh()))


class TiedLanguageModel(nn.Module):
    """The output layer's weight is the embedding's."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(9, 6)
        self.mix = nn.Linear(6, 6)
        self.out = nn.Linear(6, 9, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.out(torch.tanh(self.mix(self.embed(ids))))
