"""Why AWS credentials do not work, in words that help: a code from a device without a terminal, a profile that names
another one which is not there, an old login, a wrong clock. Knows botocore's errors by name and does not import it.

Example: `login_fault(EOFError())` -> BadCredentials("AWS: ... asks for an MFA code, which needs a terminal ...")
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any

from orchestrator.core.errors import BadCredentials

LOGIN_HINT = "log in again (aws sso login), or set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
CONFIG_HINT = "correct ~/.aws/config, or set AWS_PROFILE to another profile; look with: aws configure list"
MFA_HINT = (
    "at a terminal: eval $(aws configure export-credentials --format env), then run gptctl there; or use a profile "
    "without mfa_serial, such as one of aws sso login"
)
CLOCK_HINT = "set the clock of this computer: sudo timedatectl set-ntp true"
MOST_SKEW_S = 240.0
"""AWS refuses a signature that is five minutes off."""

LOGIN = frozenset({
    "NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError", "SSOError", "LoginError",
    "TokenRetrievalError", "SSOTokenLoadError", "UnauthorizedSSOTokenError", "RefreshWithMFAUnsupportedError",
})  # fmt: skip
CONFIG = frozenset({
    "ProfileNotFound", "InvalidConfigError", "ConfigParseError", "ConfigNotFound", "InfiniteLoopConfigError",
    "UnknownCredentialError",
})  # fmt: skip


def login_fault(error: Exception) -> BadCredentials | None:
    """The fault of the login that this error stands for; None: it is another matter. Texts name profiles, no secret."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    profile = os.environ.get("AWS_PROFILE") or os.environ.get("AWS_DEFAULT_PROFILE") or "default"
    if isinstance(error, EOFError):
        what = f"AWS: the profile {profile!r} asks for an MFA code, which needs a terminal"
        return BadCredentials(what, MFA_HINT)
    if kinds & CONFIG:
        return BadCredentials(f"AWS: {error}", CONFIG_HINT)
    if kinds & LOGIN:
        return BadCredentials(f"AWS: {error}", LOGIN_HINT)
    return None


def clock_skew_s(response: Mapping[str, Any], now: float) -> float:
    """By how much this computer's clock is ahead of AWS's, by the answer's Date; 0 where that says nothing."""
    said = response.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date")
    try:
        skew_s = now - parsedate_to_datetime(str(said)).timestamp()
    except ValueError:
        return 0.0
    return skew_s if abs(skew_s) > MOST_SKEW_S else 0.0
