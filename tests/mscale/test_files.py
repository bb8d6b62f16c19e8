"""Atomic writes: permissions by the umask, which no other thread ever sees changed, and nothing left behind."""

import os
import stat
import subprocess
import sys

import pytest

from mscale import files


def test_a_file_has_the_permissions_that_the_umask_gives(tmp_path):
    code = "import os, sys; from mscale import files; os.umask(0o027); os.umask = None; "
    code += "files.atomic_write(sys.argv[1], 'x')"
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "f")], check=True)
    assert stat.S_IMODE((tmp_path / "f").stat().st_mode) == 0o640


def test_a_write_that_fails_leaves_the_old_content_and_no_other_file(tmp_path):
    path = tmp_path / "ein Brief ö.json"
    files.atomic_json(path, {"a": 1})
    with pytest.raises(KeyError), files.atomic_writer(path) as file:
        file.write(b"half")
        raise KeyError
    assert files.read_json(path) == {"a": 1} and os.listdir(tmp_path) == [path.name]
