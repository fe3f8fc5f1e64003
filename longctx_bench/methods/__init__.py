"""Context-extension methods: one small class each."""
