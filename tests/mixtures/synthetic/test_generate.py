"""The generated corpus: its relatedness gives transfer as planted, and its bytes follow from the seed alone."""

import itertools
import json
import time

import numpy as np
import pytest
from scipy.stats import spearmanr

from mixtures.synthetic import generate
from mixtures.synthetic import languages as synthetic_languages
from mixtures.synthetic import text as synthetic_text
from mixtures.synthetic.languages import World
from mscale.data import corpus
from mscale.errors import MscaleError

SMALL = {"bytes_per_language": 20_000, "parallel_documents": 5}


def contents(folder) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def texts(folder, code) -> list[str]:
    return [text for path in corpus.language_files(folder, code) for text in corpus.documents(path)]


def world_text(world, code, size) -> bytes:
    lines = b"".join(chunk.tobytes() for chunk in generate.text_chunks(world, code, size)).splitlines()
    return "\n".join(json.loads(line)["text"] for line in lines).encode()


# Form and determinism.


def test_layout_sizes_and_json(tmp_path):
    sizes = {"aa": 30_000, "ba": 1, "ca": 5_000}
    truth = generate.generate(tmp_path, ["aa", "ba", "ca"], 3, sizes, parallel_documents=0)
    assert corpus.list_languages(tmp_path) == ["aa", "ba", "ca"] == sorted(truth["languages"])
    for code, size in sizes.items():
        documents = [len(text.encode()) for text in texts(tmp_path, code)]
        assert sum(documents) >= size
        assert sum(documents[:-1]) < size  # exceeded by less than the last document
    assert json.loads((tmp_path / "truth.json").read_text()) == truth
    assert not (tmp_path / "generating.json").exists()


def test_rendered_byte_counts_are_those_of_the_text():
    world = World()
    content = synthetic_text.draw_content(
        synthetic_text.content_process(world), synthetic_languages.random_generator(1, "t"), 700
    )
    for code in ("aa", "ba"):
        forms = synthetic_text.word_forms(world, synthetic_languages.synthetic_language(world, code))
        lines, ends, text_bytes = synthetic_text.render_json_lines(forms, content)
        rows = lines.tobytes().splitlines(keepends=True)
        assert np.cumsum([len(row) for row in rows]).tolist() == ends.tolist()
        assert [len(json.loads(row)["text"].encode()) for row in rows] == text_bytes.tolist()


def test_bytes_follow_from_the_seed_alone(tmp_path):
    generate.generate(tmp_path / "a", 3, **SMALL)
    generate.generate(tmp_path / "b", 3, **SMALL)
    generate.generate(tmp_path / "more", 8, **SMALL)
    generate.generate(tmp_path / "other", 3, seed=1, **SMALL)
    a, b, more, other = (contents(tmp_path / name) for name in ("a", "b", "more", "other"))
    assert a == b
    for name in a.keys() - {"truth.json"}:
        assert more[name] == a[name] and other[name] != a[name]


def test_bytes_do_not_depend_on_processes_and_a_small_corpus_begins_a_large_one(tmp_path, monkeypatch):
    generate.generate(tmp_path / "one", 3, **SMALL)
    generate.generate(tmp_path / "two", 3, processes=2, **SMALL)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    generate.generate(tmp_path / "large", 3, bytes_per_language=700_000)
    small, large = texts(tmp_path / "one", "ba"), texts(tmp_path / "large", "ba")
    assert large[: len(small)] == small
    monkeypatch.setattr(generate, "SHARD_BYTES", 9_000)
    generate.generate(tmp_path / "shards", 1, **SMALL)
    assert len(corpus.language_files(tmp_path / "shards", "aa")) == 3
    documents = texts(tmp_path / "shards", "aa")
    assert len(set(documents)) > 0.95 * len(documents)  # shards do not repeat one another


def test_gzip_carries_no_time(tmp_path):
    generate.generate(tmp_path, 1, **SMALL)
    assert corpus.language_files(tmp_path, "aa")[0].read_bytes()[4:8] == b"\0\0\0\0"


def test_a_whole_corpus_is_left_alone_and_an_unfinished_one_continued(tmp_path, monkeypatch):
    truth = generate.generate(tmp_path, 3, **SMALL)
    before, times = contents(tmp_path), [path.stat().st_mtime_ns for path in tmp_path.rglob("*.gz")]
    assert generate.generate(tmp_path, 3, **SMALL) == truth
    assert [path.stat().st_mtime_ns for path in tmp_path.rglob("*.gz")] == times

    corpus.language_files(tmp_path, "ba")[0].unlink()  # as if a user deleted it
    generate.generate(tmp_path, 3, **SMALL)
    assert contents(tmp_path) == before

    def die(*_):
        raise KeyboardInterrupt

    other = tmp_path / "other"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(generate, "parallel_texts", die)
        generate.generate(other, 3, **SMALL)
    assert not (other / "truth.json").exists()
    with pytest.raises(MscaleError, match="other parameters"):
        generate.generate(other, 3, seed=1, **SMALL)
    generate.generate(other, 3, **SMALL)
    assert contents(other) == before


def test_refuses_to_overwrite(tmp_path):
    generate.generate(tmp_path / "mine", 3, **SMALL)
    before = contents(tmp_path / "mine")
    with pytest.raises(MscaleError, match=r"truth\.json.*seed: 0 there, 5 asked for"):
        generate.generate(tmp_path / "mine", 3, seed=5, **SMALL)
    with pytest.raises(MscaleError, match="bytes_per_language"):
        generate.generate(tmp_path / "mine", 4, **SMALL)
    assert contents(tmp_path / "mine") == before
    (tmp_path / "real" / "data" / "en").mkdir(parents=True)
    with pytest.raises(MscaleError, match="not made by the generator"):
        generate.generate(tmp_path / "real", 3, **SMALL)
    path = corpus.language_files(tmp_path / "mine", "aa")[0]
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(MscaleError, match="changed after it was generated"):
        generate.generate(tmp_path / "mine", 3, **SMALL)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"languages": 0}, "languages=0"),
        ({"languages": "aa"}, r"\['aa'\]"),
        ({"languages": ["aa", "aa"]}, "none twice"),
        ({"languages": ["aa", "da"]}, "language 'da'.*letter a to c"),
        ({"languages": ["English"]}, "language 'English'"),
        ({"families": 0}, "families=0"),
        ({"families": 27}, "families=27"),
        ({"bytes_per_language": 0}, "bytes_per_language.*0"),
        ({"bytes_per_language": {"aa": 5}}, "sizes for aa; expected one for each of aa, ba"),
        ({"concepts": 10}, "concepts=10"),
        ({"replaced": (1.5, 1.5)}, "replaced"),
        ({"replaced": (0.5, 0.1)}, "replaced"),
        ({"sound_changes": (0, 1, 2)}, "sound_changes"),
        ({"borrowed": -0.1}, "borrowed"),
        ({"parallel_documents": -1}, "parallel_documents=-1"),
        ({"processes": 0}, "processes=0"),
    ],
)
def test_bad_parameters(tmp_path, arguments, expected):
    with pytest.raises(MscaleError, match=expected):
        generate.generate(tmp_path / "new", **{"languages": 2, **SMALL, **arguments})
    assert not (tmp_path / "new").exists()


def test_codes_are_distinct_and_do_not_move(tmp_path):
    many = synthetic_languages.language_codes(1500, 3)
    assert len(set(many)) == 1500 and many[:4] == ["aa", "ba", "ca", "ab"]
    assert all(2 <= len(code) <= 3 and code.isascii() and code.islower() for code in many)
    assert many[:30] == synthetic_languages.language_codes(30, 3)


# What is planted.


@pytest.fixture(scope="module")
def world():
    return World(families=4)


def test_sound_changes_are_regular(world):
    for code in ("ab", "ac", "bb", "cd"):
        parent = synthetic_languages.synthetic_language(world, code[0] + "a")
        child = synthetic_languages.synthetic_language(world, code)
        maps = [{change[0]: change[1] for change in one.sound_changes} for one in (parent, child)]
        kept = parent.inherited & child.inherited
        names = synthetic_languages.concept_ranges(world.concepts)["name"]
        kept[names] = False
        assert kept.sum() > 50
        reflexes = {}  # pairs of letters in one place: of one proto-phoneme always the same pair
        for k in np.flatnonzero(kept):
            for pair in zip(parent.words[k], child.words[k], strict=True):
                reflexes[pair] = reflexes.get(pair, 0) + 1
        possible = {tuple(change.get(p, p) for change in maps) for p in synthetic_languages.PHONEMES}
        assert set(reflexes) <= possible


def test_scripts_are_shared_by_some_families_and_order_belongs_to_languages(world):
    languages = [
        synthetic_languages.synthetic_language(world, code)
        for code in synthetic_languages.language_codes(40, 4)
    ]
    scripts = {one.family: one.script for one in languages}
    assert scripts == {"a": "Latin", "b": "Cyrillic", "c": "Latin", "d": "Greek"}
    assert len({one.clause_order for one in languages}) >= 3
    assert (
        {one.adjective_first for one in languages} == {one.prepositions for one in languages} == {True, False}
    )
    for alphabet in synthetic_languages.ALPHABETS.values():
        assert len(set(alphabet)) == len(alphabet) == len(synthetic_languages.PHONEMES)


def test_text_is_in_its_script():
    world = World(families=12)
    for code in synthetic_languages.language_codes(12, 12):
        script = synthetic_languages.synthetic_language(world, code).script
        letters = {c for c in world_text(world, code, 5000).decode().lower() if c.isalpha()}
        assert letters <= set(synthetic_languages.ALPHABETS[script].lower()) and len(letters) >= 15


def test_word_frequencies_are_zipfian(world):
    words = world_text(world, "aa", 400_000).decode().lower().split()
    counts = np.sort(np.unique(words, return_counts=True)[1])[::-1]
    rank = np.arange(5, 200)
    slope = np.polyfit(np.log(rank), np.log(counts[rank - 1]), 1)[0]
    assert -1.3 < slope < -0.6


def test_documents_vary_and_languages_do_not_translate_one_another(tmp_path):
    generate.generate(tmp_path, 2, 1, 50_000, replaced=(0.0, 0.0), sound_changes=(0, 0))
    one, other = texts(tmp_path, "aa"), texts(tmp_path, "ab")
    lengths = [len(text) for text in one]
    assert np.std(lengths) > 0.4 * np.mean(lengths)
    assert not set(one) & set(other)


def test_parallel_part_has_the_same_content(tmp_path):
    generate.generate(tmp_path, 4, 2, 5_000, replaced=(0.0, 0.0), sound_changes=(0, 0), parallel_documents=30)
    parallel = {
        c: list(corpus.documents(tmp_path / f"parallel/{c}.jsonl.gz")) for c in ("aa", "ab", "ba", "bb")
    }
    assert {len(lines) for lines in parallel.values()} == {30}
    for lines in zip(*parallel.values(), strict=True):
        assert len({(line.count("."), line.count("\n"), len(line.split())) for line in lines}) == 1
    # Without replacements and sound changes two languages of a family differ in word order at most.
    for a, b in zip(parallel["aa"], parallel["ab"], strict=True):
        assert (
            sorted(a.lower().replace(".", " ").split()) == sorted(b.lower().replace(".", " ").split())
            or "," in a
        )
    premium = [
        len("".join(parallel[c]).encode()) / len("".join(parallel["aa"]).encode()) for c in ("ba", "bb")
    ]
    assert all(1.5 < p < 2.0 for p in premium)  # two bytes a letter


def test_relatedness_is_a_similarity(world):
    codes = synthetic_languages.language_codes(16, 4)
    languages = [synthetic_languages.synthetic_language(world, code) for code in codes]
    frequencies = synthetic_text.concept_frequencies(world)
    assert frequencies.sum() == pytest.approx(1) and (frequencies >= 0).all()
    matrix = synthetic_languages.relatedness_matrix(languages, frequencies)
    for one, other in itertools.product(codes, codes):
        assert matrix[one][other] == matrix[other][one]
        assert (matrix[one][other] == 1) == (one == other) and 0 <= matrix[one][other] <= 1

    def mean(condition):
        pairs = [(a, b) for a, b in itertools.combinations(languages, 2) if condition(a, b)]
        return np.mean([matrix[a.code][b.code] for a, b in pairs])

    inside = mean(lambda a, b: a.family == b.family)
    script = mean(lambda a, b: a.family != b.family and a.script == b.script)
    apart = mean(lambda a, b: a.script != b.script)
    assert inside > script + 0.2 and script > apart + 0.15


@pytest.mark.parametrize(
    ("field", "values", "pair", "rises"),
    [
        ("replaced", ((0.0, 0.0), (0.2, 0.2), (0.4, 0.4), (0.8, 0.8)), ("aa", "ab"), False),
        ("sound_changes", ((0, 0), (0, 4), (0, 12)), ("aa", "ab"), False),  # aa stays, ab drifts away
        ("borrowed", (0.0, 0.2, 0.5, 1.0), ("aa", "ca"), True),
    ],
)
def test_each_knob_moves_relatedness_as_it_says(field, values, pair, rises):
    found = [synthetic_relatedness(*pair, **{field: value}) for value in values]
    assert found == sorted(found, reverse=not rises)
    assert abs(found[0] - found[-1]) > 0.15


def synthetic_relatedness(one: str, other: str, **parameters) -> float:
    world = World(**parameters)
    pair = [synthetic_languages.synthetic_language(world, code) for code in (one, other)]
    return synthetic_languages.planted_relatedness(*pair, synthetic_text.concept_frequencies(world))


# Transfer, measured without a neural network.

ORDER = 5


def ngrams(text: np.ndarray, n: int) -> np.ndarray:
    """The n-gram that ends at each position from ORDER - 1 on, as one integer whose lowest digit is the last byte."""
    keys = np.zeros(len(text) - ORDER + 1, np.uint64)
    for back in range(n - 1, -1, -1):
        keys = keys * np.uint64(257) + text[ORDER - 1 - back : len(text) - back] + np.uint64(1)
    return keys


def probabilities(train: bytes, test: bytes) -> np.ndarray:
    """Witten-Bell interpolated byte n-gram probabilities of each byte of the test text."""
    train_bytes, test_bytes = (np.frombuffer(text, np.uint8).astype(np.uint64) for text in (train, test))

    def lookup(keys, known, values):
        where = np.minimum(np.searchsorted(known, keys), len(known) - 1)
        return np.where(known[where] == keys, values[where], 0)

    p = np.full(len(test_bytes) - ORDER + 1, 1 / 256)
    for n in range(1, ORDER + 1):
        seen, counts = np.unique(ngrams(train_bytes, n), return_counts=True)
        contexts, which = np.unique(seen // np.uint64(257), return_inverse=True)
        keys = ngrams(test_bytes, n)
        total = lookup(keys // np.uint64(257), contexts, np.bincount(which, weights=counts))
        kinds = lookup(keys // np.uint64(257), contexts, np.bincount(which))
        p = np.where(total > 0, (lookup(keys, seen, counts) + kinds * p) / np.maximum(total + kinds, 1), p)
    return p


def transfer_gain(target: bytes, source: bytes, test: bytes) -> float:
    """Bits per byte that a model gains on the test text by training on the source's text in addition to the target's.

    It mixes the model of the target's text with one of both texts; the weight is fitted on half of the test text. So
    it, like a neural model and unlike added counts, can tell the languages apart.
    """
    alone, both = probabilities(target, test), probabilities(target + source, test)
    half = len(alone) // 2
    weights = np.linspace(0, 1, 21)[:, None]
    fitted = weights[np.argmax(np.log(weights * both[:half] + (1 - weights) * alone[:half]).sum(axis=1)), 0]
    mixed = fitted * both[half:] + (1 - fitted) * alone[half:]
    return float(np.mean(np.log2(mixed) - np.log2(alone[half:])))


def relative_gain(target: bytes, source: bytes) -> float:
    """Gain of 50 kB of the source added to 12 kB of the target, over the gain of 50 kB more of the target."""
    few, more, test = target[:12_000], target[12_000:62_000], target[-20_000:]
    return transfer_gain(few, source[-50_000:], test) / transfer_gain(few, more, test)


def test_transfer_rises_with_planted_relatedness(world):
    codes = synthetic_languages.language_codes(8, 4)
    languages = [synthetic_languages.synthetic_language(world, code) for code in codes]
    planted = synthetic_languages.relatedness_matrix(languages, synthetic_text.concept_frequencies(world))
    text = {code: world_text(world, code, 90_000) for code in codes}
    gains, related, kinds = [], [], []
    for target, source in itertools.permutations(languages, 2):
        whole = text[target.code]
        gains.append(relative_gain(whole, text[source.code]))
        related.append(planted[target.code][source.code])
        kinds.append((target.family == source.family) + (target.script == source.script))
    gains, kinds = np.array(gains), np.array(kinds)
    inside, script, apart = (gains[kinds == kind].mean() for kind in (2, 1, 0))
    assert inside > 1.4 * script and script > apart + 0.05 and abs(apart) < 0.05
    # Across scripts the n-grams have nothing in common but spaces and marks, so that only noise would be ranked.
    assert spearmanr(np.array(related)[kinds > 0], gains[kinds > 0]).statistic > 0.8


def test_transfer_inside_a_family_is_graded():
    world = World(families=1, replaced=(0.0, 0.7), sound_changes=(0, 6))
    codes = synthetic_languages.language_codes(7, 1)
    languages = [synthetic_languages.synthetic_language(world, code) for code in codes]
    planted = synthetic_languages.relatedness_matrix(languages, synthetic_text.concept_frequencies(world))
    text = {code: world_text(world, code, 90_000) for code in codes}
    pairs = list(itertools.permutations(codes, 2))
    gains = [relative_gain(text[t], text[s]) for t, s in pairs]
    assert spearmanr([planted[t][s] for t, s in pairs], gains).statistic > 0.85


def test_speed(world):
    """The bound is far below the speed of one core (45 MB/s before gzip, 30 after), since test machines are shared."""
    start = time.process_time()
    size = sum(len(chunk) for chunk in generate.text_chunks(world, "aa", 4_000_000))
    assert size / 1e6 / (time.process_time() - start) > 5
