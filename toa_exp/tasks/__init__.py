"""Tasks: problems, prompts and scoring. One file a kind of task, one YAML a task."""
