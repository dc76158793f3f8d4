"""Recipes: methods of papers, each a few lines over the other parts.

A recipe is a file here, with a function of the same name.

    from tfprune import recipes

    def train(model, epochs, *, stage, callbacks):
        model.compile("sgd", "mse")
        model.fit(x, y, epochs=epochs, callbacks=[*callbacks])

    result = recipes.named("sfp")(model, train, epochs=100, macs=0.5)        # a StripResult

docs/recipes.md has a table of them.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any

from tfprune.errors import PlanError, nearest


def names() -> tuple[str, ...]:
    """The recipes, by name. Nothing is imported to find them.

    >>> names()
    ('agp', 'asfp', 'fpgm', 'group_sparsity', 'ladder', 'scratch', 'sfp', 'slimming')
    """
    return tuple(sorted(found.name for found in pkgutil.iter_modules(__path__) if found.name != "base"))


def named(name: str) -> Any:
    """The recipe with this name.

    Raises:
        PlanError: there is none; near names are suggested.

    >>> named("sfp").__name__
    'sfp'
    """
    if name not in names():
        raise PlanError(f"there is no recipe {name!r}{nearest(name, names())}; there are {', '.join(names())}")
    return getattr(importlib.import_module(f"{__name__}.{name}"), name)


__all__ = ["named", "names"]
