"""A study's state in SQLite, for queries: written by the runner alone, and rebuilt from the run folders at any time.

The folders are the truth. The file lies in the study's folder, or where ``MSCALE_STATE_DIR`` says (SQLite wants a local
disk); deleting it loses nothing.
"""

import contextlib
import hashlib
import os
import sqlite3
import time
from pathlib import Path

from mscale.errors import MscaleError
from sweeps.executors import state

COLUMNS = (
    "run TEXT PRIMARY KEY",
    "tag TEXT",
    "scale TEXT",
    "mixture TEXT",
    "parent TEXT",
    "state TEXT",
    "step INTEGER",
    "steps INTEGER",
    "tokens_done INTEGER",
    "flops_done REAL",  # beyond 64 bits
    "flops REAL",
    "tokens_per_second REAL",
    "reason TEXT",
    "seen REAL",
)


def path_of(root: str | Path) -> Path:
    """Where the mirror of a study lies."""
    folder = os.environ.get("MSCALE_STATE_DIR")
    if folder is None:
        return Path(root) / "state.sqlite"
    key = hashlib.sha256(str(Path(root).resolve()).encode()).hexdigest()[:16]
    return Path(folder) / f"mscale-{key}.sqlite"


def rebuild(root: str | Path) -> Path:
    """Brings the mirror up to the run folders, in one transaction; a damaged file is replaced. Returns its path.

    Raises:
      MscaleError: there is no study in ``root``, or the file cannot be written.
    """
    study = state.load_study(root)
    states = state.read_states(study.runs, root)
    now = time.time()
    rows = [
        (
            one.spec.id,
            one.spec.tag,
            str(one.spec.bindings.get("SCALE")),
            str(one.spec.bindings.get("MIXTURE")),
            one.spec.parent,
            one.state,
            one.step,
            one.spec.steps,
            one.tokens_done,
            float(state.flops_done(one)),
            float(one.spec.flops),
            one.tokens_per_second,
            one.reason,
            now,
        )
        for one in states.values()
    ]
    path = path_of(root)
    for attempt in range(2):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.closing(sqlite3.connect(path, timeout=10)) as database, database:
                database.execute("DROP TABLE IF EXISTS runs")
                database.execute(f"CREATE TABLE runs ({', '.join(COLUMNS)})")
                database.executemany(f"INSERT INTO runs VALUES ({', '.join('?' * len(COLUMNS))})", rows)
            return path
        except sqlite3.OperationalError as error:
            raise MscaleError(
                f"cannot write {path}: {error}; free some space, or set MSCALE_STATE_DIR to a folder on a local disk"
            ) from None
        except (sqlite3.DatabaseError, OSError) as error:
            if attempt:
                raise MscaleError(f"cannot write {path}: {error}; delete it") from None
            path.unlink(missing_ok=True)  # damaged: the folders have it all
    return path
