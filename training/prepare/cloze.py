"""Training records out of plain text: a sentence is the question for the passage that it was taken from.

    python -m training.prepare.cloze --text DATA/text/*.txt.gz --out cloze

The inverse cloze task (Lee et al. 2019, https://arxiv.org/abs/1906.00300) needs no labels. A small embedder needs its
texts more than its questions: what keeps a causal model close to its teacher is how many *different* texts it has read
beside it. Each file becomes one source, ``<out>/<name>.jsonl.gz``, to be mixed with others in a configuration.

A text file holds a paragraph a line; an empty line ends what belongs together. Paragraphs are joined, or cut between
sentences, into passages of changing length.
"""

from __future__ import annotations

import argparse
import gzip
import random
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from searchr3_embed import interruption
from searchr3_embed.adapt.sentences import asks, sentences
from training.data.lines import DataError
from training.data.records import Record, write_records


@dataclass(frozen=True)
class ClozeSettings:
    """How passages are cut and questions taken.

    Attributes:
        least_words: Shortest passage aimed at.
        most_words: Longest passage aimed at; each passage draws its own aim in between.
        kept: Share of the passages in which the question stays, so that equal words are learnt to count too (0.1 in
            the paper).
        most: Most records of a file, drawn at random; None for all.
        seed: Of all that is drawn.
    """

    least_words: int = 20
    most_words: int = 160
    kept: float = 0.1
    most: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.least_words <= self.most_words:
            raise ValueError(
                f"least_words must be between 1 and most_words ({self.most_words}), got {self.least_words}."
            )
        if not 0 <= self.kept <= 1:
            raise ValueError(f"kept must be between 0 and 1, got {self.kept}.")
        if self.most is not None and self.most < 1:
            raise ValueError(f"most must be at least 1, got {self.most}.")


def passages(lines: Sequence[str], settings: ClozeSettings, rng: random.Random) -> Iterator[list[str]]:
    """Passages as lists of sentences; none goes over an empty line.

    Args:
        lines: A paragraph each; empty ones end what belongs together.
        settings: The lengths.
        rng: Draws the length that each passage aims at; it ends with the sentence that reaches it.
    """
    held: list[str] = []
    words, aim = 0, rng.randint(settings.least_words, settings.most_words)
    for line in [*lines, ""]:
        found = sentences(line)
        for sentence in found:
            held.append(sentence)
            words += len(sentence.split())
            if words >= aim:
                yield held
                held, words, aim = [], 0, rng.randint(settings.least_words, settings.most_words)
        if not found and held:
            yield held
            held, words, aim = [], 0, rng.randint(settings.least_words, settings.most_words)


def records(lines: Sequence[str], source: str, settings: ClozeSettings) -> tuple[list[Record], int]:
    """Questions and passages of a text; the same text and settings always give the same.

    Args:
        lines: As for :func:`passages`.
        source: Name of the source.
        settings: How to cut and to ask.

    Returns:
        The records, and the number of passages without a sentence to ask with.
    """
    rng = random.Random(f"{settings.seed}/{source}")
    found: list[Record] = []
    unasked = 0
    for passage in passages(lines, settings, rng):
        total = sum(len(sentence.split()) for sentence in passage)
        asked = [i for i, sentence in enumerate(passage) if asks(sentence, total)]
        if not asked:
            unasked += 1
            continue
        place = rng.choice(asked)
        rest = passage if rng.random() < settings.kept else passage[:place] + passage[place + 1 :]
        found.append(Record(passage[place], (" ".join(rest),), (), source))
    if settings.most is not None and len(found) > settings.most:
        found = [found[i] for i in sorted(rng.sample(range(len(found)), settings.most))]
    return found, unasked


def read_lines(path: Path) -> list[str]:
    """The lines of a text file, gzipped when its name ends in .gz.

    Raises:
        DataError: It can't be read, is not UTF-8, or is empty.
    """
    try:
        content = path.read_bytes()
        text = (gzip.decompress(content) if path.suffix == ".gz" else content).decode("utf-8")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: {error}") from None
    if not text.strip():
        raise DataError(f"{path}: no text")
    return text.split("\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status (2 for input that cannot be used)."""
    defaults = ClozeSettings()
    parser = argparse.ArgumentParser(
        prog="python -m training.prepare.cloze",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--text", type=Path, nargs="+", required=True, help="text files, .txt or .txt.gz")
    parser.add_argument("--out", type=Path, required=True, help="folder for one .jsonl.gz per file, made if missing")
    parser.add_argument("--least-words", type=int, default=defaults.least_words,
                        help="shortest passage aimed at (default: %(default)s)")  # fmt: skip
    parser.add_argument("--most-words", type=int, default=defaults.most_words,
                        help="longest passage aimed at (default: %(default)s)")  # fmt: skip
    parser.add_argument("--kept", type=float, default=defaults.kept,
                        help="share of passages in which the question stays (default: %(default)s)")  # fmt: skip
    parser.add_argument("--most", type=int, help="most records of a file (default: all)")
    parser.add_argument("--seed", type=int, default=defaults.seed, help="default: %(default)s")
    args = parser.parse_args(argv)
    names = [path.name.removesuffix(".gz").removesuffix(".txt") for path in args.text]
    try:
        settings = ClozeSettings(args.least_words, args.most_words, args.kept, args.most, args.seed)
        if len(set(names)) < len(names):
            raise DataError(f"two files have the name of one source: {', '.join(map(str, args.text))}")
        for path, name in zip(tqdm(args.text, desc="Files", unit="file"), names, strict=True):
            found, unasked = records(read_lines(path), name, settings)
            if not found:
                raise DataError(f"{path}: none of its {unasked} passages has a sentence to ask with")
            write_records(args.out / f"{name}.jsonl.gz", found)
            tqdm.write(f"{name}: {len(found)} records; {unasked} passages without a sentence to ask with", sys.stderr)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(args.out)
    return 0


if __name__ == "__main__":
    sys.exit(interruption.run(main, "interrupted; the same command begins again, and nothing half written is left"))
