"""The search space of a recorded ledger; see the README beside it."""

from search_spaces.space import Published, SearchSpace

SPACE = SearchSpace(
    dataset="digits",
    image_size=32,
    name="recipe",
    variants=("cnn2", "cnn3"),
    trials=2,
    base={"epochs": 3, "batch_size": 64, "optimizer": "adam", "lr": 0.002, "schedule": "constant"},
    source="A study of small networks (example)",
    published=(
        Published(
            label="Model 1",
            variant="cnn2",
            val_top1=0.91,
            test_top1=0.9,
            parameters=13070472,
            note="Parameters as published.",
        ),
        Published(label="Model 2", variant="cnn3", val_top1=0.95, loss=0.2, val_is_test=True),
        Published(label="Model of another paper", test_top1=0.97),
    ),
    recipe_notes=("The study does not state the batch size: 64 here.",),
)
