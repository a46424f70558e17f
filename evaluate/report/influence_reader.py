"""What directions do to classes, read from the tables of an evaluation: arrays, never a row at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from evaluate.dictionary import kinds_of
from evaluate.report.report_data import Push, Steer
from stores.tables import column_problem, reading_table

READ = ("directions", "index", "role", "alpha", "class", "probability_change", "significant")
MOST_ROWS = 10**9
ROWS = 2**16  # of the table at a time
ROLES = ("signal", "filter")


@dataclass(frozen=True)
class Pushes:
    """Of one role at one step, I directions on K classes: mean change of probability (I, K) float32, and whether the pair is significant (I, K)."""

    change: np.ndarray
    significant: np.ndarray

    def push(self, i: int, k: int, other: int) -> Push:
        """One of them as a page shows it; ``other`` is the class or the direction at its other end."""
        return Push(other, float(self.change[i, k]), bool(self.significant[i, k]))

    def of_direction(self, i: int, most: int) -> list[Push]:
        """The classes that direction ``i`` pushes up most and then those it pushes down most, largest change first."""
        return [self.push(i, k, k) for k in _ends(self.change[i], most)]

    def of_class(self, k: int, most: int) -> list[Push]:
        """The directions that push class ``k`` up most and then those that push it down most: its concept influence diagram."""
        return [self.push(i, k, i) for i in _ends(self.change[:, k], most)]

    def strongest(self, i: int, most: int) -> list[Push]:
        """Of the classes that direction ``i`` moves significantly those that it moves most, largest change first."""
        known = np.flatnonzero(self.significant[i])
        order = np.argsort(-np.abs(self.change[i, known]), kind="stable")
        return [self.push(i, int(k), int(k)) for k in known[order[:most]]]

    def extremes(self, k: int) -> tuple[Push | None, Push | None]:
        """Of the directions that move class ``k`` significantly the one that raises it most and the one that lowers it most."""
        change = np.where(self.significant[:, k], self.change[:, k], 0)
        up, down = int(change.argmax()), int(change.argmin())
        return (
            self.push(up, k, up) if change[up] > 0 else None,
            self.push(down, k, down) if change[down] < 0 else None,
        )

    def moved(self, i: int) -> tuple[list[int], list[int]]:
        """Classes that direction ``i`` pushes up, and down, significantly."""
        known = self.significant[i]
        return np.flatnonzero(known & (self.change[i] > 0)).tolist(), np.flatnonzero(
            known & (self.change[i] < 0)
        ).tolist()


def _ends(change: np.ndarray, most: int) -> list[int]:
    order = np.argsort(-change, kind="stable")
    up = [int(k) for k in order[:most] if change[k] > 0]
    return up + [int(k) for k in order[::-1][:most] if change[k] < 0]


def read_pushes(path: Path, name: str, alpha: float, directions: int, classes: int) -> dict[str, Pushes]:
    """Read one set's rows of ``influence.parquet`` at one step, by role.

    The table may have millions of rows: row groups of other steps or sets are skipped by their statistics, the others come in
    pieces of a few columns. Raises TableError for a table that is damaged or about other numbers of directions or classes.
    """
    found = {
        role: Pushes(np.zeros((directions, classes), np.float32), np.zeros((directions, classes), bool))
        for role in ROLES
    }
    with reading_table(path):
        if problem := column_problem(pq.read_schema(path), kinds_of("influence", READ)):
            raise ValueError(problem)
        file = pq.ParquetFile(path, read_dictionary=["directions", "role"])
        if file.metadata.num_rows > MOST_ROWS:
            raise ValueError(f"it has {file.metadata.num_rows} rows")
        groups = [g for g in range(file.num_row_groups) if _may_hold(file.metadata.row_group(g), name, alpha)]
        for batch in file.iter_batches(batch_size=ROWS, row_groups=groups, columns=list(READ)):
            table = pa.Table.from_batches([batch])
            table = table.filter(pc.and_(pc.equal(table["directions"], name), pc.equal(table["alpha"], alpha)))
            for role, pushes in found.items():
                mine = table.filter(pc.equal(table["role"], role))
                at = mine["index"].to_numpy(), mine["class"].to_numpy()
                change = mine["probability_change"].to_numpy().astype(np.float32)
                if not np.isfinite(change).all() or any((part < 0).any() for part in at):
                    raise ValueError("it holds negative indices or infinite changes")
                pushes.change[at] = change
                pushes.significant[at] = mine["significant"].to_numpy()
    return found


def _may_hold(group: pq.RowGroupMetaData, name: str, alpha: float) -> bool:
    """Whether a row group's statistics allow rows of this set and step; without statistics they do."""
    wanted = {"directions": name, "alpha": alpha}
    for c in range(group.num_columns):
        column = group.column(c)
        value, known = wanted.get(column.path_in_schema), column.statistics
        if value is not None and known is not None and known.has_min_max and not known.min <= value <= known.max:
            return False
    return True


def read_steering(table: pa.Table, directions: int) -> tuple[list[Steer | None], Steer | None]:
    """Curves from one set's rows of the table ``steering``: of each direction, and of random directions the quartiles.

    All curves are of the probability gained since α = 0; those of a direction by role, ``signal`` and ``filter``; the random
    ones as ``low``, ``middle`` and ``high``. None where the table has no rows of it.
    """
    keys, values = ("role", "index"), ("alpha", "probability", "class", "monotone_up_to")
    ordered = table.sort_by([(key, "ascending") for key in (*keys, "alpha")])
    grouped = ordered.group_by(keys, use_threads=False).aggregate([(value, "list") for value in values])
    each: list[Steer | None] = [None] * directions
    chance = []
    for role, index, *lists in zip(*(grouped[name].to_pylist() for name in grouped.column_names), strict=True):
        alphas, probability, classes, monotone = lists
        gained = [p - probability[0] for p in probability]
        if role not in ROLES:
            chance.append((alphas, gained, monotone[0]))
        elif index < directions:
            one = each[index] or Steer(classes[0], alphas, {}, {})
            one.curves[role], one.monotone[role] = gained, monotone[0]
            each[index] = one
    if not chance:
        return each, None
    bands = np.quantile([gained for _, gained, _ in chance], [0.25, 0.5, 0.75], axis=0)
    middle = float(np.median([monotone for *_, monotone in chance]))
    band = dict(zip(("low", "middle", "high"), bands.tolist(), strict=True))
    return each, Steer(-1, chance[0][0], band, {"random": middle})


def median_steering(curves: Sequence[Steer | None]) -> Steer | None:
    """The median of all directions' curves at each step, each direction's of its own class; None without any."""
    known = [curve for curve in curves if curve is not None]
    if not known:
        return None
    of_role = {role: [c for c in known if role in c.curves] for role in ROLES}
    return Steer(
        -1,
        known[0].alphas,
        {role: np.median([c.curves[role] for c in some], axis=0).tolist() for role, some in of_role.items() if some},
        {role: float(np.median([c.monotone[role] for c in some])) for role, some in of_role.items() if some},
    )
