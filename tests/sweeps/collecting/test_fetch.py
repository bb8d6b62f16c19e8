"""A study on a remote file system gives the same tables as a local one."""

import json
import uuid

import fsspec
import pytest
from local_runs import FAKE_TRAINER, fake_trainer_on_path, small_study  # noqa: F401
from uploads import upload

from mscale.errors import MscaleError
from sweeps import spec
from sweeps.collecting.collect import collect
from sweeps.collecting.fetch import fetch
from sweeps.executors import local, state


@pytest.fixture
def there(tmp_path):
    local.run(small_study(), tmp_path / "there", workers=2, trainer=FAKE_TRAINER)
    url = f"memory://study-{uuid.uuid4().hex}"
    upload(tmp_path / "there", url)
    return tmp_path / "there", url


def test_what_is_fetched_gives_the_same_tables_and_only_changes_are_read_again(there, tmp_path, monkeypatch):
    folder, url = there
    here = tmp_path / "here"
    study = state.load_study(folder)
    assert fetch(url, here) == len(study.runs)
    assert collect(here) == collect(folder)
    assert (here / "observations.csv").read_bytes() == (folder / "observations.csv").read_bytes()
    assert not list(here.rglob("checkpoints"))
    assert fetch(url, here) == 0

    run = study.runs[0]
    status = {"state": "running", "step": 1}
    fsspec.filesystem("memory").pipe_file(f"{url}/runs/{run.id}/status.json", json.dumps(status).encode())
    assert fetch(url, here) == 1
    assert state.read_run(run, here).state != "done" and run.id in collect(here).missing


def test_a_run_that_ends_during_the_copy_is_not_done_without_its_rows(there, tmp_path, monkeypatch):
    folder, url = there
    system = fsspec.filesystem("memory")
    run = state.load_study(folder).runs[0]
    place = f"{url.removeprefix('memory:/')}/runs/{run.id}"
    whole = {name: system.cat_file(f"{place}/{name}") for name in ("status.json", "observations.jsonl")}
    system.pipe_file(f"{place}/status.json", b'{"state": "running", "step": 1}')
    system.pipe_file(f"{place}/observations.jsonl", b"")
    plain = type(system).cat_file

    def ends_while_it_is_read(self, path, *args, **kwargs):
        found = plain(self, path, *args, **kwargs)
        if path.endswith(f"{run.id}/status.json"):  # just after: the last rows, then the status
            for name in ("observations.jsonl", "status.json"):
                self.pipe_file(f"{place}/{name}", whole[name])
        return found

    monkeypatch.setattr(type(system), "cat_file", ends_while_it_is_read)
    fetch(url, tmp_path / "here")
    assert state.read_run(run, tmp_path / "here").state != "done"
    monkeypatch.undo()
    assert fetch(url, tmp_path / "here") == 1
    assert state.read_run(run, tmp_path / "here").state == "done"
    assert collect(tmp_path / "here") == collect(folder)


def _no_such_folder(system, root, **_):
    raise FileNotFoundError(root)


def test_bad_sources_and_folders_are_named(there, tmp_path, monkeypatch):
    folder, url = there
    with pytest.raises(MscaleError, match="expected a URL"):
        fetch(str(folder), tmp_path / "here")
    with pytest.raises(MscaleError, match=r"no study\.json there"):
        fetch(f"{url}/runs", tmp_path / "here")
    monkeypatch.setattr(type(fsspec.filesystem("memory")), "find", _no_such_folder)
    with pytest.raises(MscaleError, match=r"no study\.json there"):
        fetch(f"{url}/absent", tmp_path / "here")
    monkeypatch.undo()
    with pytest.raises(MscaleError, match="holds runs of this machine"):
        fetch(url, folder)
    fetch(url, tmp_path / "here")
    with pytest.raises(MscaleError, match="holds what was fetched from"):
        upload(folder, f"{url}-2")
        fetch(f"{url}-2", tmp_path / "here")
    assert spec.workdir(tmp_path / "here", state.load_study(folder).runs[0].id).is_dir()
