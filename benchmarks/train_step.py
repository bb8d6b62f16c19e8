"""Speed of a train step: tokens/s, and model FLOP/s as a share of this machine's best matrix-product rate.

    python benchmarks/train_step.py [--seconds 3] [--cases nano2,gpt-0.13M] [--json out.json] [--torch]

What is timed is the program of the train loop (``step.compiled_steps``), several steps a dispatch as there. The rate
of matrix products is measured in the same run. ``--torch`` sets a plain GPT in PyTorch beside it (an install of its
own: ``pip install torch``): same heads, layers and width, and as many FLOPs, its two-matrix MLP being half as wide
again as the gated one of three. Both are timed in turns and the best turn of each counts, so both see the same load.
"""

import argparse
import importlib.util
import json
import resource
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from mscale import chips, scales
from mscale.models import decoder
from mscale.training import optimizer, runtime
from mscale.training import step as training


class Case(NamedTuple):
    """A shape and a batch."""

    shape: scales.Shape
    vocab_size: int
    batch_size: int
    sequence_length: int

    @property
    def tokens(self) -> int:
        return self.batch_size * self.sequence_length

    @property
    def flops(self) -> int:
        """Model FLOPs of a step: 6N and causal attention."""
        return self.tokens * scales.flops_per_token(self.shape, self.vocab_size, self.sequence_length)


CASES = {
    **{name: Case(shape, scales.BYTE_VOCABULARY, 16, 128) for name, shape in scales.NANO.items()},
    "gpt-0.13M": Case(scales.Shape(4, 2, 64, 176, 16), 512, 16, 128),
    "gpt-0.9M": Case(scales.Shape(4, 4, 128, 336, 32), 512, 16, 256),
    "gpt-1.3M": Case(scales.Shape(4, 4, 128, 336, 32), 4096, 16, 256),
    "gpt-5.8M": Case(scales.Shape(8, 6, 256, 688, 32), 4096, 8, 256),
}
ACCELERATOR_CASES = {
    f"scale-{scale}": Case(scales.get(scale), scales.ATLAS_VOCABULARY, batch_size, 2048)
    for scale, batch_size in ((0, 64), (8, 32), (20, 16), (34, 8))
}
TURNS = 4
Step = Callable[[], Any]


def best_times(steps: list[Step], seconds: float) -> list[float]:
    """Shortest call of each function after one warm-up call; each is measured for ``seconds`` in four turns."""
    times: list[list[float]] = [[] for _ in steps]
    for step in steps:
        step()
    for _ in range(TURNS):
        for step, taken in zip(steps, times, strict=True):
            end = time.perf_counter() + seconds / TURNS
            while not taken or time.perf_counter() < end:
                start = time.perf_counter()
                step()
                taken.append(time.perf_counter() - start)
    return [min(taken) for taken in times]


def matrix_rate(dtype: str, seconds: float = 0.5) -> float:
    """Best FLOP/s of a square matrix product over a few sizes."""
    rates = []
    for n in (512, 1024, 2048) if jax.default_backend() == "cpu" else (4096, 8192):
        a = jax.random.normal(jax.random.key(0), (n, n), dtype)
        product = jax.jit(lambda a: a @ a)
        call = lambda product=product, a=a: jax.block_until_ready(product(a))  # noqa: E731
        rates.append(2 * n**3 / best_times([call], seconds)[0])
    return max(rates)


def make_step(case: Case, dispatch: int, **options: Any) -> tuple[Step, float, int]:
    """Returns a call of ``dispatch`` steps that waits for their losses, compile seconds, and bytes held."""
    config = decoder.ModelConfig(case.shape, case.vocab_size, **options)
    params = decoder.init_params(config, jax.random.key(0))
    state = {"params": params, "optimizer": training.initial_optimizer(config, params)}
    size = dispatch, case.batch_size, case.sequence_length
    targets = np.random.default_rng(0).integers(3, case.vocab_size, size).astype(np.int32)
    rest = np.int32(1), np.int32(dispatch), optimizer.hyper(1e-3, 10, 10_000), jax.random.key(0)
    lowered = training.compiled_steps(config, dispatch, None).lower(state, targets, *rest)
    start = time.perf_counter()
    compiled = lowered.compile()
    compile_seconds = time.perf_counter() - start
    held = [state]

    def call() -> np.ndarray:
        held[0], metrics = compiled(held[0], targets, *rest)
        return np.asarray(metrics["loss"])

    memory: Any = compiled.memory_analysis()
    return call, compile_seconds, memory.argument_size_in_bytes + memory.temp_size_in_bytes


def make_torch_step(case: Case, dtype: str) -> tuple[Step, int]:
    """A plain GPT (serial blocks, GELU, tied embedding) and AdamW in PyTorch: its step and that step's FLOPs.

    On a GPU it is compiled (``torch.compile``), computes in ``dtype`` under autocast, and AdamW is the fused one.
    """
    import torch
    from torch import nn
    from torch.nn import functional as F

    h, L, d, f, k = (getattr(case.shape, name) for name in ("heads", "layers", "embed", "ffw", "kv"))
    f = 3 * f // 2

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norms = nn.ModuleList([nn.LayerNorm(d), nn.LayerNorm(d)])
            self.qkv, self.out = nn.Linear(d, 3 * h * k, bias=False), nn.Linear(h * k, d, bias=False)
            self.mlp = nn.Sequential(nn.Linear(d, f, bias=False), nn.GELU(), nn.Linear(f, d, bias=False))

        def forward(self, x):
            B, S, _ = x.shape
            q, key, v = self.qkv(self.norms[0](x)).view(B, S, 3, h, k).permute(2, 0, 3, 1, 4)
            y = F.scaled_dot_product_attention(q, key, v, is_causal=True)
            x = x + self.out(y.transpose(1, 2).reshape(B, S, h * k))
            return x + self.mlp(self.norms[1](x))

    class GPT(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(case.vocab_size, d)
            self.position = nn.Embedding(case.sequence_length, d)
            self.layers, self.norm = nn.ModuleList(Layer() for _ in range(L)), nn.LayerNorm(d)

        def forward(self, ids):
            x = self.embedding(ids) + self.position.weight
            for layer in self.layers:
                x = layer(x)
            return F.linear(self.norm(x), self.embedding.weight)

    gpu = torch.cuda.is_available()
    device = "cuda" if gpu else "cpu"
    gpt = GPT().to(device)
    adam = torch.optim.AdamW(gpt.parameters(), lr=1e-3, fused=gpu)
    ids = torch.randint(3, case.vocab_size, (case.batch_size, case.sequence_length), device=device)
    forward = torch.compile(gpt) if gpu else gpt

    def call() -> None:
        adam.zero_grad(set_to_none=True)
        with torch.autocast(device, getattr(torch, dtype), enabled=dtype != "float32"):
            loss = F.cross_entropy(forward(ids).flatten(0, 1), ids.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(gpt.parameters(), 1.0)
        adam.step()
        if gpu:
            torch.cuda.synchronize()

    count = sum(p.numel() for p in gpt.parameters()) - gpt.position.weight.numel()
    return call, case.tokens * (6 * count + 6 * L * h * k * (case.sequence_length + 1))


def torch_matrix_rate(seconds: float = 0.5) -> float:
    """Best FLOP/s of PyTorch's matrix product on the CPU, which is of another library."""
    import torch

    rates = []
    for n in (512, 1024, 2048):
        a = torch.randn(n, n)
        rates.append(2 * n**3 / best_times([lambda a=a: a @ a], seconds)[0])
    return max(rates)


def measure(
    name: str, case: Case, seconds: float, peak: float, dispatch: int, with_torch: bool, **options: Any
) -> dict[str, Any]:
    """One row of the report; FLOP/s are model FLOPs, 6N and causal attention."""
    call, compile_seconds, held = make_step(case, dispatch, **options)
    steps = [call]
    if with_torch:
        other, other_flops = make_torch_step(case, options["compute_dtype"])
        steps.append(lambda: [other() for _ in range(dispatch)])
    best, *others = best_times(steps, seconds)
    rate = case.flops * dispatch / best
    row = {
        "case": name,
        "parameters": scales.parameter_count(case.shape, case.vocab_size),
        "tokens_per_second": case.tokens * dispatch / best,
        "model_flops_per_second": rate,
        "share_of_matrix_rate": rate / peak,
        "share_of_data_sheet": rate / sheet if (sheet := chips.peak_flops()) else None,
        "compile_seconds": compile_seconds,
        "held_bytes": held,
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
    if with_torch:
        other_rate = other_flops * dispatch / others[0]
        row |= {
            "torch_tokens_per_second": case.tokens * dispatch / others[0],
            "torch_model_flops_per_second": other_rate,
            "model_flops_over_torch": rate / other_rate,
        }
    return row


def main() -> None:
    on_cpu = jax.default_backend() == "cpu"
    cases = CASES if on_cpu else ACCELERATOR_CASES
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--cases", default=",".join(cases), help="comma-separated; default: all of the platform"
    )
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement")
    parser.add_argument("--dtype", default="float32" if on_cpu else "bfloat16")
    parser.add_argument("--remat", default="none", choices=decoder.REMAT_POLICIES)
    parser.add_argument(
        "--dispatch", type=int, default=8 if on_cpu else 1, help="steps, as in the train loop"
    )
    parser.add_argument("--json", help="file to write the rows to")
    parser.add_argument("--torch", action="store_true", help="compare with a plain GPT in PyTorch")
    arguments = parser.parse_args()
    if arguments.torch and importlib.util.find_spec("torch") is None:
        parser.error("--torch compares with PyTorch, which is not installed: pip install torch")
    if on_cpu:
        runtime.retain_freed_memory()  # as the train loop does
    peak = matrix_rate(arguments.dtype)
    if arguments.torch and on_cpu:
        peak = max(peak, torch_matrix_rate())
    print(f"{jax.default_backend()}: {arguments.dtype} matrix product {peak / 1e9:,.0f} GFLOP/s")
    rows = []
    for name in arguments.cases.split(","):
        row = measure(
            name,
            (CASES | ACCELERATOR_CASES)[name],
            arguments.seconds,
            peak,
            arguments.dispatch,
            arguments.torch,
            compute_dtype=arguments.dtype,
            remat=arguments.remat,
        )
        rows.append(row)
        line = f"{name:10s} {row['parameters']:>13,} parameters {row['tokens_per_second']:>10,.0f} tokens/s"
        line += f"  {row['share_of_matrix_rate']:.0%} of the matrix rate"
        if row["share_of_data_sheet"]:
            line += f", {row['share_of_data_sheet']:.0%} of the data sheet's"
        line += f"  {row['held_bytes'] / 1e9:.1f} GB  compile {row['compile_seconds']:.1f} s"
        if arguments.torch:
            line += f"  torch {row['torch_tokens_per_second']:,.0f} tokens/s"
            line += f", model FLOP/s x{row['model_flops_over_torch']:.2f}"
        print(line, flush=True)
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump({"matrix_flops_per_second": peak, "rows": rows}, file, indent=2)


if __name__ == "__main__":
    main()
