"""The part of a run that others may see: its recipe and sources, without private folders and without keys.

Of a path on your disk it keeps only the last part; of an address, neither name and password nor the query, where
presigned URLs carry their signature. It must not change what the ledger keeps.

    shown_source("/home/ann/thesis/corpus.txt")                     # corpus.txt
    shown_source("https://bucket.example/tokens.bin?X-Amz-Signature=1")   # https://bucket.example/tokens.bin
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchestrator.report.data_source import shown_source
from orchestrator.report.summary import recipe_text

LEFT_OUT = """\
# {key} is not the whole address: private folders or keys were removed.
# To train this again, name your own copy: --set {key}=PATH
"""


def shown_recipe(resolved: Mapping[str, Any]) -> str:
    """recipe.toml for others. Comments at its top say what was removed."""
    recipe = dict(resolved)
    data = recipe["data"] = dict(recipe.get("data") or {})
    if data.get("prepare"):
        data["prepare"] = dict(data["prepare"])
        data["prepare"]["mix"] = [dict(each) for each in data["prepare"].get("mix") or ()]
    left_out = ""
    model = recipe["model"] = dict(recipe.get("model") or {})
    if (begins := model.get("init_from")) and shown_source(begins) != begins and "/" in begins:
        model["init_from"] = shown_source(begins)
        left_out += LEFT_OUT.format(key="model.init_from")
    prepare = data.get("prepare") or {}
    mix = [("data.prepare.mix.source", each) for each in prepare.get("mix") or ()]
    for key, table in (("data.source", data), ("data.prepare.source", prepare), *mix):
        source = table.get("source")
        if source and shown_source(source) != source:
            table["source"] = shown_source(source)
            left_out += LEFT_OUT.format(key=key)
    return left_out + recipe_text(recipe)
