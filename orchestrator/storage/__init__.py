"""Where data and checkpoints lie: one file, one URI scheme. A new file is a new scheme; nothing else has to know it.

A module's name is the scheme's (`http` answers for https too, `path` for what has no scheme), and it has
`storage() -> Storage`, which reads what it needs of the user's environment.

Example: `of("hf://gpjt/fineweb-gpt2-tokens").manifest("hf://gpjt/fineweb-gpt2-tokens")`
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import Protocol, cast

from orchestrator.core import ports
from orchestrator.core.errors import UserError
from orchestrator.core.suggest import did_you_mean, one_of

PATH = "path"
ALSO = {"https": "http"}


class StorageModule(Protocol):
    """What a file of this folder offers."""

    def storage(self) -> ports.Storage: ...


def known() -> list[str]:
    """Names of the schemes, by listing this folder. Imports none of them."""
    return sorted(found.name for found in pkgutil.iter_modules(__path__))


def scheme_of(uri: str) -> str:
    """`hf`, `s3`, `http` or `path`. Raises UserError listing the known ones."""
    scheme, colon, _ = uri.partition("://")
    name = ALSO.get(scheme, scheme) if colon else PATH
    if name not in known():
        addresses = [f"{each}://" for each in known() if each != PATH]
        raise UserError(
            f"{uri}: nothing here reads {scheme}://{did_you_mean(scheme, known())}; known: a path, {one_of(addresses)}",
            "correct the scheme, or download it and give its path",
        )
    return name


def of(uri: str) -> ports.Storage:
    """The storage that answers for a URI."""
    scheme = scheme_of(uri)
    try:
        module = cast(StorageModule, importlib.import_module(f"{__name__}.{scheme}"))
    except ModuleNotFoundError as error:
        raise UserError(
            f"{scheme}:// needs {error.name}, which is not installed", "pip install 'gptctl[aws]'"
        ) from error
    return module.storage()
