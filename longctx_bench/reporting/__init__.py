"""Tables, statistics and figures; reads the result store alone."""
