"""What everything else stands on: types, specs, errors, files, sources of data, plug-ins. It imports no other room."""
