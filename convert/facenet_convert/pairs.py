"""Pairs of faces that are one person's or not: the LFW verification protocol, as far as a gate needs it.

Huang et al., "Labeled Faces in the Wild" (2007), view 2; davidsandberg/facenet's ``lfw.py`` on plain squared L2.
``facenet evaluate lfw`` runs the whole of it.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from facenet_convert.crops import SUFFIXES
from facenet_convert.errors import SourceError

Vectors = NDArray[np.float64]  # (n_images, dimension), of unit length

THRESHOLDS = np.arange(0, 4, 0.01)  # squared L2


class Pairs(NamedTuple):
    """Crops with their people, (n_images,), and pairs of their indices, (n_pairs,) each."""

    files: list[Path]
    people: NDArray[np.str_]
    a: NDArray[np.intp]
    b: NDArray[np.intp]
    same: NDArray[np.bool_]
    folds: NDArray[np.intp]
    n_missing: int

    def distances(self, of_a: Vectors, of_b: Vectors) -> NDArray[np.float64]:
        """L2 of each pair, its sides embedded by one network or by two, (n_pairs,)."""
        return np.asarray(np.linalg.norm(of_a[self.a] - of_b[self.b], axis=1))


def read(path: Path, folder: Path) -> Pairs:
    """The pairs of an official file whose crops are in the folder, as FOLDER/name/name_0001.png.

    Raises SourceError where the file is none, or too few crops are there.
    """
    try:
        header, *lines = path.read_text(encoding="utf-8").splitlines()
        n_folds = int(header.split()[0])
        sides = [_sides(line.split()) for line in lines if line.strip()]
    except (OSError, ValueError, IndexError) as error:
        raise SourceError(f"{path} is no pairs.txt of LFW: {error}") from error
    found = {name: _find(folder, name) for pair in sides for name in pair}
    there = np.array([None not in (found[a], found[b]) for a, b in sides], bool)
    folds = np.arange(len(sides)) * n_folds // max(len(sides), 1)
    if len(np.unique(folds[there])) < 2:
        raise SourceError(
            f"{int(there.sum())} of the {len(sides)} pairs of {path} have their crops in {folder}: make them of the "
            "same data set with `facenet align`, which keeps the names"
        )
    kept = [pair for pair, is_there in zip(sides, there, strict=True) if is_there]
    names = sorted({name for pair in kept for name in pair})
    at = {name: index for index, name in enumerate(names)}
    a, b = (np.array([at[pair[side]] for pair in kept]) for side in (0, 1))
    people = np.array([name.partition("/")[0] for name in names])
    files = [file for name in names if (file := found[name])]
    return Pairs(files, people, a, b, people[a] == people[b], folds[there], int((~there).sum()))


def accuracy(pairs: Pairs, vectors: Vectors) -> float:
    """The mean over the folds: on each, the threshold that was best on the others."""
    accepted = np.square(pairs.distances(vectors, vectors))[:, None] < THRESHOLDS  # (n_pairs, n_thresholds)
    hits = accepted == pairs.same[:, None]
    results = []
    for fold in np.unique(pairs.folds):
        test = pairs.folds == fold
        best = hits[~test].mean(axis=0).argmax()
        results.append(hits[test, best].mean())
    return float(np.mean(results))


def _sides(fields: list[str]) -> tuple[str, str]:
    if len(fields) == 3:
        return _image(fields[0], fields[1]), _image(fields[0], fields[2])
    name, number, other, other_number = fields
    return _image(name, number), _image(other, other_number)


def _image(name: str, number: str) -> str:
    return f"{name}/{name}_{int(number):04d}"


def _find(folder: Path, name: str) -> Path | None:
    return next((path for suffix in SUFFIXES if (path := folder / f"{name}{suffix}").exists()), None)
