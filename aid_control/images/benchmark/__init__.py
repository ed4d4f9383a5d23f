"""Methods x masks x noise levels x images: one table, whatever computed it.

The grid is cut into shards (:mod:`.grid`): one method at one number of steps under one kind of mask on some images.  A
shard is computed by one process (:mod:`.measure`), kept in one file whose name is a digest of all that determines it,
and never computed twice.  Processes (:mod:`.processes`) share the list by a rule, not by talking; when all are done the
first one puts the files together (:mod:`.table`, :mod:`.summary`, :mod:`.figures`).  :func:`.run.run` does all of it.
"""
