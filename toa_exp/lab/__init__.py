"""The lab: tiny language models that are trained here, and the tasks in miniature they are made for."""
