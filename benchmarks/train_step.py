"""Train-step speed: tokens/s and model FLOP/s as a share of this machine's matrix-product rate.

    python benchmarks/train_step.py [--seconds 5] [--cases nano2,gpt-0.13M] [--json out.json] [--torch]

The rate of a large matrix product is measured in the same run. ``--torch`` adds a plain GPT of the same shape in
PyTorch (an install of its own: ``pip install torch``); cases alternate, so that both see the same load.
"""

import argparse
import json
import resource
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mscale import allocator, loss, model, optimizer, scales


class Case(NamedTuple):
    """A shape and a batch."""

    shape: scales.Shape
    vocab_size: int
    batch_size: int
    sequence_length: int


CASES = {
    **{name: Case(shape, scales.BYTE_VOCABULARY, 16, 128) for name, shape in scales.NANO.items()},
    "gpt-0.13M": Case(scales.Shape(4, 2, 64, 256, 16), 512, 16, 128),
    "gpt-0.9M": Case(scales.Shape(4, 4, 128, 512, 32), 512, 16, 256),
    "gpt-1.3M": Case(scales.Shape(4, 4, 128, 512, 32), 4096, 16, 256),
    "gpt-5.8M": Case(scales.Shape(8, 6, 256, 1024, 32), 4096, 8, 256),
}
ACCELERATOR_CASES = {
    f"scale-{scale}": Case(scales.get(scale), scales.ATLAS_VOCABULARY, batch_size, 2048)
    for scale, batch_size in ((0, 64), (8, 32), (20, 16), (34, 8))
}


def matrix_rate(dtype: str, seconds: float = 1.0) -> float:
    """Best FLOP/s of a square matrix product."""
    n = 8192 if jax.default_backend() != "cpu" else 1024
    a = jax.random.normal(jax.random.key(0), (n, n), dtype)
    product = jax.jit(lambda a: a @ a)
    return 2 * n**3 / best_time(lambda: jax.block_until_ready(product(a)), seconds)


def best_time(f: Callable[[], Any], seconds: float) -> float:
    """Shortest of the calls that fit into ``seconds`` (at least three), after one that is not counted."""
    f()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < end:
        start = time.perf_counter()
        f()
        times.append(time.perf_counter() - start)
    return min(times)


def make_step(case: Case, **options) -> tuple[Callable[[], Any], float, int]:
    """Returns one step as a call that waits for its result, compile seconds, and temporary bytes."""
    config = model.ModelConfig(case.shape, case.vocab_size, **options)
    rates, decays = model.lr_multipliers(config), model.decay_mask(config)

    def step(params, state, index, targets, hyper):
        inputs = jnp.pad(targets, ((0, 0), (1, 0)))[:, :-1]
        (_, mean), grads = jax.value_and_grad(
            lambda params: loss.objective(config, params, inputs, targets), has_aux=True
        )(params)
        return *optimizer.update(grads, state, params, index, hyper, rates, decays), mean

    params = model.init_params(config, jax.random.key(0))
    state, hyper = optimizer.init(params), optimizer.hyper(1e-3, 10, 10_000)
    size = case.batch_size, case.sequence_length
    targets = jnp.asarray(np.random.default_rng(0).integers(3, case.vocab_size, size), jnp.int32)
    start = time.perf_counter()
    lowered = jax.jit(step, donate_argnums=(0, 1)).lower(params, state, np.int32(0), targets, hyper)
    compiled = lowered.compile()
    compile_seconds = time.perf_counter() - start
    held = [params, state]

    def call():
        held[0], held[1], mean = compiled(held[0], held[1], np.int32(1), targets, hyper)
        return float(mean)

    memory: Any = compiled.memory_analysis()
    return call, compile_seconds, memory.temp_size_in_bytes


def make_torch_step(case: Case) -> tuple[Callable[[], Any], int]:
    """A plain GPT (serial blocks, GELU, tied embedding) and AdamW in PyTorch: its step and model FLOPs a token."""
    import torch
    from torch import nn
    from torch.nn import functional as F

    h, L, d, f, k = (getattr(case.shape, name) for name in ("heads", "layers", "embed", "ffw", "kv"))

    class Layer(nn.Module):
        def __init__(self):
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
        def __init__(self):
            super().__init__()
            self.embedding, self.position = (
                nn.Embedding(case.vocab_size, d),
                nn.Embedding(case.sequence_length, d),
            )
            self.layers, self.norm = nn.ModuleList(Layer() for _ in range(L)), nn.LayerNorm(d)

        def forward(self, ids):
            x = self.embedding(ids) + self.position.weight
            for layer in self.layers:
                x = layer(x)
            return F.linear(self.norm(x), self.embedding.weight)

    gpt = GPT()
    adam = torch.optim.AdamW(gpt.parameters(), lr=1e-3)
    ids = torch.randint(3, case.vocab_size, (case.batch_size, case.sequence_length))

    def call():
        adam.zero_grad(set_to_none=True)
        F.cross_entropy(gpt(ids).flatten(0, 1), ids.flatten()).backward()
        torch.nn.utils.clip_grad_norm_(gpt.parameters(), 1.0)
        adam.step()

    count = sum(p.numel() for p in gpt.parameters()) - gpt.position.weight.numel()
    return call, 6 * count + 6 * L * h * k * (case.sequence_length + 1)


def measure(
    name: str, case: Case, seconds: float, peak: float, with_torch: bool, **options
) -> dict[str, Any]:
    """One row of the report."""
    call, compile_seconds, temporaries = make_step(case, **options)
    tokens = case.batch_size * case.sequence_length
    flops = scales.flops_per_token(case.shape, case.vocab_size, case.sequence_length)
    best = best_time(call, seconds)
    row = {
        "case": name,
        "parameters": scales.parameter_count(case.shape, case.vocab_size),
        "tokens_per_second": tokens / best,
        "model_flops_per_second": flops * tokens / best,
        "mfu": flops * tokens / best / peak,
        "compile_seconds": compile_seconds,
        "temporary_bytes": temporaries,
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
    if with_torch:
        other, other_flops = make_torch_step(case)
        other_best = best_time(other, seconds)
        best = min(best, best_time(call, seconds))
        row |= {
            "tokens_per_second": tokens / best,
            "model_flops_per_second": flops * tokens / best,
            "mfu": flops * tokens / best / peak,
            "torch_tokens_per_second": tokens / other_best,
            "torch_model_flops_per_second": other_flops * tokens / other_best,
            "model_flops_over_torch": flops / best / (other_flops / other_best),
        }
    return row


def main() -> None:
    cases = CASES if jax.default_backend() == "cpu" else ACCELERATOR_CASES
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--cases", default=",".join(cases), help="comma-separated; default: all of the platform"
    )
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement")
    parser.add_argument("--dtype", default="float32" if cases is CASES else "bfloat16")
    parser.add_argument("--remat", default="none", choices=model.REMAT_POLICIES)
    parser.add_argument("--json", help="file to write the rows to")
    parser.add_argument("--torch", action="store_true", help="compare with a plain GPT in PyTorch")
    arguments = parser.parse_args()
    allocator.keep_freed_pages()
    peak = matrix_rate(arguments.dtype)
    print(f"{jax.default_backend()}: {arguments.dtype} matrix product {peak / 1e9:,.0f} GFLOP/s")
    rows = []
    for name in arguments.cases.split(","):
        row = measure(
            name,
            (CASES | ACCELERATOR_CASES)[name],
            arguments.seconds,
            peak,
            arguments.torch,
            compute_dtype=arguments.dtype,
            remat=arguments.remat,
        )
        rows.append(row)
        line = f"{name:10s} {row['parameters']:>13,} parameters {row['tokens_per_second']:>10,.0f} tokens/s"
        line += f"  MFU {row['mfu']:.0%}  compile {row['compile_seconds']:.1f} s"
        if arguments.torch:
            line += f"  torch {row['torch_tokens_per_second']:,.0f} tokens/s"
            line += f", model FLOP/s x{row['model_flops_over_torch']:.2f}"
        print(line, flush=True)
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump({"matrix_flops_per_second": peak, "rows": rows}, file, indent=2)


if __name__ == "__main__":
    main()
