"""``searchr3 adapt``: train the question side for a corpus; the stored document vectors stay valid."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from searchr3_embed.cli.arguments import CommandError, add_cache_option, add_field_option, positive
from searchr3_embed.cli.console import note
from searchr3_embed.cli.model import load
from searchr3_embed.cli.save import empty_target, write

if TYPE_CHECKING:
    from searchr3_embed.adapt.corpus import Documents
    from searchr3_embed.adapt.pairs import Pairs
    from searchr3_embed.adapt.report import Report
    from searchr3_embed.embedder import ReasoningEmbedder

SUMMARY = "train the question side for a corpus of yours, without embedding it again"
EPILOG = """\
examples:
  searchr3 adapt --documents docs --queries pairs.jsonl --out my-model
  searchr3 adapt --documents corpus.jsonl --queries clicks.jsonl --train projection --out my-model
  searchr3 adapt --documents docs --encoder BAAI/bge-small-en-v1.5 --queries pairs.jsonl --out my-model
  searchr3 adapt --documents docs --from-text --out my-model
  searchr3 adapt --documents docs --synthesise http://localhost:8000/v1 --llm Qwen/Qwen3-8B --out my-model

A line of pairs.jsonl is {"query": "...", "positives": ["text or id of a document", ...]}; a line of a feedback log,
{"question": "...", "chosen": "id of a document"}, is one too. A fifth of the questions is kept apart, so that nothing
leaks, and decides when to stop and whether the model is better. If it is not, nothing is written, and the status is 0.
A command that was stopped goes on where it was; what it needs for that is in OUT.adapting until it is done."""

_MADE = 2000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what this command takes."""
    parser.add_argument(
        "--documents",
        metavar="FOLDER|FILE",
        required=True,
        help="text files, or JSONL with `text`, `id`, `title`",
    )
    add_field_option(parser)
    pairs = parser.add_mutually_exclusive_group(required=True)
    pairs.add_argument("--queries", metavar="FILE", help="pairs of a question and documents, or a feedback log; JSONL")
    pairs.add_argument("--from-text", action="store_true", help="no pairs: sentences of the corpus itself (weaker)")
    pairs.add_argument(
        "--synthesise", metavar="BASE_URL", help="no pairs: a language model behind this address writes questions"
    )
    parser.add_argument("--llm", metavar="NAME", help="with --synthesise: the language model, as its server knows it")
    parser.add_argument(
        "--sample", type=positive, default=_MADE, metavar="N",
        help=f"with --from-text or --synthesise: most documents to make questions from (default: {_MADE})",
    )  # fmt: skip
    _add_model(parser)
    _add_training(parser)
    _add_vectors(parser)
    parser.add_argument("--out", metavar="FOLDER", required=True, help="where to write the model; made when missing")
    parser.add_argument(
        "--force", action="store_true", help="write into a folder that holds files, replacing the model's"
    )


def _add_model(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("model")
    start = group.add_mutually_exclusive_group()
    start.add_argument(
        "--model", default="searchr3", help="an encoder with a thinker, or what this command wrote (default: searchr3)"
    )
    start.add_argument("--encoder", metavar="NAME", help="any sentence-transformers model, a folder or a hub id")
    group.add_argument(
        "--thinker",
        metavar="NAME",
        help="with --encoder: a language model as its thinker (default: its own layers)",
    )
    group.add_argument("--device", help="cpu, cuda, cuda:1, mps ... (default: the best there is)")


def _add_training(parser: argparse.ArgumentParser) -> None:
    from searchr3_embed.adapt.names import DEFAULT, LEARNERS

    group = parser.add_argument_group("training")
    group.add_argument(
        "--train", choices=LEARNERS, default=DEFAULT, help=f"what is trained (default: {DEFAULT}, which measures best)"
    )
    group.add_argument(
        "--lora", type=int, metavar="RANK",
        help="rank of low-rank differences, 0 for all weights (default: 0 for a question-encoder, 64 for a thinker)",
    )  # fmt: skip
    group.add_argument("--minutes", type=float, default=15.0, metavar="N", help="time for training (default: 15)")
    group.add_argument("--seed", type=int, default=7, help="of all that is drawn (default: 7)")
    group.add_argument("--keep-anyway", action="store_true", help="write the model even if it is no better")


def _add_vectors(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("vectors that are there already")
    group.add_argument(
        "--vectors", metavar="SOURCE",
        help="FILE.npy (in the order of the documents), FILE.parquet, lancedb:FOLDER#TABLE, "
        "qdrant:FOLDER_OR_URL#COLLECTION or pgvector:CONNECTION#TABLE (default: the cache)",
    )  # fmt: skip
    group.add_argument("--id-column", default="id", metavar="NAME", help="column of the ids (default: id)")
    group.add_argument("--vector-column", default="vector", metavar="NAME", help="of the vectors (default: vector)")
    add_cache_option(parser)
    group.add_argument("--batch-size", type=positive, default=32, metavar="N", help="texts at a time (default: 32)")


def run(args: argparse.Namespace) -> None:
    """Read, train, report, write."""
    target = empty_target(args.out, args.force)
    _check(args)
    from searchr3_embed.adapt.names import check_installed

    check_installed("matplotlib", *(["openai"] if args.synthesise else []))
    from searchr3_embed.adapt import adapting, corpus, vector_sources
    from searchr3_embed.search.vector_cache import default_cache_folder

    settings = adapting.AdaptSettings(
        train=args.train,
        lora=args.lora,
        minutes=args.minutes,
        keep_anyway=args.keep_anyway,
        seed=args.seed,
        batch_size=args.batch_size,
    )
    # Whatever can be refused is refused before the model is loaded.
    documents = corpus.read_documents(Path(args.documents), args.field)
    columns = vector_sources.Columns(args.id_column, args.vector_column)
    stored = vector_sources.read_vectors(args.vectors, columns) if args.vectors else None
    pairs = None
    if args.queries:
        from searchr3_embed.adapt.pairs import pairs_of

        pairs = pairs_of(args.queries, documents)
    embedder = _start(args)
    work = target.with_name(target.name + ".adapting")
    made = "given" if args.queries else "from the text" if args.from_text else "synthesised"
    work.mkdir(parents=True, exist_ok=True)
    if pairs is None:
        pairs = _made(args, documents, embedder, work)
    adapted, found = adapting.adapt(
        embedder,
        documents,
        pairs,
        settings,
        vectors=stored,
        cache_folder=args.cache_folder or default_cache_folder(),
        work_folder=work,
        made=made,
    )
    print("\n".join(found.lines()))
    if found.written:
        _write(adapted, found, target)
        print(f"{'better' if found.better else 'not better, kept anyway'}: the model is in {target}")
    else:
        print("not better, nothing written (--keep-anyway writes it)")
    _remove(work)


def _check(args: argparse.Namespace) -> None:
    if bool(args.llm) != bool(args.synthesise):
        raise CommandError("--synthesise and --llm belong together: an address, and the name of a model behind it")
    if args.thinker and not args.encoder:
        raise CommandError("--thinker is for --encoder; a model has its own")
    if args.thinker and args.train != "thinker":
        raise CommandError(f"--thinker is trained by --train thinker; --train {args.train} has none")


def _start(args: argparse.Namespace) -> ReasoningEmbedder:
    """The embedder to begin with: a checkpoint, or an encoder with a thinker that has learned nothing."""
    if not args.encoder:
        return load(args.model, device=args.device, verbose=args.verbose)
    from searchr3_embed.adapt.encoders import from_encoder

    return from_encoder(args.encoder, args.thinker, needs_thinker=args.train == "thinker", device=args.device)


def _made(args: argparse.Namespace, documents: Documents, embedder: ReasoningEmbedder, work: Path) -> Pairs:
    from searchr3_embed.adapt import chat_client, made_pairs

    if args.from_text:
        return made_pairs.from_text(documents, args.sample, args.seed)
    options: dict[str, Any] = {"temperature": 0.7, "max_tokens": 2048}
    endpoint = chat_client.Endpoint(args.synthesise, args.llm, options)
    return made_pairs.synthesised(documents, embedder, endpoint, work / "answers.jsonl", args.sample, args.seed)


def _write(embedder: ReasoningEmbedder, found: Report, target: Path) -> None:
    from searchr3_embed.adapt import report
    from searchr3_embed.files import write_json, write_text
    from searchr3_embed.folders import replacing_files

    write(embedder, target)
    with replacing_files(target) as scratch:
        write_json(scratch / report.REPORT_FILE, found.as_json())
        report.plot(found, scratch / report.PLOT_FILE)
        write_text(scratch / report.CARD_FILE, report.card(found))
    note(f"{report.REPORT_FILE} and {report.PLOT_FILE} are beside it")


def _remove(work: Path) -> None:
    import shutil

    # Answers of a language model cost money: they stay for the next time.
    if not (work / "answers.jsonl").exists():
        shutil.rmtree(work, ignore_errors=True)
        return
    from searchr3_embed.adapt.grid import STATE_FILE

    (work / STATE_FILE).unlink(missing_ok=True)
