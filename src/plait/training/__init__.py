"""Fine-tuning, and the loop that every objective shares."""

from plait.training.finetune import finetune
from plait.training.loop import Objective, Schedule, TaskLoss, train

__all__ = ["Objective", "Schedule", "TaskLoss", "finetune", "train"]
