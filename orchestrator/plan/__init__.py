"""What a sweep will do, resolved before anything starts.

`options` are what the user asked for, `resolve` makes a `plan` of them, `resume` compares it with
an earlier one, `machines`, `disk`, `budget` and `forecast` say what fits and how long it takes.
"""
