"""Effective data transferred (Hernandez et al. 2021): pretraining measured in tokens of finetuning data."""

from analysis.laws.law import Law, Parameter

TRANSFER = Law(
    name="transfer",
    equation="D_T = k*D_F^alpha*N^beta",
    source="Hernandez et al. 2021, eq. 1.1 (text to Python: alpha 0.18, beta 0.38)",
    columns={"D_F": "finetuning_tokens", "N": "params"},
    parameters=(
        Parameter(
            "k",
            (1e-3, 1e3),
            (1e-300, 1e300),
            log=True,
            linear=True,
            reference=(("alpha", "D_F", 1.0), ("beta", "N", 1.0)),
            unit="tokens at mean D_F and N",
        ),
        Parameter("alpha", (0.0, 1.0), (-3.0, 3.0), meaning="closeness of the two languages"),
        Parameter("beta", (0.0, 1.0), (-3.0, 3.0), meaning="exponent of size"),
    ),
    predict=lambda p, x: p.k * x.D_F**p.alpha * x.N**p.beta,
    response="data_transferred",
    pretraining=False,
)
