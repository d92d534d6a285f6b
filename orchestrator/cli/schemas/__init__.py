"""The shape of every `--json` output as types, from which `gptctl schema` makes JSON Schemas."""
