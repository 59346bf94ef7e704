"""One running sweep command.

`arguments` reads the command line, `opening` creates or opens the ledger, `ray_start` starts or
joins Ray, and `driver` runs the sweep. What its parts share is in `context`. `measure` forecasts,
`display` shows the progress that `progress` reads and `screen` draws, `mlflow_thread` and
`cleanup_thread` work in the background, `outputs` writes the report and the best model, `summary`
prints plan and results, `signals` handles signals of the process.
"""
