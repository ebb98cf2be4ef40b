"""Sentences as vectors: what a model with `task_conditioning=text` reads in place of the index of a task.

    "Pull the drawer open." ──► words ──► pieces, hashed ──► table ──► transformer ──► vector of the sentence

A word is hashed whole and by its parts of three letters, so that a word which training never had still has pieces, most
of them known from similar words. The table and the transformer are trained with the model. A frozen encoder of the
user's own can take their place: a function from sentences to vectors.

The index of a task only says which sentence is meant; the networks get nothing but the vector of the sentence.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from zlib import crc32

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rewards.errors import UserError, blamed
from rewards.plugins import load
from world_model.spec import Spec
from world_model.wam.config import TextConfig

Encode = Callable[[Sequence[str]], Tensor]
"""A frozen encoder: sentences -> vectors (n, dim)."""

MAX_WORDS = 32
"""Words of a sentence that are read; the rest is cut off."""

PIECE = 3
"""Letters in a part of a word, with the marks for its beginning and end (as in fastText, Bojanowski et al. 2017)."""

MAX_PIECES = 24
"""Pieces of a word that are read; the rest is cut off."""


def words_of(sentence: str) -> list[str]:
    """Return the words of a sentence in lower case, without punctuation, `MAX_WORDS` at most."""
    return re.findall(r"[^\W_]+", sentence.lower())[:MAX_WORDS]


def pieces_of(word: str, n_buckets: int) -> list[int]:
    """Return the rows of a table of `n_buckets` for a word: of itself, then of its parts. Row 0 is for padding."""
    marked = f"<{word}>"
    parts = [marked[i : i + PIECE] for i in range(len(marked) - PIECE + 1)]
    return [1 + crc32(piece.encode()) % (n_buckets - 1) for piece in (f"={word}", *parts)][:MAX_PIECES]


def sentences_of(spec: Spec) -> tuple[list[str], list[tuple[int, int]]]:
    """Return all sentences of a spec, and for each task where its further wordings are: the first row, and how many.

    The sentences are one for each task, then the empty one, then the wordings: those that differ from it.
    """
    rows, places = [spec.instruction(task) for task in spec.tasks], []
    rows.append("")
    for task in spec.tasks:
        others = [text for text in dict.fromkeys(spec.wordings.get(task, ())) if text != spec.instruction(task)]
        places.append((len(rows), len(others)))
        rows += others
    return rows, [*places, (0, 0)]


class Sentences(nn.Module, ABC):
    """The sentences of a model's tasks as vectors (., dim). Subclasses say how; `tell` sets other sentences.

    A row is the number of a sentence, see `sentences_of`: the index of a task is the row of its instruction, the number
    of tasks that of the empty sentence.
    """

    dim: int

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        self.rows: list[str] = []
        self.set_rows(spec)

    def set_rows(self, spec: Spec) -> None:
        """List the sentences of a spec, and where the wordings of each task are."""
        self.rows, places = sentences_of(spec)
        device = getattr(self, "wordings", torch.empty(0)).device
        self.register_buffer("wordings", torch.tensor(places, device=device), persistent=False)
        self.wordings: Tensor  # (n_tasks + 1, 2)

    @abstractmethod
    def tell(self, spec: Spec, encode: Encode | None = None) -> None:
        """Replace the sentences by those of `spec`; `encode` is the frozen encoder, if the model has one."""

    @abstractmethod
    def read(self, sentence: str, encode: Encode | None = None) -> Tensor:
        """Return the vector (1, dim) of any sentence: the one that it would have after `tell`. Nothing is kept."""

    def fixed(self) -> nn.Embedding:
        """Return the vectors of all rows as a table, for a graph that is exported."""
        with torch.no_grad():
            return nn.Embedding.from_pretrained(self(torch.arange(len(self.rows), device=self.wordings.device)).clone())

    def reworded(self, task: Tensor, generator: torch.Generator) -> Tensor:
        """Return for tasks (n,) rows (n,), drawn uniformly from the instruction of each and its further wordings."""
        first, n = self.wordings[task].unbind(1)
        drawn = torch.rand(len(task), generator=generator, device=generator.device)
        choice = (drawn * (n + 1)).long().minimum(n)
        return torch.where(choice == 0, task, first + choice - 1)


class OwnSentences(Sentences):
    """Sentences read by a small transformer, which is trained with the model.

    Outside training each sentence is encoded once, and alone: its vector then does not depend on the other sentences,
    to the bit.
    """

    def __init__(self, config: TextConfig, spec: Spec) -> None:
        super().__init__(spec)
        self.n_buckets, self.dim = config.n_buckets, config.width
        self.table = nn.Embedding(config.n_buckets, config.width, padding_idx=0)
        self.summary = nn.Parameter(0.02 * torch.randn(config.width))  # read before the words; its output is the result
        self.position = nn.Parameter(0.02 * torch.randn(1 + MAX_WORDS, config.width))
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                config.width,
                config.n_heads,
                2 * config.width,
                dropout=0.0,
                activation="gelu",
                batch_first=True,
                norm_first=True,
            )
            for _ in range(config.n_layers)
        )
        self.norm = nn.LayerNorm(config.width)
        self._kept: tuple[object, Tensor] | None = None  # vectors of all rows, and the weights that they were made with
        self._tokenise()
        self.train(self.training)

    def train(self, mode: bool = True) -> OwnSentences:
        """Set the mode. The layers stay out of training mode, as nothing in them depends on it but the kernel.

        With another kernel the vectors would differ in their last bits, and a resumed run from one that was not.
        """
        super().train(mode)
        self.layers.eval()
        return self

    def tell(self, spec: Spec, encode: Encode | None = None) -> None:
        """Replace the sentences by those of `spec`."""
        self.set_rows(spec)
        self._tokenise()

    def read(self, sentence: str, encode: Encode | None = None) -> Tensor:
        """Return the vector (1, dim) of any sentence; see `Sentences.read`."""
        device = self.wordings.device
        pieces = [torch.tensor(pieces_of(word, self.n_buckets), device=device) for word in words_of(sentence)]
        with torch.no_grad():
            return self._alone(pieces)

    def forward(self, rows: Tensor) -> Tensor:
        """Return the vectors (n, dim) of rows (n,)."""
        if self.training and torch.is_grad_enabled() and self.summary.requires_grad:
            different, place = rows.unique(return_inverse=True)
            return self._encode(different)[place]
        return self._vectors()[rows]

    def _tokenise(self) -> None:
        """Hash the sentences: `pieces` (n_words, .) of each different word, and `words` (n_sentences, .) of each row.

        Word 0 is padding, as is bucket 0.
        """
        device = self.wordings.device
        split = [words_of(sentence) for sentence in self.rows]
        known = {word: i for i, word in enumerate(dict.fromkeys(w for words in split for w in words), start=1)}
        pieces = [[0], *(pieces_of(word, self.n_buckets) for word in known)]
        words = [[known[word] for word in of] for of in split]
        for name, rows in (("pieces", pieces), ("words", words)):
            longest = max(map(len, rows))
            padded = torch.tensor([row + [0] * (longest - len(row)) for row in rows], dtype=torch.long, device=device)
            self.register_buffer(name, padded, persistent=False)
        self.pieces: Tensor
        self.words: Tensor
        self._kept = None

    def _encode(self, rows: Tensor) -> Tensor:
        """Encode rows (n,) together. Shape: (n, dim)."""
        words = self.words[rows]
        # 1. A word is the mean of its pieces.
        n_pieces = (self.pieces != 0).sum(1, keepdim=True).clamp(min=1)
        of_word = self.table(self.pieces).sum(1) / n_pieces
        # 2. The summary token, then the words; padding is hidden from attention.
        summary = self.summary.expand(len(words), 1, -1)
        x = torch.cat([summary, of_word[words]], dim=1) + self.position[: 1 + words.shape[1]]
        hidden = F.pad(words == 0, (1, 0), value=False)
        for layer in self.layers:
            x = layer(x, src_key_padding_mask=hidden)
        vector: Tensor = self.norm(x[:, 0])
        return vector

    def _vectors(self) -> Tensor:
        """Return the vectors of all rows (n_sentences, dim), which are kept until the weights change."""
        weights = tuple((w.data_ptr(), 0 if w.is_inference() else w._version) for w in self.parameters())
        if self._kept is None or self._kept[0] != weights:
            # Not in inference mode: training may need these vectors later.
            with torch.inference_mode(False), torch.no_grad():
                self._kept = weights, torch.cat([self._alone(self._pieces_in(row)) for row in range(len(self.rows))])
        return self._kept[1]

    def _pieces_in(self, row: int) -> list[Tensor]:
        """Return the pieces of each word of a row, without padding."""
        pieces = self.pieces[self.words[row]]
        return [of[of != 0] for of in pieces if of.any()]

    def _alone(self, pieces: list[Tensor]) -> Tensor:
        """Encode one sentence, given by the pieces of its words, as if it were the only one. Shape: (1, dim)."""
        x = (self.summary + self.position[0])[None]
        if pieces:
            of_word = torch.stack([self.table(of).sum(0) / len(of) for of in pieces])
            x = torch.cat([x, of_word + self.position[1 : 1 + len(pieces)]])
        for layer in self.layers:
            x = layer(x[None])[0]
        vector: Tensor = self.norm(x[:1])
        return vector


class FrozenSentences(Sentences):
    """Sentences read by a frozen encoder of the user's own; the model has their vectors, and not the encoder.

    So a checkpoint acts without the encoder, which only new sentences need. Vectors are normalised (layer norm); that
    of the empty sentence is zero.
    """

    def __init__(self, config: TextConfig, spec: Spec) -> None:
        super().__init__(spec)
        self.encoder, self.dim = config.encoder, config.dim
        if self.dim < 1:
            raise UserError(f"model.text.dim={self.dim}: expected the length of the vectors of {config.encoder}")
        self.register_buffer("vectors", torch.zeros(len(self.rows), self.dim))
        self.vectors: Tensor

    def tell(self, spec: Spec, encode: Encode | None = None) -> None:
        """Replace the sentences by those of `spec`; those that are known keep their vectors, `encode` makes the others.

        Raises:
            UserError: a sentence is new, and there is no `encode`; or it returns something else than vectors.
        """
        texts, _ = sentences_of(spec)
        known = {text: vector for text, vector in zip(self.rows, self.vectors, strict=True) if vector.any()}
        new = [text for text in dict.fromkeys(texts) if text and text not in known]
        if new:  # before anything is changed, as this can fail
            known |= dict(zip(new, self._made(new, encode).to(self.vectors.device), strict=True))
        nothing = self.vectors.new_zeros(self.dim)
        self.vectors = torch.stack([known[text] if text else nothing for text in texts])
        self.set_rows(spec)

    def read(self, sentence: str, encode: Encode | None = None) -> Tensor:
        """Return the vector (1, dim) of any sentence; see `Sentences.read`.

        Raises:
            UserError: as for `tell`.
        """
        if not sentence:
            return self.vectors.new_zeros(1, self.dim)
        if sentence in self.rows:
            return self.vectors[self.rows.index(sentence)][None]
        return self._made([sentence], encode).to(self.vectors.device)

    def forward(self, rows: Tensor) -> Tensor:
        """Return the vectors (n, dim) of rows (n,)."""
        return self.vectors[rows]

    def _made(self, texts: list[str], encode: Encode | None) -> Tensor:
        if encode is None:
            raise UserError(
                f"the sentence {texts[0]!r:.80} is new, and the checkpoint reads sentences with {self.encoder}; name "
                f"that with text_encoder={self.encoder}"
            )
        vectors = encoded_by(encode, texts, self.encoder)
        if vectors.shape[1] != self.dim:
            raise UserError(f"{self.encoder}: its vectors have length {vectors.shape[1]}, the model reads {self.dim}")
        return F.layer_norm(vectors, (self.dim,))


def make_sentences(config: TextConfig, spec: Spec) -> Sentences:
    """Return the module that reads the sentences of a spec as a config asks for."""
    return FrozenSentences(config, spec) if config.encoder else OwnSentences(config, spec)


def load_encoder(func: str, key: str = "model.text.encoder") -> Encode:
    """Return the frozen encoder that `func` names: FILE.py:function, module:function or an entry point.

    Raises:
        UserError: it cannot be found; `key` is the config key that names it.
    """
    return load("text_encoder", func, {}, key=key)


def encoded_by(encode: Encode, texts: Sequence[str], func: str) -> Tensor:
    """Return the vectors (n, dim) float32 of sentences by a frozen encoder; `func` is its name, for messages.

    Raises:
        UserError: it raises an exception, or returns something else than one finite vector for each sentence.
    """
    with blamed(f"model.text.encoder={func}", ""), torch.no_grad():
        vectors = torch.as_tensor(encode(list(texts))).detach().float().cpu()
    if vectors.dim() != 2 or len(vectors) != len(texts) or not vectors.isfinite().all():
        raise UserError(
            f"model.text.encoder={func}: it returned shape {list(vectors.shape)} for {len(texts)} sentences, expected "
            f"[{len(texts)}, dim] of finite numbers"
        )
    return vectors
