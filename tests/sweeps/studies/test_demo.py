"""The demo study has the cells that the laws need, and identifies the laws at planted parameters."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st
from identified import fisher_information
from studies import FakeStore

from mscale.errors import MscaleError
from sweeps.cost import bill
from sweeps.studies.demo import DEMO_SCALES, DEMO_TOKENS, choose_pairs, demo_study

SIX = ("aa", "ab", "ac", "ba", "bb", "bc")
FAMILIES = {language: language[0] for language in SIX}


def study(names=SIX, families=FAMILIES, tokens=10**6, **changes):
    return demo_study(FakeStore(names, tokens), families=families, **changes)


def cells(planned, tag):
    return [cell for cell in planned.cells if cell.tag == tag]


def test_cells_are_those_that_the_laws_need():
    planned = study()
    plan = bill.study_bill(planned)
    assert plan.total.runs >= 30 and not planned.notes
    anchors = {cell.mixture for cell in cells(planned, "mono") if cell.scale == "nano0"}
    assert len(anchors) == 2 and len({FAMILIES[one] for one in anchors}) == 2
    for anchor in anchors:
        mine = [cell for cell in cells(planned, "mono") if cell.mixture == anchor]
        assert {cell.scale for cell in mine} == set(DEMO_SCALES) and all(
            len(cell.tokens) >= 3 for cell in mine
        )
    assert {cell.mixture for cell in cells(planned, "mono")} == set(SIX)
    capacity = {(len(planned.mixtures[cell.mixture]), cell.scale) for cell in cells(planned, "capacity")}
    assert {count for count, _ in capacity} == {2, 4, 6} and len(capacity) == 9
    epochs = {max(cell.tokens) // dict(cell.unique_tokens)[cell.mixture] for cell in cells(planned, "repeat")}
    assert epochs == {4, 16}
    (unimax,) = cells(planned, "unimax")
    assert all(
        cell.init == unimax and cell.evaluate == unimax.evaluate for cell in cells(planned, "continue")
    )
    scratch = {cell.mixture: max(cell.tokens) for cell in cells(planned, "mono") if cell.scale == "nano2"}
    assert all(max(cell.tokens) <= scratch[cell.mixture] for cell in cells(planned, "continue"))
    assert {cell.seed for cell in planned.cells} == {0, 1}


def test_bilingual_runs_are_long_enough_to_see_harm():
    """Pairs train for 2.5 times the reference (half of the monolingual budget), so a score of −0.5 is measurable."""
    planned = study()
    alone = {cell.mixture: cell.tokens for cell in cells(planned, "mono") if cell.scale == "nano2"}
    for cell in cells(planned, "pairs"):
        for language in planned.mixtures[cell.mixture]:
            middle = sorted(alone[language])[-2]
            assert max(cell.tokens) >= 2.5 * middle and max(cell.tokens) >= 1.25 * max(alone[language])


def test_pairs_are_inside_and_across_families():
    pairs = choose_pairs(SIX, FAMILIES)
    inside = [pair for pair in pairs if FAMILIES[pair[0]] == FAMILIES[pair[1]]]
    assert len(pairs) == 9 and len(inside) == 6
    count = {one: sum(one in pair for pair in pairs) for one in SIX}
    assert set(count.values()) == {3}


@given(st.integers(2, 20), st.integers(1, 5))
def test_pairs_of_any_number_of_languages(count, families):
    languages = [f"l{index:02}" for index in range(count)]
    for family_of in ({}, {one: str(index % families) for index, one in enumerate(languages)}):
        pairs = choose_pairs(languages, family_of)
        assert pairs[0] == (languages[0], languages[1]) and len(set(pairs)) == len(pairs)
        assert {one for pair in pairs for one in pair} >= set(languages[:2])
        degree = [sum(one in pair for pair in pairs) for one in languages]
        wanted = min(count - 1, 3 if count <= 8 else 2 if count <= 12 else 1)
        assert min(degree) >= wanted and max(degree) <= wanted + 2 and sum(degree) <= wanted * count + 2


@pytest.mark.parametrize("count", range(2, 13))
def test_without_families_pairs_link_all_languages(count):
    pairs = choose_pairs([f"l{index:02}" for index in range(count)], {})
    linked = {"l00"}
    for _ in pairs:
        linked |= {one for pair in pairs if linked & set(pair) for one in pair}
    assert len(linked) == count


@pytest.mark.parametrize("families", [FAMILIES, {}, {one: one[1] for one in SIX}])
def test_laws_are_identified(families):
    found = fisher_information(study(families=families))
    for law, one in found.items():
        assert one.identified, law
        assert one.condition < 1e9 and max(one.errors.values()) < 1.0
    names = found["atlas"].names
    assert all(f"tau_other[{t}]" in names for t in SIX) and "lambda" in names
    assert sum(name.startswith("tau[aa,") for name in names) == 3


def test_without_repetition_lambda_is_not_identified():
    """The check can fail: without some cells, the parameters that they determine are not identified."""
    planned = study()
    keep = [index for index, cell in enumerate(planned.cells) if cell.tag != "repeat"]
    fewer = dataclasses.replace(
        planned,
        cells=tuple(planned.cells[index] for index in keep),
        ends=tuple(planned.ends[index] for index in keep),
    )
    atlas = fisher_information(fewer)["atlas"]
    assert not atlas.identified and atlas.errors["lambda"] == float("inf")
    assert fisher_information(fewer)["chinchilla"].identified


def test_without_scales_the_size_exponent_is_not_identified():
    planned = study()
    keep = [index for index, cell in enumerate(planned.cells) if cell.scale == "nano2"]
    fewer = dataclasses.replace(
        planned,
        cells=tuple(planned.cells[index] for index in keep),
        ends=tuple(planned.ends[index] for index in keep),
    )
    found = fisher_information(fewer)
    assert not found["capacity"].identified and found["atlas"].errors["alpha"] == float("inf")


@pytest.mark.parametrize("count", [2, 3, 4, 5, 8, 10])
def test_any_number_of_languages(count):
    languages = tuple(f"l{index}" for index in range(count))
    planned = study(languages, {})
    assert len(planned.runs) >= 30
    assert bool(planned.notes) == (count < 6)
    assert (
        fisher_information(planned)["chinchilla"].identified
        and fisher_information(planned)["capacity"].identified
    )


def test_scarce_text_reduces_budgets_instead_of_repeating():
    planned = study(tokens=DEMO_TOKENS // 2)
    assert any("reduced to as little as" in note for note in planned.notes)
    for cell in planned.cells:
        if not cell.unique_tokens:
            rates = planned.mixtures[cell.mixture]
            assert all(max(cell.tokens) * rate <= planned.unique[name] for name, rate in rates.items())


def test_languages_without_text_are_left_out_and_named():
    class Uneven(FakeStore):
        def train_tokens(self, language):
            return 3_000 if language == "bc" else self.tokens

    planned = demo_study(Uneven(SIX, 10**6))
    assert "bc" not in {cell.mixture for cell in planned.cells} and "bc left out" in planned.notes[0]
    with pytest.raises(MscaleError, match="0 of 6 languages have .* the demo needs two"):
        study(tokens=3_000)


def test_wrong_languages_and_budgets_are_named():
    with pytest.raises(MscaleError, match="language 'zz' is not in the token store"):
        study(SIX, languages=["aa", "zz"])
    with pytest.raises(MscaleError, match="largest budget is 1,024 tokens"):
        demo_study(FakeStore(SIX, 10**6), tokens=1024)


def test_seed_and_languages_do_what_they_say():
    one, other = study(), study(seed=5)
    assert {cell.seed for cell in other.cells} == {5, 6} and not set(one.by_id) & set(other.by_id)
    chosen = study(languages=["aa", "bb"])
    assert {name for cell in chosen.cells for name in chosen.mixtures[cell.mixture]} == {"aa", "bb"}
