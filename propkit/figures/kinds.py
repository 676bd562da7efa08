"""Which runs are of one kind, and so are averaged and share a line in figures that compare kinds of networks."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from propkit.figures.runs import RunLike, configured

MODEL = "recipe.model"
"""Setting that names the kind of network."""

_EACH_ITS_OWN = {"seed", "depth", "parameters", "device", "processes"}
"""Ends of settings in which runs of one kind may differ: what repeats a run or makes it deeper, and where it ran."""

_ASIDE = {
    f"recipe.{key}"
    for key in (
        *("name", "summary", "reference", "figures"),
        *("every", "evaluate_every", "probes", "blocks"),
    )
}
"""Settings that do not change the training either: what a recipe is called, and what is recorded."""

_MOST = 3
"""A kind is named by up to so many settings."""


def kinds_of(runs: Mapping[str, RunLike], by: str | None = None) -> dict[str, str]:
    """What each run is compared as.

    Args:
        runs: Label -> run.
        by: Setting that says it, whatever else differs: `series_of`. None: runs are of one kind if they have one model
            and differ in nothing but seed and depth, and what does not change the training. Kinds of one run each
            have the runs' labels.

    Returns:
        Label -> kind.
    """
    if by is not None:
        return {label: series_of(run, label, by) for label, run in runs.items()}
    settings = {label: dict(_settings(run.attributes.get("config"))) for label, run in runs.items()}
    found: dict[str, str] = {}
    for model, labels in _grouped({k: series_of(r, k, MODEL) for k, r in runs.items()}).items():
        same = _grouped({label: repr(sorted(settings[label].items())) for label in labels})
        found |= _named(model, list(same.values()), runs, settings)
    if len(set(found.values())) == len(runs):
        return {label: label for label in runs}
    return {label: found[label] for label in runs}


def series_of(run: RunLike, label: str, by: str) -> str:
    """The value of a setting, or a run's label where it has none.

    Runs of one recipe and several seeds or depths are one series by ``"recipe.model"``.
    """
    value = configured(run, by)
    return label if value is None or value == "" else str(value).replace("_", " ")


def _settings(config: object, prefix: str = "") -> Iterator[tuple[str, str]]:
    """The settings in which runs of one kind agree."""
    for key, value in config.items() if isinstance(config, Mapping) else ():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            yield from _settings(value, f"{name}.")
        elif key not in _EACH_ITS_OWN and name not in _ASIDE:
            yield name, str(value)


def _named(
    model: str,
    kinds: Sequence[Sequence[str]],
    runs: Mapping[str, RunLike],
    settings: Mapping[str, Mapping[str, str]],
) -> dict[str, str]:
    """Label -> name of its kind, of the kinds that one model has."""
    if len(kinds) == 1:
        return dict.fromkeys(kinds[0], model)
    recipes = [_recipe([runs[label] for label in labels]) for labels in kinds]
    each = [settings[labels[0]] for labels in kinds]
    differ = [
        k for k in dict.fromkeys(k for s in each for k in s) if len({s.get(k) for s in each}) > 1
    ]
    names: dict[str, str] = {}
    for labels, own, there in zip(kinds, recipes, each, strict=True):
        if len(labels) == 1:
            name = labels[0]
        elif own and recipes.count(own) == 1:
            name = own
        elif len(differ) <= _MOST:
            told = [f"{k.rpartition('.')[2]}={there.get(k, 'none')}" for k in differ]
            name = ", ".join([model, *told])
        else:
            name = f"{labels[0]} and {len(labels) - 1} more"
        names |= dict.fromkeys(labels, name)
    return names


def _recipe(runs: Sequence[RunLike]) -> str:
    """The recipe's name that runs share, without the depth where they differ in that; empty if there is none."""
    names = [str(configured(run, "recipe.name") or "") for run in runs]
    if len(set(names)) > 1:
        depths = [configured(run, "recipe.depth") for run in runs]
        names = [
            re.sub(rf"-?{d}(?!\d)", "", n, count=1) for n, d in zip(names, depths, strict=True)
        ]
    return names[0] if len(set(names)) == 1 else ""


def _grouped(values: Mapping[str, Any]) -> dict[Any, list[str]]:
    """Value -> the labels that have it, in their order."""
    groups: dict[Any, list[str]] = {}
    for label, value in values.items():
        groups.setdefault(value, []).append(label)
    return groups
