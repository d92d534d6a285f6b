"""The API's errors with their documented codes.

Example: `raise invalid("Exactly one SSH key name is needed.")`
"""

from __future__ import annotations

CAPACITY = "instance-operations/launch/insufficient-capacity"


class Refusal(Exception):
    """An answer with an error: HTTP status, code, message, suggestion."""

    def __init__(self, status: int, code: str, message: str, suggestion: str = "") -> None:
        super().__init__(message)
        self.status = status
        error = {"code": code, "message": message, "suggestion": suggestion}
        self.body = {"error": {key: text for key, text in error.items() if text}}


def invalid(message: str) -> Refusal:
    return Refusal(400, "global/invalid-parameters", message)


def missing(message: str) -> Refusal:
    """A launch names an object that does not exist."""
    return Refusal(404, "global/object-does-not-exist", message, "Choose one that is listed.")


def elsewhere() -> Refusal:
    """The file system is in another region than the machine."""
    code = "instance-operations/launch/file-system-in-wrong-region"
    return Refusal(400, code, "The file system is in another region.", "Launch in the file system's region.")


def capacity() -> Refusal:
    return Refusal(400, CAPACITY, "Not enough capacity to fulfill launch request.")


def quota() -> Refusal:
    return Refusal(400, "global/quota-exceeded", "Quota exceeded.", "Contact Support to increase your quota.")


def internal() -> Refusal:
    what = "An internal server error occurred."
    return Refusal(500, "global/internal-error", what, "Try again later. Contact Support if the problem persists.")


def unauthorized() -> Refusal:
    what = "API key was invalid, expired, or deleted."
    return Refusal(401, "global/invalid-api-key", what, "Check your API key or create a new one, then try again.")


NO_SUCH_INSTANCE = Refusal(404, "global/object-does-not-exist", "Specified instance does not exist.")
