"""Writes to a file which files of some folders this interpreter opens; `run.sh` puts it into an environment.

Reads MSCALE_TEST_OPENED (the file) and MSCALE_TEST_FOLDERS (separated as PATH is). Without them it does nothing.
"""

import os
import sys


def _watch(log: str, folders: tuple[str, ...]) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def hook(event: str, arguments: tuple) -> None:
        if event == "open" and isinstance(arguments[0], str):
            path = os.path.abspath(arguments[0])
            if path.startswith(folders):
                os.write(descriptor, f"{path}\n".encode())

    sys.addaudithook(hook)


if "MSCALE_TEST_OPENED" in os.environ:
    listed = os.environ["MSCALE_TEST_FOLDERS"].split(os.pathsep)
    _watch(os.environ["MSCALE_TEST_OPENED"], tuple(folder.rstrip("/") + "/" for folder in listed))
