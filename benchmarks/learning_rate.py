"""Final loss against base learning rate for several sizes, under both learning-rate rules.

    python benchmarks/learning_rate.py [--steps 300] [--json out.json] [--figure docs/learning_rate.svg]

Every point is a whole run of ``mscale.train`` on a small generated corpus, cooled at its end. Under "mup"
(``mscale.models.decoder``) one base rate should be best for every size; under "constant" the best one falls with width.
About four CPU minutes.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from mixtures.packing.pack import pack
from mixtures.synthetic import generate
from mscale import observations, train
from mscale.data.vocabulary import byte_vocabulary

SCALES = ("nano0", "nano1", "nano2", "nano3")
RATES = (0.00125, 0.0025, 0.005, 0.01, 0.02, 0.04)
RULES = ("mup", "constant")


def final_loss(folder: Path, scale: str, rule: str, rate: float, steps: int) -> dict[str, Any]:
    """Trains one run; returns its held-out loss in nats per token at the end of the decay."""
    workdir = folder / f"{rule}-{scale}-{rate}"
    values: dict[str, Any] = {
        "SCALE": scale,
        "MIXTURE": "aa",
        "STORE": str(folder / "store"),
        "WORKDIR": str(workdir),
        "STEPS": steps,
        "WARMUP_STEPS": steps // 10,
        "DECAY_STEPS": steps // 10,
        "LEARNING_RATE": rate,
        "BATCH_SIZE": 8,
        "EVAL_STEPS": (),
        "PROGRESS": False,
        "model.lr_rule": rule,
    }
    began = time.process_time()
    arguments = [f"--gin.{name}={value!r}" for name, value in values.items()]
    # A run that diverges is a point too: it has no loss.
    failed = train.main(["--gin_file=gin/train/pretrain.gin", *arguments])
    loss = None if failed else observations.read_rows(workdir / "observations.jsonl")[-1]["loss"]
    point = {"rule": rule, "scale": scale, "rate": rate, "loss": loss, "seconds": time.process_time() - began}
    print(f"{rule:9s} {scale} rate {rate:<8g} loss {loss if loss is None else round(loss, 4)}", flush=True)
    return point


def best_rates(points: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """The learning rate with the lowest loss, for each rule and scale."""
    found: dict[str, dict[str, float]] = {rule: {} for rule in RULES}
    for rule in RULES:
        for scale in SCALES:
            of = [p for p in points if p["rule"] == rule and p["scale"] == scale and p["loss"] is not None]
            found[rule][scale] = min(of, key=lambda point: point["loss"])["rate"]
    return found


def draw(points: list[dict[str, Any]], path: Path) -> None:
    """Loss against learning rate, one line a size, one panel a rule; the lowest point of each line is circled."""
    import altair as alt
    import pandas as pd

    table = pd.DataFrame(points).dropna()
    table["rule"] = table["rule"].map({"mup": "mup (default)", "constant": "constant"})
    table["best"] = table.groupby(["rule", "scale"])["loss"].transform("min") == table["loss"]
    rates = alt.Scale(type="log", domain=[0.8 * min(RATES), 1.25 * max(RATES)])
    base = alt.Chart(table).encode(
        x=alt.X("rate:Q", title="base learning rate", scale=rates, axis=alt.Axis(values=list(RATES))),
        y=alt.Y("loss:Q", title="held-out loss, nats per byte", scale=alt.Scale(zero=False)),
        color=alt.Color("scale:N", title="size", scale=alt.Scale(scheme="viridis")),
    )
    rings = base.transform_filter("datum.best").mark_point(size=140, strokeWidth=2)
    chart = (base.mark_line(point=True) + rings).properties(width=280, height=240)
    facets = chart.facet(column=alt.Column("rule:N", title=None, sort="descending"))
    facets.configure_header(labelFontSize=13).save(str(path))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--json", type=Path, help="file to write the points to")
    parser.add_argument("--figure", type=Path, help="picture to draw: .png or .svg")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        generate.generate(folder / "corpus", ["aa"], 1, 2_000_000)
        pack(folder / "corpus", folder / "store", byte_vocabulary(), processes=1, valid_tokens=20_000)
        points = [
            final_loss(folder, scale, rule, rate, arguments.steps)
            for rule in RULES
            for scale in SCALES
            for rate in RATES
        ]
    result = {
        "steps": arguments.steps,
        "cpus": os.cpu_count(),
        "cpu_seconds": sum(point["seconds"] for point in points),
        "best": best_rates(points),
        "points": points,
    }
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    if arguments.figure:
        draw(points, arguments.figure)
    json.dump({name: result[name] for name in ("best", "cpu_seconds")}, sys.stdout)
    print()


if __name__ == "__main__":
    main()
