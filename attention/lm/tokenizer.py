# SPDX-License-Identifier: Apache-2.0
"""Text to ids and back, and the chat formats of Qwen and Llama 3.

Two tokenizers of one small interface (`Tokenizer`): characters, which needs nothing, and those of
the `tokenizers` library: any tokenizer.json, or byte-level BPE trained in process.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class Tokenizer(Protocol):
    """What systems use of a tokenizer."""

    @property
    def vocab_size(self) -> int:
        """Number of ids; ids are 0 .. vocab_size - 1."""
        ...

    def encode(self, text: str) -> list[int]:
        """Ids of a text."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids."""
        ...

    def token_id(self, token: str) -> int | None:
        """Id of one token by its name, e.g. "<|im_end|>", None where there is none."""
        ...

    def to_json(self) -> str:
        """All of it as a string; `from_json` reads it."""
        ...


class CharTokenizer:
    """One id per character, in the order of code points."""

    def __init__(self, characters: Iterable[str]) -> None:
        """Args: characters: of the vocabulary (a text will do); at least one."""
        self.characters = sorted(set("".join(characters)))
        if not self.characters:
            raise ValueError("characters: need at least one")
        self._ids = {character: number for number, character in enumerate(self.characters)}

    @property
    def vocab_size(self) -> int:
        return len(self.characters)

    def encode(self, text: str) -> list[int]:
        """Raises ValueError naming characters outside the vocabulary."""
        unknown = sorted(set(text) - set(self._ids))
        if unknown:
            raise ValueError(f"text has characters outside the vocabulary: {unknown[:8]}")
        return [self._ids[character] for character in text]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(self.characters[number] for number in ids)

    def token_id(self, token: str) -> int | None:
        return self._ids.get(token)

    def to_json(self) -> str:
        return json.dumps({"type": "char", "characters": "".join(self.characters)})


class BPETokenizer:
    """A tokenizer of the `tokenizers` library."""

    def __init__(self, inner: Any) -> None:
        """Args: inner: a `tokenizers.Tokenizer`."""
        self.inner = inner

    @property
    def vocab_size(self) -> int:
        return self.inner.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str) -> list[int]:
        """Names of special tokens in the text become those tokens; nothing else is added."""
        return self.inner.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        """Special tokens are kept, so that encode(decode(ids)) can give ids back."""
        return self.inner.decode([int(number) for number in ids], skip_special_tokens=False)

    def token_id(self, token: str) -> int | None:
        return self.inner.token_to_id(token)

    def to_json(self) -> str:
        return self.inner.to_str()


def train_bpe(
    texts: Iterable[str], vocab_size: int, special_tokens: Sequence[str] = ()
) -> BPETokenizer:
    """Byte-level BPE learned from texts: every string can be encoded, and decodes to itself.

    Args:
        vocab_size: at most; 256 bytes and the special tokens are always in it. Few texts give
            fewer merges.
        special_tokens: get the first ids, in this order.

    Raises:
        ValueError: vocab_size below 256 + special tokens.
        ImportError: tokenizers is not installed.
    """
    if vocab_size < 256 + len(special_tokens):
        raise ValueError(f"vocab_size={vocab_size}: at least {256 + len(special_tokens)}")
    library = _library()
    from tokenizers import decoders, models, pre_tokenizers, trainers

    inner = library.Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(special_tokens),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(texts, trainer)
    return BPETokenizer(inner)


def load(path: str | Path) -> BPETokenizer:
    """Tokenizer of a tokenizer.json.

    Raises:
        ValueError: no such file.
        ImportError: tokenizers is not installed.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    return BPETokenizer(_library().Tokenizer.from_file(str(path)))


def from_json(text: str) -> CharTokenizer | BPETokenizer:
    """Tokenizer of the string that `to_json` gave."""
    content = json.loads(text)
    if content.get("type") == "char":
        return CharTokenizer(content["characters"])
    return BPETokenizer(_library().Tokenizer.from_str(text))


def _library() -> Any:
    try:
        import tokenizers
    except ImportError as error:
        raise ImportError("BPE needs tokenizers: pip install 'banyan-stack[lm]'") from error
    return tokenizers


def chatml(messages: Sequence[Mapping[str, str]], *, generation: bool = True) -> str:
    """Conversation in ChatML, the format of Qwen.

    Args:
        messages: {"role": ..., "content": ...} each, role system, user, assistant or tool. No
            system message is made up where there is none, unlike some published templates.
        generation: end with the header of the assistant's turn.
    """
    turns = [f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in messages]
    return "".join(turns) + ("<|im_start|>assistant\n" if generation else "")


def llama3_chat(messages: Sequence[Mapping[str, str]], *, generation: bool = True) -> str:
    """Conversation in the header format of Llama 3, with <|begin_of_text|> in front.

    Arguments are those of `chatml`; contents are stripped, as the published template does.
    """

    def header(role: str) -> str:
        return f"<|start_header_id|>{role}<|end_header_id|>\n\n"

    turns = [f"{header(m['role'])}{m['content'].strip()}<|eot_id|>" for m in messages]
    return "<|begin_of_text|>" + "".join(turns) + (header("assistant") if generation else "")
