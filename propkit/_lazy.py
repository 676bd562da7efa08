"""Lazy public names, where a function and the file that holds it share one name.

``propkit.attach`` is a function in ``propkit/attach.py``. Python's import system would replace the function by the
module as soon as anything imports that file; the module class here keeps the function.
"""

import importlib
import sys
import types
from collections.abc import Mapping
from typing import Any


def publish(package: str, names: Mapping[str, str]) -> None:
    """Make `names` attributes of `package` that are imported when first used.

    Args:
        package: The package's ``__name__``.
        names: Public name -> full name of the module that defines it. A module that has no attribute of
            that name (``"training": "propkit.training"``) is published itself.
    """

    class LazyPackage(types.ModuleType):
        def __getattr__(self, name: str) -> Any:
            if name not in names:
                raise AttributeError(f"module {package!r} has no attribute {name!r}")
            module = importlib.import_module(names[name])
            value = getattr(module, name, module)
            self.__dict__[name] = value
            return value

        def __setattr__(self, name: str, value: object) -> None:
            # The import system binds a submodule to its package through here.
            if isinstance(value, types.ModuleType) and names.get(name) == value.__name__:
                value = getattr(value, name, value)
            super().__setattr__(name, value)

        def __dir__(self) -> list[str]:
            return sorted({*super().__dir__(), *names})

    sys.modules[package].__class__ = LazyPackage
