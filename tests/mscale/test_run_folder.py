"""What trainer and executors write into a run's folder is read back, and a damaged file is named."""

import pytest

from mscale import run_folder
from mscale.run_folder import Heartbeat, RunStatus


def test_status_and_heartbeat_are_read_back(tmp_path):
    assert run_folder.read_status(tmp_path) == RunStatus()
    status = RunStatus("done", 20, 20, tokens_per_second=1.5, updated=3.0)
    run_folder.write_status(tmp_path, status)
    assert run_folder.read_status(tmp_path) == status
    heartbeat = Heartbeat("host", 1, "7", 1.0, 2.0)
    run_folder.write_heartbeat(tmp_path, heartbeat)
    assert run_folder.read_heartbeat(tmp_path) == heartbeat


def test_a_failure_keeps_the_end_of_the_log_until_it_is_cleared(tmp_path):
    (tmp_path / run_folder.LOG_FILE).write_text("".join(f"line {number}\n" for number in range(2_000)))
    run_folder.write_failure(tmp_path, "the disk is full")
    failure = run_folder.read_failure(tmp_path)
    assert failure.reason == "the disk is full" and failure.log[-1] == "line 1999" and len(failure.log) == 20
    run_folder.clear_failure(tmp_path)
    assert run_folder.read_failure(tmp_path) is None


def test_a_cancelled_run_is_so_until_the_mark_is_removed(tmp_path):
    run_folder.mark_cancelled(tmp_path)
    assert run_folder.is_cancelled(tmp_path)
    run_folder.mark_cancelled(tmp_path, False)
    assert not run_folder.is_cancelled(tmp_path)


@pytest.mark.parametrize("content", [b'{"state": "do', b"[]", b"\xff", b'{"state": 5, "reason": 5}'])
def test_damaged_files_say_so(tmp_path, content):
    for name in (run_folder.STATUS_FILE, run_folder.FAILURE_FILE, run_folder.HEARTBEAT_FILE):
        (tmp_path / name).write_bytes(content)
    status, failure = run_folder.read_status(tmp_path), run_folder.read_failure(tmp_path)
    assert status == RunStatus(reason=status.reason)
    for reason, name in ((status.reason, "status.json"), (failure.reason, "failure.json")):
        assert reason.startswith(f"{tmp_path / name} is damaged") and reason.endswith("delete it")
    assert run_folder.read_heartbeat(tmp_path) is None
