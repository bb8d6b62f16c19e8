"""Generates a corpus of any size in which the relatedness of languages, hence transfer, is known.

The content of all languages comes from one process (``mixtures.synthetic.text``); each has its own words, word order
and script (``mixtures.synthetic.languages``). Their documents differ; only the small part under ``parallel/`` has the
same content in all. Everything follows from the seed: the text of a language is the same bytes for any number of
languages, shards or processes, and a smaller corpus is the beginning of a larger one.
"""

import gzip
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from mixtures.synthetic.languages import (
    RELATEDNESS_FORMULA,
    World,
    language_codes,
    random_generator,
    relatedness_matrix,
    synthetic_language,
)
from mixtures.synthetic.text import (
    CLOSE,
    OPEN,
    PARAGRAPH,
    concept_frequencies,
    content_process,
    draw_content,
    render_json_lines,
    word_forms,
)
from mscale.data.corpus import shard_name
from mscale.data.parallel_text import parallel_name
from mscale.errors import MscaleError
from mscale.files import atomic_json, atomic_writer, read_json
from mscale.progress import progress

_CORPUS_FORMAT = 1  # of the text and of truth.json; increment it when the same parameters give other bytes
SHARD_BYTES = 1 << 25  # of text in one file
_CHUNK_SENTENCES = 4096  # drawn and rendered at a time


def generate(
    corpus_dir: str | os.PathLike,
    languages: int | Sequence[str] = 6,
    families: int = 3,
    bytes_per_language: int | Mapping[str, int] = 1_000_000,
    seed: int = 0,
    *,
    parallel_documents: int = 200,
    processes: int = 1,
    **options: Any,
) -> dict:
    """Writes a corpus in MADLAD-400's layout and its ground truth ``truth.json``; returns the ground truth.

    A complete corpus is left unchanged; an interrupted one is continued.

    Args:
      corpus_dir: gets ``data/<code>/<code>_clean_NNNN.jsonl.gz``, ``parallel/<code>.jsonl.gz`` and ``truth.json``.
      languages: how many, or their codes (family letter and index letter: ``aa``, ``ab``, ``ba``, …).
      families: number of families; language i belongs to family i modulo this. Families 0 and 2 write in Latin, 1 in
        Cyrillic, 3 in Greek, and so on through ``FAMILY_SCRIPTS``.
      bytes_per_language: UTF-8 bytes of text, one number or one per code; the text exceeds it by less than a document.
      seed: of all random choices.
      parallel_documents: documents with the same content in every language, line by line; not under ``data/``.
      processes: number of processes; the bytes do not depend on it.
      options: ``concepts``, ``replaced``, ``sound_changes`` and ``borrowed``, as in ``World``.

    Raises:
      MscaleError: a parameter is out of range, or the folder holds another corpus.
    """
    world = World(seed, families, **options)
    codes = _codes(world, languages)
    sizes = _bytes_by_code(codes, bytes_per_language)
    _require_count("parallel_documents", parallel_documents, 0)
    _require_count("processes", processes, 1)
    parameters = {
        "format": _CORPUS_FORMAT,
        **asdict(world),
        "replaced": list(world.replaced),
        "sound_changes": list(world.sound_changes),
        "bytes_per_language": sizes,
        "parallel_documents": parallel_documents,
    }
    corpus = Path(corpus_dir)
    truth = _claim_folder(corpus, parameters)
    if truth is not None:
        return truth

    tasks = [
        (corpus, world, code, shard, size)
        for code in codes
        for shard, size in enumerate(_shard_sizes(sizes[code]))
    ]
    with progress("generating text", round(sum(sizes.values()) / 1e6, 3), "MB") as advance:
        for size in _in_processes(tasks, processes):
            advance(size / 1e6)
    if parallel_documents:
        for code, texts in parallel_texts(world, codes, parallel_documents).items():
            lines = (OPEN + text.replace("\n", PARAGRAPH) + CLOSE for text in texts)
            _write_gzip(corpus / parallel_name(code), (line.encode() for line in lines))

    made = [synthetic_language(world, code) for code in codes]
    truth = {
        "seed": seed,
        "parameters": parameters,
        "languages": {one.code: one.describe() for one in made},
        "relatedness": relatedness_matrix(made, concept_frequencies(world)),
        "relatedness_formula": RELATEDNESS_FORMULA,
        "files": {
            name: (corpus / name).stat().st_size for name in _file_names(codes, sizes, parallel_documents)
        },
    }
    atomic_json(corpus / "truth.json", truth)
    (corpus / "generating.json").unlink(missing_ok=True)
    return truth


def parallel_texts(world: World, codes: Sequence[str], documents: int) -> dict[str, list[str]]:
    """Returns ``{code: texts}``: the same ``documents`` documents in every language, such as for byte premiums."""
    process, rng = content_process(world), random_generator(world.seed, "parallel")
    chunks, drawn = [], 0
    while drawn < documents:
        chunks.append(draw_content(process, rng, _CHUNK_SENTENCES))
        drawn += int(chunks[-1]["first"].sum())
    texts = {}
    for code in codes:
        forms = word_forms(world, synthetic_language(world, code))
        lines = (
            b"".join(render_json_lines(forms, chunk)[0].tobytes() for chunk in chunks)
            .decode()
            .splitlines(keepends=True)
        )
        bare = (line.removeprefix(OPEN).removesuffix(CLOSE) for line in lines[:documents])
        texts[code] = [text.replace(PARAGRAPH, "\n") for text in bare]
    return texts


def text_chunks(world: World, code: str, size: int, shard: int = 0) -> Iterator[np.ndarray]:
    """Yields JSON lines (uint8 arrays of whole lines), up to the document whose text reaches ``size`` bytes in all."""
    process, forms = content_process(world), word_forms(world, synthetic_language(world, code))
    rng = random_generator(world.seed, "text", code, shard)
    while size > 0:
        lines, ends, text_bytes = render_json_lines(forms, draw_content(process, rng, _CHUNK_SENTENCES))
        total = np.cumsum(text_bytes)
        if total[-1] >= size:
            lines = lines[: ends[int(np.searchsorted(total, size))]]
        size -= int(total[-1])
        yield lines


def _in_processes(tasks: list[tuple], processes: int) -> Iterator[int]:
    """Writes the shards and yields the size of each when it is done."""
    if processes == 1:
        for task in tasks:
            _write_shard(*task)
            yield task[-1]
        return
    # Spawned, because a fork of a process that runs jax may deadlock.
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        futures = {pool.submit(_write_shard, *task): task[-1] for task in tasks}
        try:
            for future in as_completed(futures):
                future.result()
                yield futures[future]
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _write_shard(corpus: Path, world: World, code: str, shard: int, size: int) -> None:
    path = corpus / shard_name(code, shard)
    if not path.exists():  # an interrupted call has written it, with the same parameters
        _write_gzip(path, text_chunks(world, code, size, shard))


def _write_gzip(path: Path, chunks: Iterable[np.ndarray] | Iterable[bytes]) -> None:
    with (
        atomic_writer(path) as file,
        gzip.GzipFile(filename="", mode="wb", compresslevel=1, fileobj=file, mtime=0) as packed,
    ):
        for chunk in chunks:
            packed.write(chunk)  # type: ignore[arg-type]


def _claim_folder(corpus: Path, parameters: dict) -> dict | None:
    """Returns the ground truth of a complete corpus; otherwise records the parameters in the folder and returns None.

    Raises:
      MscaleError: the folder holds another corpus, or files of unknown origin where this one would write.
    """
    truth_path, making_path = corpus / "truth.json", corpus / "generating.json"
    if truth_path.exists():
        truth = read_json(truth_path, what="truth of a generated corpus")
        _require_same(truth_path, truth.get("parameters", {}) if isinstance(truth, dict) else {}, parameters)
        sizes = {name: _size(corpus / name) for name in truth["files"]}
        changed = [name for name, size in truth["files"].items() if sizes[name] not in (size, None)]
        if changed:
            raise MscaleError(
                f"{corpus / changed[0]}: {sizes[changed[0]]} bytes found, {truth['files'][changed[0]]} expected by "
                f"{truth_path}: the corpus was changed after it was generated; delete the folder or choose another"
            )
        if None not in sizes.values():
            return truth
    elif making_path.exists():
        _require_same(making_path, read_json(making_path, what="mark of an unfinished corpus"), parameters)
    else:
        for name in ("data", "parallel"):
            if (corpus / name).exists():
                raise MscaleError(
                    f"{corpus / name}: already there, and not made by the generator (no truth.json beside it); "
                    "expected a folder without it; choose another folder, so that no corpus is overwritten"
                )
        atomic_json(making_path, parameters)
    return None


def _require_same(path: Path, found: dict, wanted: dict) -> None:
    fields = [field for field in wanted if found.get(field) != wanted[field]]
    if fields:
        differences = "; ".join(
            f"{field}: {found.get(field)!r} there, {wanted[field]!r} asked for" for field in fields
        )
        raise MscaleError(
            f"{path}: the folder holds a corpus generated with other parameters ({differences}); "
            "use the same parameters, choose another folder or delete this one"
        )


def _codes(world: World, languages: int | Sequence[str]) -> list[str]:
    if isinstance(languages, str):
        raise MscaleError(
            f"languages={languages!r}: expected a number or a list of codes; give [{languages!r}]"
        )
    if isinstance(languages, int):
        _require_count("languages", languages, 1)
        return language_codes(languages, world.families)
    codes = list(languages)
    if not codes or len(set(codes)) != len(codes):
        raise MscaleError(f"languages={codes!r}: expected at least one code and none twice; mend the list")
    for code in codes:
        synthetic_language(world, code)
    return codes


def _bytes_by_code(codes: list[str], wanted: int | Mapping[str, int]) -> dict[str, int]:
    sizes = dict(wanted) if isinstance(wanted, Mapping) else dict.fromkeys(codes, wanted)
    if sorted(sizes) != sorted(codes):
        raise MscaleError(
            f"bytes_per_language: sizes for {', '.join(sorted(sizes)) or 'none'}; expected one for each of "
            f"{', '.join(codes)}; give one number for all or one for each"
        )
    for code, size in sizes.items():
        _require_count(f"bytes_per_language[{code!r}]", size, 1)
    return {code: int(sizes[code]) for code in codes}


def _require_count(field: str, value: object, least: int) -> None:
    if not isinstance(value, int | np.integer) or value < least:
        raise MscaleError(
            f"{field}={value!r}: expected a whole number of at least {least}; give such a number"
        )


def _shard_sizes(size: int) -> list[int]:
    """Sizes of the shards of a language of ``size`` bytes."""
    whole, rest = divmod(size, SHARD_BYTES)
    return [SHARD_BYTES] * whole + [rest] * (rest > 0)


def _file_names(codes: list[str], sizes: dict[str, int], parallel_documents: int) -> list[str]:
    names = [shard_name(code, shard) for code in codes for shard in range(len(_shard_sizes(sizes[code])))]
    return names + [parallel_name(code) for code in codes if parallel_documents]


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return None
