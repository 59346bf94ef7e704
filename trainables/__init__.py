"""Trains one configuration in plain PyTorch; knows no Tune, Optuna or MLflow."""
