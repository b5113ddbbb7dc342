"""Measures a checkpoint: `python -m model.training.evaluate checkpoints/chairs`.

What is measured is the `Completer` that is served. `tasks` lists what there is to measure, `inputs` makes
what is given and what is true, `methods` are ours and those beside it, `measuring` compares, `ledger` keeps
every measurement so that a stopped evaluation goes on, `summary` and `against` make figures of them, `sheets`
pictures, `report` the files.
"""
