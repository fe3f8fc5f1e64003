"""Tasks of one's own: the YAML files beside this one."""
