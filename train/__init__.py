"""How weights change: data, recipes, the loop, supernet training, retraining and evaluation.

This room imports `supernet` (and timm, torchvision), no other room of the project.
"""

from train.augment import AugmentConfig
from train.checkpoint import load_checkpoint, load_weights, save_checkpoint, save_weights
from train.data import DataConfig, ImageData, open_data, synthetic_data
from train.distillation import DistillationConfig
from train.evaluation import Accuracy, accuracy, accuracy_of_batches, refit_batchnorm
from train.loop import LossDiverged, Progress
from train.recipe import RecipeConfig
from train.retraining import RetrainConfig, initial_model, retrain
from train.splits import Batch, Split, batches, evaluation_batches
from train.supernet_training import SupernetConfig, train_supernet

__all__ = [
    "Accuracy",
    "AugmentConfig",
    "Batch",
    "DataConfig",
    "DistillationConfig",
    "ImageData",
    "LossDiverged",
    "Progress",
    "RecipeConfig",
    "RetrainConfig",
    "Split",
    "SupernetConfig",
    "accuracy",
    "accuracy_of_batches",
    "batches",
    "evaluation_batches",
    "initial_model",
    "load_checkpoint",
    "load_weights",
    "loss",
    "open_data",
    "refit_batchnorm",
    "retrain",
    "save_checkpoint",
    "save_weights",
    "synthetic_data",
    "train_supernet",
]
