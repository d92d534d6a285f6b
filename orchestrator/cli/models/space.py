"""`gptctl export --space`: a folder that runs as a Gradio Space of the Hub, and here with `python app.py`.

It loads the exported model by its id on the Hub, or, before it is there, from the folder beside it. It must not hold
the weights: a Space downloads its model.
"""

from __future__ import annotations

import json
from pathlib import Path

from orchestrator.core.errors import UserError

APP = '''\
"""A demo of {title}: it continues a text. MODEL names the model: an id of the Hub, or a folder."""

import os

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed

MODEL = os.environ.get("MODEL", {model})
tokenizer = AutoTokenizer.from_pretrained(MODEL)
model = AutoModelForCausalLM.from_pretrained(MODEL).eval()


def generate(prompt: str, tokens: float = 100, temperature: float = 0.8, top_k: float = 50, seed: float = 0) -> str:
    """The prompt and its continuation. Temperature 0 takes the likeliest token."""
    set_seed(int(seed))
    room = model.config.n_positions
    ids = tokenizer(prompt or tokenizer.eos_token, return_tensors="pt").input_ids[:, -(room - 1) :]
    options = {{"do_sample": True, "temperature": float(temperature), "top_k": int(top_k)}} if temperature > 0 else {{}}
    new = min(int(tokens), room - ids.shape[1])
    with torch.no_grad():
        out = model.generate(ids, max_new_tokens=new, pad_token_id=tokenizer.eos_token_id, **options)
    return prompt + tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)


def build():
    """The page."""
    import gradio

    return gradio.Interface(
        generate,
        [
            gradio.Textbox(label="Prompt", value={prompt}),
            gradio.Slider(1, 500, value=100, step=1, label="Tokens"),
            gradio.Slider(0.0, 2.0, value=0.8, label="Temperature"),
            gradio.Slider(1, 200, value=50, step=1, label="Top-k"),
            gradio.Number(value=0, precision=0, label="Seed"),
        ],
        gradio.Textbox(label="Text"),
        title={title_text},
        description="It continues text. It was not trained to be correct.",
    )


if __name__ == "__main__":
    build().launch()
'''
REQUIREMENTS = "gradio>=5\ntorch\ntransformers\n"
README = """\
---
title: {title}
emoji: 📜
colorFrom: indigo
colorTo: green
sdk: gradio
app_file: app.py
pinned: false
{models}---

A demo of {name}, made by gptctl. Run it here with `pip install -r requirements.txt` and `python app.py`; the
environment variable MODEL names another model.
"""
FILES = ("README.md", "app.py", "requirements.txt")


def write_space(to: Path, title: str, repo: str | None, export: Path) -> Path:
    """Writes the three files and returns the folder. Raises UserError for a folder that holds anything else."""
    others = sorted(path.name for path in to.iterdir() if path.name not in FILES) if to.is_dir() else []
    if others:
        raise UserError(f"{to} holds {others[0]}, which is not part of a demo", "name another folder with --to DIR")
    to.mkdir(parents=True, exist_ok=True)
    plain = " ".join("".join(char if char.isprintable() else " " for char in title).split())
    model = json.dumps(repo or f"../{export.name}")
    words = {"model": model, "prompt": json.dumps("Every effort moves you"), "title_text": json.dumps(plain)}
    texts = {
        "app.py": APP.format(title=plain.replace('"', "'").replace("\\", ""), **words),
        "requirements.txt": REQUIREMENTS,
        "README.md": README.format(
            title=json.dumps(plain), name=plain, models=f"models:\n- {json.dumps(repo)}\n" if repo else ""
        ),
    }
    for name, text in texts.items():
        (to / name).write_text(text, encoding="utf-8", newline="\n")
    return to
