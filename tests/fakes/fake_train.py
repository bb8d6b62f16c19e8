"""A trainer without a model: it writes the files of a real run, with made-up losses, for tests of executors.

Environment variables: FAKE_SECONDS is the duration of a run; FAKE_FAIL and FAKE_DIE are a part of the ids of runs that
raise an error or kill their process.
"""

import ast
import math
import os
import signal
import time
from pathlib import Path

from mscale import run_folder
from mscale.errors import MscaleError
from mscale.observations import append_rows, truncate_rows


def main(argv: list[str]) -> int:
    given = dict(
        argument.removeprefix("--gin.").split("=", 1) for argument in argv if argument.startswith("--gin.")
    )
    config = {name: ast.literal_eval(value) for name, value in given.items()}
    folder = Path(config["WORKDIR"])
    start = 0
    for name in ("BRANCH_FROM", "INIT_FROM"):
        if name in config:
            parent = Path(config[name].partition("@")[0])
            if run_folder.read_status(parent).state != "done":
                raise MscaleError(f"{parent}: not done, yet {config['RUN']} was started")
    if "BRANCH_FROM" in config:
        start = config["STEPS"] - config["DECAY_STEPS"]
    status = run_folder.read_status(folder)
    if not run_folder.has_observations(folder):
        status = run_folder.RunStatus()
    if status.state == "done" and status.step >= config["STEPS"]:
        return 0
    step = max(start, status.step)
    truncate_rows(folder / run_folder.OBSERVATIONS_FILE, step)
    truncate_rows(folder / run_folder.EXPOSURE_FILE, step)
    with open(folder / "began.txt", "a") as file:
        file.write(f"{os.getpid()} {sorted(os.sched_getaffinity(0))}\n")
    print("training", config["RUN"])
    if os.environ.get("FAKE_FAIL") and os.environ["FAKE_FAIL"] in config["RUN"]:
        raise MscaleError("the fake trainer was told to fail")
    if os.environ.get("FAKE_DIE") and os.environ["FAKE_DIE"] in config["RUN"]:
        os.kill(os.getpid(), signal.SIGKILL)
    points = {*config["EVAL_STEPS"], config["STEPS"]}
    pause = float(os.environ.get("FAKE_SECONDS", "0")) / max(1, len(points))
    for point in sorted(point for point in points if point > step):
        time.sleep(pause)
        rows = [row(config, point, name) for name in config["EVAL_LANGUAGES"]]
        append_rows(folder / run_folder.OBSERVATIONS_FILE, rows)
        append_rows(folder / run_folder.EXPOSURE_FILE, exposure(config, point))
        done = point == config["STEPS"]
        status = run_folder.RunStatus("done" if done else "running", point, config["STEPS"])
        run_folder.write_status(folder, status)
    return 0


def languages(config) -> list[str]:
    return [part.partition("=")[0] for part in config["MIXTURE"].split("+")]


def exposure(config, step: int) -> list[dict]:
    total, names = step * config["BATCH_SIZE"] * config["SEQUENCE_LENGTH"], languages(config)
    share = [total // len(names) + (index < total % len(names)) for index in range(len(names))]
    return [
        {"run": config["RUN"], "step": step, "language": name, "tokens": tokens, "unique_tokens": tokens}
        for name, tokens in zip(names, share, strict=True)
    ]


def row(config, step: int, language: str) -> dict:
    from mscale import scales

    params = scales.parameter_count(scales.get(config["SCALE"]), 259)
    seen = {one["language"]: one["tokens"] for one in exposure(config, step)}
    tokens = step * config["BATCH_SIZE"] * config["SEQUENCE_LENGTH"]
    loss = 1 + 50 / params**0.3 + 20 / (1 + seen.get(language, 0)) ** 0.3
    return {
        "run": config["RUN"],
        "study": config["STUDY"],
        "tag": config["TAG"],
        "group": config["GROUP"],
        "scale": str(config["SCALE"]),
        "params": params,
        "params_nonembedding": params,
        "mixture": config["MIXTURE"],
        "languages": "+".join(languages(config)),
        "vocabulary": "fake",
        "init": "scratch",
        "init_tokens": 0,
        "seed": config["SEED"],
        "step": step,
        "tokens": tokens,
        "phase": "end" if config["DECAY_STEPS"] and step == config["STEPS"] else "stable",
        "lr": 0.01,
        "language": language,
        "split": "valid",
        "target_tokens": seen.get(language, 0),
        "target_unique": 10**6,
        "loss": loss,
        "loss_se": 0.01,
        "bits_per_byte": loss / math.log(2),
        "unigram_normalized_loss": -1.0,
        "eval_tokens": 1000,
        "eval_bytes": 1000,
        "flops": float(6 * params * tokens),
    }
