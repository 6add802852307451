"""Fine-tuning, and the loop that every objective shares."""

from plait.training.finetune import finetune
from plait.training.trainer import Evaluator, Objective, Schedule, TaskLoss, TrainingData, train

__all__ = ["Evaluator", "Objective", "Schedule", "TaskLoss", "TrainingData", "finetune", "train"]
