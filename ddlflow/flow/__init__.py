"""The project's own flow, and what of Prefect it stands on.

load.py         flows/pipeline.py of the project, loaded by its file
command.py      a command's flow run: begun, found, ended where its command was lost
stage_task.py   a stage as a Prefect task
artifacts.py    what stands on the flow run's page

Prefect takes seconds to import: load.py and command.py import it when they are called, the other
two are imported by ``ddlflow.flow_api`` alone, which flows/pipeline.py imports.
"""
