"""ATLAS's study against Table B.1, and the two affordable studies: counts, shared runs, ids, laws identified."""

import time
from collections import Counter

import pytest
from identified import fisher_information, identification_lines

from mscale import languages, scales
from mscale.errors import MscaleError
from sweeps.cost import bill as planner
from sweeps.cost import plan_table
from sweeps.studies import affordable, assumed_sizes
from sweeps.studies.atlas import L_TARGET, PRINTED_CELLS, S_PART, UNNAMED_CELLS, atlas_study
from sweeps.studies.built_in import built_in_study


@pytest.fixture(scope="module")
def study():
    return atlas_study()


def test_cells_are_the_printed_ones(study):
    named = Counter(cell.tag for cell in study.cells)
    assert sum(PRINTED_CELLS.values()) == 774
    assert {tag: named[tag] + UNNAMED_CELLS.get(tag, 0) for tag in PRINTED_CELLS} == PRINTED_CELLS
    assert len(L_TARGET) == 14 and len(S_PART) == 11  # as printed, where 15 and ten are counted


def test_distinct_trainings_follow_from_what_tags_share(study):
    result = planner.study_bill(study)
    # Worked out by hand: 7 monolingual runs at scale 34, half of the ordered pairs, 14 of the scaled pairs, and 12
    # of the finetunes are in other tags already.
    trainings = {one.tag: one.trainings for one in result.tags}
    assert trainings == {
        "Mono": 140,
        "Unimax": 20,
        "Multi": 70,
        "Pairs, mono side": 50 - 7,
        "Pairs": 45,
        "Pairs, scaled": 140 - 14,
        "Capacity": 120,
        "Finetunes": 50,
        "Finetunes, scaled": 84 - 12,
    }
    assert result.total.trainings == 686 and result.total.configurations == 764
    assert result.total.runs == 4 * 686  # a trunk and three budgets each


def test_budgets_and_batches_are_those_of_table_b2(study):
    for cell, ends in zip(study.cells, study.ends, strict=True):
        run = study.by_id[ends[-1]]
        assert run.steps == 30_000 and run.bindings["WARMUP_STEPS"] == 1000
        assert run.bindings["BATCH_SIZE"] == scales.atlas_batch_size(run.params)
        assert max(cell.tokens) == 30_000 * 2048 * run.bindings["BATCH_SIZE"]
    edges = {8: 256, 12: 512, 24: 512, 26: 1024, 32: 1024, 34: 2048, 46: 2048}
    assert {scale: scales.atlas_batch_size(scales.PUBLISHED_COUNTS[scale]) for scale in edges} == edges


def test_finetunes_continue_the_unimax_run_of_their_scale(study):
    for cell, ends in zip(study.cells, study.ends, strict=True):
        if not cell.tag.startswith("Finetunes"):
            continue
        trunk = study.by_id[study.by_id[ends[0]].parent]
        source = study.by_id[trunk.parent]
        assert source.tag == "Unimax" and source.steps == 30_000
        assert source.bindings["SCALE"] == cell.scale


def test_published_rates_enter_the_id_of_every_run_on_them(study, monkeypatch):
    rates = dict(languages.published_rates())
    rates["yo"], rates["sw"] = rates["sw"], rates["yo"]
    monkeypatch.setattr(languages, "published_rates", lambda: rates)
    changed = atlas_study()
    same = set(study.by_id) & set(changed.by_id)
    on_rates = {"Unimax", "Finetunes", "Finetunes, scaled"}
    assert all((run.id in same) == (run.tag not in on_rates) for run in study.runs)


def test_ids_do_not_depend_on_the_process(study):
    assert [run.id for run in atlas_study().runs] == [run.id for run in study.runs]


def test_planning_takes_less_than_five_seconds():
    started = time.process_time()
    found = atlas_study()
    plan_table.plan_table(found, accelerator="v5p", slices=8, printed=PRINTED_CELLS)
    assert time.process_time() - started < 5


def test_plan_shows_printed_cells_beside_trainings_and_says_what_is_assumed(study):
    from rich.console import Console

    console = Console(width=220, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    options = {"accelerator": "v5p", "slices": 8, "printed": PRINTED_CELLS}
    console.print(plan_table.plan_table(study, **options))
    text = console.export_text()
    total = next(line for line in text.splitlines() if "total" in line)
    assert "774" in total and "764" in total and "686" in total
    assert "774 printed cells, 764 of them named; 686 distinct" in text
    assert "token budgets are an assumption" in text and "scale 20 is left out" in text
    assert "fsdp=" in text and "On 8 slices of" in text and "never less than" in text


def test_fewer_budgets_are_the_bare_minimum():
    bare = atlas_study(fractions=(1.0,))
    assert len(bare.runs) == 686 and {run.kind for run in bare.runs} == {"single"}
    three = planner.study_bill(atlas_study()).total.flops
    assert three / planner.study_bill(bare).total.flops == pytest.approx(0.9 + 0.1 * 1.75)
    with pytest.raises(MscaleError, match="fractions are"):
        atlas_study(fractions=(0.5,))


def test_a_store_needs_the_monolingual_ones_beside_it():
    class Store(assumed_sizes.AssumedSizes):
        vocabulary = {"size": 64_512}

    with pytest.raises(MscaleError, match="own vocabulary for en, fr, ru, zh, hi, sw, yo"):
        atlas_study(Store())


def test_assumed_sizes_follow_the_published_rates():
    sizes = assumed_sizes.AssumedSizes()
    assert len(sizes.languages) == 419
    assert sizes.train_tokens("en") == sizes.train_tokens("zh") == assumed_sizes.UNLIMITED_TOKENS
    rates = languages.published_rates()
    assert 0 < rates["yo"] < rates["sw"] < rates["zh"]
    assert sizes.train_tokens("yo") == round(rates["yo"] * 1e12)
    assert min(sizes.windows(one, 2048) for one in sizes.languages) == 1


@pytest.mark.parametrize(
    ("name", "size"), [("gpu-day", affordable.GPU_DAY), ("tpu-week", affordable.TPU_WEEK)]
)
def test_affordable_studies_use_their_compute_and_identify_the_laws(name, size):
    study = built_in_study(name)
    assert 0.98 * size.flops < planner.study_bill(study).total.flops <= size.flops
    params = [scales.PUBLISHED_COUNTS[scale] for scale in size.scales]
    assert len(params) >= 5 and max(params) / min(params) >= 20
    assert all(found.identified for found in fisher_information(study).values())
    lines = identification_lines(study)
    assert sum(line.startswith("Identifies the") for line in lines) == 3
    crossover = next(line for line in lines if "pretrain-or-continue" in line)
    assert ("does not identify" in crossover) == (name == "gpu-day")


def test_the_affordable_studies_take_a_day_and_a_week():
    day = planner.estimate_wall_clock(built_in_study("gpu-day"), "h200")
    week = planner.estimate_wall_clock(built_in_study("tpu-week"), "v5e", chips=16)
    assert 20 < day.hours < 24 and 6.5 * 24 < week.hours <= 7.01 * 24


def test_the_plan_says_what_is_not_identified():
    study = built_in_study("gpu-day")
    import dataclasses

    alone = [index for index, cell in enumerate(study.cells) if cell.tag == "mono"]
    cut = dataclasses.replace(
        study,
        cells=tuple(study.cells[index] for index in alone),
        ends=tuple(study.ends[index] for index in alone),
    )
    text = "\n".join(identification_lines(cut))
    assert "Identifies the chinchilla law" in text
    assert "Does not identify the atlas law" in text and "lambda" in text
    assert "Does not identify the capacity law" in text and "phi" in text
    assert "Does not identify transfer scores" in text and "Does not cover pretrain-or-continue" in text


def test_unknown_study_is_named():
    with pytest.raises(MscaleError, match="unknown study 'atlsa'.*did you mean 'atlas'"):
        built_in_study("atlsa")
    with pytest.raises(MscaleError, match="give --store"):
        built_in_study("demo")


def test_chart_adds_up_to_the_bill(study):
    chart = plan_table.bill_chart(study, "v5p").to_dict()
    hours = sum(row["value"] for row in chart["data"]["values"])
    assert hours == pytest.approx(planner.device_hours(planner.study_bill(study).total.flops, "v5p"))
    assert len({row["scale"] for row in chart["data"]["values"]}) == 20
