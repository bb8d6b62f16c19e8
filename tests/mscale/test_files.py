"""Atomic writes: permissions by the umask, which no other thread ever sees changed, and nothing left behind."""

import os
import stat
import subprocess
import sys

import pytest

from mscale import files
from mscale.errors import MscaleError


def test_a_file_has_the_permissions_that_the_umask_gives(tmp_path):
    code = "import os, sys; from mscale import files; os.umask(0o027); os.umask = None; "
    code += "files.atomic_write(sys.argv[1], 'x')"
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "f")], check=True)
    assert stat.S_IMODE((tmp_path / "f").stat().st_mode) == 0o640


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[" * 100_000])
def test_a_damaged_file_is_named_with_the_remedy(tmp_path, content):
    (tmp_path / "f.json").write_bytes(content)
    with pytest.raises(MscaleError, match="f.json: this list is damaged .*; make it again$"):
        files.read_json_as(tmp_path / "f.json", list, what="list", remedy="make it again")


def test_a_write_that_fails_leaves_the_old_content_and_no_other_file(tmp_path):
    path = tmp_path / "ein Brief ö.json"
    files.atomic_json(path, {"a": 1})
    with pytest.raises(KeyError), files.atomic_writer(path) as file:
        file.write(b"half")
        raise KeyError
    assert files.read_json(path) == {"a": 1} and os.listdir(tmp_path) == [path.name]
