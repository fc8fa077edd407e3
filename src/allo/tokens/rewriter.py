"""A rewriting model's folder, and the rows on which it scores the tokens of a wrong completion.

It sees the problem, a right solution and the completion, and was trained to write the completion again with as few
changes as make it right (method.md 1.2; RLMEC, arXiv 2401.06081). It would change a token that it finds unlikely there.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from allo.errors import UserError
from allo.files.artifacts import read_as, sha256_json
from allo.files.records import Wrong
from allo.models.load import Model, Tokenizer, check_folder, load_model, load_tokenizer, read_config
from allo.models.policy import check_head
from allo.models.start import DTYPES
from allo.models.tokenization import Tokenized, cut_left, prompt_ids
from allo.models.tokenizer_checks import check_ids_fit
from allo.recipe.numbers import Count
from allo.tokens.edit_distance import nearest
from allo.tokens.rewrite_wording import WORDING, ask_for_rewrite

RECORD = "rewriter.json"
SCHEMA = 1


@dataclass(frozen=True)
class Record:
    """The keys of a rewriter's record that its use depends on. `tokenizer`: its `tokenizer_hash`."""

    wording: int
    tokenizer: str
    model: str
    max_length: Count
    dtype: Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class Rewriter:
    """A rewriting model. `max_length`: the most tokens of a row, prompt and rewrite together."""

    model: Model
    tokenizer: Tokenizer
    max_length: int


def load_rewriter(
    folder: Path, tokenizer: Tokenizer, *, policy: str, max_length: int, device: str
) -> Rewriter:
    """Load the rewriter that `allo rewriter train` wrote. Raises `UserError` as `check_rewriter` does."""
    record = check_rewriter(folder, tokenizer, policy=policy, max_length=max_length)
    model = load_model(folder, dtype=DTYPES[record.dtype], device=device)
    check_head(model)
    return Rewriter(model, load_tokenizer(folder), record.max_length)


def check_rewriter(folder: Path, tokenizer: Tokenizer, *, policy: str, max_length: int) -> Record:
    """Read a rewriter's record.

    Raises `UserError` for a folder that is no rewriter, that was trained with other words or another tokenizer than the
    policy's, or whose rows leave no room for a completion of `max_length` tokens.
    """
    folder = folder.expanduser()
    if not (folder / RECORD).is_file():
        raise UserError(
            f"score.rewriter: {folder} has no {RECORD}, so it is not a rewriter; make one with `allo rewriter train`."
        )
    record = read_as(folder / RECORD, Record, advice="Train it again with `allo rewriter train`.")
    if record.wording != WORDING:
        raise UserError(
            f"score.rewriter: {folder} was trained with wording {record.wording}, and this version of allo asks with "
            f"wording {WORDING}: train it again with `allo rewriter train`."
        )
    check_folder(folder, folder)
    own = load_tokenizer(folder)
    check_ids_fit(own, read_config(folder), ref=folder)
    if tokenizer_hash(own) != record.tokenizer:
        raise UserError(
            f"score.rewriter: {folder}: the tokenizer's files have changed since it was trained; "
            "train it again with `allo rewriter train`."
        )
    if tokenizer_hash(tokenizer) != record.tokenizer:
        raise UserError(
            f"score.rewriter: {folder} was trained on {record.model}, whose tokenizer is not that of {policy}; they "
            f"differ in {', '.join(_differences(own, tokenizer))}. Its probabilities belong to other tokens: train a "
            "rewriter on a model that has the policy's tokenizer."
        )
    if record.max_length <= max_length:
        raise UserError(
            f"score.rewriter: {folder} was trained on rows of {record.max_length} tokens, which must be more than the "
            f"recipe's max_length, {max_length}: train it with a larger max_length."
        )
    return record


def tokenizer_hash(tokenizer: Tokenizer) -> str:
    """Return a hash of all that decides which ids a text has."""
    return sha256_json(_parts(tokenizer))


def _parts(tokenizer: Tokenizer) -> dict[str, Any]:
    parts: dict[str, Any] = {"vocabulary": tokenizer.get_vocab(), "EOS token": tokenizer.eos_token_id}
    if not tokenizer.is_fast:
        return parts | {"kind": type(tokenizer).__name__}
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    parts["merges"] = {key: value for key, value in backend["model"].items() if key != "vocab"}
    return parts | {name: backend[name] for name in ("normalizer", "pre_tokenizer")}


def _differences(own: Tokenizer, policys: Tokenizer) -> list[str]:
    """Say in words how two tokenizers differ."""
    ours, theirs = _parts(own), _parts(policys)
    differing = [name for name in ours if ours[name] != theirs.get(name)]
    if "vocabulary" not in differing:
        return differing
    tokens = [token for token, id in ours["vocabulary"].items() if theirs["vocabulary"].get(token) != id]
    sizes = f"{len(ours['vocabulary'])} and {len(theirs['vocabulary'])} tokens"
    same = f", {len(tokens)} with other ids, such as {min(tokens)!r}" if tokens else ""
    return [f"vocabulary ({sizes}{same})", *(name for name in differing if name != "vocabulary")]


def shown_solution(wrong: Wrong, tokenizer: Tokenizer) -> str | None:
    """Return the solution that a rewriter is shown: the problem's own, otherwise the right sample nearest to the completion."""
    if wrong.solution is not None or not wrong.right:
        return wrong.solution
    return nearest(wrong.completion, wrong.right, tokenizer)


def rewriting(rewriter: Rewriter, wrong: Wrong, completion_ids: Sequence[int]) -> Tokenized:
    """Return the rewriter's prompt, with the wrong completion in place of the rewrite.

    Raises `UserError` if there is no right solution to show.
    """
    right = shown_solution(wrong, rewriter.tokenizer)
    if right is None:
        raise UserError(
            f"prompt {wrong.prompt_id}: scorer `rewriter` shows the right solution, but the prompt has no "
            "`solution` and no right sample. Choose another score.scorer."
        )
    ids = prompt_ids(
        rewriter.tokenizer,
        ask_for_rewrite(wrong.prompt, right=right, completion=wrong.completion),
        template=wrong.template,
        place=f"scorer `rewriter`: prompt {wrong.prompt_id}",
    )
    room = rewriter.max_length - len(completion_ids)
    return Tokenized(cut_left(rewriter.tokenizer, ids, room), list(completion_ids))
