"""The model card of an export: every figure measured."""
