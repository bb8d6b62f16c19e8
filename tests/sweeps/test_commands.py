"""Options of the sweep commands."""

import sys

import pytest

from mscale.errors import MscaleError
from sweeps.commands import laws_identified, parsed
from sweeps.executors import gke, slurm
from sweeps.studies.built_in import built_in_study


def test_options_of_an_executor_have_the_types_of_its_fields():
    given = ("partition=7", "cpus=8", "setup=module load cuda;ulimit -l unlimited")
    setup = ("module load cuda", "ulimit -l unlimited")
    assert parsed(given, slurm.Options) == slurm.Options(partition="7", cpus=8, setup=setup)
    assert parsed(("image=i", "spot=true"), gke.Options) == gke.Options("i", spot=True)


@pytest.mark.parametrize(
    ("given", "kind", "message"),
    [
        ("cpus=many", slurm.Options, "cpus"),
        ("cpu=8", slurm.Options, "did you mean 'cpus'"),
        ("cpus", slurm.Options, "expected NAME=VALUE"),
        ("claim=c", gke.Options, "required field `image`"),
    ],
)
def test_a_wrong_option_is_named(given, kind, message):
    with pytest.raises(MscaleError, match=message):
        parsed((given,), kind)


def test_a_plan_says_which_laws_are_identified_or_what_to_install(monkeypatch):
    study = built_in_study("gpu-day")
    lines = laws_identified(study)
    assert [line.partition(":")[0] for line in lines] == [
        f"Identifies the {law} law" for law in ("chinchilla", "atlas", "capacity")
    ]
    monkeypatch.setitem(sys.modules, "analysis.planning.identification", None)
    (line,) = laws_identified(study)
    assert "pip install 'mscale[analysis]'" in line
