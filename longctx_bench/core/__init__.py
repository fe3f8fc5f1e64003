"""Shared foundations: types, specs, errors, files, data sources, plug-in loading. Imports no other subpackage."""
