import re
from pathlib import Path

import analysis


def test_every_module_is_on_the_map_once():
    """Whoever looks for a concept finds its module by reading one page."""
    there = {path.stem for path in Path(analysis.__file__).parent.glob("*.py")} - {"__init__"} | {"laws"}
    named = [name for name in re.findall(r"`(\w+)`", analysis.__doc__) if name != "Fit"]
    assert sorted(named) == sorted(there)
