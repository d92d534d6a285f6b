"""Names, notes and labels as you type them, checked.

Example: `labels_of(["purpose=baseline"])`    # {"purpose": "baseline"}
"""

from __future__ import annotations

from orchestrator.core.errors import UserError

LONGEST_TEXT = 500


def checked_text(option: str, text: str | None) -> str | None:
    """Any printable text may be a name or a note: it is shown, never run."""
    if text is not None and (not text.strip() or not text.isprintable() or len(text) > LONGEST_TEXT):
        raise UserError(f"{option} {text[:60]!r}: must be printable text of 1 to {LONGEST_TEXT} characters on one line")
    return text


def labels_of(given: list[str]) -> dict[str, str]:
    """Raises UserError for what is not KEY=VALUE on one line."""
    labels = {}
    for label in given:
        key, equals, value = label.partition("=")
        if not equals or not key.strip() or not label.isprintable():
            raise UserError(f"--label {label!r}: must be KEY=VALUE", "for example --label purpose=baseline")
        labels[key.strip()] = value
    return labels
