"""Layers trained along with the student that carry its features to the teachers', and are thrown away afterwards."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from plait.amalgamation.objective import OBJECTIVES


def build(
    objective: str, student_width: int, student_layers: int, teacher_widths: Sequence[int]
) -> nn.Module | None:
    """Returns the adapters that an objective trains, or None where it has none.

    Their first weights come from torch's global random numbers: seed those for a repeatable run.

    Args:
        objective: a name in `OBJECTIVES`.
        student_width: the width of the student's hidden states and features.
        student_layers: the number of the student's layers, the embeddings not counted.
        teacher_widths: the width of each teacher.
    """
    maker = OBJECTIVES[objective].facts.get("adapters")
    if maker is None:
        return None
    made: nn.Module = maker(student_width, student_layers, teacher_widths)
    return made


def same_depth(student_layers: int, teacher_layers: int) -> list[int]:
    """Returns, for each layer 1 … L of the student, the teacher's layer at the same relative depth.

    m = round(l · L_i / L), half up, and at least 1: 0 is the embeddings.
    """
    steps = range(1, student_layers + 1)
    return [max(1, (2 * layer * teacher_layers + student_layers) // (2 * student_layers)) for layer in steps]


class Alignment(nn.Module):
    """One linear map per teacher and layer of the student, from the student's width to the teacher's."""

    def __init__(self, student_width: int, student_layers: int, teacher_widths: Sequence[int]) -> None:
        """Makes the maps; how deep the teachers are does not matter to them."""
        super().__init__()
        self.maps = nn.ModuleList(
            nn.ModuleList(nn.Linear(student_width, width) for _ in range(student_layers))
            for width in teacher_widths
        )

    def forward(self, layers: Tensor) -> list[Tensor]:
        """Returns, per teacher, the student's layers [b, L, d] as [b, L, d_i]."""
        return [
            torch.stack([one(layers[:, at]) for at, one in enumerate(maps.children())], 1)
            for maps in self.maps
        ]


class CommonSpace(nn.Module):
    """Projections of the student's and the teachers' features into a space they share, and the teachers' way back."""

    def __init__(self, student_width: int, student_layers: int, teacher_widths: Sequence[int]) -> None:
        """Makes a space of a quarter of the student's width; depths do not matter to it."""
        super().__init__()
        del student_layers
        width = max(student_width // 4, 8)
        self.student = nn.Sequential(nn.Linear(student_width, width), nn.ReLU())
        self.teachers = nn.ModuleList(
            nn.Sequential(nn.Linear(theirs, width), nn.ReLU()) for theirs in teacher_widths
        )
        self.shared = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))
        self.back = nn.ModuleList(
            nn.Sequential(nn.Linear(width, theirs), nn.ReLU(), nn.Linear(theirs, theirs))
            for theirs in teacher_widths
        )

    def forward(
        self, student: Tensor, teachers: Sequence[Tensor]
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Returns the student's features in the space, each teacher's there, and each teacher's rebuilt from there."""
        projected = [
            self.shared(project(features)) for project, features in zip(self.teachers, teachers, strict=True)
        ]
        rebuilt = [back(point) for back, point in zip(self.back, projected, strict=True)]
        return self.shared(self.student(student)), projected, rebuilt
