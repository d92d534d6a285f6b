"""How long a machine continues without a request and without progress.

Example: `agent.renew(None, lease_s())`
"""

from __future__ import annotations

import os

from orchestrator.agent.contract.names import LEASE_S

LEASE_VARIABLE = "GPTCTL_LEASE_S"
"""Another lease in seconds: for drills and rehearsals."""


def lease_s() -> float:
    """Seconds of the lease: 30 minutes, or GPTCTL_LEASE_S; at least five seconds."""
    try:
        return max(5.0, float(os.environ.get(LEASE_VARIABLE, LEASE_S)))
    except ValueError:
        return LEASE_S
