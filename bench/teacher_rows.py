"""Real text and what a teacher says of it: documents of equal length, and the teacher's last hidden states.

Hidden states times the LM head give the teacher's dense logits again at any time, a few rows at once; they are a
hundred times smaller than the logits and kept on disk. Needed where a benchmark compares records with the dense truth.

Shape legend: D documents, L tokens of each, H hidden size, V vocabulary size, R rows (positions).
"""

import hashlib
import importlib
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from torch import Tensor

# Scripts see their own folder alone; the demonstration's corpus is a package beside it.
sys.path.append(str(Path(__file__).resolve().parent.parent))
from demo import corpus

LICENCES = ("/usr/share/common-licenses/*", "{stdlib}/LICENSE.txt", "{site}/*.dist-info/**/LICEN[SC]E*")


def code() -> Iterator[str]:
    """Sources of the standard library."""
    for path in sorted(corpus.module_files(), key=lambda path: corpus.digest(path.name)):
        yield path.read_text(encoding="utf-8")


def prose() -> Iterator[str]:
    """Chapters of the language reference, as `help()` shows them."""
    topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
    yield from (topics[name] for name in sorted(topics, key=corpus.digest))


def licences() -> Iterator[str]:
    """Licence texts on this machine, each once."""
    paths = sysconfig.get_paths()
    roots = [pattern.format(stdlib=paths["stdlib"], site=paths["purelib"]) for pattern in LICENCES]
    found = {path.read_text(errors="replace") for root in roots for path in Path("/").glob(root[1:]) if path.is_file()}
    yield from sorted(found, key=corpus.digest)


def mixed(*, held_out: bool) -> Iterator[str]:
    """The demonstration's corpus: docstrings and sources, held out by module."""
    yield from corpus.documents(held_out=held_out)


KINDS = {"code": code, "prose": prose, "licences": licences}


def documents(tokenizer: Any, texts: Iterable[str], *, count: int, length: int) -> NDArray[np.uint16]:
    """The first `count` pieces of exactly `length` tokens, uint16 [D, L]; no two are equal.

    Raises:
        ValueError: there is less text than that.
    """
    found: dict[bytes, NDArray[np.uint16]] = {}
    for text in texts:
        ids = np.array(tokenizer(text).input_ids, np.uint16)
        for start in range(0, len(ids) - length + 1, length):
            piece = ids[start : start + length]
            found.setdefault(piece.tobytes(), piece)
            if len(found) == count:
                return np.stack(list(found.values()))
    raise ValueError(f"expected {count} documents of {length} tokens, the text has {len(found)}")


@dataclass(frozen=True, kw_only=True)
class TeacherRows:
    """The teacher's dense rows of some documents, made again from hidden states."""

    ids_DL: NDArray[np.uint16]
    hidden_DPH: Tensor
    """Last hidden states, after the final norm, of positions 0..L-2; float32 [D, L - 1, H]."""
    head_VH: Tensor

    def logits(self, document: int) -> Tensor:
        """Dense logits of one document's positions, float32 [L - 1, V]."""
        return self.hidden_DPH[document] @ self.head_VH.T


@torch.inference_mode()
def teacher_rows(teacher: Path, ids_DL: NDArray[np.uint16], cache: Path) -> TeacherRows:
    """Run the teacher over documents, or read what an earlier run said of the same ones."""
    cache.mkdir(parents=True, exist_ok=True)
    kept = cache / f"{hashlib.sha256(teacher.name.encode() + ids_DL.tobytes()).hexdigest()[:16]}-{ids_DL.shape[1]}.npy"
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(teacher, dtype=torch.float32)
    head_VH = model.get_output_embeddings().weight.detach()
    if not kept.exists():
        states = []
        for number, ids_L in enumerate(ids_DL):
            ids_1L = torch.from_numpy(ids_L[None, :-1].astype(np.int64))
            states.append(model.get_decoder()(input_ids=ids_1L, use_cache=False).last_hidden_state[0].numpy())
            if number % 25 == 24:
                print(f"teacher: {number + 1} of {len(ids_DL)} documents", flush=True)
        np.save(kept.with_suffix(".part.npy"), np.stack(states))
        kept.with_suffix(".part.npy").rename(kept)
    return TeacherRows(ids_DL=ids_DL, hidden_DPH=torch.from_numpy(np.load(kept)), head_VH=head_VH)


def training_and_held_out(
    teacher: Path, tokenizer: Any, cache: Path, *, counts: tuple[int, int], length: int
) -> tuple[TeacherRows, TeacherRows]:
    """Rows of mixed text to train on, and of text that is held out.

    Args:
        teacher: its folder.
        tokenizer: the teacher's.
        cache: folder for what was computed before.
        counts: documents of the one and of the other.
        length: tokens of each document.
    """
    training, held = (
        teacher_rows(teacher, documents(tokenizer, mixed(held_out=held_out), count=count, length=length), cache)
        for held_out, count in zip((False, True), counts, strict=True)
    )
    return training, held
