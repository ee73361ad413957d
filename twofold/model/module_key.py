"""Names of features as names of PyTorch modules."""

from torch import nn

from twofold.digest import digest_of

_NO_MODULES = nn.ModuleDict()


def module_key(name: str) -> str:
    """Returns the name under which an encoder holds the modules of a feature.

    PyTorch takes no dots, and no names of its own attributes, such as `type`; a column may have either.
    """
    is_free = name.isidentifier() and not hasattr(_NO_MODULES, name)
    return name if is_free else f"feature_{digest_of(name)[:16]}"
