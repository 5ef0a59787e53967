"""The project's own flow, and what of Prefect it stands on.

load.py         flows/pipeline.py of the project, loaded by its file
settings.py     settings of Prefect that are ours
server.py       the server that a user's commands share: found, started, replaced
server_process.py  its program; it ends by itself when idle
command.py      a command's flow run: begun, found, ended where its command was lost
stage_task.py   a stage as a Prefect task
artifacts.py    what stands on the flow run's page

Prefect takes seconds to import: load.py and command.py import it when they are called, the other
two are imported by ``ddlflow.flow_api`` alone, which flows/pipeline.py imports.
"""
