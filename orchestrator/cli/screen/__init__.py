"""How results look: formats, tables, the live view, pages written to disk. The only user of Rich beside app."""
