"""Two laws that read other columns than pretraining runs have: the examples of docs/laws.md on adding a law."""

from typing import Any

import numpy as np

from analysis.laws.law import Law, Parameter

MONOLINGUAL_EQUIVALENT = Law(
    name="monolingual_equivalent",
    equation="score = c - a*x^(-b), x = log10(monolingual tokens)",
    source="Chang et al. 2024 (250 languages); a multilingual model's score is read as the x of equal score",
    columns={"tokens": "tokens"},
    parameters=(
        Parameter("a", (0.1, 100.0), (1e-9, 1e9), log=True, linear=True),
        Parameter("b", (0.5, 4.0), (0.01, 20.0)),
        Parameter("c", (-10.0, 10.0), (-1e6, 1e6), linear=True, unit="score"),
    ),
    predict=lambda p, x: p.c - p.a * np.log10(x.tokens) ** -p.b,
    response="score",
    residual="additive",
    parameters_per="language",
    pretraining=False,
)


def equivalent_tokens(score: float, a: float, b: float, c: float) -> float:
    """The x of equal score, in tokens: monolingual tokens whose model scores `score`; inf from c on."""
    return float("inf") if score >= c else float(10.0 ** (a / (c - score)) ** (1.0 / b))


def context_aware(C_0: float = 1e21, n_0: float = 1e3, width: float = 1.0) -> Law:
    """Downstream accuracy against compute C and prompt length n (Montgomery et al. 2025).

    Args:
      C_0, n_0: units of compute (FLOPs) and prompt length (tokens): constants that are chosen, not fitted.
      width: tokens over which accuracy falls beyond the context limit.
    """

    def predict(p: Any, x: Any) -> Any:
        from scipy.special import expit  # here, since its import takes 0.1 s of CPU and few fits need it

        compute = -np.expm1(-p.A * (x.C / C_0) ** p.alpha)
        prompt = -np.expm1(-p.B * (x.n / n_0) ** p.beta)
        return compute * prompt * expit((x.n_ctx - x.n) / width)

    return Law(
        name="context_aware",
        equation="P = [1 - exp(-A(C/C_0)^alpha)]*[1 - exp(-B(n/n_0)^beta)]*sigmoid(n_ctx - n)",
        source="Montgomery et al. 2025",
        columns={"C": "flops", "n": "prompt_tokens", "n_ctx": "context_limit"},
        parameters=(
            Parameter("A", (0.1, 10.0), (1e-6, 1e6), log=True),
            Parameter("alpha", (0.05, 1.0), (0.0, 5.0)),
            Parameter("B", (0.1, 10.0), (1e-6, 1e6), log=True),
            Parameter("beta", (0.05, 1.0), (0.0, 5.0)),
        ),
        predict=predict,
        response="accuracy",
        residual="additive",
        pretraining=False,
    )


CONTEXT_AWARE = context_aware()
