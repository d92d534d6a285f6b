"""Where torch and Triton keep what they compile: a folder of ours, on the disk that holds the environments.

Example: `{**os.environ, **compile_caches("/root/.gptctl/cache")}`
"""

from __future__ import annotations

import os


def compile_caches(folder: str) -> dict[str, str]:
    """Variables that keep compiled code below `folder`, which lies where environments do: torch's own choice is /tmp,
    which may be full, forbid to execute, or be emptied between two starts. What you have set yourself stays."""
    wanted = {
        "TORCHINDUCTOR_CACHE_DIR": os.path.join(folder, "inductor"),
        "TRITON_CACHE_DIR": os.path.join(folder, "triton"),
    }
    return {name: value for name, value in wanted.items() if name not in os.environ}
