"""Trains one configuration in plain PyTorch, without Ray, Optuna or MLflow."""
