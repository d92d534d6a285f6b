"""Lines to copy, at the end of each command's help. A test parses every one of them."""

from __future__ import annotations

from collections.abc import Mapping

EXAMPLES: Mapping[str, tuple[str, ...]] = {
    "init": ("gptctl init", "gptctl init my-experiments"),
    "skill": ("gptctl skill",),
    "schema": ("gptctl schema status", "gptctl schema failure", "gptctl schema > schemas.json"),
    "recipes": ("gptctl recipes",),
    "run": (
        "gptctl run quickstart --host local",
        "gptctl run chinchilla_163m --host lambda-8xa100 --max-cost 40",
        "gptctl run chinchilla_163m --host lambda-8xa100 --set train.seed=7 --name seed-7 -d",
    ),
    "plan": (
        "gptctl plan chinchilla_163m",
        "gptctl plan chinchilla_163m --host lambda-8xa100 --set train.seed=7",
        "gptctl plan quickstart --host cluster --script",
    ),
    "status": ("gptctl status", "gptctl status -w", "gptctl status --all --json"),
    "queue": ("gptctl queue", "gptctl queue --move seed-7-1130 --to 1"),
    "logs": ("gptctl logs -f", "gptctl logs quickstart-1130 -n 20"),
    "track": ("gptctl track", "gptctl track quickstart-1130"),
    "fetch": ("gptctl fetch", "gptctl fetch quickstart-1130 --all --to models"),
    "stop": ("gptctl stop quickstart-1130",),
    "resume": (
        "gptctl resume",
        "gptctl resume quickstart-1130 -d",
        "gptctl resume quickstart-1130 --store s3://bucket/models",
    ),
    "release": ("gptctl release quickstart-1130", "gptctl release quickstart-1130 --force"),
    "cost": ("gptctl cost", "gptctl cost --reconcile invoice.csv"),
    "hosts": ("gptctl hosts", "gptctl hosts --offline"),
    "offers": ("gptctl offers --gpu a100 --count 8", "gptctl offers --max-price 20"),
    "orphans": ("gptctl orphans", "gptctl orphans --reap i-0123456789", "gptctl orphans --install-timer"),
    "notify": ("gptctl notify setup ntfys://ntfy.sh/my-runs", "gptctl notify --test"),
    "check": ("gptctl check", "gptctl check home-3090 --recipe chinchilla_163m", "gptctl check lambda-8xa100 --drill"),
    "ui": ("gptctl ui --open", "gptctl ui --allow-actions --port 9000"),
    "ssh": ("gptctl ssh", "gptctl ssh home-3090 -- nvidia-smi"),
    "sample": (
        'gptctl sample -p "Every effort moves you" --temperature 0.7',
        "gptctl sample quickstart-1130 --batch 4",
    ),
    "chat": ("gptctl chat", "gptctl chat exports/RUN --temperature 0"),
    "judge": ("gptctl judge RUN OTHER --test test.json --endpoint https://api.openai.com/v1 --judge gpt-4o-mini",),
    "attention": ('gptctl attention --prompt "The cat sat on the mat"',),
    "compare": ("gptctl compare baseline-1128 qkv-bias-1129", "gptctl compare --label series=interventions"),
    "eval": ("gptctl eval", "gptctl eval quickstart-1130 --choices hellaswag_val.jsonl"),
    "export": ("gptctl export --to my-model", "gptctl export quickstart-1130 --format gguf --to model.gguf"),
    "import": ("gptctl import hf://models/openai-community/gpt2 --name gpt2", "gptctl import exports/mine --name mine"),
    "import-recipe": ("gptctl import-recipe runs/theirs --to recipes/theirs.toml",),
    "report": ("gptctl report", "gptctl report --open", "gptctl report quickstart-1130 --html report.html"),
}


def examples_of(command: str) -> str | None:
    """The epilog of a command's help: its lines as they are, without being filled into a paragraph."""
    lines = EXAMPLES.get(command)
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines) if lines else None
