"""Every code has words of its own, and what is said with it is named in them."""

from typing import get_args

import pytest

from analysis.tables.remarks import Code, Remark, exclusion_text, remark_text


def test_every_code_has_words_of_its_own():
    texts = {
        remark_text(Remark(code, rows=2, names=("a", "b", "end"), others=("c",), numbers=(1.0, 2.0)))
        for code in get_args(Code)
    }
    assert len(texts) == len(get_args(Code)) and all(texts) and remark_text(None) == ""


def test_an_exclusion_says_what_and_why():
    remark = Remark("other_evaluation", rows=7, names=("split", "flores", "test"), others=("valid",))
    what, why = exclusion_text(remark)
    assert what == "losses of split flores, test" and why.startswith("only valid is analysed")
    assert remark_text(remark) == f"{what} left out (7): {why}"
    with pytest.raises(ValueError, match="halves is no exclusion"):
        exclusion_text(Remark("halves"))
