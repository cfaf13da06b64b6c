"""The commands: one app a file, over the YAMLs in conf/."""
