"""What is measured inside a model or a method rather than on a task: for figures, as JSON."""
