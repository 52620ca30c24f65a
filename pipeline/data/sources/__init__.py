"""Kinds of sources, one module each: adding one is adding a file (docs/howto/new-source.md)."""

import pkgutil
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_origin

from pydantic import Field

from pipeline.data.sources.base import Source


def _kinds() -> tuple[type[Source], ...]:
    """The models in the modules of this package whose `kind` is a literal, in the order of the modules' names."""
    models: list[Any] = []
    for module in pkgutil.iter_modules(__path__):
        members = vars(import_module(f"{__name__}.{module.name}")).values()
        models += [member for member in members if isinstance(member, type) and issubclass(member, Source)]
    once = dict.fromkeys(models)  # modules import each other's models
    return tuple(model for model in once if get_origin(model.model_fields["kind"].annotation) is Literal)


KINDS = _kinds()

if TYPE_CHECKING:
    AnySource = Source
else:
    AnySource = Annotated[Union[KINDS], Field(discriminator="kind")]  # noqa: UP007 (of a tuple made at run time)
