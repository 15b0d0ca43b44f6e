"""Programs behind one scheduler's files in the stage folders: STAGE_SCHEDULER, `main` of each.

Where a scheduler needs no more than a stage's own `main`, it has none here.
"""
