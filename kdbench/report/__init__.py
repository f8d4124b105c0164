"""Records in, tables out: one table model, several renderers."""
