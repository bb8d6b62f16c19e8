"""A run with an optimizer of the user's own, which a gin file names."""

import json

import pytest
import tiny_run

from mscale import train
from mscale.training import checkpoints

MODULE = """
import gin
import optax


@gin.configurable(module="my_optimizers")
def lion(hyper, learning_rate, lr_multipliers, decay_mask, b2=0.99):
    return optax.chain(
        optax.clip_by_global_norm(hyper.clip),
        optax.scale_by_lion(0.9, b2),
        optax.add_decayed_weights(hyper.weight_decay, decay_mask),
        optax.scale_by_learning_rate(learning_rate),
    )
"""


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return tiny_run.store(tmp_path_factory)


@pytest.fixture(scope="module")
def lion(tmp_path_factory):
    """Trains with Lion; `b2` is an argument of the user's function, and gin's."""
    folder = tmp_path_factory.mktemp("mine")
    (folder / "my_optimizers.py").write_text(MODULE)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))

        def run(store, workdir, b2=0.99, **macros):
            (folder / "lion.gin").write_text(
                "import my_optimizers\ninclude 'gin/train/pretrain.gin'\n"
                f"train.optimizer = @my_optimizers.lion\nmy_optimizers.lion.b2 = {b2}\n"
            )
            arguments = tiny_run.arguments(store, workdir, LEARNING_RATE=0.001, **macros)
            return train.main([f"--gin_file={folder / 'lion.gin'}", *arguments[1:]])

        yield run


def losses(workdir):
    return [row["loss"] for row in tiny_run.rows(workdir) if row["language"] == "en"]


def test_it_trains_is_recorded_and_goes_on_to_the_same_losses(lion, store, tmp_path):
    assert lion(store, tmp_path / "whole", CHECKPOINT_STEPS=(16,)) == 0
    assert losses(tmp_path / "whole")[-1] < losses(tmp_path / "whole")[0]
    run = json.loads((tmp_path / "whole" / "run.json").read_text())
    assert run["chain"] == {"name": "my_optimizers.lion", "arguments": {"b2": "0.99"}}
    # A branch takes over Lion's state: it has one moment, and AdamW's arrays are not there.
    branch = dict(STEPS=24, DECAY_STEPS=8, EVAL_STEPS=(24,), BRANCH_FROM=str(tmp_path / "whole"))
    assert lion(store, tmp_path / "branch", **branch) == 0
    names = set(checkpoints.flatten_by_path(tiny_run.arrays(tmp_path / "branch", 24)))
    assert not [name for name in names if ".nu." in name] and [name for name in names if ".mu." in name]


def test_other_arguments_are_another_run_in_the_same_process(lion, store, tmp_path, capsys):
    assert lion(store, tmp_path / "a") == 0
    assert lion(store, tmp_path / "b", b2=0.5) == 0
    assert losses(tmp_path / "a") != losses(tmp_path / "b")
    assert lion(store, tmp_path / "b") == 1
    assert "holds a run with chain" in capsys.readouterr().err


def test_a_branch_of_another_optimizer_is_refused(lion, store, tmp_path, capsys):
    assert tiny_run.run(store, tmp_path / "adamw", LEARNING_RATE=0.001, CHECKPOINT_STEPS=(16,)) == 0
    branch = dict(STEPS=24, DECAY_STEPS=8, EVAL_STEPS=(24,), BRANCH_FROM=str(tmp_path / "adamw"))
    assert lion(store, tmp_path / "branch", **branch) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: BRANCH_FROM") and "chain" in error


def test_what_is_no_configurable_function_is_refused(store, tmp_path, capsys):
    assert tiny_run.run(store, tmp_path / "run", train__optimizer="adamw") == 1
    assert "(--gin.train.optimizer='adamw'): expected a function, as in @my_" in capsys.readouterr().err


def test_the_count_of_steps_goes_on_in_a_branch_and_starts_anew_from_parameters(store, tmp_path):
    assert tiny_run.run(store, tmp_path / "trunk", CHECKPOINT_STEPS=(16,)) == 0
    branch = dict(STEPS=24, DECAY_STEPS=8, EVAL_STEPS=(24,), BRANCH_FROM=str(tmp_path / "trunk"))
    assert tiny_run.run(store, tmp_path / "branch", **branch) == 0
    assert (
        tiny_run.run(
            store, tmp_path / "next", STEPS=12, EVAL_STEPS=(12,), INIT_FROM=f"{tmp_path / 'trunk'}@24"
        )
        == 0
    )
    counts = [
        int(tiny_run.arrays(tmp_path / name, step)["optimizer.adam.count"])
        for name, step in (("trunk", 16), ("branch", 24), ("next", 12))
    ]
    assert counts == [16, 24, 12]
