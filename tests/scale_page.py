"""docs/concepts/scale.md: its tables are computed from trainer/arithmetic/scale.py, measured figures are quoted.

`python -m tests.generate_docs` writes it.
"""

from __future__ import annotations

from orchestrator.core.machines import machine_type
from trainer.arithmetic import largest_micro_batch, parameter_count
from trainer.arithmetic.roofline import Card
from trainer.arithmetic.scale import NETWORKS, Spread, scaled
from trainer.contract import ModelConfig

MADE = "<!-- made by python -m tests.generate_docs -->\n"
SMALL = ModelConfig()
XL = ModelConfig(n_layer=48, n_head=25, n_embd=1600, qkv_bias=True, tie_embeddings=True)
NODES = (1, 2, 8, 64, 512)
GPUS_PER_NODE = 8
FREE_GIB = 78.0
JOBS = (("163M", SMALL, 96), ("163M", SMALL, 512), ("163M", SMALL, 4096), ("1.5B", XL, 512), ("1.5B", XL, 4096))


def scale_page() -> str:
    """The whole page."""
    return MADE + TOP + "\n".join(table(*job) for job in JOBS) + WALL + pairs() + ORCHESTRATOR


def card_of(machine: str) -> Card:
    """As `plan` has it."""
    gpu = machine_type(machine).gpu
    assert gpu is not None
    peak = gpu.peak_flops("bf16")
    return Card(peak, gpu.memory_gb_per_s * 1e9, gpu.link_gb_per_s * 1e9, gpu.gemm, gpu.attention)


def table(name: str, model: ModelConfig, sequences: int) -> str:
    """Efficiency by number of GPUs and network, of one batch."""
    names = list(NETWORKS)[:4]
    tokens = sequences * model.context_length
    size = 4 * parameter_count(model) / 1e9
    lines = [
        f"\n### {name}, {tokens:,} tokens a step, gradients {size:.2f} GB\n",
        "| H100 | sequences per GPU | " + " | ".join(names) + " |",
        "|---:|---:|" + "---:|" * len(names),
    ]
    for nodes in NODES:
        gpus = nodes * GPUS_PER_NODE
        cells = [cell(model, sequences, nodes, each) for each in names]
        share = f"{sequences / gpus:g}" if sequences >= gpus else "-"
        lines.append(f"| {gpus:,} | {share} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def cell(model: ModelConfig, sequences: int, nodes: int, network: str) -> str:
    """`34 ms, 84 %`: one step, and the speed per GPU against that of one node."""
    gpus = nodes * GPUS_PER_NODE
    if sequences < gpus:
        return "batch too small"
    if sequences % gpus:
        return "does not divide"
    most = largest_micro_batch(model, sequences // gpus, FREE_GIB) or 1
    found = scaled(model, sequences, Spread(GPUS_PER_NODE, nodes, NETWORKS[network]), card_of("8xH100"), most)
    return "batch too small" if found is None else f"{found.step_s * 1000:,.0f} ms, {found.efficiency:.0%}"


def pairs() -> str:
    """Two machines against one, as `plan` compares them."""
    lines = [
        "| two of | network | a step on one | on both | speed | price for the same tokens |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for machine, gpus, most in (("8xH100", 8, 12), ("1x3090", 1, 12)):
        for name, network in list(NETWORKS.items())[1:]:
            found = scaled(SMALL, 96, Spread(gpus, 2, network), card_of(machine), most)
            assert found is not None
            one_s = found.step_s * found.speedup
            lines.append(
                f"| `{machine}` | {name} | {one_s * 1000:,.0f} ms | {found.step_s * 1000:,.0f} ms | "
                f"{found.speedup:.2f}x | {2 / found.speedup:.1f}x |"
            )
    return "\n".join(lines) + "\n"


TOP = """
# Scale

What a second machine brings, and a five-hundredth: on paper, from the roofline that prices a step ([Speed](speed.md))
and the network between machines. Nothing on this page but its last section was measured.

A step on several machines takes what one GPU computes, and what the all-reduce leaves exposed:

- Every GPU computes its sequences: `global_batch / GPUs`.
- Gradients are fp32: `S = 4 x parameters` bytes. Inside a node a ring moves `2 (g - 1) / g x S` per card over NVLink;
  between N nodes each node's network carries `2 (N - 1) / N x S`, and `2 (N - 1)` latencies.
- DDP hides the all-reduce behind the last backward pass: at most 60 % of that pass, and never the first and last
  bucket. With accumulation only the last micro-batch hides anything.

Networks count at line rate: 3.2 Tb/s is InfiniBand or EFA with eight cards per node, 400 Gb/s one such card. TCP
reaches two thirds of the line, sometimes a third: then the columns on the right are worse than printed.
"""

WALL = """
## Where the batch ends it

A batch of 96 sequences ends at 96 GPUs: the 97th has nothing to compute. Long before that a GPU with one or two
sequences waits for its own launches, and the exposed all-reduce, which does not shrink, is all of the step. More GPUs
then need a larger batch, and a larger batch changes what is trained: beyond the critical batch size the same loss
takes more tokens (McCandlish et al., arXiv 1812.06162). `global_batch` is therefore the recipe's and never follows
the machine.

## Two machines or two runs

`plan` compares several machines with one of them and says where they are slower. These are its figures for the
reference job of 98,304 tokens a step. Where the speed is below 1, or the price far above, train two interventions
instead, one on each machine: `gptctl sweep` needs no network between them.

"""

ORCHESTRATOR = """
## What gptctl itself costs

The command line holds one connection to the head of a training, not one to each GPU; each machine's agent supervises
its own processes and keeps the deadline by itself. Measured with `python -m tests.bench --only agents`: 200 real
agents on one busy machine of two cores, each with a supervised training that logs a step per second.

| | |
|---|---:|
| an agent that supervises, of processors | 1.0 ms/s |
| an agent that supervises, own memory | 13 MB |
| an answer to `status` | 0.7 kB |
| an answer to `status`, of the machine's processors | 200 ms |
| an event and a step in the ledger, of processors | 0.8 ms |

Taken a thousand times, with a note a minute, that is 12 kB/s of answers and 13 ms/s of one processor for the ledger.
"""
