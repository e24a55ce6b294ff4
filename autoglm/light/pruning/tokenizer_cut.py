"""Cutting a tokenizer to some of its tokens: a smaller ordinary tokenizer with new ids, in the old order.

Works on the ``tokenizer.json`` of the tokenizers library (BPE, WordPiece, WordLevel, Unigram). What a text is split
into does not change as long as its tokens are kept: of a BPE the merges that lead to kept tokens stay, in their order,
and with them the tokens between, so that every merge that was applied still is. Text whose tokens went falls back to
shorter ones, and to the unknown token where not even its characters were kept.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from fedglm.autoglm.light.pruning.errors import PruningError

UNKNOWN = "<unk>"
"""Token for what no kept token spells, where the tokenizer has none of its own."""


@dataclass(frozen=True, eq=False, kw_only=True)
class CutTokenizer:
    """A cut tokenizer.

    Attributes:
        tokenizer: The smaller tokenizer.
        kept: Old id of each new id, (tokens,), int64, increasing; -1 for an unknown token that was added at the end.
        unknown_id: New id of the unknown token; None where every text can be spelled without.
    """

    tokenizer: PreTrainedTokenizerFast
    kept: npt.NDArray[np.int64]
    unknown_id: int | None


def cut_tokenizer(tokenizer: PreTrainedTokenizerBase, used: Iterable[int], *, keep_alphabet: bool) -> CutTokenizer:
    """Cut a tokenizer to the used tokens and what it needs itself.

    Args:
        tokenizer: Tokenizer of the tokenizers library; it is unchanged.
        used: Ids to keep. Special and added tokens, and the tokens that lead to kept ones, stay as well.
        keep_alphabet: Whether all tokens of one character or byte stay, so that no text becomes unknown that was not.

    Raises:
        PruningError: The tokenizer is not of the tokenizers library, or its kind is not one of the four above.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise PruningError(f"{type(tokenizer).__name__} is not of the tokenizers library: its vocabulary cannot be cut")
    whole = json.loads(backend.to_str())
    model = whole["model"]
    if model["type"] not in ("BPE", "WordPiece", "WordLevel", "Unigram"):
        raise PruningError(f"the vocabulary of a tokenizer of type {model['type']} cannot be cut")
    ids: dict[str, int] = model["vocab"]
    if model["type"] == "Unigram":  # lists its tokens with their scores
        ids = {token: number for number, (token, _) in enumerate(model["vocab"])}
    names = {number: token for token, number in ids.items()}
    names |= {added["id"]: added["content"] for added in whole["added_tokens"]}
    keep = {names[number] for number in used if number in names}
    keep |= {added["content"] for added in whole["added_tokens"]}
    keep |= _alphabet(model, ids) if keep_alphabet else set()
    unknown = _unknown_token(model)
    keep |= {unknown} if unknown is not None else set()
    if model["type"] == "BPE":
        keep = _with_parts(keep, model["merges"])
    kept = np.array(sorted(number for number, token in names.items() if token in keep), dtype=np.int64)
    new_ids = {names[int(old)]: new for new, old in enumerate(kept)}
    if unknown is None and not keep_alphabet:
        unknown, new_ids[UNKNOWN] = UNKNOWN, len(kept)
        kept = np.append(kept, -1)
    _rewrite(whole, new_ids, unknown)
    cut = _wrap(tokenizer, Tokenizer.from_str(json.dumps(whole)), unknown)
    return CutTokenizer(tokenizer=cut, kept=kept, unknown_id=None if unknown is None else new_ids[unknown])


def _unknown_token(model: dict[str, Any]) -> str | None:
    if model["type"] == "Unigram":
        number = model.get("unk_id")
        return None if number is None else model["vocab"][number][0]
    token: str | None = model.get("unk_token")
    return token


def _alphabet(model: dict[str, Any], ids: dict[str, int]) -> set[str]:
    """Return the tokens that others are made of: those of one character, of one byte, or that no merge makes."""
    if model["type"] == "BPE":
        made = {"".join(_pair(merge)) for merge in model["merges"]}
        return {token for token in ids if token not in made}
    prefix = model.get("continuing_subword_prefix") or ""
    return {token for token in ids if len(token.removeprefix(prefix)) == 1 or _is_byte(token)}


def _is_byte(token: str) -> bool:
    return len(token) == 6 and token.startswith("<0x") and token.endswith(">")


def _pair(merge: str | list[str]) -> tuple[str, str]:
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right


def _with_parts(keep: set[str], merges: list[str | list[str]]) -> set[str]:
    """Return the tokens and all that a merge may make them of, down to single characters."""
    parts: dict[str, list[str]] = {}
    for merge in merges:
        pair = _pair(merge)
        parts.setdefault("".join(pair), []).extend(pair)
    found, waiting = set(keep), list(keep)
    while waiting:
        for part in parts.get(waiting.pop(), ()):
            if part not in found:
                found.add(part)
                waiting.append(part)
    return found


def _rewrite(whole: dict[str, Any], new_ids: dict[str, int], unknown: str | None) -> None:
    """Replace the vocabulary, and every id that a part of the ``tokenizer.json`` holds."""
    model = whole["model"]
    if model["type"] == "Unigram":
        scores = dict(map(tuple, model["vocab"]))
        model["vocab"] = [[token, scores[token]] for token in new_ids if token in scores]
        model["unk_id"] = None if unknown is None else new_ids[unknown]
        if [token for token, _ in model["vocab"]] != list(new_ids)[: len(model["vocab"])]:
            raise PruningError("the tokenizer has added tokens between those of its vocabulary, which cannot be cut")
    else:
        owned = {*model["vocab"], *({unknown} if unknown is not None else ())}
        model["vocab"] = {token: number for token, number in new_ids.items() if token in owned}
    if model["type"] == "BPE":
        model["unk_token"] = unknown
        pairs = map(_pair, model["merges"])
        model["merges"] = [list(pair) for pair in pairs if {*pair, "".join(pair)} <= new_ids.keys()]
    for added in whole["added_tokens"]:
        added["id"] = new_ids[added["content"]]
    if unknown == UNKNOWN and UNKNOWN not in {added["content"] for added in whole["added_tokens"]}:
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        whole["added_tokens"].append({"id": new_ids[UNKNOWN], "content": UNKNOWN, **flags, "special": True})
    if whole.get("padding"):
        whole["padding"]["pad_id"] = new_ids[whole["padding"]["pad_token"]]
    if whole.get("post_processor"):
        _rewrite_processor(whole["post_processor"], new_ids)


def _rewrite_processor(processor: dict[str, Any], new_ids: dict[str, int]) -> None:
    for part in processor.get("processors", ()):
        _rewrite_processor(part, new_ids)
    for name in ("sep", "cls"):  # BERT's and RoBERTa's: (token, id)
        if name in processor:
            processor[name] = [processor[name][0], new_ids[processor[name][0]]]
    special = processor.get("special_tokens", {})
    for entry in special.values() if isinstance(special, dict) else ():
        entry["ids"] = [new_ids[token] for token in entry["tokens"]]


def _wrap(old: PreTrainedTokenizerBase, backend: Tokenizer, unknown: str | None) -> PreTrainedTokenizerFast:
    """Make a transformers tokenizer with the old one's special tokens and habits."""
    options = dict(old.special_tokens_map)
    if unknown is not None:
        options["unk_token"] = unknown
    cut = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        **options,
        padding_side=old.padding_side,
        truncation_side=old.truncation_side,
        model_max_length=old.model_max_length,
        split_special_tokens=old.split_special_tokens,
        clean_up_tokenization_spaces=old.clean_up_tokenization_spaces,
    )
    cut.chat_template = old.chat_template
    return cut
