"""Does the engine compute what it claims? One pass against two passes, and every batch size against every other.

    python -m benchmarks.fidelity --queries DATA/eval --model searchr3

* One pass equals two: the embedding that falls out of generation, against a forward pass over prompt + reasoning +
  token, one row at a time and without padding (lowest cosine). The same for the direct turn.
  Beside an encoder, the second pass is the stock class's vector plus P times the thinker's state.
* Nothing depends on the batch: batch sizes 1, 7 and 64, shuffled, against one row at a time in the given order (share
  of rows with the same reasoning; largest difference of an embedding among the rows whose reasoning is the same).
* An encoder with a thinker: our fast path against the stock class (largest difference of a vector), and in bfloat16
  (lowest cosine).

Prints a table and a JSON object; exits with 1 when a figure misses its threshold.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import DynamicCache

from searchr3_embed.files import write_text
from searchr3_embed.question_side import ENCODER
from training.data.beir import beir_folders, read_beir
from training.data.lines import DataError
from training.evaluate.tables import markdown_table

if TYPE_CHECKING:
    from searchr3_embed import Reasoning, ReasoningEmbedder

LEAST_COSINE = 0.99999
LEAST_SAME_REASONING = 0.995
MOST_DIFFERENCE = 1e-4
MOST_ENCODER_DIFFERENCE = 1e-5
LEAST_COSINE_BFLOAT16 = 0.9998
BATCH_SIZES = (1, 7, 64)


def sample_queries(folders: Sequence[Path], count: int, seed: int = 0) -> list[str]:
    """Draws distinct queries of the test split, the same number from each set as far as they go, shuffled.

    Raises:
        DataError: The sets cannot be read or hold fewer queries than asked for.
    """
    rng = random.Random(seed)
    pools = [list(read_beir(folder).queries.values()) for folder in beir_folders(list(folders))]
    for pool in pools:
        rng.shuffle(pool)
    drawn: dict[str, None] = {}
    for rank in range(max(map(len, pools))):
        drawn.update({pool[rank]: None for pool in pools if rank < len(pool)})
    if len(drawn) < count:
        raise DataError(f"{count} queries wanted, but the sets hold only {len(drawn)} distinct ones")
    queries = list(drawn)[:count]
    rng.shuffle(queries)
    return queries


def forward_states(causal_lm: Any, turns: Sequence[Sequence[int]], batch_size: int = 1) -> np.ndarray:
    """Plain Hugging Face forward pass without cache: the normalised last hidden state at the end of each turn.

    Args:
        causal_lm: A transformers causal language model; its LM head is not used.
        turns: Token ids, one non-empty list per row.
        batch_size: Rows per forward pass, padded on the right. The padding id does not matter: no token before it can
            see it.

    Returns:
        float32 array (rows, hidden size), in the order of ``turns``.
    """
    order = sorted(range(len(turns)), key=lambda row: -len(turns[row]))
    states = np.empty((len(turns), causal_lm.config.hidden_size), dtype=np.float32)
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        lengths = torch.tensor([len(turns[row]) for row in rows])
        ids = torch.zeros(len(rows), int(lengths.max()), dtype=torch.long)
        for place, row in enumerate(rows):
            ids[place, : lengths[place]] = torch.tensor(turns[row])
        mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
        with torch.inference_mode():
            hidden = causal_lm.base_model(
                input_ids=ids.to(causal_lm.device), attention_mask=mask.to(causal_lm.device), use_cache=False
            ).last_hidden_state
            last = hidden[torch.arange(len(rows)), lengths - 1].float()
            states[rows] = torch.nn.functional.normalize(last, dim=-1).cpu().numpy()
    return states


def states_behind(
    encoder: Any, model: Any, prompts: Sequence[Sequence[int]], turns: Sequence[Sequence[int]]
) -> np.ndarray:
    """As :func:`forward_states`, where an encoder has read all but the last token of each prompt; row by row.

    Args:
        encoder: A BERT, whose own pass fills the cache.
        model: Goes on behind it.
        prompts: What is read before anything is written.
        turns: The whole turns.
    """
    states = []
    for prompt, turn in zip(prompts, turns, strict=True):
        before = len(prompt) - 1
        cache = DynamicCache()
        ids = torch.tensor([list(turn)], device=model.device)
        with torch.inference_mode():
            encoder(input_ids=ids[:, :before], attention_mask=torch.ones_like(ids[:, :before]), past_key_values=cache)
            hidden = model.base_model(
                input_ids=ids[:, before:], attention_mask=torch.ones_like(ids), past_key_values=cache, use_cache=True
            ).last_hidden_state
        states.append(torch.nn.functional.normalize(hidden[0, -1].float(), dim=-1).cpu().numpy())
    return np.stack(states)


def moved(stock: Any, side: Any, vectors: np.ndarray, states: np.ndarray, quiet: Sequence[bool]) -> np.ndarray:
    """The encoder's vectors plus g P times the states, brought to length 1 if the pipeline does that.

    Args:
        stock: The encoder's pipeline.
        side: The question side, which holds P and says g.
        vectors: The encoder's vectors, shape (texts, d).
        states: The thinker's, of length 1, shape (texts, hidden size).
        quiet: Where the thinker had nothing to add: there the vector stays.
    """
    from sentence_transformers.sentence_transformer.modules import Normalize

    gates = shares(side, vectors)
    found = vectors + gates[:, None] * (states @ side.projection.float().cpu().numpy().T)
    if isinstance(list(stock.children())[-1], Normalize):
        found = found / np.linalg.norm(found, axis=1, keepdims=True)
    return np.where((np.array(quiet) | (gates == 0))[:, None], vectors, found)


def shares(side: Any, vectors: np.ndarray) -> np.ndarray:
    """By how much each question is moved, from 0 to 1, shape (texts,)."""
    if side.familiar is None:
        return np.ones(len(vectors), dtype=np.float32)
    return np.asarray(side.familiar.shares(torch.from_numpy(vectors)).numpy())


def stock_vectors(embedder: ReasoningEmbedder, texts: list[str], kind: str) -> np.ndarray:
    """The encoder's vectors as the stock class gives them; ``kind`` is "query" or "document"."""
    from sentence_transformers import SentenceTransformer

    stock = SentenceTransformer(modules=list(embedder.children()), device=str(embedder.device))
    stock.prompts, stock.default_prompt_name = embedder.prompts, embedder.default_prompt_name
    encode = stock.encode_query if kind == "query" else stock.encode_document
    return np.asarray(encode(texts, show_progress_bar=False))


def encoder_path(embedder: ReasoningEmbedder, texts: list[str], half: ReasoningEmbedder | None) -> dict[str, Any]:
    """The encoder's side: our path against the stock class, and half precision against float32.

    Args:
        embedder: An encoder with a thinker.
        texts: Embedded as documents and as questions.
        half: The same checkpoint in bfloat16; None leaves that out.
    """
    ours = {"query": embedder.encode_query(texts, reason=False), "document": embedder.encode_document(texts)}
    found: dict[str, Any] = {
        "largest_difference": max(
            float(np.abs(vectors - stock_vectors(embedder, texts, kind)).max()) for kind, vectors in ours.items()
        )
    }
    if half is not None:
        rough = np.asarray(half.encode_document(texts), dtype=np.float32)
        found["lowest_cosine_bfloat16"] = float(cosines(ours["document"], rough).min())
    return found


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Row-wise cosine (rows,) of two arrays (rows, d), in float64."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    products: np.ndarray = (a * b).sum(axis=1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
    return products


def one_pass_against_two(
    embedder: ReasoningEmbedder, queries: list[str], max_reasoning_tokens: int | None = None
) -> dict[str, Any]:
    """Engine embeddings against a teacher-forced forward pass over the same tokens.

    Returns:
        ``queries``, ``lowest_cosine`` (reasoning turn), ``lowest_cosine_direct``, ``reasoning_tokens_per_query`` and
        ``embed_token_share``.
    """
    conversation, side = embedder.conversation, embedder.question_side
    traces = embedder.reason(queries, max_reasoning_tokens=max_reasoning_tokens)
    prompts = conversation.reasoning_ids(queries, max_reasoning_tokens)
    turns = [
        [*prompt, *trace.reasoning_ids, conversation.embed_token_id]
        for prompt, trace in zip(prompts, traces, strict=True)
    ]
    if side is None:
        twice = forward_states(embedder.causal_lm, turns)
        direct = forward_states(embedder.causal_lm, conversation.direct_ids(queries))
        unmoved = embedder.encode(queries, reason=False)
    else:
        if side.base == ENCODER:
            network: Any = embedder[0].auto_model
            states = states_behind(network, side.model, prompts, turns)
        else:
            states = forward_states(side.model, turns)
        quiet = [trace.finish_reason == "nothing_to_add" for trace in traces]
        direct = stock_vectors(embedder, queries, "query")
        twice = moved(embedder, side, direct, states, quiet)
        unmoved = embedder.encode_query(queries, reason=False)
    thought, without = cosines(embeddings(traces), twice), cosines(unmoved, direct)
    return {
        "queries": len(queries),
        "lowest_cosine": float(thought.min()),
        "lowest_cosine_direct": float(without.min()),
        "reasoning_tokens_per_query": float(np.mean([trace.reasoning_tokens for trace in traces])),
        "embed_token_share": float(np.mean([trace.finish_reason == "embed_token" for trace in traces])),
    }


def batch_independence(
    embedder: ReasoningEmbedder,
    queries: list[str],
    batch_sizes: Sequence[int] = BATCH_SIZES,
    max_reasoning_tokens: int | None = None,
) -> list[dict[str, Any]]:
    """Each batch size, with the queries shuffled, against one query at a time in the given order.

    Returns:
        Per batch size: ``batch_size``, ``same_reasoning`` (share of rows), ``differing_rows`` and
        ``largest_difference`` (of any component of an embedding, among the rows with the same reasoning).
    """
    reference = embedder.reason(queries, batch_size=1, max_reasoning_tokens=max_reasoning_tokens)
    rows = []
    for batch_size in batch_sizes:
        order = random.Random(batch_size).sample(range(len(queries)), len(queries))
        shuffled = embedder.reason(
            [queries[i] for i in order], batch_size=batch_size, max_reasoning_tokens=max_reasoning_tokens
        )
        pairs = [(trace, reference[i]) for i, trace in zip(order, shuffled, strict=True)]
        same = [(a, b) for a, b in pairs if a.reasoning_ids == b.reasoning_ids and a.finish_reason == b.finish_reason]
        differences = [float(np.abs(a.embedding - b.embedding).max()) for a, b in same]
        rows.append(
            {
                "batch_size": batch_size,
                "same_reasoning": len(same) / len(pairs),
                "differing_rows": len(pairs) - len(same),
                "largest_difference": max(differences, default=0.0),
            }
        )
    return rows


def embeddings(traces: Sequence[Reasoning]) -> np.ndarray:
    """Embeddings of several traces as one array (rows, d)."""
    return np.stack([trace.embedding for trace in traces])


def check(
    embedder: ReasoningEmbedder,
    queries: list[str],
    batch_sizes: Sequence[int] = BATCH_SIZES,
    max_reasoning_tokens: int | None = None,
    half: ReasoningEmbedder | None = None,
) -> dict[str, Any]:
    """All comparisons, and whether every threshold holds (``passed``); ``half`` as in :func:`encoder_path`."""
    two_passes = one_pass_against_two(embedder, queries, max_reasoning_tokens)
    batches = batch_independence(embedder, queries, batch_sizes, max_reasoning_tokens)
    passed = (
        min(two_passes["lowest_cosine"], two_passes["lowest_cosine_direct"]) >= LEAST_COSINE
        and min(row["same_reasoning"] for row in batches) >= LEAST_SAME_REASONING
        and max(row["largest_difference"] for row in batches) <= MOST_DIFFERENCE
    )
    result: dict[str, Any] = {"one_pass_against_two": two_passes, "batch_independence": batches}
    if embedder.question_side is not None:
        result["encoder"] = found = encoder_path(embedder, queries, half)
        passed = passed and found["largest_difference"] <= MOST_ENCODER_DIFFERENCE
        passed = passed and found.get("lowest_cosine_bfloat16", 1) >= LEAST_COSINE_BFLOAT16
    return {**result, "passed": passed}


def render(result: dict[str, Any]) -> str:
    """The figures and their thresholds as a Markdown table."""
    two_passes = result["one_pass_against_two"]
    least = f">= {LEAST_COSINE}"
    rows = [
        ["reasoning, one pass vs two: lowest cosine", f"{two_passes['lowest_cosine']:.7f}", least],
        ["direct, engine vs forward: lowest cosine", f"{two_passes['lowest_cosine_direct']:.7f}", least],
    ]
    for row in result["batch_independence"]:
        name = f"batch size {row['batch_size']}, shuffled"
        rows += [
            [f"{name}: same reasoning", f"{row['same_reasoning']:.2%}", f">= {LEAST_SAME_REASONING:.1%}"],
            [f"{name}: largest difference", f"{row['largest_difference']:.1e}", f"<= {MOST_DIFFERENCE:.0e}"],
        ]
    if found := result.get("encoder"):
        limit = f"<= {MOST_ENCODER_DIFFERENCE:.0e}"
        rows.append(
            ["encoder, engine vs stock class: largest difference", f"{found['largest_difference']:.1e}", limit]
        )
        if "lowest_cosine_bfloat16" in found:
            name, value = "encoder, bfloat16 vs float32: lowest cosine", found["lowest_cosine_bfloat16"]
            rows.append([name, f"{value:.6f}", f">= {LEAST_COSINE_BFLOAT16}"])
    return markdown_table(["check", "measured", "threshold"], rows)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns 1 when a threshold is missed, 2 for bad input."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fidelity", description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--queries", nargs="+", required=True, type=Path, help="BEIR-layout folders, or folders of them"
    )
    parser.add_argument("--model", default="searchr3", help="alias, folder or hub id (default: searchr3)")
    parser.add_argument("--count", type=int, default=200, help="number of queries (default: 200)")
    parser.add_argument("--max-reasoning-tokens", type=int, help="reasoning budget (default: the checkpoint's)")
    parser.add_argument("--device", help="cpu, cuda, mps (default: the best there is)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's choice)")
    parser.add_argument("--out", type=Path, help="also write the JSON object to this file")
    args = parser.parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)

    from searchr3_embed import ReasoningEmbedder
    from searchr3_embed.checkpoint import CheckpointError
    from training.evaluate.machine import machine_description

    try:
        queries = sample_queries(args.queries, args.count)
        embedder = ReasoningEmbedder(args.model, device=args.device)
        half = None
        if embedder.question_side is not None:
            half = ReasoningEmbedder(args.model, device=args.device, model_kwargs={"dtype": torch.bfloat16})
    except (DataError, CheckpointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    result = check(embedder, queries, max_reasoning_tokens=args.max_reasoning_tokens, half=half)
    result |= {"model": args.model, "device": str(embedder.device), "machine": machine_description()}
    text = json.dumps(result, indent=2)
    print(render(result), text, sep="\n\n")
    if args.out:
        write_text(args.out, text + "\n")
    return 0 if result["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
