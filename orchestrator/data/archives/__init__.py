"""Reads archives and folders of images.

`read` returns names and contents, `listing` lists and checks the names, `checks` holds the limits,
`tar_members`, `zip_member` and `zip_names` know the formats, `file_kinds` recognizes other files.
"""
