"""Where a checkpoint store is: which URIs can be one, and where in it the checkpoints of a run are."""

from __future__ import annotations

import re

from orchestrator.core.config import home_box
from orchestrator.core.errors import UserError

SCHEMES = ("s3", "hf", "ssh")


HUB_FORM = re.compile(r"hf://(?:models/)?([\w.-]+/[\w.-]+)((?:/[\w.-]+)*)/?")


def check_scheme(uri: str) -> None:
    """Raises UserError for a store that machines cannot write to, with what to write instead."""
    scheme = uri.partition("://")[0] if "://" in uri else ""
    if scheme == "hf":
        hub_place(uri)
    if scheme == "ssh":
        _check_home(uri)
    if scheme in SCHEMES:
        return
    raise UserError(
        f"checkpoint_store {uri}: machines cannot write there; s3://, hf:// and ssh:// are supported",
        f'write checkpoint_store = "s3://BUCKET/PREFIX", {ANY_S3}; or omit it: a gptctl that follows the run '
        "mirrors its checkpoints to this computer",
    )


def _check_home(uri: str) -> None:
    try:
        home_box.by_ssh_alone(uri)
    except UserError as error:
        raise UserError(f"checkpoint_store {error.message}", error.hint) from error


def hub_place(uri: str) -> tuple[str, str]:
    """(OWNER/NAME, folder in it) of a store on the Hub. Raises UserError."""
    found = HUB_FORM.fullmatch(uri)
    if found is None:
        raise UserError(f"checkpoint_store {uri} is not a repository of the Hub", "write it as hf://OWNER/NAME")
    return found[1], found[2].strip("/")


def run_uri(store: str, run_id: str) -> str:
    """Where a run's checkpoints are. Of the Hub's repositories a store is a model's, whatever else hf:// may mean."""
    scheme, _, place = store.rstrip("/").partition("://")
    if scheme == "hf" and not place.startswith("models/"):
        place = f"models/{place}"
    return f"{scheme}://{place}/{run_id}"


ANY_S3 = "in any S3 (AWS_ENDPOINT_URL_S3 names one that is not Amazon's)"
