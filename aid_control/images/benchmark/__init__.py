"""Methods x masks x noise levels x images: one table, whatever computed it.

The grid is cut into shards (`grid`): one method at one number of steps under one kind of mask on some images.  A
shard is computed by one process (`measure`), kept in one file whose name is a digest of all that determines it,
and never computed twice.  Processes (`processes`) share the list by a rule, not by talking; when all are done the
first one puts the files together (`table`, `summary`, `figures`).  `run.run` does all of it.
"""
