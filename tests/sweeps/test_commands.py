"""Options of the sweep commands."""

import pytest

from mscale.errors import MscaleError
from sweeps.commands import parsed
from sweeps.executors import gke, slurm


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
