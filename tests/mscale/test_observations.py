"""Observations: columns and types are checked, and a file that is cut at any byte can be continued."""

import json
import subprocess
import sys
from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mscale import observations
from mscale.errors import MscaleError


def observation(**changes):
    row = {name: {str: "x", int: 7, float: 1.5}[kind] for name, kind in observations.COLUMNS.items()} | {
        "phase": "end"
    }
    return row | changes


def exposure(**changes):
    return {"run": "r", "step": 3, "language": "en", "tokens": 10, "unique_tokens": 8} | changes


def test_columns_are_those_of_the_contract_in_order():
    contract = (
        "run study tag group scale params params_nonembedding mixture languages vocabulary init init_tokens "
        "seed step tokens phase lr language split target_tokens target_unique loss loss_se bits_per_byte "
        "unigram_normalized_loss eval_tokens eval_bytes flops"
    )
    assert list(observations.COLUMNS) == contract.split()
    assert list(observations.EXPOSURE_COLUMNS) == ["run", "step", "language", "tokens", "unique_tokens"]


def test_scales_without_names_are_called_by_their_size():
    sizes = [1_012_400_000, 300_000_000, 72_000, 950]
    assert list(observations.scale_names(sizes).values()) == ["950", "72k", "300M", "1.01B"]
    # Two sizes alike to three digits keep apart.
    assert observations.scale_names([1_010_000_000, 1_011_000_000, 2_000_000]) == {
        1_010_000_000: "1010000000",
        1_011_000_000: "1011000000",
        2_000_000: "2M",
    }


def test_no_heavy_import():
    code = (
        "import sys, mscale.observations; "
        "print([m for m in ('jax', 'pandas', 'pyarrow', 'tensorflow', 'flax') if m in sys.modules])"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert output.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": 1.0}, "tokens.*exact integer"),
        ({"tokens": True}, "tokens.*exact integer"),
        ({"tokens": -1}, "tokens.*0 or more"),
        ({"loss": float("nan")}, "loss.*finite"),
        ({"loss": None}, "loss.*a number"),
        ({"scale": 4}, "scale.*text"),
        ({"phase": "cooled"}, "phase.*warmup"),
        ({"lose": 1.0}, "lose.*did you mean 'loss'"),
    ],
)
def test_broken_rows_are_refused(changes, message):
    with pytest.raises(MscaleError, match=message):
        observations.validate(observation(**changes))


def test_missing_column_is_named():
    row = observation()
    del row["flops"]
    with pytest.raises(MscaleError, match="'flops' is missing"):
        observations.validate(row)


def test_nullable_and_negative_where_allowed():
    observations.validate(observation(loss_se=None, unigram_normalized_loss=-2.5))
    observations.validate(exposure())
    with pytest.raises(MscaleError, match="unique_tokens"):
        observations.validate(exposure(unique_tokens=0.5))


def test_nothing_is_written_when_one_row_is_broken(tmp_path):
    path = tmp_path / "o.jsonl"
    with pytest.raises(MscaleError):
        observations.append_rows(path, [observation(), observation(loss=float("inf"))])
    assert not path.exists()


@given(cut=st.integers(min_value=0, max_value=3000))
def test_cut_at_any_byte_then_resumed_gives_each_row_once(tmp_path_factory, cut):
    path = tmp_path_factory.mktemp("o") / "o.jsonl"
    rows = [observation(step=step, language=language) for step in (1, 2) for language in ("en", "fr")]
    observations.append_rows(path, rows)
    data = path.read_bytes()
    path.write_bytes(data[: min(cut, len(data))])
    survivors = observations.read_rows(path)
    assert survivors == rows[: len(survivors)]
    # What a restart does: cut back to the restored step, here 1, and write step 2 again.
    observations.truncate_rows(path, 1)
    observations.append_rows(path, [row for row in rows if row not in survivors[:2]])
    assert sorted(map(str, observations.read_rows(path))) == sorted(map(str, rows))
    assert len(path.read_bytes().splitlines()) == len(rows)


def test_same_key_twice_is_one_row(tmp_path):
    path = tmp_path / "o.jsonl"
    observations.append_rows(path, [observation(loss=2.0), observation(loss=1.0), observation(step=8)])
    assert [row["loss"] for row in observations.read_rows(path)] == [1.0, 1.5]


def test_damaged_middle_line_is_named(tmp_path):
    path = tmp_path / "o.jsonl"
    path.write_text(json.dumps(observation()) + "\n{torn\n" + json.dumps(observation(step=9)) + "\n")
    with pytest.raises(MscaleError, match=r"o\.jsonl:2"):
        observations.read_rows(path)


def test_what_an_imported_table_may_lack_follows_from_the_contract():
    required = {name: row for name, row in observation().items() if name not in observations.DERIVED}
    required = {name: value for name, value in required.items() if name not in observations.IMPORT_DEFAULTS}
    required = {name: value for name, value in required.items() if name not in observations.NULLABLE}
    assert set(required) == {
        "run", "scale", "params", "languages", "tokens", "phase", "language", "target_tokens", "loss"
    }  # fmt: skip
    derived = {name: of_row(required) for name, of_row in observations.DERIVED.items()}
    observations.validate(asdict(observations.Observation(**required, **derived)))
    assert observations.IMPORT_DEFAULTS["split"] == "valid" and "lr" not in observations.IMPORT_DEFAULTS
