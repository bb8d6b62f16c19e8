"""The Chinchilla law (Hoffmann et al. 2022, eq. 10) and power laws in one variable, and their parameters."""

from typing import Any

from analysis.laws.law import Law, Parameter

E = Parameter("E", (0.05, 5.0), (0.0, 1e3), linear=True, unit="loss", meaning="irreducible loss")
A = Parameter(
    "A",
    (0.01, 5.0),
    (1e-8, 1e3),
    log=True,
    linear=True,
    reference=(("alpha", "N", -1.0),),
    unit="loss at mean N",
    meaning="what finite size costs",
)
B = Parameter(
    "B",
    (0.01, 5.0),
    (1e-8, 1e3),
    log=True,
    linear=True,
    reference=(("beta", "D", -1.0),),
    unit="loss at mean D",
    meaning="what finite data cost",
)
ALPHA = Parameter("alpha", (0.1, 0.9), (0.01, 3.0), meaning="exponent of size")
BETA = Parameter("beta", (0.1, 0.9), (0.01, 3.0), meaning="exponent of data")


def size_and_data_terms(p: Any, x: Any) -> tuple[Any, ...]:
    """(A, alpha, B, beta) of the terms A/N^alpha and B/D^beta: `Law.trade` of Chinchilla and laws built on it."""
    return p.A, p.alpha, p.B, p.beta


CHINCHILLA = Law(
    name="chinchilla",
    equation="L = E + A/N^alpha + B/D^beta",
    source="Hoffmann et al. 2022, eq. 10; fitted as in Besiroglu et al. 2024",
    columns={"N": "params", "D": "target_tokens"},
    parameters=(E, A, ALPHA, B, BETA),
    predict=lambda p, x: p.E + p.A * x.N**-p.alpha + p.B * x.D**-p.beta,
    parameters_per="language",
    optimum=("N", "D"),
    trade=size_and_data_terms,
)

POWER = Law(
    name="power",
    equation="y = E + A/x^alpha",
    source="a saturating power law in one variable (Kaplan et al. 2020 with an offset)",
    columns={"x": "target_tokens"},
    parameters=(
        E,
        Parameter("A", (0.01, 5.0), (1e-8, 1e3), log=True, linear=True, reference=(("alpha", "x", -1.0),)),
        ALPHA,
    ),
    predict=lambda p, x: p.E + p.A * x.x**-p.alpha,
    parameters_per="language",
    pretraining=False,
)

PURE_POWER = Law(
    name="pure_power",
    equation="y = A*x^alpha",
    source="a power law without offset; used for crossovers (ATLAS, fig. 7)",
    columns={"x": "params"},
    parameters=(
        Parameter("A", (1e-3, 1e3), (1e-300, 1e300), log=True, linear=True, reference=(("alpha", "x", 1.0),)),
        Parameter("alpha", (-3.0, 3.0), (-10.0, 10.0)),
    ),
    predict=lambda p, x: p.A * x.x**p.alpha,
    response="crossover_tokens",
    pretraining=False,
)
