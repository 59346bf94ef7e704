"""Classifies images with a trained model.

`find` finds the model of a sweep or MLflow run, `model` loads it, `picture` draws predictions,
`mlflow_model` saves it as an MLflow model.
"""
